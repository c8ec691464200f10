//! Verdicts of benches: each figure beside its bar and the machine's load. With `HY2_BARS=1` a bar that is
//! not met ends the bench with an error.

#![allow(dead_code, clippy::print_stdout, reason = "figures for people")]

/// What a bench was asked to judge.
#[derive(Debug)]
pub(crate) struct Bars {
    load: String,
    missed: usize,
}

impl Bars {
    /// Starts: notes how busy the machine is without the bench.
    pub(crate) fn start() -> Self {
        Self {
            load: load(),
            missed: 0,
        }
    }

    /// Prints a figure and whether it meets its bar.
    pub(crate) fn judge(&mut self, what: &str, figure: &str, bar: &str, met: bool) {
        let verdict = if met { "met" } else { "NOT MET" };
        println!(
            "verdict: {what}: {figure}, bar {bar}: {verdict} (load {} before, {} after)",
            self.load,
            load()
        );
        self.missed += usize::from(!met);
    }

    /// Ends the process with an error if a bar was not met and `HY2_BARS` is set.
    pub(crate) fn end(self) {
        if self.missed > 0 && std::env::var_os("HY2_BARS").is_some_and(|value| value == "1") {
            println!("{} bars not met", self.missed);
            std::process::exit(1);
        }
    }
}

/// Processes that ran or wanted to, on average over a minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
