//! Sets of ports as text.
//!
//! Planted bug: of two ranges that overlap, the end of the second was kept, not the higher one.

use std::collections::BTreeSet;

use hy2_proto::ports::PortUnion;

/// Parses the input as a set of ports.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let plain = plain_ranges(text);
    let Ok(ports) = text.parse::<PortUnion>() else {
        assert_eq!(plain, None, "refused");
        return;
    };
    let plain = plain.expect("a list of ports and ranges");

    let count = ports.count();
    assert!((1..=65_536).contains(&count));
    for (first, last) in &plain {
        for port in [*first, *last, first.wrapping_sub(1), last.wrapping_add(1)] {
            let inside = plain
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port));
            assert_eq!(ports.contains(port), inside, "{port}");
        }
    }
    let spelled: u64 = plain.iter().map(|(a, b)| u64::from(b - a) + 1).sum();
    if spelled <= 64 {
        let all: BTreeSet<u16> = plain.iter().flat_map(|(a, b)| *a..=*b).collect();
        assert!(ports.iter().eq(all));
    }
    assert!(ports.iter().take(50).is_sorted_by(|a, b| a < b));
    let lowest = plain.iter().map(|(first, _)| *first).min();
    let highest = plain.iter().map(|(_, last)| *last).max();
    assert_eq!(ports.get(0), lowest);
    assert_eq!(ports.get(count - 1), highest);
    assert_eq!(ports.get(count), None);
    assert_eq!(Some(ports.pick(0)), lowest);
    assert_eq!(Some(ports.pick(u32::MAX)), highest);
    assert_eq!(ports.single().is_some(), count == 1);

    let printed = ports.to_string();
    assert_eq!(printed.parse(), Ok(ports.clone()));
    assert!(printed.len() <= text.len().max("0-65535".len()));
}

/// The ranges as they are written, lower end first.
fn plain_ranges(text: &str) -> Option<Vec<(u16, u16)>> {
    if matches!(text, "all" | "*") {
        return Some(vec![(0, u16::MAX)]);
    }
    let port = |text: &str| {
        let plain = (1..=5).contains(&text.len()) && !text.contains(|c: char| !c.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| plain)
    };
    text.split(',')
        .map(|part| match part.split_once('-') {
            None => port(part).map(|port| (port, port)),
            Some((a, b)) => Some((port(a)?.min(port(b)?), port(a)?.max(port(b)?))),
        })
        .collect()
}
