//! `bandwidth` and `congestion`.

use hy2_proto::bandwidth::Bandwidth;

use super::section::Section;

/// Bandwidth settings, as the file's owner sees `up` and `down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) up: Option<Bandwidth>,
    pub(crate) down: Option<Bandwidth>,
    pub(crate) loss_compensation: bool,
    pub(crate) overclaim_guard: bool,
}

/// Congestion control where no bandwidth was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Congestion {
    Bbr(Profile),
    Reno,
}

/// How bold BBR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Standard,
    Conservative,
    Aggressive,
}

/// Smallest bandwidth in bytes per second (`core/server/config.go` of the reference).
const MIN_RATE: u64 = 65_536;

pub(super) fn read_bandwidth(section: &Section<'_>) -> Rate {
    let rate = |key| {
        let rate = section.bandwidth(key)?;
        if rate.bytes_per_sec() < MIN_RATE {
            section.mistake(
                key,
                format!("must be at least 65536 bytes per second, not {rate}"),
            );
        }
        Some(rate)
    };
    Rate {
        up: rate("up"),
        down: rate("down"),
        loss_compensation: !section.flag("disableLossCompensation"),
        overclaim_guard: section.flag("overclaimGuard"),
    }
}

pub(super) fn read_congestion(section: &Section<'_>) -> Option<Congestion> {
    let profile = section.choice(
        "bbrProfile",
        &[
            ("standard", Profile::Standard),
            ("conservative", Profile::Conservative),
            ("aggressive", Profile::Aggressive),
        ],
    )?;
    let kinds = [
        ("bbr", Congestion::Bbr(profile)),
        ("reno", Congestion::Reno),
    ];
    section.choice("type", &kinds)
}
