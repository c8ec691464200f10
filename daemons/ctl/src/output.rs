//! Tables for people, JSON for programs.

use std::io::{self, Write};

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use hy2_daemon_runtime::{Spinner, human_bytes, human_rate};
use qrcode::{QrCode, render::unicode::Dense1x2};
use serde_json::Value;

use crate::failure::Failure;

/// A column of a table: its title, and the field it shows. `a.b` is a field of a field.
pub(crate) type Column = (&'static str, &'static str);

/// Where answers go.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a list of things: as it came, or as a table.
    pub(crate) fn list(&self, answer: &Value, columns: &[Column]) -> Result<(), Failure> {
        if self.json {
            return self.raw(answer);
        }
        let rows = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
        if rows.is_empty() {
            self.note("nothing");
            return Ok(());
        }
        self.table(rows, columns)?;
        if let Some(next) = answer["next"].as_str() {
            self.note(&format!("there is more: --after {next}, or --all"));
        }
        Ok(())
    }

    fn table(&self, rows: &[Value], columns: &[Column]) -> Result<(), Failure> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(columns.iter().map(|(title, _)| *title));
        for row in rows {
            table.add_row(columns.iter().map(|(_, path)| cell(path, at(row, path))));
        }
        let numeric = |path: &str| {
            rows.iter()
                .all(|row| at(row, path).is_number() || at(row, path).is_null())
        };
        for (index, (_, path)) in columns.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if numeric(path) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Prints one thing: as it came, or field by field.
    pub(crate) fn record(&self, answer: &Value) -> Result<(), Failure> {
        if self.json {
            return self.raw(answer);
        }
        let Some(fields) = answer.as_object() else {
            return self.line(&cell("", answer));
        };
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in fields {
            self.line(&format!("{key:width$}  {}", cell(key, value)))?;
        }
        Ok(())
    }

    /// Says what was done: to people in words, to programs as it came.
    pub(crate) fn done(&self, answer: &Value, words: &str) -> Result<(), Failure> {
        match self.json {
            true => self.raw(answer),
            false => self.line(&clean(words)),
        }
    }

    /// Prints JSON.
    pub(crate) fn raw(&self, answer: &Value) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(answer).unwrap_or_default();
        self.line(&text)
    }

    /// Prints a line.
    #[expect(clippy::unused_self, reason = "whoever prints has an output")]
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(Failure::Output)
    }

    /// Draws a QR code, for a terminal with light text on a dark ground.
    pub(crate) fn qr(&self, text: &str) -> Result<(), Failure> {
        let code = QrCode::new(text).context("too long for a QR code")?;
        let image = code
            .render::<Dense1x2>()
            .dark_color(Dense1x2::Light)
            .light_color(Dense1x2::Dark)
            .build();
        self.line(&image)
    }

    /// Says something beside the answer, on standard error; to people only.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Shows that something takes its time, to people at a terminal.
    pub(crate) fn waiting(&self, what: &'static str) -> Spinner {
        match self.json {
            true => Spinner::hidden(),
            false => Spinner::waiting(what),
        }
    }

    /// Shows how many bytes have come, to people at a terminal.
    pub(crate) fn counting(&self, what: &'static str) -> Spinner {
        match self.json {
            true => Spinner::hidden(),
            false => Spinner::of_bytes(what),
        }
    }

    /// Says why nothing came of it, on standard error.
    pub(crate) fn failure(&self, failure: &Failure) {
        let _ = match self.json {
            true => writeln!(io::stderr(), "{}", failure.to_json()),
            false => writeln!(
                io::stderr(),
                "hy2ctl: {}",
                clean_lines(&failure.to_string())
            ),
        };
    }
}

fn at<'a>(row: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(row, |value, key| &value[key])
}

/// Writes a field's value for people; the ending of its name says its unit.
fn cell(path: &str, value: &Value) -> String {
    let amount = value.as_u64();
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(_) if path.ends_with("_bytes") => {
            amount.map_or_else(|| value.to_string(), human_bytes)
        }
        Value::Number(_) if path.ends_with("_bytes_per_s") => {
            // Exact below 2^53 B/s.
            amount.map_or_else(|| value.to_string(), |rate| human_rate(rate as f64))
        }
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => clean(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| cell("", item)).collect();
            items.join(",")
        }
        Value::Object(_) => clean(&value.to_string()),
    }
}

/// Takes out what could steer a terminal: names and notes come from elsewhere.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn clean_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(clean).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_read_well_by_the_ending_of_their_name() {
        let cases = [
            ("used_bytes", json!(3 << 20), "3.00 MiB"),
            ("down_bytes_per_s", json!(12_500_000), "100.00 Mbps"),
            ("id", json!(7), "7"),
            ("note", json!(""), "-"),
            ("quota_bytes", json!(null), "-"),
            ("tags", json!(["a", "b"]), "a,b"),
            ("totp", json!(true), "yes"),
        ];
        for (name, value, expected) in cases {
            assert_eq!(cell(name, &value), expected, "{name}");
        }
        assert_eq!(at(&json!({"a": {"b": 1}}), "a.b"), &json!(1));
    }

    #[test]
    fn nothing_that_steers_a_terminal_is_printed() {
        let evil = json!("a\u{1b}[2Jb\nc");
        assert_eq!(cell("name", &evil), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
