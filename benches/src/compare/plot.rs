//! Plots as SVG, by hand: bars of ratios, bars with whiskers.

use std::fmt::Write as _;

use crate::{
    report::{Ratios, Row, median},
    scenario::Load,
};

const ROW: f64 = 26.0;
const LEFT: f64 = 300.0;
const WIDE: f64 = 560.0;
const TOP: f64 = 56.0;
const OURS: &str = "#1f6feb";
const REFERENCE: &str = "#9a9a9a";

/// The reference's CPU over ours and our rate over the reference's; a tick where the bar is.
pub(crate) fn ratios(rows: &[Row]) -> String {
    let with: Vec<(&Row, Ratios)> = rows
        .iter()
        .filter_map(|row| Some((row, row.ratios()?)))
        .collect();
    let most = with
        .iter()
        .flat_map(|(_, ratios)| [ratios.cpu, ratios.rate])
        .filter(|ratio| ratio.is_finite())
        .fold(2.0, f64::max);
    let scale = WIDE / most;
    let mut svg = head(
        "How many times less CPU (blue) and more rate (green) than the reference",
        with.len(),
    );
    let one = LEFT + scale;
    let bottom = TOP + ROW * with.len() as f64;
    let _ = writeln!(
        svg,
        r#"<line x1="{one:.1}" y1="{TOP}" x2="{one:.1}" y2="{bottom:.1}" stroke="red" stroke-dasharray="3 3"/>"#
    );
    for (at, (row, ratios)) in with.iter().enumerate() {
        let y = TOP + ROW * at as f64;
        label(&mut svg, y, &row.scenario.name);
        let bar = row.scenario.bar;
        for (ratio, bar, y, colour) in [
            (ratios.cpu, bar.cpu, y + 3.0, OURS),
            (ratios.rate, bar.rate, y + 13.0, "#2da44e"),
        ] {
            let width = if ratio.is_finite() {
                ratio * scale
            } else {
                0.0
            };
            let _ = writeln!(
                svg,
                r#"<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="9" fill="{colour}"/><text x="{:.1}" y="{:.1}" font-size="10">{ratio:.2}</text>"#,
                LEFT + width + 4.0,
                y + 8.5
            );
            if let Some(bar) = bar {
                let x = LEFT + bar * scale;
                let _ = writeln!(
                    svg,
                    r#"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}" stroke="black" stroke-width="2"/>"#,
                    y - 1.0,
                    y + 10.0
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Rates of the bulk scenarios, with whiskers from the slowest run to the fastest.
pub(crate) fn bulk(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|row| matches!(row.scenario.load, Load::Bulk { .. }))
        .collect();
    let rates = |row: &Row, ours: bool| -> Vec<f64> {
        let figures = if ours {
            Some(&row.ours)
        } else {
            row.reference.as_ref()
        };
        figures.map_or_else(Vec::new, |figures| {
            figures.0.iter().map(|run| run.rate).collect()
        })
    };
    let most = rows
        .iter()
        .flat_map(|row| [rates(row, true), rates(row, false)].concat())
        .fold(0.1, f64::max);
    let scale = WIDE / most;
    let mut svg = head("Gbit/s, hy2 (blue) and the reference (grey)", rows.len());
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + ROW * at as f64;
        label(&mut svg, y, &row.scenario.name);
        for (ours, y, colour) in [(true, y + 3.0, OURS), (false, y + 13.0, REFERENCE)] {
            let values = rates(row, ours);
            if values.is_empty() {
                continue;
            }
            let (low, high) = values
                .iter()
                .fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
                    (low.min(*value), high.max(*value))
                });
            let middle = median(&values);
            let _ = writeln!(
                svg,
                r#"<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="9" fill="{colour}"/><line x1="{:.1}" y1="{line:.1}" x2="{:.1}" y2="{line:.1}" stroke="black"/><text x="{:.1}" y="{:.1}" font-size="10">{middle:.2}</text>"#,
                middle * scale,
                LEFT + low * scale,
                LEFT + high * scale,
                LEFT + high * scale + 4.0,
                y + 8.5,
                line = y + 4.5,
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn head(title: &str, rows: usize) -> String {
    let (width, height) = (LEFT + WIDE + 60.0, TOP + ROW * rows as f64 + 20.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"28\" font-size=\"15\">{title}</text>\n"
    )
}

fn label(svg: &mut String, y: f64, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{text}</text>"#,
        LEFT - 8.0,
        y + 16.0
    );
}
