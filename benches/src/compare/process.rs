//! A child process that talks in JSON lines, and what it costs.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A child whose first line of output says that it is ready. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `command`, gives it `config` as its first line and waits until it is ready.
    pub(crate) fn start(mut command: Command, config: &Value) -> Result<(Self, Value)> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        process.tell(config)?;
        let ready = process.hear("ready")?;
        Ok((process, ready))
    }

    fn tell(&mut self, line: &Value) -> Result<()> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    /// Reads lines until an event of this name comes.
    pub(crate) fn hear(&mut self, event: &str) -> Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.stdout.read_line(&mut line)? == 0 {
                bail!("the process ended before it said '{event}'");
            }
            let value: Value = serde_json::from_str(&line).context(line.clone())?;
            match value["event"].as_str() {
                Some(name) if name == event => return Ok(value),
                Some("failed") => bail!("the process failed: {line}"),
                _ => {}
            }
        }
    }

    /// Sends a command and waits for its answer's result.
    pub(crate) fn ask(&mut self, command: Value) -> Result<Value> {
        Ok(self.ask_timed(command)?.0)
    }

    /// As [`ask`](Self::ask), with how many milliseconds it took the child.
    pub(crate) fn ask_timed(&mut self, mut command: Value) -> Result<(Value, f64)> {
        command["id"] = 1.into();
        self.tell(&command)?;
        let answer = self.hear("answer")?;
        if answer["ok"] != true {
            bail!("{command} failed: {answer}");
        }
        let ms = answer["ms"].as_f64().unwrap_or(f64::NAN);
        Ok((answer["result"].clone(), ms))
    }

    /// Returns user and system time so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        // The scheduler counts nanoseconds per living thread, `stat` ticks of 10 ms of all of them.
        Ok(self.scheduled()?.max(self.ticks()?))
    }

    fn scheduled(&self) -> Result<f64> {
        let mut nanos = 0_u64;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end meanwhile, and the kernel may not count.
            let stat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let ran = stat.split_whitespace().next();
            nanos += ran.and_then(|ran| ran.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(nanos as f64 / 1e9)
    }

    fn ticks(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15, counted behind the parenthesised name; ticks of 10 ms.
        let (_, fields) = stat.rsplit_once(')').context("stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || -> Result<f64> { Ok(fields.next().context("stat")?.parse()?) };
        Ok((ticks()? + ticks()?) / 100.0)
    }

    /// Returns resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = statm.split_whitespace().nth(1).context("statm")?.parse()?;
        Ok(pages * 4096)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
