//! The hot paths of hy2 as closures that do one thing per call.
//!
//! One list, [`cases`], is used three times: criterion times it (`cargo bench`), a test counts its
//! allocations (`benches/tests/allocations.rs`), and `scripts/instructions.sh` counts its
//! instructions. So what is timed is what is gated, and the same calls are made each time: clocks
//! are made up, and controllers draw nothing by chance.

mod congestion;
mod control;
pub mod counting;
mod obfuscation;
mod relay;
pub mod stack;
mod udp;
mod wire;

use std::fmt;

/// One thing that is measured.
pub struct Case {
    /// `group/what`.
    pub name: &'static str,
    /// Bytes that one call handles; 0 where bytes mean nothing.
    pub bytes: u64,
    /// Packets, messages or numbers that one call handles.
    pub items: u64,
    /// Most allocations of one call, on average, once it is warm.
    pub allocations: f64,
    /// Prepares it.
    pub make: fn() -> Box<dyn FnMut()>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Case {
    const fn new(name: &'static str, make: fn() -> Box<dyn FnMut()>) -> Self {
        Self {
            name,
            bytes: 0,
            items: 1,
            allocations: 0.0,
            make,
        }
    }

    const fn bytes(self, bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            ..self
        }
    }

    const fn items(self, items: u64) -> Self {
        Self { items, ..self }
    }

    const fn allocates(self, allocations: f64) -> Self {
        Self {
            allocations,
            ..self
        }
    }
}

/// Returns every case, in groups.
pub fn cases() -> Vec<Case> {
    let mut cases = wire::cases();
    cases.extend(obfuscation::cases());
    cases.extend(congestion::cases());
    cases.extend(relay::cases());
    cases.extend(udp::cases());
    cases.extend(control::cases());
    cases
}

/// Bytes that compress to nothing and repeat late.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}
