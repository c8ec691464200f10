//! Whether anything leaked.

use std::fmt::Write as _;

use crate::watch::Reading;

/// The readings of the pauses, the first one being the baseline.
#[derive(Debug, Default)]
pub(crate) struct Verdict(Vec<Reading>);

/// Part of the readings that is left out of the slope: buffers and tables grow to their size.
const WARM_UP: f64 = 0.3;

/// Growth over the whole time that is not called growth, in KiB: pages that an allocator keeps.
const NOISE_KIB: f64 = 4096.0;

impl Verdict {
    pub(crate) fn baseline(&self) -> Option<&Reading> {
        self.0.first()
    }

    pub(crate) fn add(&mut self, reading: Reading) {
        self.0.push(reading);
    }

    /// Returns what to say, and whether all is well.
    pub(crate) fn judge(&self) -> (String, bool) {
        let mut text = String::new();
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else {
            return ("nothing was read".to_owned(), false);
        };
        let clean = last.no_more_than(first);
        let _ = writeln!(
            text,
            "left over at the end, against the first pause: {:+} tasks, {:+} descriptors, {} \
             connections, {} streams, {} UDP sessions, {} B reserved",
            last.tasks as i64 - first.tasks as i64,
            last.descriptors as i64 - first.descriptors as i64,
            last.connections,
            last.streams,
            last.udp_sessions,
            last.reserved
        );
        let skip = (self.0.len() as f64 * WARM_UP) as usize;
        let resident: Vec<f64> = self.0[skip..]
            .iter()
            .map(|reading| reading.resident_kib as f64)
            .collect();
        let Some((growth, error)) = growth(&resident) else {
            let _ = write!(text, "too few pauses to judge memory");
            return (text, clean);
        };
        let bar = (3.0 * error).max(NOISE_KIB);
        let _ = write!(
            text,
            "resident memory, last {} pauses: {:+.0} KiB in all by a straight line (±{:.0}), bar \
             {bar:.0}",
            resident.len(),
            growth,
            error
        );
        (text, clean && growth <= bar)
    }
}

/// Returns by how much a straight line through the values rises from the first to the last, and
/// the standard error of that; `None` below three values.
fn growth(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    if values.len() < 3 {
        return None;
    }
    let middle = (count - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / count;
    let at = |index: usize| index as f64 - middle;
    let spread: f64 = (0..values.len()).map(|index| at(index).powi(2)).sum();
    let slope = values
        .iter()
        .enumerate()
        .map(|(index, value)| at(index) * (value - mean))
        .sum::<f64>()
        / spread;
    let rest: f64 = values
        .iter()
        .enumerate()
        .map(|(index, value)| (value - mean - slope * at(index)).powi(2))
        .sum();
    let error = (rest / (count - 2.0) / spread).sqrt();
    Some((slope * (count - 1.0), error * (count - 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(resident_kib: u64, tasks: usize, descriptors: usize) -> Reading {
        Reading {
            resident_kib,
            tasks,
            descriptors,
            connections: 0,
            streams: 0,
            udp_sessions: 0,
            reserved: 0,
        }
    }

    fn judged(readings: impl Iterator<Item = Reading>) -> bool {
        let mut verdict = Verdict::default();
        readings.for_each(|reading| verdict.add(reading));
        verdict.judge().1
    }

    #[test]
    fn memory_that_goes_up_and_down_passes() {
        assert!(judged((0..40).map(|n| reading(
            50_000 + n % 7 * 900,
            9,
            20
        ))));
    }

    #[test]
    fn memory_that_only_grows_fails() {
        assert!(!judged((0..40).map(|n| reading(50_000 + n * 400, 9, 20))));
    }

    #[test]
    fn growth_before_it_is_warm_passes() {
        assert!(judged((0..40).map(|n| reading(
            50_000 + n.min(10) * 4_000,
            9,
            20
        ))));
    }

    #[test]
    fn one_task_or_one_descriptor_too_many_fails() {
        assert!(judged((0..9).map(|_| reading(50_000, 9, 20))));
        assert!(!judged((0..9).map(|n| reading(50_000, 9 + n / 8, 20))));
        assert!(!judged((0..9).map(|n| reading(50_000, 9, 20 + n / 8))));
    }
}
