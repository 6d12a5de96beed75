//! What many figures have in common.

use serde::{Deserialize, Serialize};

/// How some figures are spread. Each of these is one of the figures: the smallest that so many per cent do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    /// How many there are.
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of no figures there is none.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let count = figures.len();
        let at = |percent: usize| figures.get((count * percent).div_ceil(100).checked_sub(1)?).copied();
        Some(Self { count, p50: at(50)?, p95: at(95)?, p99: at(99)?, max: at(100)? })
    }
}

/// The median, as in [`Spread`].
pub(super) fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(figures).map(|spread| spread.p50)
}

/// How much `y` grows with `x`: the slope of the line with the least squares. None unless there are two different `x`.
pub(super) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (spread > 0.0).then(|| points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread)
}

/// Whether the `number`th of `rounds` rounds (from 1) is one of `wanted` that are spread over all of them.
pub(super) fn due(number: usize, rounds: usize, wanted: usize) -> bool {
    let so_far = |number: usize| number * wanted.min(rounds) / rounds.max(1);
    so_far(number) > so_far(number.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_among_the_figures() {
        let spread = Spread::of((1..=20).rev().map(f64::from)).unwrap();
        assert_eq!((spread.count, spread.p50, spread.p95, spread.p99, spread.max), (20, 10.0, 19.0, 20.0, 20.0));
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.p50, spread.p95, spread.max), (2.0, 3.0, 3.0));
        assert_eq!(median([4.0, 1.0]), Some(1.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_slope_needs_two_sizes() {
        assert_eq!(slope(&[(1.0, 0.3), (1.0, 0.4)]), None);
        assert_eq!(slope(&[]), None);
        let rises = slope(&[(1.0, 0.5), (2.0, 0.75), (3.0, 1.0)]).unwrap();
        assert!((rises - 0.25).abs() < 1e-9, "{rises}");
    }

    #[test]
    fn few_rounds_are_spread_over_many() {
        let of = |rounds, wanted| (1..=rounds).filter(|number| due(*number, rounds, wanted)).collect::<Vec<_>>();
        assert_eq!(of(20, 5), [4, 8, 12, 16, 20]);
        assert_eq!(of(3, 3), [1, 2, 3]);
        assert_eq!(of(2, 5), [1, 2]);
        assert_eq!(of(4, 0), [0; 0]);
    }
}
