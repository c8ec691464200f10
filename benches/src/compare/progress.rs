//! How far the whole thing is, on standard error.

use std::time::{Duration, Instant};

/// Counts steps and guesses the rest from the time that those so far took.
pub(crate) struct Progress {
    start: Instant,
    done: usize,
    steps: usize,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        Self {
            start: Instant::now(),
            done: 0,
            steps,
        }
    }

    /// Says what is next.
    pub(crate) fn step(&mut self, what: &str) {
        let left = self.left().map_or_else(String::new, |left| {
            let seconds = left.as_secs();
            format!(", about {}:{:02} left", seconds / 60, seconds % 60)
        });
        self.done += 1;
        eprintln!("[{}/{}] {what}{left}", self.done, self.steps);
    }

    fn left(&self) -> Option<Duration> {
        let done = u32::try_from(self.done).ok().filter(|done| *done > 0)?;
        let each = self.start.elapsed() / done;
        Some(each * u32::try_from(self.steps - self.done).ok()?)
    }
}
