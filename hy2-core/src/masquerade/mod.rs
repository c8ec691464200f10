//! The ordinary web site that unauthenticated peers see.
