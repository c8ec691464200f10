//! `obfs`: what every datagram is wrapped in.

use hy2_proto::{gecko::PacketSizes, salamander::MIN_PASSWORD_LEN};

use super::{Secret, section::Section};

/// Obfuscation under QUIC; both ends must agree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Obfs {
    /// None.
    #[default]
    Plain,
    /// Salamander with its password.
    Salamander(Secret),
    /// Gecko with its password and sizes.
    Gecko(Secret, PacketSizes),
}

impl Obfs {
    /// Returns the password, if there is one.
    pub(crate) fn password(&self) -> Option<&Secret> {
        match self {
            Self::Plain => None,
            Self::Salamander(password) | Self::Gecko(password, _) => Some(password),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Salamander,
    Gecko,
}

pub(super) fn read(section: &Section<'_>) -> Option<Obfs> {
    let names = [
        ("plain", Kind::Plain),
        ("salamander", Kind::Salamander),
        ("gecko", Kind::Gecko),
    ];
    let kind = section.choice("type", &names);
    let chosen = |this: Kind| {
        kind.is_some_and(|kind| std::mem::discriminant(&kind) == std::mem::discriminant(&this))
    };
    // Settings of the kind that was not chosen may stay in a file, and are not judged.
    let salamander = section.section("salamander", |section| {
        if chosen(Kind::Salamander) {
            password(section).map(Obfs::Salamander)
        } else {
            section.has("password");
            None
        }
    });
    let gecko = section.section("gecko", |section| {
        if chosen(Kind::Gecko) {
            let sizes = sizes(section);
            Some(Obfs::Gecko(password(section)?, sizes?))
        } else {
            for key in ["password", "minPacketSize", "maxPacketSize"] {
                section.has(key);
            }
            None
        }
    });
    match kind? {
        Kind::Plain => Some(Obfs::Plain),
        Kind::Salamander => salamander,
        Kind::Gecko => gecko,
    }
}

fn password(section: &Section<'_>) -> Option<Secret> {
    let password = section.required("password", "the password that both ends share")?;
    if password.len() < MIN_PASSWORD_LEN {
        section.mistake("password", "must have at least 4 bytes");
        return None;
    }
    Some(password.into())
}

fn sizes(section: &Section<'_>) -> Option<PacketSizes> {
    let default = PacketSizes::default();
    let size = |key, default: u16| {
        u16::try_from(section.number(key, default.into(), 1..=2048)).unwrap_or(default)
    };
    let min = size("minPacketSize", default.min());
    let max = size("maxPacketSize", default.max());
    PacketSizes::new(min, max)
        .map_err(|_| {
            section.mistake(
                "minPacketSize",
                format!("must not be above maxPacketSize ({max})"),
            );
        })
        .ok()
}
