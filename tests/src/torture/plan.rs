//! What happens in a run.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::switch::Direction;

/// The source or the target of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the container runs when the migration begins.
    Source,
    /// The other one.
    Target,
}

/// Why the container is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// `spothop migrate`.
    Manual,
    /// A cloud's notice.
    Notice,
}

/// When the fault happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// When one of spothop's programs comes to this point.
    Point(String),
    /// The same, in a migration whose target has lost its daemon (when the source stood at the first of the two).
    PointAfter(String, String),
    /// So long after the beginning, wherever that is.
    Time(Duration),
}

/// Whose death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// spothop's daemon.
    Daemon,
    /// Every CRIU outside of the container.
    Criu,
    /// Every runc.
    Runc,
    /// Docker's daemon.
    Dockerd,
    /// The container's shim.
    Shim,
    /// Whoever gives the restored tasks their memory.
    Pager,
    /// Whoever watches over that one.
    Guard,
}

/// How long a host is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// So long.
    Passed(Duration),
    /// Until the command that began the migration has ended, or [`CLI_LIMIT`] has passed.
    CliEnded,
}

/// The longest that a fault waits for the command line.
pub const CLI_LIMIT: Duration = Duration::from_secs(20);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum Fault {
    /// Nothing: the migration must succeed.
    Nothing,
    /// The step at the point fails.
    Error,
    /// The program at the point is killed.
    Kill,
    /// The program at the point stands still for a while.
    Stall {
        /// For so long.
        length: Duration,
    },
    /// Another program is killed while the one at the point stands still.
    KillOther {
        /// Where.
        side: Side,
        /// Which.
        victim: Victim,
    },
    /// A host loses its power, and boots again after a while.
    PowerOff {
        /// Which.
        side: Side,
        /// After so long.
        back_after: Duration,
    },
    /// A host is cut off the network.
    Partition {
        /// Which.
        side: Side,
        /// In which direction.
        direction: Direction,
        /// For how long.
        until: Until,
    },
    /// The connections between the daemons are reset.
    StreamCut,
    /// Nothing can be written in /var/lib/spothop any more, for a while.
    DiskFull {
        /// Where.
        side: Side,
    },
    /// Nothing can be written into the migration's tmpfs any more.
    TmpfsFull {
        /// Where.
        side: Side,
    },
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// When; none for a migration that nothing disturbs.
    pub at: Option<At>,
    /// What.
    pub fault: Fault,
    /// Why the container is moved.
    pub cause: Cause,
}

/// Where memory follows a container that runs already: reached only by one that writes faster than its link takes it.
pub(super) const FOLLOWING: [&str; 2] = ["source:fill", "target:fill"];

/// Where a program dies on which the tasks depend that run already: the runtime's `start`, which has not told the engine yet, and the
/// pager, without which they lack memory, as far as anybody can know who has not heard from it that they do not.
const VITAL: [&str; 4] = ["target:wrapper:gone", "target:pager:held", "target:pager:running", "target:pager:ended"];

impl At {
    fn is_vital(&self) -> bool {
        matches!(self, Self::Point(point) if VITAL.contains(&point.as_str()))
    }
}

impl Plan {
    /// Whether the fault comes while memory follows.
    #[must_use]
    pub fn is_while_it_follows(&self) -> bool {
        matches!(&self.at, Some(At::Point(point)) if FOLLOWING.contains(&point.as_str()))
    }

    /// Whether a server that is at this side in the end may have been started anew: only where the fault has ended its memory, or
    /// the container itself. While memory follows (`follows`), what ends the tasks at the source ends it at the target too.
    #[must_use]
    pub fn allows_restart(&self, at: Side, follows: bool) -> bool {
        let takes_along = follows && at == Side::Target;
        match self.fault {
            Fault::PowerOff { side: Side::Source, .. } if takes_along => true,
            Fault::KillOther { side: Side::Source, victim } if takes_along => victim != Victim::Daemon,
            Fault::PowerOff { side, .. } => side == at,
            // A killed daemon of spothop, by contrast, takes nothing with it.
            Fault::KillOther { side, victim } => side == at && victim != Victim::Daemon,
            Fault::Kill | Fault::Error => at == Side::Target && self.at.as_ref().is_some_and(At::is_vital),
            _ => false,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "daemon",
            Self::Criu => "criu",
            Self::Runc => "runc",
            Self::Dockerd => "dockerd",
            Self::Shim => "shim",
            Self::Pager => "pager",
            Self::Guard => "guard",
        })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Point(point) => f.write_str(point),
            Self::PointAfter(first, point) => write!(f, "{point} (aborted at {first})"),
            Self::Time(_) => f.write_str("any moment"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Error => f.write_str("error"),
            Self::Kill => f.write_str("kill"),
            Self::Stall { .. } => f.write_str("stall"),
            Self::KillOther { side, victim } => write!(f, "kill {victim} of {side}"),
            Self::PowerOff { side, .. } => write!(f, "power-off {side}"),
            Self::Partition { side, direction: Direction::Both, .. } => write!(f, "cut {side}"),
            Self::Partition { side, direction: Direction::In, .. } => write!(f, "cut {side} in"),
            Self::Partition { side, direction: Direction::Out, .. } => write!(f, "cut {side} out"),
            Self::StreamCut => f.write_str("stream cut"),
            Self::DiskFull { side } => write!(f, "disk full at {side}"),
            Self::TmpfsFull { side } => write!(f, "tmpfs full at {side}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some(at) => write!(f, "{at} × {}", self.fault),
            None => f.write_str("undisturbed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_the_server_itself_excuses_a_start_from_the_disk() {
        let plan = |fault| Plan { at: None, fault, cause: Cause::Manual };
        let allows = |fault, side| plan(fault).allows_restart(side, false);
        let off = Fault::PowerOff { side: Side::Source, back_after: Duration::ZERO };
        assert!(allows(off, Side::Source));
        assert!(!allows(off, Side::Target));
        assert!(allows(Fault::KillOther { side: Side::Source, victim: Victim::Criu }, Side::Source));
        assert!(!allows(Fault::KillOther { side: Side::Target, victim: Victim::Daemon }, Side::Target));
        assert!(!allows(Fault::Kill, Side::Source));
        assert!(!allows(Fault::StreamCut, Side::Target));

        let allows = |fault, side| plan(fault).allows_restart(side, true);
        assert!(allows(off, Side::Source) && allows(off, Side::Target), "what had not followed is gone");
        assert!(allows(Fault::KillOther { side: Side::Source, victim: Victim::Criu }, Side::Target));
        assert!(!allows(Fault::KillOther { side: Side::Source, victim: Victim::Daemon }, Side::Target));
        assert!(!allows(Fault::StreamCut, Side::Target));
    }
}
