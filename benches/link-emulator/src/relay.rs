//! A UDP relay between real sockets.
