//! Which run is which: a pure function of seed and index.
//!
//! All combinations that make sense are written down ([`cells`]), and shuffled by the seed. Runs go through them in that order, so
//! that as many runs as there are combinations meet each of them once; the rest (durations, the cause) is drawn for every run.

use std::fmt;
use std::time::Duration;

use super::plan::{At, Cause, FOLLOWING, Fault, Plan, Side, Until, Victim};
use crate::switch::Direction;

const PHASES: [&str; 7] = ["reserved", "prepared", "frozen", "transferred", "restored", "committed", "running"];

const SOURCE_POINTS: [&str; 13] = [
    "pre-copy(1)",
    "pre-copy(1):after",
    "pre-copy:10",
    "pre-copy:99",
    "dump-held",
    "gate-opened",
    "memory:1",
    "memory:10",
    "memory:99",
    "hook:before",
    "hook:held",
    "hook:verdict",
    "cleaned",
];

const TARGET_POINTS: [&str; 23] = [
    "pager:held",
    "pager:running",
    "pager:ended",
    "pre-copy:10",
    "pre-copy:99",
    "memory:1",
    "memory:10",
    "memory:99",
    "create:intent",
    "create:done",
    "wrapper:waiting",
    "wrapper:restoring",
    "wrapper:held",
    "wrapper:handed-over",
    "wrapper:attached",
    "wrapper:go",
    "wrapper:gone",
    "hook:held",
    "hook:go",
    "run:before",
    "run:after",
    "running:reply",
    "cleaned",
];

/// Points on the way to an abort: where the target's daemon is killed, and the point.
const ABORTING: [(&str, &str); 8] = [
    ("source:transferred", "source:aborted"),
    ("source:transferred", "source:aborted:after"),
    ("source:transferred", "target:aborted"),
    ("source:transferred", "target:aborted:after"),
    ("source:dump-held", "source:aborted"),
    ("source:dump-held", "target:aborted"),
    ("source:transferred", "source:cleaned"),
    ("source:transferred", "target:cleaned"),
];

/// What can be done to a program at a point, or while it stands there.
const FAULTS: [Word; 23] = [
    Word::Error,
    Word::Kill,
    Word::Stall,
    Word::KillOther(Victim::Daemon, Side::Source),
    Word::KillOther(Victim::Daemon, Side::Target),
    Word::KillOther(Victim::Criu, Side::Source),
    Word::KillOther(Victim::Criu, Side::Target),
    Word::KillOther(Victim::Runc, Side::Source),
    Word::KillOther(Victim::Runc, Side::Target),
    Word::KillOther(Victim::Dockerd, Side::Target),
    Word::KillOther(Victim::Shim, Side::Target),
    Word::KillOther(Victim::Pager, Side::Target),
    Word::KillOther(Victim::Guard, Side::Target),
    Word::PowerOff(Side::Source),
    Word::PowerOff(Side::Target),
    Word::Partition(Side::Source),
    Word::Partition(Side::Target),
    Word::OneWay(Side::Source, Direction::In),
    Word::OneWay(Side::Source, Direction::Out),
    Word::StreamCut,
    Word::DiskFull(Side::Source),
    Word::DiskFull(Side::Target),
    Word::TmpfsFull,
];

/// How long a migration takes at most: of a small server, and of one that has more memory than its link takes in a moment.
const SHORT: Duration = Duration::from_millis(1200);
const LONG: Duration = Duration::from_millis(9000);

/// What can be done at any moment, without a program that stands at a point.
const TIMED: [Word; 10] = [
    Word::KillOther(Victim::Daemon, Side::Source),
    Word::KillOther(Victim::Daemon, Side::Target),
    Word::KillOther(Victim::Criu, Side::Target),
    Word::KillOther(Victim::Dockerd, Side::Source),
    Word::PowerOff(Side::Source),
    Word::PowerOff(Side::Target),
    Word::Partition(Side::Source),
    Word::OneWay(Side::Target, Direction::Out),
    Word::OneWay(Side::Target, Direction::In),
    Word::StreamCut,
];

/// A fault without its durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Error,
    Kill,
    Stall,
    KillOther(Victim, Side),
    PowerOff(Side),
    Partition(Side),
    OneWay(Side, Direction),
    StreamCut,
    DiskFull(Side),
    TmpfsFull,
}

/// A combination without its durations.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    at: Option<At>,
    word: Option<Word>,
}

/// Run number `index` of those with this seed whose name contains `filter`; none when no combination's does. `follows`: memory follows
/// the container, and its migrations take seconds.
#[must_use]
pub(super) fn plan(seed: u64, index: u64, filter: Option<&str>, follows: bool) -> Option<Plan> {
    let mut cells = cells(follows);
    cells.retain(|cell| filter.is_none_or(|filter| cell.to_string().contains(filter)));
    let count = u64::try_from(cells.len()).unwrap_or(u64::MAX);
    let round = index.checked_div(count)?;
    let mut dice = Dice::of(&[seed, round]);
    // Fisher and Yates.
    for last in (1..cells.len()).rev() {
        cells.swap(last, usize::try_from(dice.below(last as u64 + 1)).unwrap_or_default());
    }
    let cell = cells.swap_remove(usize::try_from(index % count).ok()?);
    Some(cell.draw(&mut Dice::of(&[seed, index, 1]), if follows { LONG } else { SHORT }))
}

/// Every point of the matrix.
#[must_use]
fn points(follows: bool) -> Vec<String> {
    let mut points = Vec::new();
    for side in ["source", "target"] {
        for phase in PHASES {
            points.push(format!("{side}:{phase}"));
            points.push(format!("{side}:{phase}:after"));
        }
    }
    points.extend(SOURCE_POINTS.iter().map(|point| format!("source:{point}")));
    points.extend(TARGET_POINTS.iter().map(|point| format!("target:{point}")));
    points.extend(FOLLOWING.iter().filter(|_| follows).map(|point| (*point).to_owned()));
    points
}

fn cells(follows: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |at: &At, words: &[Word]| {
        cells.extend(words.iter().map(|word| Cell { at: Some(at.clone()), word: Some(*word) }));
    };
    for point in points(follows) {
        let words: Vec<Word> = FAULTS.into_iter().filter(|word| word.applies(&point)).collect();
        add(&At::Point(point), &words);
    }
    for (first, point) in ABORTING {
        let at = At::PointAfter(first.to_owned(), point.to_owned());
        add(&at, &FAULTS[..3]);
        add(&at, &[Word::PowerOff(Side::Source), Word::PowerOff(Side::Target), Word::Partition(Side::Target)]);
    }
    // The time itself is drawn; each comes several times.
    for _ in 0..6 {
        add(&At::Time(Duration::ZERO), &TIMED);
    }
    cells.extend(std::iter::repeat_n(Cell { at: None, word: None }, 10));
    cells
}

impl Cell {
    fn draw(self, dice: &mut Dice, length: Duration) -> Plan {
        let at = match self.at {
            Some(At::Time(_)) => {
                Some(At::Time(Duration::from_millis(dice.below(u64::try_from(length.as_millis()).unwrap_or_default()))))
            }
            at => at,
        };
        let cause = if dice.below(4) == 0 { Cause::Notice } else { Cause::Manual };
        Plan { at, fault: self.word.map_or(Fault::Nothing, |word| word.draw(dice)), cause }
    }
}

/// How far a migration is at a point: who is there to be killed, what there is to be filled.
fn stage(point: &str) -> u8 {
    let word = point.trim_end_matches(":after");
    match word.split_once(':').unwrap_or_default() {
        (_, "reserved") => 1,
        (_, "create:intent" | "create:done") => 2,
        (_, "prepared" | "wrapper:waiting" | "pre-copy(1)" | "pre-copy:10" | "pre-copy:99") => 3,
        (_, "frozen" | "hook:before") => 4,
        ("source", "dump-held" | "hook:held") | (_, "memory:1" | "memory:10" | "memory:99") => 5,
        (_, "transferred" | "wrapper:restoring") => 6,
        (_, "restored" | "pager:held" | "wrapper:held" | "wrapper:handed-over" | "wrapper:attached" | "hook:held") => 7,
        (_, "committed" | "gate-opened" | "hook:verdict" | "run:before" | "hook:go" | "wrapper:go") => 8,
        (_, "fill") => 9,
        _ => 10,
    }
}

impl Word {
    /// Whether there is anything to do it to when a migration is at this point, and whether it ever ends: a tmpfs that stays full takes no
    /// pages that follow, which go on being sent until somebody makes room or gives them up (`spothop resolve`).
    fn applies(self, point: &str) -> bool {
        match self {
            // The dump waits for the freeze and is held until the verdict; the restore waits for the images, as runc, and is held until the
            // word to go. Of memory that follows the source has the tasks and the target the pager.
            Self::KillOther(Victim::Criu | Victim::Runc, Side::Source) => (4..=9).contains(&stage(point)),
            Self::KillOther(Victim::Criu, Side::Target) => (7..=8).contains(&stage(point)),
            Self::KillOther(Victim::Runc, Side::Target) => (3..=8).contains(&stage(point)),
            Self::KillOther(Victim::Pager | Victim::Guard, Side::Target) => (7..=9).contains(&stage(point)),
            Self::KillOther(Victim::Shim, Side::Target) => stage(point) >= 3,
            Self::TmpfsFull => (3..=7).contains(&stage(point)),
            _ => true,
        }
    }

    fn draw(self, dice: &mut Dice) -> Fault {
        let mut between = |least: u64, most: u64| Duration::from_millis(least + dice.below(most - least + 1));
        match self {
            Self::Error => Fault::Error,
            Self::Kill => Fault::Kill,
            Self::Stall => Fault::Stall { length: between(500, 4000) },
            Self::KillOther(victim, side) => Fault::KillOther { side, victim },
            Self::PowerOff(side) => Fault::PowerOff { side, back_after: between(0, 3000) },
            Self::Partition(side) => Fault::Partition { side, direction: Direction::Both, until: until(dice) },
            Self::OneWay(side, direction) => Fault::Partition { side, direction, until: until(dice) },
            Self::StreamCut => Fault::StreamCut,
            Self::DiskFull(side) => Fault::DiskFull { side },
            Self::TmpfsFull => Fault::TmpfsFull { side: if dice.below(2) == 0 { Side::Source } else { Side::Target } },
        }
    }
}

fn until(dice: &mut Dice) -> Until {
    match dice.below(3) {
        0 => Until::CliEnded,
        _ => Until::Passed(Duration::from_millis(300 + dice.below(6000))),
    }
}

/// Numbers that follow from a seed: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn of(parts: &[u64]) -> Self {
        let mut dice = Self(0);
        for part in parts {
            dice.0 ^= *part;
            dice.0 = dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `limit` − 1; the tiny preference for small numbers does no harm here.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

impl fmt::Display for Cell {
    /// What `--only` is compared with: `source:frozen × kill`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = self.word.map_or(Fault::Nothing, |word| word.draw(&mut Dice(0)));
        match &self.at {
            Some(at) => write!(f, "{at} × {fault}"),
            None => write!(f, "undisturbed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_run_follows_from_seed_and_index_alone() {
        for index in [0, 7, 900] {
            assert_eq!(plan(3, index, None, false), plan(3, index, None, false));
        }
        assert_ne!(
            (0..20).map(|i| plan(3, i, None, false)).collect::<Vec<_>>(),
            (0..20).map(|i| plan(4, i, None, false)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn as_many_runs_as_there_are_combinations_meet_each_of_them() {
        for follows in [false, true] {
            let cells = cells(follows);
            let all: HashSet<String> =
                cells.iter().map(ToString::to_string).filter(|name| !name.contains("tmpfs")).collect();
            let met: HashSet<String> = (0..cells.len() as u64)
                .filter_map(|index| plan(1, index, None, follows))
                .map(|plan| plan.to_string())
                .collect();
            assert!(all.is_subset(&met), "{:?}", all.difference(&met).collect::<Vec<_>>());
        }
    }

    #[test]
    fn faults_without_a_victim_are_left_out() {
        let names: Vec<String> = cells(true).iter().map(ToString::to_string).collect();
        for name in [
            "source:fill × kill criu of target",
            "target:fill × tmpfs full at source",
            "source:reserved × kill criu of source",
            "target:running × kill runc of target",
            "source:reserved × tmpfs full at source",
        ] {
            assert!(!names.iter().any(|known| known == name), "{name}");
        }
        for name in [
            "source:fill × kill criu of source",
            "source:fill × kill pager of target",
            "target:fill × kill guard of target",
            "target:fill × power-off source",
            "target:fill × kill",
            "source:dump-held × kill criu of source",
            "target:hook:held × kill criu of target",
            "target:wrapper:held × kill shim of target",
        ] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn a_filter_leaves_what_it_names_and_nothing_is_none() {
        for index in 0..50 {
            let drawn = plan(1, index, Some("source:frozen × kill"), false).unwrap();
            assert!(drawn.to_string().starts_with("source:frozen × kill"), "{drawn}");
        }
        assert_eq!(plan(1, 0, Some("no such point"), false), None);
        assert_eq!(plan(1, 0, Some("source:fill"), false), None, "nothing is reached where nothing follows");
        assert!(plan(1, 0, Some("source:fill"), true).is_some());
    }
}
