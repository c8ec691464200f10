//! Whether anything leaked.

use crate::{
    trend::Trend,
    watch::{COUNTS, Reading},
};

/// The readings of the pauses, the first one being the baseline.
#[derive(Debug, Default)]
pub(crate) struct Verdict(Vec<Reading>);

/// What is to be said at the end.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// The figures.
    pub(crate) lines: Vec<String>,
    /// One sentence for each thing that leaked.
    pub(crate) leaks: Vec<String>,
}

/// Part of the readings that is left out of the slope: buffers and tables grow to their size.
const WARM_UP: f64 = 0.3;

/// Growth of what is allocated over all judged pauses that is not called growth: tables that
/// double once more, and what the allocator keeps ready for each thread.
const HEAP_NOISE_KIB: f64 = 1024.0;

/// The same for resident memory: pages that the allocator does not give back.
const RESIDENT_NOISE_KIB: f64 = 4096.0;

impl Verdict {
    pub(crate) fn baseline(&self) -> Option<&Reading> {
        self.0.first()
    }

    pub(crate) fn last(&self) -> Option<&Reading> {
        self.0.last()
    }

    pub(crate) fn add(&mut self, reading: Reading) {
        self.0.push(reading);
    }

    pub(crate) fn judge(&self) -> Judgement {
        let mut judgement = Judgement::default();
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else {
            judgement.leaks.push("nothing was read".to_owned());
            return judgement;
        };
        judgement.counts(&self.0, first);
        judgement.last(first, last);
        let heap: Option<Vec<_>> = self.0.iter().map(|reading| reading.heap_kib).collect();
        if let Some(heap) = heap {
            judgement.memory("allocated", &heap, HEAP_NOISE_KIB);
        }
        let resident: Vec<_> = self.0.iter().map(|reading| reading.resident_kib).collect();
        judgement.memory("resident", &resident, RESIDENT_NOISE_KIB);
        judgement
    }
}

impl Judgement {
    /// Judges each pause: what is there too much for a while is too much as well.
    fn counts(&mut self, readings: &[Reading], first: &Reading) {
        for (at, (name, then)) in COUNTS.iter().zip(first.counts()).enumerate() {
            let counts = readings.iter().map(|reading| reading.counts()[at]);
            let Some((pause, most)) = counts.enumerate().max_by_key(|(_, count)| *count) else {
                continue;
            };
            if most > then {
                let (more, pause) = (most - then, pause + 1);
                self.leaks
                    .push(format!("{more} {name} are left over in pause {pause}"));
            }
        }
    }

    fn last(&mut self, first: &Reading, last: &Reading) {
        let mut left = Vec::new();
        for ((name, now), then) in COUNTS.iter().zip(last.counts()).zip(first.counts()) {
            left.push(format!("{:+} {name}", now as i64 - then as i64));
        }
        let left = left.join(", ");
        self.lines
            .push(format!("last pause against the first: {left}"));
    }

    fn memory(&mut self, what: &str, kib: &[u64], noise: f64) {
        let skip = (kib.len() as f64 * WARM_UP).ceil() as usize;
        let judged: Vec<f64> = kib[skip..].iter().map(|kib| *kib as f64).collect();
        let Some(trend) = Trend::of(&judged) else {
            self.leaks
                .push(format!("too few pauses to judge {what} memory"));
            return;
        };
        let steps = (judged.len() - 1) as f64;
        let (slope, error) = (trend.slope, trend.error());
        let line = format!(
            "{what} memory, last {} of {} pauses: {slope:+.1} ± {error:.1} KiB a round \
             (99 %), {:+.0} ± {:.0} KiB in all",
            judged.len(),
            kib.len(),
            slope * steps,
            error * steps,
        );
        self.lines.push(line);
        let least = (slope - error) * steps;
        if least > noise {
            self.leaks.push(format!(
                "{what} memory grew by {least:.0} KiB at least, {noise:.0} are noise"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(heap_kib: u64, resident_kib: u64, tasks: usize, descriptors: usize) -> Reading {
        Reading {
            heap_kib: Some(heap_kib),
            resident_kib,
            tasks,
            descriptors,
            connections: 0,
            streams: 0,
            udp_sessions: 0,
            reserved: 0,
        }
    }

    fn judged(readings: impl Iterator<Item = Reading>) -> Vec<String> {
        let mut verdict = Verdict::default();
        readings.for_each(|reading| verdict.add(reading));
        verdict.judge().leaks
    }

    /// Up and down without a direction, from 0 to `below`.
    fn wobble(n: u64, below: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 0xffff & (below - 1)
    }

    #[test]
    fn memory_that_goes_up_and_down_passes() {
        for rounds in [5, 9, 40, 200] {
            let readings = (0..rounds)
                .map(|n| reading(9_000 + wobble(n, 512), 50_000 + wobble(n, 8192), 9, 20));
            assert_eq!(judged(readings), [""; 0], "{rounds}");
        }
    }

    #[test]
    fn two_mebibytes_a_round_are_found_in_nine_rounds() {
        let readings = (0..9).map(|n| {
            let heap = 9_000 + n * 2048 + wobble(n, 512);
            reading(heap, 50_000 + n * 2048 + wobble(n, 8192), 9, 20)
        });
        let leaks = judged(readings);
        assert_eq!(leaks.len(), 1, "{leaks:?}");
        assert!(leaks[0].starts_with("allocated memory grew"), "{leaks:?}");
    }

    #[test]
    fn sixteen_kibibytes_a_round_are_found_in_two_hundred_rounds() {
        let readings = (0..200).map(|n| reading(9_000 + n * 16 + wobble(n, 512), 50_000, 9, 20));
        assert_eq!(judged(readings).len(), 1);
    }

    #[test]
    fn resident_memory_that_grows_alone_is_found() {
        let readings = (0..40).map(|n| reading(9_000, 50_000 + n * 400 + wobble(n, 4096), 9, 20));
        let leaks = judged(readings);
        assert!(leaks[0].starts_with("resident memory grew"), "{leaks:?}");
    }

    #[test]
    fn growth_before_it_is_warm_passes() {
        let readings = (0..40).map(|n| reading(9_000, 50_000 + n.min(10) * 4_000, 9, 20));
        assert_eq!(judged(readings), [""; 0]);
    }

    #[test]
    fn one_task_or_one_descriptor_too_many_is_found() {
        assert_eq!(judged((0..9).map(|_| reading(9, 50_000, 9, 20))), [""; 0]);
        let tasks = judged((0..9).map(|n| reading(9, 50_000, 9 + n / 8, 20)));
        assert_eq!(tasks, ["1 tasks are left over in pause 9"]);
        let descriptors = judged((0..9).map(|n| reading(9, 50_000, 9, 20 + n / 8)));
        assert_eq!(descriptors, ["1 descriptors are left over in pause 9"]);
    }

    #[test]
    fn what_is_left_over_for_some_pauses_is_found() {
        let readings = (0..9).map(|n| reading(9, 50_000, 9, if n == 4 { 22 } else { 20 }));
        assert_eq!(judged(readings), ["2 descriptors are left over in pause 5"]);
    }

    #[test]
    fn too_few_rounds_are_no_proof() {
        assert!(!judged((0..3).map(|_| reading(9, 50_000, 9, 20))).is_empty());
    }
}
