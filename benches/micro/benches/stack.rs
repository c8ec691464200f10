//! Client and server in one process and on one thread, in virtual time: what the CPU spends from
//! one application's pipe to the other's, QUIC and TLS included, the kernel's sockets not.

mod cpu_time;

use std::time::Duration;

use cpu_time::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hy2_microbenches::stack::{Stack, runtime};

/// Relayed at a time.
const BYTES: u64 = 8 << 20;

fn stack(criterion: &mut Criterion<CpuTime>) {
    let runtime = runtime();
    let stack = runtime.block_on(Stack::start());
    let mut group = criterion.benchmark_group("stack");
    group.throughput(Throughput::Bytes(BYTES));
    group.bench_function("download", |bencher| {
        bencher.iter(|| runtime.block_on(stack.download(BYTES)));
    });
    group.bench_function("upload", |bencher| {
        bencher.iter(|| runtime.block_on(stack.upload(BYTES)));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("request", |bencher| {
        bencher.iter(|| runtime.block_on(stack.request()));
    });
    group.bench_function("datagram", |bencher| {
        bencher.iter(|| runtime.block_on(stack.datagrams(1)));
    });
    group.bench_function("connect and authenticate", |bencher| {
        bencher.iter(|| runtime.block_on(stack.connect()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .sample_size(20);
    targets = stack
}
criterion_main!(benches);
