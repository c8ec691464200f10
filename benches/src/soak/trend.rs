//! A straight line through values that scatter, and how sure its slope is.

/// The slope of a series.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trend {
    /// Rise from one value to the next.
    pub(crate) slope: f64,
    standard_error: f64,
    freedom: f64,
}

impl Trend {
    /// Fits a line by least squares; `None` below three values.
    ///
    /// Values that lean on the ones before them hold less than their number says: with a
    /// correlation r between neighbours, (1 − r) ÷ (1 + r) of them count.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        if values.len() < 3 {
            return None;
        }
        let middle = (count - 1.0) / 2.0;
        let mean = values.iter().sum::<f64>() / count;
        let at = |index: usize| index as f64 - middle;
        let spread: f64 = (0..values.len()).map(|index| at(index).powi(2)).sum();
        let indexed = || values.iter().enumerate();
        let slope = indexed()
            .map(|(index, value)| at(index) * (value - mean))
            .sum::<f64>()
            / spread;
        let rests: Vec<f64> = indexed()
            .map(|(index, value)| value - mean - slope * at(index))
            .collect();
        let squares: f64 = rests.iter().map(|rest| rest * rest).sum();
        let neighbours: f64 = rests.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let r = if squares > 0.0 {
            (neighbours / squares).clamp(0.0, 0.9)
        } else {
            0.0
        };
        let inflation = (1.0 + r) / (1.0 - r);
        let freedom = ((count - 2.0) / inflation).max(1.0);
        Some(Self {
            slope,
            standard_error: (squares / (count - 2.0) / spread * inflation).sqrt(),
            freedom,
        })
    }

    /// Half of the interval around the slope, of which 1 % of runs lie above and 1 % below.
    pub(crate) fn error(&self) -> f64 {
        self.standard_error * student(self.freedom)
    }
}

/// The 99 % quantile of Student's distribution: that of the next smaller number of degrees of
/// freedom in the table.
fn student(freedom: f64) -> f64 {
    let smaller = STUDENT.iter().rev().find(|(known, _)| *known <= freedom);
    smaller.map_or(STUDENT[0].1, |(_, quantile)| *quantile)
}

const STUDENT: [(f64, f64); 15] = [
    (1.0, 31.82),
    (2.0, 6.965),
    (3.0, 4.541),
    (4.0, 3.747),
    (5.0, 3.365),
    (6.0, 3.143),
    (7.0, 2.998),
    (8.0, 2.896),
    (10.0, 2.764),
    (12.0, 2.681),
    (15.0, 2.602),
    (20.0, 2.528),
    (30.0, 2.457),
    (60.0, 2.390),
    (120.0, 2.358),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_certain() {
        let values: Vec<f64> = (0..20).map(|n| 5.0 + 3.0 * f64::from(n)).collect();
        let trend = Trend::of(&values).expect("enough");
        assert!((trend.slope - 3.0).abs() < 1e-9 && trend.error() < 1e-6);
    }

    /// The slope of the textbook series, its standard error by the textbook formula.
    #[test]
    fn slope_and_error_are_those_of_least_squares() {
        let trend = Trend::of(&[1.0, 3.0, 2.0, 5.0, 4.0]).expect("enough");
        assert!((trend.slope - 0.8).abs() < 1e-12);
        // Rests −0.4, 0.8, −1, 1.2, −0.6: squares 3.6, no positive correlation.
        assert!((trend.standard_error - (3.6_f64 / 3.0 / 10.0).sqrt()).abs() < 1e-12);
        assert!((trend.error() - trend.standard_error * 4.541).abs() < 1e-12);
    }

    #[test]
    fn a_random_walk_is_not_taken_for_a_trend() {
        // Steps of ±1 drawn by a linear congruential generator.
        let (mut sure, mut state) = (0, 7_u64);
        for _ in 0..100 {
            let mut place = 0.0;
            let walk: Vec<f64> = (0..60)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    place += if state >> 63 == 0 { 1.0 } else { -1.0 };
                    place
                })
                .collect();
            let trend = Trend::of(&walk).expect("enough");
            sure += usize::from(trend.slope > trend.error());
        }
        assert!(sure <= 25, "{sure} of 100 walks rise for certain");
    }

    #[test]
    fn two_values_are_no_trend() {
        assert!(Trend::of(&[1.0, 2.0]).is_none());
    }
}
