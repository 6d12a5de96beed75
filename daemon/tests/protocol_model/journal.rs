//! The model's journal is the real one: from every standing, every call has the same result and leaves the same behind.

use jiff::Timestamp;
use spothop::journal::{Journal, NewMigration};
use spothop::migration::protocol::Occasion;
use spothop::migration::{Phase, Side, Verdict};
use tempfile::TempDir;

use super::PHASES;
use super::world::{CLOUD, IN_A_WHILE, MANUALLY, Record, Time};

#[derive(Debug, Clone, Copy)]
enum Call {
    Enter(Phase),
    Decide(Verdict),
    Adopt(Verdict),
}

/// One way into each phase.
fn ways() -> Vec<Vec<Call>> {
    use Call::{Decide, Enter};
    use Phase::{Cleaned, Frozen, PreCopy, Prepared, Reserved, Restored, Running, Transferred};
    use Verdict::{Abort, Commit};
    let to_running = [
        Enter(Reserved),
        Enter(Prepared),
        Enter(PreCopy(1)),
        Enter(PreCopy(2)),
        Enter(Frozen),
        Enter(Transferred),
        Enter(Restored),
        Decide(Commit),
        Enter(Running),
        Enter(Cleaned),
    ];
    let mut ways: Vec<_> = (0..=to_running.len()).map(|length| to_running[..length].to_vec()).collect();
    ways.push(vec![Decide(Abort)]);
    ways.push(vec![Decide(Abort), Enter(Cleaned)]);
    ways
}

struct Both<'a> {
    journal: &'a Journal,
    id: String,
    side: Side,
    occasion: Occasion<'a>,
    record: Record,
}

impl Both<'_> {
    /// Calls both; `None` is a refusal.
    fn call(&mut self, call: Call, at: Timestamp) -> (Option<Verdict>, Option<Verdict>) {
        let (journal, id, side) = (self.journal, self.id.as_str(), self.side);
        // An entered phase has no verdict to tell; ABORT stands for success there.
        match call {
            Call::Enter(phase) => (
                journal.enter(id, side, phase, at).ok().map(|()| Verdict::Abort),
                self.record.enter(phase).ok().map(|()| Verdict::Abort),
            ),
            Call::Decide(wanted) => {
                let alone = side == Side::Target || self.occasion.may_abort_alone(self.record.phase, at);
                (journal.decide(id, side, wanted, None, at).ok(), self.record.decide(wanted, alone).ok())
            }
            Call::Adopt(verdict) => (journal.adopt(id, verdict, None, at).ok(), self.record.adopt(verdict).ok()),
        }
    }

    fn standing(&self) -> (Phase, Option<Verdict>) {
        let standing = self.journal.standing(&self.id, self.side).unwrap();
        (standing.phase, standing.verdict)
    }
}

#[test]
fn the_models_journal_is_the_real_one() {
    // In memory: an fsync costs nothing there.
    let directory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let journal = Journal::open(&directory.path().join("journal.db")).unwrap();
    let verdicts = [Verdict::Commit, Verdict::Abort];
    let enters: Vec<_> = PHASES.into_iter().map(Call::Enter).collect();
    let decides: Vec<_> = verdicts.into_iter().map(Call::Decide).chain(verdicts.map(Call::Adopt)).collect();
    let mut number = 0;
    for (occasion, side) in
        [MANUALLY, IN_A_WHILE, CLOUD].into_iter().flat_map(|o| [(o, Side::Source), (o, Side::Target)])
    {
        for way in ways() {
            for time in [Time::Before, Time::Margin, Time::Past] {
                let calls = if time == Time::Before { [&enters[..], &decides].concat() } else { decides.clone() };
                for call in calls {
                    if matches!(call, Call::Adopt(_)) && side == Side::Target {
                        continue;
                    }
                    number += 1;
                    let id = number.to_string();
                    let new = NewMigration {
                        id: id.clone(),
                        side,
                        container_id: String::new(),
                        container: String::new(),
                        peer: String::new(),
                        cause: occasion.cause.to_owned(),
                        deadline: occasion.deadline,
                        predicted: None,
                    };
                    journal.begin(&new, Time::Before.now()).unwrap();
                    let mut both = Both { journal: &journal, id, side, occasion, record: Record::PLANNED };
                    for &step in &way {
                        let (real, model) = both.call(step, Time::Before.now());
                        assert!(real.is_some() && real == model, "{step:?} of {way:?}");
                    }
                    let (real, model) = both.call(call, time.now());
                    let from = format!("{call:?} after {way:?}, {side}, {time:?}, {:?}", occasion.cause);
                    assert_eq!(real, model, "{from}");
                    assert_eq!(both.standing(), (both.record.phase, both.record.verdict), "{from}");
                }
            }
        }
    }
}
