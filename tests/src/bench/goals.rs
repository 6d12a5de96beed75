//! What was to be reached, beside what was measured.

use std::fmt::Write as _;

/// Where a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// One goal.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Goal {
    /// Of what.
    pub(super) what: String,
    pub(super) limit: Limit,
    /// What both figures are in, as it reads after a number.
    pub(super) unit: &'static str,
    /// None where it was not measured.
    pub(super) measured: Option<f64>,
}

impl Goal {
    pub(super) fn new(what: impl Into<String>, limit: Limit, unit: &'static str, measured: Option<f64>) -> Self {
        Self { what: what.into(), limit, unit, measured }
    }

    /// The measured figure as a part of the goal's.
    fn ratio(&self) -> Option<f64> {
        let (Limit::AtMost(goal) | Limit::AtLeast(goal)) = self.limit;
        self.measured.map(|measured| measured / goal)
    }

    fn verdict(&self) -> String {
        match (self.ratio(), self.limit) {
            (None, _) => "not measured".to_owned(),
            (Some(ratio), Limit::AtMost(_)) if ratio <= 1.0 => "reached".to_owned(),
            (Some(ratio), Limit::AtLeast(_)) if ratio >= 1.0 => "reached".to_owned(),
            (Some(ratio), Limit::AtMost(_)) => format!("**missed: {:.0} % too much**", (ratio - 1.0) * 100.0),
            (Some(ratio), Limit::AtLeast(_)) => format!("**missed: {:.0} % too little**", (1.0 - ratio) * 100.0),
        }
    }
}

/// A table of goals.
pub(super) fn table(goals: &[Goal]) -> String {
    let mut text = "| goal | | measured | measured ÷ goal | |\n|---|--:|--:|--:|---|\n".to_owned();
    for goal in goals {
        let (sign, limit) = match goal.limit {
            Limit::AtMost(limit) => ('≤', limit),
            Limit::AtLeast(limit) => ('≥', limit),
        };
        let or_dash = |figure: Option<String>| figure.unwrap_or_else(|| "–".to_owned());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {sign} {}{} | {} | {} | {} |",
            goal.what,
            limit,
            goal.unit,
            or_dash(goal.measured.map(|measured| format!("{}{}", figure(measured), goal.unit))),
            or_dash(goal.ratio().map(|ratio| format!("{ratio:.2}"))),
            goal.verdict()
        );
    }
    text
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_on_its_own_side() {
        let text = table(&[
            Goal::new("downtime", Limit::AtMost(250.0), " ms", Some(400.0)),
            Goal::new("downtime", Limit::AtMost(250.0), " ms", Some(200.0)),
            Goal::new("of the link", Limit::AtLeast(95.0), " %", Some(47.5)),
            Goal::new("of the link", Limit::AtLeast(95.0), " %", Some(96.0)),
            Goal::new("idle", Limit::AtMost(0.2), " %", None),
        ]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| downtime | ≤ 250 ms | 400 ms | 1.60 | **missed: 60 % too much** |",
                "| downtime | ≤ 250 ms | 200 ms | 0.80 | reached |",
                "| of the link | ≥ 95 % | 47.5 % | 0.50 | **missed: 50 % too little** |",
                "| of the link | ≥ 95 % | 96.0 % | 1.01 | reached |",
                "| idle | ≤ 0.2 % | – | – | not measured |",
            ]
        );
    }
}
