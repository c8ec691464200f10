//! Panics of a process, whoever catches them.

use std::panic;

/// Calls `note` at every panic of the process, and then what was called before. Once per process.
pub fn on_panic(note: impl Fn() + Send + Sync + 'static) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        note();
        before(info);
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    };

    use super::*;

    #[test]
    fn a_panic_that_somebody_catches_is_noted_and_printed() {
        let (noted, printed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let before = panic::take_hook();
        let print = Arc::clone(&printed);
        panic::set_hook(Box::new(move |info| {
            print.fetch_add(1, SeqCst);
            before(info);
        }));
        let note = Arc::clone(&noted);
        on_panic(move || {
            note.fetch_add(1, SeqCst);
        });
        for _ in 0..3 {
            let caught = panic::catch_unwind(|| panic!("on purpose"));
            assert!(caught.is_err());
        }
        // Tests beside this one may panic, too.
        assert!(noted.load(SeqCst) >= 3);
        assert!(printed.load(SeqCst) >= 3);
    }
}
