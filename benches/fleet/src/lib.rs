//! Empty: a package has to have a target beside its benches.
