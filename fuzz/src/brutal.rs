//! Arithmetic of Brutal: the window of acknowledgements against a list of all of them, rates and
//! windows against their bounds.
//!
//! Planted bug: the oldest of the six seconds was left out of the rate.

use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use hy2_proto::{
    bandwidth::Bandwidth,
    brutal::{
        AckRate, AckWindow, INITIAL_WINDOW, MIN_SAMPLES, burst, bytes_in, congestion_window,
        send_rate, time_for,
    },
};

use crate::read;

/// Records packets while time goes on, and asks for the rate after each step.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let origin = Instant::now();
    let mut window = AckWindow::new(origin);
    // Second, acknowledged, lost.
    let mut all: Vec<(u64, u64, u64)> = Vec::new();
    let mut millis = 0_u64;
    arithmetic(&mut input);
    while !input.is_empty() && all.len() < 60 {
        millis += u64::from(read::<u16>(&mut input) % 8000);
        let now = origin + Duration::from_millis(millis);
        let (acked, lost): (u8, u8) = (read(&mut input), read(&mut input));
        window.record(now, acked.into(), lost.into());
        all.push((millis / 1000, acked.into(), lost.into()));

        // Some time later, with nothing recorded in between.
        let pause = u64::from(read::<u8>(&mut input) % 8);
        let later = now + Duration::from_secs(pause);
        assert_eq!(window.counts(later), recent(&all, millis / 1000 + pause));

        let (acked, lost) = recent(&all, millis / 1000);
        assert_eq!(window.counts(now), (acked, lost));
        let rate = window.ack_rate(now);
        assert_eq!(rate, AckRate::from_counts(acked, lost));
        check_rate(rate, acked, lost);
    }
    let later = origin + Duration::from_millis(millis) + Duration::from_secs(6);
    assert_eq!(window.ack_rate(later), AckRate::FULL);
}

/// What counts in second `now`: this second and five before, of seconds that share a slot only
/// the later one.
fn recent(all: &[(u64, u64, u64)], now: u64) -> (u64, u64) {
    all.iter()
        .filter(|(second, ..)| second + 5 >= now)
        .filter(|(second, ..)| {
            let same_slot = |(other, ..): &&(u64, u64, u64)| other % 5 == second % 5;
            !all.iter()
                .filter(same_slot)
                .any(|(other, ..)| other > second)
        })
        .fold((0, 0), |(acked, lost), it| (acked + it.1, lost + it.2))
}

fn check_rate(rate: AckRate, acked: u64, lost: u64) {
    let share = rate.as_f64();
    assert!((0.8..=1.0).contains(&share), "{share}");
    if acked + lost < MIN_SAMPLES {
        assert_eq!(rate, AckRate::FULL);
    } else {
        let exact = acked as f64 / (acked + lost) as f64;
        assert!((share - exact.max(0.8)).abs() < 1e-9, "{share} for {exact}");
    }
}

fn arithmetic(input: &mut Unstructured<'_>) {
    let target = Bandwidth::from_bytes_per_sec(read(input));
    let (acked, lost): (u64, u64) = (read(input), read(input));
    let srtt = Duration::from_nanos(read(input));
    let max_datagram = u64::from(read::<u16>(input));
    let bytes = u64::from(read::<u32>(input));

    let share = AckRate::from_counts(acked, lost);
    assert!((0.8..=1.0).contains(&share.as_f64()));
    let rate = send_rate(target, share);
    assert!(rate >= target);
    let most = u128::from(target.bytes_per_sec()) * 5 / 4;
    assert!(u128::from(rate.bytes_per_sec()) <= most);

    let window = congestion_window(target, share, srtt, max_datagram);
    if srtt.is_zero() {
        assert_eq!(window, INITIAL_WINDOW);
    } else {
        assert!(window >= max_datagram);
        let twice = target.bytes_per_sec() as f64 * srtt.as_secs_f64() * 2.0 / share.as_f64();
        let expected = twice.clamp(max_datagram as f64, u64::MAX as f64);
        let error = (window as f64 - expected).abs();
        // Rounded down twice, the first time before a division by the share.
        assert!(error <= 3.0 + expected * 1e-9, "{window} for {expected}");
    }
    assert!(burst(rate, max_datagram) >= 10 * max_datagram);
    assert!(burst(rate, max_datagram) >= bytes_in(rate, Duration::from_millis(4)));

    let time = time_for(rate, bytes);
    if rate.is_zero() {
        assert_eq!(time.is_zero(), bytes == 0);
    } else {
        assert!(bytes_in(rate, time) >= bytes, "sends too little in time");
        if let Some(less) = time.checked_sub(Duration::from_nanos(1)) {
            assert!(bytes_in(rate, less) < bytes, "takes longer than needed");
        }
    }
}
