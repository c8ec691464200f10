//! Figures, medians, ratios, and the table.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    machine,
    scenario::{Bar, Scenario},
};

/// One run of one side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// In the scenario's unit.
    pub(crate) rate: f64,
    /// CPU per unit: seconds per GiB, or microseconds per operation.
    pub(crate) server: f64,
    pub(crate) client: f64,
    /// Latency in microseconds, where it is measured.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Datagrams that did not come back.
    pub(crate) lost: u64,
    /// Resident memory after the run, in MiB.
    pub(crate) server_mib: f64,
    pub(crate) client_mib: f64,
    /// Cores that other programs used meanwhile.
    pub(crate) others: f64,
}

/// The runs of one side.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures(pub(crate) Vec<Sample>);

impl Figures {
    fn of(&self, pick: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.0.iter().map(pick).collect()
    }

    fn cpu(&self, server_only: bool) -> Vec<f64> {
        self.of(|run| run.server + if server_only { 0.0 } else { run.client })
    }
}

/// A scenario's outcome.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    pub(crate) ours: Figures,
    pub(crate) reference: Option<Figures>,
}

/// What a row means against its bar.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ratios {
    /// The reference's CPU over ours.
    pub(crate) cpu: f64,
    /// Our rate over the reference's.
    pub(crate) rate: f64,
}

impl Row {
    pub(crate) fn ratios(&self) -> Option<Ratios> {
        let reference = self.reference.as_ref()?;
        let server_only = self.scenario.bar.server_only;
        Some(Ratios {
            cpu: paired(&reference.cpu(server_only), &self.ours.cpu(server_only)),
            rate: paired(&self.ours.of(|run| run.rate), &reference.of(|run| run.rate)),
        })
    }

    /// Returns, run by run of both sides, how many cores other programs used.
    pub(crate) fn others(&self) -> Vec<f64> {
        let mut others = self.ours.of(|run| run.others);
        let reference = self.reference.iter();
        others.extend(reference.flat_map(|figures| figures.of(|run| run.others)));
        others
    }

    /// Says what is below its bar.
    pub(crate) fn missed(&self) -> Vec<String> {
        let Bar {
            cpu,
            rate,
            p99,
            lossless,
            ..
        } = self.scenario.bar;
        let name = &self.scenario.name;
        let mut missed = Vec::new();
        let lost: u64 = self.ours.0.iter().map(|run| run.lost).sum();
        if lossless && lost > 0 {
            missed.push(format!("{name}: {lost} datagrams lost"));
        }
        let (Some(ratios), Some(reference)) = (self.ratios(), &self.reference) else {
            return missed;
        };
        let slowest = paired(&self.ours.of(|run| run.p99), &reference.of(|run| run.p99));
        if p99 && slowest > 1.0 {
            missed.push(format!("{name}: p99 {slowest:.2} times the reference's"));
        }
        for (what, ratio, bar) in [("CPU", ratios.cpu, cpu), ("rate", ratios.rate, rate)] {
            if let Some(bar) = bar
                && ratio < bar
            {
                missed.push(format!("{name}: {what} ratio {ratio:.2} < {bar}"));
            }
        }
        missed
    }

    pub(crate) fn json(&self) -> Value {
        let (cpu_unit, rate_unit) = self.scenario.load.units();
        let side = |figures: &Figures| {
            json!({
                "cpu_both": summary(&figures.cpu(false)),
                "cpu_server": summary(&figures.of(|run| run.server)),
                "cpu_client": summary(&figures.of(|run| run.client)),
                "rate": summary(&figures.of(|run| run.rate)),
                "p50_us": summary(&figures.of(|run| run.p50)),
                "p99_us": summary(&figures.of(|run| run.p99)),
                "lost": figures.0.iter().map(|run| run.lost).sum::<u64>(),
                "server_mib": summary(&figures.of(|run| run.server_mib)),
                "client_mib": summary(&figures.of(|run| run.client_mib)),
                "others_cores": summary(&figures.of(|run| run.others)),
            })
        };
        json!({
            "number": self.scenario.number,
            "name": self.scenario.name,
            "cpu_unit": cpu_unit,
            "rate_unit": rate_unit,
            "bar": {
                "cpu": self.scenario.bar.cpu,
                "rate": self.scenario.bar.rate,
                "p99_no_worse": self.scenario.bar.p99,
                "lossless": self.scenario.bar.lossless,
            },
            "hy2": side(&self.ours),
            "reference": self.reference.as_ref().map(side),
            "ratio": self.ratios().map(|ratios| json!({"cpu": ratios.cpu, "rate": ratios.rate})),
            "met": self.reference.as_ref().map(|_| self.missed().is_empty()),
        })
    }

    /// A line of the markdown table.
    pub(crate) fn line(&self) -> String {
        let (cpu_unit, rate_unit) = self.scenario.load.units();
        let server_only = self.scenario.bar.server_only;
        let cell = |figures: &Figures| {
            let mut cell = format!(
                "{} = {:.2} + {:.2} | {}",
                spread(&figures.cpu(server_only)),
                median(&figures.of(|run| run.server)),
                median(&figures.of(|run| run.client)),
                spread(&figures.of(|run| run.rate)),
            );
            let (p50, p99) = (
                median(&figures.of(|run| run.p50)),
                median(&figures.of(|run| run.p99)),
            );
            let lost: u64 = figures.0.iter().map(|run| run.lost).sum();
            let _ = match (p99 > 0.0, lost) {
                (false, _) => write!(cell, " | "),
                (true, 0) => write!(cell, " | {p50:.0} / {p99:.0}"),
                (true, lost) => write!(cell, " | {p50:.0} / {p99:.0}, {lost} lost"),
            };
            let _ = write!(
                cell,
                " | {:.0} + {:.0}",
                median(&figures.of(|run| run.server_mib)),
                median(&figures.of(|run| run.client_mib))
            );
            cell
        };
        let name = format!(
            "{} {} ({cpu_unit}, {rate_unit}){}",
            self.scenario.number,
            self.scenario.name,
            machine::mark(&self.others())
        );
        let mut line = format!("| {name} | hy2 | {} |", cell(&self.ours));
        if let (Some(reference), Some(ratios)) = (&self.reference, self.ratios()) {
            let against = |ratio: f64, bar: Option<f64>| match bar {
                Some(bar) if ratio < bar => format!("**{ratio:.2}** (bar {bar})"),
                Some(bar) => format!("{ratio:.2} (bar {bar})"),
                None => format!("{ratio:.2}"),
            };
            let _ = write!(
                line,
                " {} | {} |\n| | reference | {} | | |",
                against(ratios.cpu, self.scenario.bar.cpu),
                against(ratios.rate, self.scenario.bar.rate),
                cell(reference)
            );
        } else {
            line.push_str(" | |");
        }
        line
    }
}

/// Above [`Row::line`].
pub(crate) const HEAD: &str = "\
| scenario | side | CPU per unit: median [min-max] = server + client | rate: median [min-max] \
| p50 / p99 µs | RSS MiB, server + client | CPU ratio | rate ratio |
|---|---|---|---|---|---|---|---|";

fn summary(values: &[f64]) -> Value {
    json!({
        "median": median(values), "min": min(values), "max": max(values), "runs": values,
    })
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn min(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// `median [min-max]`.
pub(crate) fn spread(values: &[f64]) -> String {
    let digits = if median(values) >= 1000.0 { 0 } else { 2 };
    format!(
        "{:.digits$} [{:.digits$}-{:.digits$}]",
        median(values),
        min(values),
        max(values)
    )
}

/// The median of the ratios pair by pair.
pub(crate) fn paired(a: &[f64], b: &[f64]) -> f64 {
    let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// Writes an object with each entry of its lists on a line of its own: they are many, and of many numbers.
pub(crate) fn by_line(value: &Value) -> String {
    let mut text = String::from("{");
    let mut first = true;
    for (key, value) in value.as_object().into_iter().flatten() {
        text.push_str(if first { "\n" } else { ",\n" });
        first = false;
        let _ = write!(text, "  {}: ", Value::from(key.as_str()));
        match value.as_array().filter(|list| !list.is_empty()) {
            Some(list) => {
                let lines: Vec<String> = list.iter().map(|entry| format!("    {entry}")).collect();
                let _ = write!(text, "[\n{}\n  ]", lines.join(",\n"));
            }
            None => {
                let _ = write!(text, "{value}");
            }
        }
    }
    text.push_str("\n}\n");
    text
}
