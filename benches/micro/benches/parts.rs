//! The list of `hy2_microbenches::cases`, and counters that two threads fight over.

mod cpu_time;

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
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hy2_core::{fuzzing::meter::count, meter::UserCounters};
use hy2_microbenches::cases;

fn parts(criterion: &mut Criterion<CpuTime>) {
    for case in cases() {
        let (group, what) = case.name.split_once('/').expect("a group");
        let mut group = criterion.benchmark_group(group);
        group.throughput(match case.bytes {
            0 => Throughput::Elements(case.items),
            bytes => Throughput::Bytes(bytes),
        });
        // Prepared only when it is chosen: some take a second.
        group.bench_function(what, |bencher| bencher.iter((case.make)()));
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
        .sample_size(50);
    targets = parts, contended
}
criterion_main!(benches);
