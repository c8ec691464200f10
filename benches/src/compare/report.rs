//! Medians, spreads and the table.

/// The figures of one side over several runs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures {
    /// CPU seconds per GiB, server.
    pub(crate) server: Vec<f64>,
    /// CPU seconds per GiB, client.
    pub(crate) client: Vec<f64>,
    /// Gbit/s.
    pub(crate) rate: Vec<f64>,
}

impl Figures {
    pub(crate) fn cpu(&self) -> Vec<f64> {
        self.server
            .iter()
            .zip(&self.client)
            .map(|(a, b)| a + b)
            .collect()
    }
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

/// `median [min–max]`.
pub(crate) fn spread(values: &[f64]) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} [{min:.2}-{max:.2}]", median(values))
}

/// The median of the ratios pair by pair.
pub(crate) fn paired(a: &[f64], b: &[f64]) -> f64 {
    let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    median(&ratios)
}
