//! Counts what the server reports through the `metrics` facade.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

static COUNTERS: LazyLock<Mutex<BTreeMap<String, Arc<AtomicU64>>>> = LazyLock::new(Mutex::default);

/// Keeps one sum per counter name.
struct Sums;

impl Recorder for Sums {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = COUNTERS.lock().expect("no holder panics");
        Counter::from_arc(Arc::clone(
            counters.entry(key.name().to_owned()).or_default(),
        ))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Records from here on, panics included, whoever catches them.
pub(crate) fn install() {
    metrics::set_global_recorder(Sums).expect("the only recorder of this process");
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        metrics::counter!("panics_seen").increment(1);
        usual(info);
    }));
}

/// Returns every counter so far.
pub(crate) fn counters() -> Vec<(String, u64)> {
    let counters = COUNTERS.lock().expect("no holder panics");
    counters
        .iter()
        .map(|(name, value)| (name.clone(), value.load(Relaxed)))
        .collect()
}
