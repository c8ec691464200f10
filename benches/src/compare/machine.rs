//! What this machine is, and whether it has time for us.

use std::{fs, thread, time::Duration};

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

/// Returns how many files a process may have open, where the system says.
pub(crate) fn most_files() -> Option<u64> {
    let limits = read("/proc/self/limits");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All ticks and the idle ones.
fn ticks() -> (u64, u64) {
    let stat = read("/proc/stat");
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guests are counted in user.
    let total = fields.iter().take(8).sum();
    let idle = fields.iter().skip(3).take(2).sum();
    (total, idle)
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
