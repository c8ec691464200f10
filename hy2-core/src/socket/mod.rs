//! What sits under quinn: UDP sockets with batching, obfuscation, port hopping.
