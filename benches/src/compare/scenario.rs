//! What is measured, and the bars it has to meet. Numbers are those of the scenarios in the
//! project's plan: 1 bulk, 2 obfuscated, 3 without offload, 4 one core, 5 ping-pong, 6 connections,
//! 7 handshakes, 8 time to the first byte, 9 UDP, 14 idle.

/// Which way the bytes go, as the user of the proxy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Down,
    Up,
}

/// What the load generator does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// Moves bytes over this many streams at once.
    Bulk { way: Way, streams: u64 },
    /// 200 bytes there and back, over and over, on each of this many streams.
    PingPong { streams: usize },
    /// A new TCP connection for each 200 bytes there and back, this many at once.
    Requests { at_once: usize },
    /// QUIC connections with authentication, this many at once, all made by our client: the
    /// servers are compared.
    Connects { at_once: u64 },
    /// Datagrams of `size` bytes to an echo and back, `window` of them on their way.
    Udp { size: usize, window: usize },
    /// New TCP connection to first byte, over a link with this round trip time in milliseconds.
    FirstByte { rtt: u64, fast_open: bool },
}

impl Load {
    /// Returns what CPU time is given per, and what a rate counts.
    pub(crate) fn units(self) -> (&'static str, &'static str) {
        match self {
            Self::Bulk { .. } => ("s/GiB", "Gbit/s"),
            Self::Connects { .. } => ("µs", "connections/s"),
            Self::FirstByte { .. } => ("µs", "requests/s"),
            _ => ("µs", "op/s"),
        }
    }
}

/// How both sides are set up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Setup {
    /// Salamander.
    pub(crate) salamander: bool,
    /// Bytes per second of Brutal, both ways; 0 is BBR, the default.
    pub(crate) brutal: u64,
    /// No segmentation offload on either side.
    pub(crate) no_gso: bool,
    /// The server has the first core to itself and nobody else.
    pub(crate) one_core: bool,
    /// Windows, socket buffers, keep-alive and rate given to both instead of each one's defaults, and no imitation
    /// of a browser by the reference.
    pub(crate) equal: bool,
    /// `overclaimGuard` at our server.
    pub(crate) guard: bool,
    /// Our server as `hy2 server` ships: a thread for each core, and an allocator that is told nothing.
    pub(crate) shipped: bool,
}

/// Ratios that must be reached: the reference's CPU over ours, and our rate over the reference's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bar {
    pub(crate) cpu: Option<f64>,
    pub(crate) rate: Option<f64>,
    /// The server's CPU instead of both ends'.
    pub(crate) server_only: bool,
    /// The slowest hundredth takes no longer than the reference's.
    pub(crate) p99: bool,
    /// We lose no datagram.
    pub(crate) lossless: bool,
}

/// One row of the result.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) load: Load,
    pub(crate) setup: Setup,
    pub(crate) bar: Bar,
    /// Runs of each side at least, where fewer decide too little.
    pub(crate) pairs: usize,
}

impl Scenario {
    /// Returns how many runs each side has when `asked` are asked for; few are a look, and stay few.
    pub(crate) fn runs(&self, asked: usize) -> usize {
        if asked < 5 {
            asked
        } else {
            asked.max(self.pairs)
        }
    }
}

/// 8 Gbit/s.
const BRUTAL: u64 = 1_000_000_000;

/// Returns all of them, in the order of running.
pub(crate) fn all() -> Vec<Scenario> {
    let mut list = List(Vec::new());
    let plain = Setup::default();
    for (streams, bar) in [
        (1, cpu_rate(2.6, 2.2)),
        (10, cpu_rate(2.4, 2.2)),
        (100, cpu(3.0)),
    ] {
        list.bulk(1, "bulk", streams, plain, bar);
    }
    let salamander = Setup {
        salamander: true,
        ..plain
    };
    list.bulk(2, "salamander", 1, salamander, cpu_rate(5.0, 5.0));
    list.bulk(2, "salamander", 10, salamander, Bar::default());
    let brutal = Setup {
        brutal: BRUTAL,
        ..plain
    };
    list.bulk(1, "brutal 8 Gbit/s", 1, brutal, cpu(2.8));
    let equal = Setup {
        equal: true,
        ..brutal
    };
    list.bulk(1, "equal settings, brutal 8 Gbit/s", 1, equal, cpu(2.8));
    list.bulk(
        1,
        "equal settings, brutal 8 Gbit/s",
        10,
        equal,
        Bar::default(),
    );
    let equal = Setup {
        equal: true,
        ..plain
    };
    list.bulk(1, "equal settings, bulk", 1, equal, Bar::default());
    let no_gso = Setup {
        no_gso: true,
        ..plain
    };
    list.bulk(3, "no GSO", 1, no_gso, cpu(1.0));
    let one_core = Setup {
        one_core: true,
        ..plain
    };
    list.bulk(4, "server on one core", 1, one_core, Bar::default());
    for (streams, bar) in [(1, cpu(2.0)), (50, cpu(1.7))] {
        let bar = Bar { p99: true, ..bar };
        let load = Load::PingPong { streams };
        list.add(5, format!("ping-pong 200 B x{streams}"), load, plain, bar);
    }
    for (at_once, bar) in [
        (1, cpu_rate(3.0, 2.0)),
        (50, cpu_rate(3.0, 1.7)),
        (500, Bar::default()),
    ] {
        let load = Load::Requests { at_once };
        let name = format!("connection per request x{at_once}");
        list.add(6, name, load, plain, bar);
        if at_once == 50 {
            // Both sides scatter by a third, and the ratio has been met by a hundredth.
            list.last_has_pairs(9);
        }
    }
    for at_once in [1, 64] {
        let load = Load::Connects { at_once };
        let bar = Bar {
            cpu: Some(1.6),
            server_only: true,
            ..Bar::default()
        };
        list.add(7, format!("connect + auth x{at_once}"), load, plain, bar);
    }
    for rtt in [20, 100, 200] {
        for fast_open in [false, true] {
            let load = Load::FirstByte { rtt, fast_open };
            let how = if fast_open { ", fast open" } else { "" };
            let name = format!("first byte at {rtt} ms{how}");
            list.add(8, name, load, plain, Bar::default());
        }
    }
    for window in [1, 16, 128] {
        for size in [64, 200, 1100, 1400, 4000] {
            let bar = if window == 128 && size <= 1400 {
                cpu_rate(2.3, 1.6)
            } else {
                Bar::default()
            };
            let bar = Bar {
                lossless: true,
                ..bar
            };
            let load = Load::Udp { size, window };
            list.add(
                9,
                format!("UDP {size} B, window {window}"),
                load,
                plain,
                bar,
            );
        }
    }
    for (number, what, load) in [
        (5, "ping-pong 200 B x50", Load::PingPong { streams: 50 }),
        (
            6,
            "connection per request x50",
            Load::Requests { at_once: 50 },
        ),
        (
            9,
            "UDP 200 B, window 128",
            Load::Udp {
                size: 200,
                window: 128,
            },
        ),
    ] {
        list.add(
            number,
            format!("equal settings, {what}"),
            load,
            equal,
            Bar::default(),
        );
    }
    list.0
}

struct List(Vec<Scenario>);

impl List {
    fn add(&mut self, number: u32, name: String, load: Load, setup: Setup, bar: Bar) {
        self.0.push(Scenario {
            number,
            name,
            load,
            setup,
            bar,
            pairs: 0,
        });
    }

    fn last_has_pairs(&mut self, pairs: usize) {
        if let Some(last) = self.0.last_mut() {
            last.pairs = pairs;
        }
    }

    fn bulk(&mut self, number: u32, what: &str, streams: u64, setup: Setup, bar: Bar) {
        for (way, name) in [(Way::Down, "down"), (Way::Up, "up")] {
            let load = Load::Bulk { way, streams };
            self.add(
                number,
                format!("{what} {name} x{streams}"),
                load,
                setup,
                bar,
            );
        }
    }
}

fn cpu(cpu: f64) -> Bar {
    Bar {
        cpu: Some(cpu),
        ..Bar::default()
    }
}

fn cpu_rate(cpu: f64, rate: f64) -> Bar {
    Bar {
        cpu: Some(cpu),
        rate: Some(rate),
        ..Bar::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_scatters_has_more_runs_unless_few_are_asked_for() {
        let all = all();
        let named = |name: &str| all.iter().find(|row| row.name == name).expect("a row");
        let scattered = named("connection per request x50");
        assert_eq!([2, 5, 20].map(|asked| scattered.runs(asked)), [2, 9, 20]);
        let other = named("connection per request x1");
        assert_eq!([2, 5, 20].map(|asked| other.runs(asked)), [2, 5, 20]);
    }
}
