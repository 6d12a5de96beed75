//! Failures on demand: how tests stop, kill or fail any of our programs at a named point.
//!
//! Nothing happens unless the environment has [`VARIABLE`] with a path. The file there, if it exists, is one order:
//! `<point> <action>` on one line. The first program that reaches the point takes the order away, so that it is carried out
//! once, and whoever comes back runs undisturbed:
//!
//! ```text
//! <path>           the order, e.g. "source:committed:after kill"
//! <path>.claimed   the order, once a program has taken it
//! <path>.hit       that program's process id (in its own pid namespace), before it acts
//! ```
//! Daemon, CRIU's action scripts, keeper and wrapper all have points. The wrapper gets its environment from the engine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io};

use nix::sys::signal::{Signal, raise};

/// The environment's word.
pub const VARIABLE: &str = "SPOTHOP_FAILPOINTS";

/// A failure that was ordered.
#[derive(Debug, thiserror::Error)]
#[error("failure injected at {point}")]
pub struct Injected {
    /// Where.
    pub point: String,
}

/// What is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The step fails.
    Error,
    /// The program is gone at once.
    Kill,
    /// The program stands still until somebody continues it.
    Stop,
}

/// Passes a point where something may be ordered to go wrong.
///
/// # Errors
/// If an error was ordered for it. Where a step cannot fail the caller may ignore that.
pub fn reach(point: impl AsRef<str>) -> Result<(), Injected> {
    static ORDERS: OnceLock<Option<PathBuf>> = OnceLock::new();
    match ORDERS.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)) {
        None => Ok(()),
        Some(orders) => carry_out(claim(orders, point.as_ref()), point.as_ref()),
    }
}

fn carry_out(ordered: Option<Action>, point: &str) -> Result<(), Injected> {
    match ordered {
        None => Ok(()),
        Some(Action::Error) => Err(Injected { point: point.to_owned() }),
        Some(Action::Kill) => signal(Signal::SIGKILL),
        Some(Action::Stop) => signal(Signal::SIGSTOP),
    }
}

fn signal(signal: Signal) -> Result<(), Injected> {
    // Neither of the two can be refused.
    let _ = raise(signal);
    Ok(())
}

/// Takes the order for `point` away, if there is one and nobody was faster.
fn claim(orders: &Path, point: &str) -> Option<Action> {
    let text = fs::read_to_string(orders).ok()?;
    let action = parse(&text, point)?;
    fs::rename(orders, with_suffix(orders, ".claimed")).ok()?;
    if let Err(error) = announce(orders) {
        eprintln!("nobody learns that {point} was reached: {error}");
    }
    Some(action)
}

fn parse(order: &str, point: &str) -> Option<Action> {
    let (ordered, action) = order.trim().split_once(' ')?;
    let action = match action {
        "error" => Action::Error,
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        _ => return None,
    };
    (ordered == point).then_some(action)
}

fn announce(orders: &Path) -> io::Result<()> {
    let new = with_suffix(orders, ".hit.new");
    fs::write(&new, std::process::id().to_string())?;
    fs::rename(new, with_suffix(orders, ".hit"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_for_one_point_and_carried_out_once() {
        let scratch = tempfile::tempdir().unwrap();
        let orders = scratch.path().join("orders");
        assert_eq!(claim(&orders, "source:frozen"), None);
        fs::write(&orders, "source:frozen error\n").unwrap();
        assert_eq!(claim(&orders, "source:frozen:after"), None);
        assert!(!with_suffix(&orders, ".hit").exists());
        let ordered = claim(&orders, "source:frozen");
        assert_eq!(ordered, Some(Action::Error));
        assert_eq!(fs::read_to_string(with_suffix(&orders, ".hit")).unwrap(), std::process::id().to_string());
        assert_eq!(claim(&orders, "source:frozen"), None);
        assert_eq!(carry_out(ordered, "source:frozen").unwrap_err().to_string(), "failure injected at source:frozen");
    }

    #[test]
    fn what_is_no_order_does_nothing() {
        for order in ["", "source:frozen", "source:frozen explode", "error source:frozen"] {
            assert_eq!(parse(order, "source:frozen"), None, "{order}");
        }
        assert_eq!(parse("a kill", "a"), Some(Action::Kill));
        assert_eq!(parse("a stop\n", "a"), Some(Action::Stop));
    }
}
