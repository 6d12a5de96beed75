//! What came of a mass reclaim, as a picture: how many containers were safe, over the time since the notice.

use std::fmt::Write as _;

use spothop_policy::simulation::{Report, Setup};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 36.0;

/// An SVG image.
pub(super) fn svg(setup: &Setup, report: &Report) -> String {
    let deadline = setup.deadline.as_secs_f64().max(0.001);
    let all = report.containers.max(1) as f64;
    let x = |seconds: f64| LEFT + seconds / deadline * (WIDTH - LEFT - 16.0);
    let y = |count: f64| HEIGHT - BOTTOM - count / all * (HEIGHT - BOTTOM - TOP);
    let mut line = format!("M{:.1} {:.1}", x(0.0), y(0.0));
    for (count, ms) in report.saved_after_ms.iter().enumerate() {
        // Writing into a string cannot fail, here and below.
        let _ = write!(line, " H{:.1} V{:.1}", x(*ms as f64 / 1000.0), y(count as f64 + 1.0));
    }
    let _ = write!(line, " H{:.1}", x(deadline));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\">{} of {} hosts reclaimed, seed {}: saved {}, late {}, lost {} of {}</text>\n",
        setup.reclaimed, setup.hosts, setup.seed, report.saved, report.late, report.lost, report.containers
    );
    for part in 0..=4 {
        let (count, seconds) = (all * f64::from(part) / 4.0, deadline * f64::from(part) / 4.0);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1} H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{count:.0}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{seconds:.0} s</text>",
            x(deadline),
            LEFT - 6.0,
            y(count) + 4.0,
            x(seconds),
            HEIGHT - BOTTOM + 18.0,
            at = y(count)
        );
    }
    let _ = writeln!(out, "<path d=\"{line}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>\n</svg>");
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_line_goes_up_by_one_for_each_that_is_saved() {
        let deadline = Duration::from_secs(100);
        let setup = Setup { hosts: 4, reclaimed: 2, containers: 1, deadline, link: 1, seed: 3 };
        let report = Report { containers: 2, saved: 2, saved_after_ms: vec![25_000, 50_000], ..Report::default() };
        let text = svg(&setup, &report);
        assert!(text.contains("M56.0 280.0 H198.0 V158.0 H340.0 V36.0 H624.0"), "{text}");
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }
}
