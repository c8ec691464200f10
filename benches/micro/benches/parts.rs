//! The list of `hy2_microbenches::cases`, and counters that two threads fight over. At the end, the
//! table of docs/benchmarks.md of what was timed, with the goals beside it.

mod cpu_time;
mod table;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use cpu_time::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, measurement::Measurement};
use hy2_core::{fuzzing::meter::count, meter::UserCounters};
use hy2_microbenches::cases;

/// How often criterion measures a case.
const SAMPLES: usize = 50;

fn parts(criterion: &mut Criterion<CpuTime>) {
    for case in cases() {
        let (group, what) = case.name.split_once('/').expect("a group");
        let mut group = criterion.benchmark_group(group);
        group.throughput(match case.bytes {
            0 => Throughput::Elements(case.items),
            bytes => Throughput::Bytes(bytes),
        });
        // Prepared only when it is chosen, and once for all its samples: some take a second.
        let mut run = None;
        group.bench_function(what, |bencher| {
            let run = run.get_or_insert_with(case.make);
            bencher.iter_custom(|rounds| {
                let start = CpuTime.start();
                for _ in 0..rounds {
                    run();
                }
                let took = CpuTime.end(start);
                table::note(case.name, took, rounds);
                took
            });
        });
        group.finish();
    }
}

fn contended(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("counters");
    group.bench_function("one user, two threads", |bencher| {
        bencher.iter_custom(|rounds| {
            let counters = Arc::new(UserCounters::new());
            let stop = Arc::new(AtomicBool::new(false));
            let rival = thread::spawn({
                let (counters, stop) = (Arc::clone(&counters), Arc::clone(&stop));
                move || {
                    while !stop.load(Relaxed) {
                        count(&counters, 1400, 0);
                    }
                }
            });
            // Until the other one is at work.
            while counters.snapshot().tx == 0 {
                thread::yield_now();
            }
            let start = Instant::now();
            for _ in 0..rounds {
                count(&counters, black_box(1400), 0);
            }
            let elapsed = start.elapsed();
            stop.store(true, Relaxed);
            rival.join().expect("the other thread");
            elapsed
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(SAMPLES);
    targets = parts, contended
}

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    table::print(&cases(), SAMPLES);
}
