//! Long and lossy paths: goodput, a living connection, right bytes, bounded memory.

use crate::{
    flow::{Flow, FlowKind, measure},
    world::{Setup, World, full_matrix, mebibytes, millis, rate, seconds},
};

/// One transfer and what it must reach.
struct Cell {
    target: f64,
    link: f64,
    rtt_ms: u64,
    loss: f64,
    /// Whether acknowledgements get lost too.
    both_ways: bool,
    memory: Option<usize>,
    bar: f64,
}

async fn run(cell: &Cell, kind: FlowKind) {
    let mut setup = Setup::new(cell.target, cell.link, millis(cell.rtt_ms));
    setup = if cell.both_ways {
        setup.loss_both(cell.loss)
    } else {
        setup.loss(kind.download, cell.loss)
    };
    setup.memory = cell.memory;
    let world = World::start(&setup).await;
    let flow = Flow::start(&world, 1, kind).await;
    let from = seconds(5);
    let to = from + seconds(if full_matrix() { 60 } else { 6 });
    let (bytes, span) = measure(&world, &flow, from, to).await;
    let goodput = rate(bytes, span);
    flow.finish().await;
    world.memory_returns().await;
    let [client, server] = world.memory_peaks().map(mebibytes);
    println!(
        "{} {} on {} Mbit/s x {} ms x {} %{}, memory {}: {goodput:.1} Mbit/s (bar {}), reserved at \
         most {client:.1} (client) and {server:.1} MiB (server)",
        kind.name(),
        cell.target,
        cell.link,
        cell.rtt_ms,
        cell.loss * 100.0,
        if cell.both_ways { " both ways" } else { "" },
        cell.memory.map_or_else(
            || "default".to_owned(),
            |bytes| format!("{} MiB", bytes >> 20)
        ),
        cell.bar,
    );
    assert!(goodput >= cell.bar, "{goodput}");
}

const fn bar(memory: Option<usize>, bar: f64) -> Cell {
    Cell {
        target: 100.0,
        link: 200.0,
        rtt_ms: 300,
        loss: 0.3,
        both_ways: false,
        memory,
        bar,
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_keeps_its_rate_through_30_percent_loss() {
    run(&bar(None, 75.0), FlowKind::new(false)).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_keeps_its_rate_through_30_percent_loss() {
    run(&bar(None, 75.0), FlowKind::new(true)).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_lives_with_16_mebibytes() {
    run(&bar(Some(16 << 20), 45.0), FlowKind::new(false)).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_lives_with_16_mebibytes() {
    run(&bar(Some(16 << 20), 45.0), FlowKind::new(true)).await;
}

#[tokio::test(start_paused = true)]
async fn twice_the_rate_at_20_percent() {
    let cell = Cell {
        target: 200.0,
        link: 400.0,
        rtt_ms: 200,
        loss: 0.2,
        both_ways: false,
        memory: None,
        bar: 170.0,
    };
    run(&cell, FlowKind::new(true)).await;
    if full_matrix() {
        run(&cell, FlowKind::new(false)).await;
    }
}
