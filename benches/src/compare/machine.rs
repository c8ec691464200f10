//! What this machine is, and whether it has time for us.

use std::{
    collections::{HashMap, HashSet},
    fs, process, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Share of the cores that others may use before a run.
const BUSY: f64 = 0.15;

/// How long to look.
const LOOK: Duration = Duration::from_secs(3);

/// Returns the share of all cores in use over the next seconds, 0 to 1.
pub(crate) fn use_of_cores() -> f64 {
    let before = ticks();
    thread::sleep(LOOK);
    let after = ticks();
    let total = after.0.saturating_sub(before.0);
    let idle = after.1.saturating_sub(before.1);
    if total == 0 {
        return 0.0;
    }
    1.0 - idle as f64 / total as f64
}

/// Whether a share of [`use_of_cores`] spoils what is measured.
pub(crate) fn is_busy(share: f64) -> bool {
    share > BUSY
}

/// Cores that others may use during a run before it is marked.
pub(crate) const OTHERS: f64 = 0.3;

/// Runs of each side below which medians mean little.
const FEW: u64 = 5;

/// Looks at what other programs use while something is measured.
#[derive(Debug)]
pub(crate) struct Watch {
    start: Instant,
    machine: u64,
    processes: Ticks,
}

/// Processor time so far, in ticks of 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    /// Of this process and all that it started.
    ours: u64,
    /// Of all others that can be seen; the kernel's own threads work for everybody.
    others: u64,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            machine: working(),
            processes: processes(),
        }
    }

    /// Returns how many cores others have used at least since the start.
    pub(crate) fn others(&self) -> f64 {
        let now = processes();
        // Without interrupts: what the kernel does for a datagram within a call is counted there for the
        // machine, and may be counted for the process too. Others behind a container's wall are in it.
        let machine = working().saturating_sub(self.machine);
        let unseen = machine.saturating_sub(now.ours.saturating_sub(self.processes.ours));
        let seen = now.others.saturating_sub(self.processes.others);
        let seconds = self.start.elapsed().as_secs_f64().max(0.01);
        unseen.max(seen) as f64 / 100.0 / seconds
    }
}

/// Ticks of user, nice, system, and what the host took.
fn working() -> u64 {
    let fields = machine_ticks();
    [0, 1, 2, 7]
        .into_iter()
        .filter_map(|at| fields.get(at))
        .sum()
}

fn processes() -> Ticks {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    // A process may end between the two.
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    tally(stats, process::id())
}

/// Adds up `/proc/*/stat`, of which `root` and its descendants are ours.
fn tally(stats: impl Iterator<Item = String>, root: u32) -> Ticks {
    let all: HashMap<u32, (u32, u64)> = stats.filter_map(|stat| parse_stat(&stat)).collect();
    let mut ticks = Ticks::default();
    for (id, (parent, spent)) in &all {
        let mut above = *id;
        // No deeper than there are processes: a number that is used again could make a circle.
        for _ in 0..all.len() {
            match all.get(&above) {
                Some((parent, _)) if above != root => above = *parent,
                _ => break,
            }
        }
        if above == root {
            ticks.ours += spent;
        } else if *id != KERNEL && *parent != KERNEL {
            ticks.others += spent;
        }
    }
    ticks
}

/// The parent of the kernel's threads.
const KERNEL: u32 = 2;

/// Returns a process' number, its parent's, and the time that it and those of its children that have ended used.
fn parse_stat(stat: &str) -> Option<(u32, (u32, u64))> {
    let id = stat.split_whitespace().next()?.parse().ok()?;
    // The name in parentheses may have any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let spent = fields.get(11..15)?;
    let spent = spent.iter().filter_map(|ticks| ticks.parse::<u64>().ok());
    Some((id, (parent, spent.sum())))
}

/// Returns how many datagrams the kernel has dropped at this process' sockets, which are open, for want of room.
pub(crate) fn dropped() -> u64 {
    let files = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    let inodes: HashSet<u64> = links
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect();
    ["/proc/net/udp", "/proc/net/udp6"]
        .map(|table| dropped_in(&read(table), &inodes))
        .iter()
        .sum()
}

/// Adds up the drops of the sockets with these inodes in a table of the kernel's.
fn dropped_in(table: &str, inodes: &HashSet<u64>) -> u64 {
    let sockets = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode: u64 = fields.get(9)?.parse().ok()?;
        let drops: u64 = fields.get(12)?.parse().ok()?;
        inodes.contains(&inode).then_some(drops)
    });
    sockets.sum()
}

/// Returns why figures of such a run are none.
pub(crate) fn caveats(machine: &Value) -> Vec<String> {
    let mut caveats = Vec::new();
    if machine["forced"] == true {
        caveats.push("the machine was busy when it began".to_owned());
    }
    if machine["quick"] == true {
        caveats.push("a quick run, which shows that the harness works".to_owned());
    }
    if let Some(runs) = machine["runs"].as_u64().filter(|runs| *runs < FEW) {
        caveats.push(format!("{runs} runs of each side, of {FEW} that it takes"));
    }
    caveats
}

/// Returns what stands above results with caveats, and how many runs others disturbed.
pub(crate) fn notes(caveats: &[String], disturbed: usize, runs: usize) -> String {
    let mut notes = String::new();
    if !caveats.is_empty() {
        notes = format!("**Not a measurement**: {}.\n\n", caveats.join("; "));
    }
    if disturbed > 0 {
        notes += &format!(
            "**Beside other work**: in {disturbed} of {runs} runs other programs used more than {OTHERS} \
             cores; their rows say so.\n\n"
        );
    }
    notes
}

/// Returns what is said of runs during which others used this many cores, nothing where all are below [`OTHERS`].
pub(crate) fn mark(others: &[f64]) -> String {
    let disturbed = others.iter().filter(|others| **others > OTHERS).count();
    if disturbed == 0 {
        return String::new();
    }
    let most = others.iter().copied().fold(0.0, f64::max);
    format!(
        " (others used up to {most:.2} cores, {disturbed} of {} runs)",
        others.len()
    )
}

/// Returns how many files a process may have open, where the system says.
pub(crate) fn most_files() -> Option<u64> {
    let limits = read("/proc/self/limits");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the number that a file of the kernel has, 0 without one.
pub(crate) fn number(path: &str) -> u64 {
    read(path).trim().parse().unwrap_or(0)
}

/// All ticks and the idle ones.
fn ticks() -> (u64, u64) {
    let fields = machine_ticks();
    let total = fields.iter().take(8).sum();
    let idle = fields.iter().skip(3).take(2).sum();
    (total, idle)
}

/// user nice system idle iowait irq softirq steal; guests are counted in user.
fn machine_ticks() -> Vec<u64> {
    let stat = read("/proc/stat");
    let line = stat.lines().next().unwrap_or_default();
    line.split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect()
}

/// Returns the description that goes with every figure.
pub(crate) fn describe(use_before: f64) -> Value {
    let cpu = read("/proc/cpuinfo");
    let line = |key: &str| {
        let line = cpu.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_once(": "))
            .map_or_else(String::new, |(_, value)| value.to_owned())
    };
    let flags = line("flags");
    let flags: Vec<&str> = ["aes", "avx2", "avx512f", "vaes", "vpclmulqdq", "sha_ni"]
        .into_iter()
        .filter(|wanted| flags.split(' ').any(|flag| flag == *wanted))
        .collect();
    let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    json!({
        "cpu": line("model name"),
        "flags": flags,
        "cores": thread::available_parallelism().map_or(0, usize::from),
        "memory_mib": memory_mib(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "governor": if governor.is_empty() { "none" } else { governor.trim() },
        "load_average": read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        "cores_in_use_before": (use_before * 100.0).round() / 100.0,
        "rmem_max": read("/proc/sys/net/core/rmem_max").trim(),
        "wmem_max": read("/proc/sys/net/core/wmem_max").trim(),
        "path": "loopback; server, client, origin and load generator share the cores",
    })
}

fn memory_mib() -> u64 {
    let info = read("/proc/meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn stat(id: u32, name: &str, parent: u32, spent: [u64; 4]) -> String {
        let [user, system, of_user, of_system] = spent;
        format!(
            "{id} ({name}) S {parent} 7 7 0 -1 4194560 1 2 3 4 {user} {system} {of_user} {of_system} 20 0 1 0 5"
        )
    }

    #[test]
    fn time_of_descendants_is_ours_and_time_of_the_kernel_nobodys() {
        let stats = [
            stat(1, "init", 0, [5, 0, 100, 0]),
            stat(2, "kthreadd", 0, [1, 1, 0, 0]),
            stat(9, "ksoftirqd/0", 2, [0, 70, 0, 0]),
            stat(40, "bash", 1, [1, 2, 0, 0]),
            stat(41, "hy2-compare", 40, [10, 20, 30, 40]),
            stat(50, "a ) name (", 41, [3, 4, 0, 0]),
            stat(51, "grandchild", 50, [0, 1, 0, 0]),
            stat(60, "other", 40, [1000, 0, 0, 0]),
        ];
        let ticks = tally(stats.into_iter(), 41);
        assert_eq!(
            ticks,
            Ticks {
                ours: 108,
                others: 1108
            }
        );
    }

    #[test]
    fn own_work_is_counted_as_ours() {
        let before = processes();
        let mut sum = 0_u64;
        // Ends only when it has been counted.
        while processes().ours == before.ours {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }

    #[test]
    fn drops_are_those_of_the_sockets_asked_for() {
        let table = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 7
  101: 0100007F:1F91 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 9
";
        assert_eq!(dropped_in(table, &HashSet::from([4711])), 7);
        assert_eq!(dropped_in(table, &HashSet::from([4711, 4712, 1])), 16);
    }

    #[test]
    fn a_socket_without_room_shows_in_the_kernels_table() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let before = dropped();
        // Far more than any default buffer has room for.
        for _ in 0..20_000 {
            let to = receiver.local_addr().expect("an address");
            sender.send_to(&[0; 1400], to).expect("sent");
        }
        assert!(dropped() > before);
    }

    #[test]
    fn every_reason_is_named() {
        let good = json!({"forced": false, "quick": false, "runs": 5});
        assert_eq!(notes(&caveats(&good), 0, 10), "");
        let bad = json!({"forced": true, "quick": true, "runs": 2});
        let notes = notes(&caveats(&bad), 3, 10);
        for part in [
            "**Not a measurement**",
            "busy",
            "quick",
            "2 runs",
            "3 of 10",
        ] {
            assert!(notes.contains(part), "{part} is not in {notes}");
        }
        assert_eq!(mark(&[0.1, 0.3]), "");
        assert_eq!(
            mark(&[0.1, 0.5]),
            " (others used up to 0.50 cores, 1 of 2 runs)"
        );
    }
}
