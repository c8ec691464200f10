//! hy2 against the reference library, both ways.
//!
//! The reference runs in Go processes that `interop/build.sh` builds; `peer` drives them and
//! `driver` checks that driver against the reference alone. Without Go these tests fail.

mod cover;
mod driver;
mod peer;
