//! Progress of something long: a bar on a terminal, silence elsewhere.

use std::{borrow::Cow, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for bytes or seconds. On stderr, and only if that is a terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shows how many of `total` bytes are done.
    pub fn of_bytes(name: impl Into<Cow<'static, str>>, total: u64) -> Self {
        Self::new(
            name,
            total,
            "{msg:>10} {bar:30} {bytes:>10} / {total_bytes} {prefix}",
        )
    }

    /// Shows how much of `total` time has passed.
    pub fn of_time(name: impl Into<Cow<'static, str>>, total: Duration) -> Self {
        let millis = u64::try_from(total.as_millis()).unwrap_or(u64::MAX);
        Self::new(name, millis, "{msg:>10} {bar:30} {elapsed:>10} {prefix}")
    }

    fn new(name: impl Into<Cow<'static, str>>, total: u64, template: &str) -> Self {
        let bar = ProgressBar::new(total).with_message(name);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Moves the bar and shows a remark, such as the rate, behind it.
    pub fn set(&self, done: u64, remark: String) {
        self.bar.set_position(done);
        self.bar.set_prefix(remark);
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// A sign of life for work whose end is not known. On stderr, and only if that is a terminal.
#[derive(Debug)]
pub struct Spinner {
    bar: ProgressBar,
}

impl Spinner {
    /// Shows that something goes on.
    pub fn waiting(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, "{spinner} {msg} {elapsed}")
    }

    /// Shows how many bytes there are so far, and how fast they come.
    pub fn of_bytes(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, "{spinner} {msg} {bytes} {bytes_per_sec}")
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
        }
    }

    fn new(name: impl Into<Cow<'static, str>>, template: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(name);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    /// Shows how much there is.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Takes it away, as dropping it does.
    pub fn finish(self) {}
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a rate for people: bits per second in decimal units, as bandwidths are configured.
pub fn human_rate(bytes_per_sec: f64) -> String {
    let mut rate = bytes_per_sec * 8.0;
    for unit in ["bps", "Kbps", "Mbps", "Gbps"] {
        if rate < 1000.0 {
            return format!("{rate:.2} {unit}");
        }
        rate /= 1000.0;
    }
    format!("{rate:.2} Tbps")
}

/// Writes an amount for people, in binary units.
pub fn human_bytes(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return format!("{amount:.2} {unit}");
        }
        amount /= 1024.0;
    }
    format!("{amount:.2} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(human_rate(12_500_000.0), "100.00 Mbps");
        assert_eq!(human_rate(1.0), "8.00 bps");
        assert_eq!(human_bytes(0), "0.00 B");
        assert_eq!(human_bytes(3 << 20), "3.00 MiB");
        assert_eq!(human_bytes(u64::MAX), "16777216.00 TiB");
    }
}
