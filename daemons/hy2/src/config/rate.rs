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

/// Smallest bandwidth that a server may set, in bytes per second (`core/server/config.go` of the
/// reference; its clients have none).
const MIN_SERVER_RATE: u64 = 65_536;

pub(super) fn read_server(section: &Section<'_>) -> Rate {
    let rate = read_client(section);
    for (key, rate) in [("up", rate.up), ("down", rate.down)] {
        if let Some(rate) = rate.filter(|rate| rate.bytes_per_sec() < MIN_SERVER_RATE) {
            let reason = format!("must be at least 65536 bytes per second, not {rate}");
            section.mistake(key, reason);
        }
    }
    rate
}

pub(super) fn read_client(section: &Section<'_>) -> Rate {
    Rate {
        up: section.bandwidth("up"),
        down: section.bandwidth("down"),
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
