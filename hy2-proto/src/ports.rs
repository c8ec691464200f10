//! Sets of ports, as port hopping writes them: `443,20000-50000`.
//!
//! A set may name every port there is, so it is kept as ranges and never spelled out: members are
//! counted, found by index and iterated from the ranges.

use std::fmt;
use std::str::FromStr;

use crate::address::parse_port;

/// A non-empty set of ports.
///
/// Forms of the reference (`extras/utils/portunion.go`): ports and ranges separated by commas, in
/// any order and overlapping, a range's ends in either order; `all` or `*` for every port from 0
/// to 65535. White space is not allowed.
///
/// # Examples
///
/// ```
/// use hy2_proto::ports::PortUnion;
///
/// let ports: PortUnion = "20000-20009,443,20005-20019".parse()?;
/// assert_eq!(ports.to_string(), "443,20000-20019");
/// assert_eq!(ports.count(), 21);
/// assert_eq!(ports.get(1), Some(20000));
/// # Ok::<(), hy2_proto::ports::PortUnionError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortUnion {
    /// Sorted, with a gap of at least one port between neighbours.
    ranges: Vec<PortRange>,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PortRange {
    first: u16,
    last: u16,
}

/// The text is no list of ports and ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ports must be a list such as \"443,20000-50000\", or \"all\"")]
pub struct PortUnionError;

impl PortUnion {
    /// Returns every port.
    #[must_use]
    pub fn all() -> Self {
        Self::normalised(vec![PortRange {
            first: 0,
            last: u16::MAX,
        }])
    }

    /// Returns how many ports are in the set, 1 to 65,536.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.ranges.iter().map(|range| range.count()).sum()
    }

    /// Returns whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|range| (range.first..=range.last).contains(&port))
    }

    /// Returns the port at an index in ascending order; `None` from [`count`](Self::count) on.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<u16> {
        let mut left = index;
        for range in &self.ranges {
            if left < range.count() {
                return u16::try_from(left)
                    .ok()
                    .and_then(|offset| range.first.checked_add(offset));
            }
            left -= range.count();
        }
        None
    }

    /// Picks a port, evenly, for a random number that is even over all of `u32`.
    #[must_use]
    pub fn pick(&self, random: u32) -> u16 {
        let index = (u64::from(random) * u64::from(self.count())) >> 32;
        // Below the count, so there is a port.
        u32::try_from(index)
            .ok()
            .and_then(|index| self.get(index))
            .unwrap_or_default()
    }

    /// Iterates over the ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges
            .iter()
            .flat_map(|range| range.first..=range.last)
    }

    /// Returns the port, if it is the only one.
    #[must_use]
    pub fn single(&self) -> Option<u16> {
        match self.ranges.as_slice() {
            [range] if range.first == range.last => Some(range.first),
            _ => None,
        }
    }

    fn normalised(mut ranges: Vec<PortRange>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let touches = u32::from(next.first) <= u32::from(kept.last) + 1;
            if touches {
                kept.last = kept.last.max(next.last);
            }
            touches
        });
        Self { ranges }
    }
}

impl PortRange {
    fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

impl FromStr for PortUnion {
    type Err = PortUnionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" || text == "*" {
            return Ok(Self::all());
        }
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self::normalised)
    }
}

impl FromStr for PortRange {
    type Err = PortUnionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let from = parse_port(from).ok_or(PortUnionError)?;
        let to = parse_port(to).ok_or(PortUnionError)?;
        Ok(Self {
            first: from.min(to),
            last: from.max(to),
        })
    }
}

impl From<u16> for PortUnion {
    fn from(port: u16) -> Self {
        Self::normalised(vec![PortRange {
            first: port,
            last: port,
        }])
    }
}

impl fmt::Display for PortUnion {
    /// Writes the ranges in ascending order, in a form that parses back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Reference `portunion_test.go`.
    #[test]
    fn reference_vectors() {
        for (text, expected) in [
            (
                "5678,1200-1236,9100-9012,1234-1240",
                "1200-1240,5678,9012-9100",
            ),
            ("all", "0-65535"),
            ("*", "0-65535"),
            ("443", "443"),
        ] {
            let ports: PortUnion = text.parse().unwrap();
            assert_eq!(ports.to_string(), expected, "{text}");
        }
        for text in ["1234-", "233,", "1234-1240-1250", "-,,", "http"] {
            assert_eq!(text.parse::<PortUnion>(), Err(PortUnionError), "{text}");
        }
    }

    #[test]
    fn more_that_is_no_port() {
        for text in [
            "", ",", "-", "-5", "65536", "1-65536", "99999", " 1", "1 -2", "+1", "0x1", "ALL",
            "1,all", "1;2", "000001",
        ] {
            assert_eq!(text.parse::<PortUnion>(), Err(PortUnionError), "{text:?}");
        }
    }

    #[test]
    fn neighbours_merge() {
        let ports: PortUnion = "3-4,1-2,5,7,65535,65534".parse().unwrap();
        assert_eq!(ports.to_string(), "1-5,7,65534-65535");
        assert_eq!(ports.count(), 8);
    }

    #[test]
    fn every_port_is_counted_and_found() {
        let all = PortUnion::all();
        assert_eq!(all.count(), 65_536);
        assert_eq!(all.get(0), Some(0));
        assert_eq!(all.get(65_535), Some(u16::MAX));
        assert_eq!(all.get(65_536), None);
        assert_eq!((all.pick(0), all.pick(u32::MAX)), (0, u16::MAX));
        assert_eq!(all.iter().count(), 65_536);
    }

    #[test]
    fn single_ports_are_told() {
        assert_eq!(PortUnion::from(443).single(), Some(443));
        assert_eq!("443,443".parse::<PortUnion>().unwrap().single(), Some(443));
        assert_eq!("443-444".parse::<PortUnion>().unwrap().single(), None);
        assert_eq!(PortUnion::from(443).pick(12345), 443);
    }

    proptest! {
        #[test]
        fn a_union_is_the_set_of_its_members(
            ranges in proptest::collection::vec((any::<u16>(), 0..50_u16), 1..20), random: u32, probe: u16,
        ) {
            let mut expected = BTreeSet::new();
            let mut parts = Vec::new();
            for (start, span) in ranges {
                let end = start.saturating_add(span);
                expected.extend(start..=end);
                parts.push(format!("{end}-{start}"));
            }
            let ports: PortUnion = parts.join(",").parse().unwrap();
            prop_assert!(ports.iter().eq(expected.iter().copied()));
            prop_assert_eq!(usize::try_from(ports.count()), Ok(expected.len()));
            for (index, port) in (0..).zip(&expected) {
                prop_assert_eq!(ports.get(index), Some(*port));
            }
            prop_assert_eq!(ports.get(ports.count()), None);
            prop_assert!(expected.contains(&ports.pick(random)));
            prop_assert_eq!(ports.contains(probe), expected.contains(&probe));
            prop_assert_eq!(ports.to_string().parse(), Ok(ports));
        }

        #[test]
        fn any_text_is_judged(text in "[0-9,*al-]{0,30}") {
            if let Ok(ports) = text.parse::<PortUnion>() {
                prop_assert!(ports.count() >= 1);
            }
        }
    }
}
