//! A migration that nobody can end but a person: its other host is gone for good, and nothing on record says who runs the container.
//!
//! It is refused while the other host answers, because the two then agree by themselves, and in every phase in which this host
//! needs nobody.

use std::sync::Arc;

use jiff::Timestamp;

use super::filling::{Filling, Missing};
use super::protocol::Occasion;
use super::{Context, Error, Phase, Side, Track, Verdict};
use crate::api::{MigrationView, Open, Runs};

const REASON: &str = "resolved by hand";

/// What is known about a migration that is open, and what either answer would do.
///
/// # Errors
/// [`Error::NotOpen`] when there is nothing to resolve, or the journal's.
pub async fn look(context: &Arc<Context>, migration: MigrationView) -> Result<Open, Error> {
    let track = context.track(&migration.id, migration.side, &migration.container);
    let standing = track.standing().await?;
    let (known, here, there) = match (migration.side, standing.verdict, standing.phase) {
        (Side::Target, None, Phase::Restored) => (
            "the container is restored here and stopped; its source has not said whether it goes on there",
            "runs the container here; if the source is alive after all, it runs twice",
            "removes what was restored here; if the source is gone after all, the container is lost",
        ),
        (Side::Source, None, Phase::Transferred | Phase::Restored) if !standing.may_abort_alone(Timestamp::now()) => (
            "the container is frozen here, or this host was restarted; its target may run it since the deadline has passed",
            "lets the container go on here; if the target runs it after all, it runs twice",
            "removes the container here; if the target does not run it after all, the container is lost",
        ),
        (Side::Source, Some(Verdict::Commit), Phase::Committed) => (
            "the container is frozen here and was given away; its target has not said that it runs",
            "takes the container back; if the target runs it after all, it runs twice",
            "removes the container here; if the target does not run it after all, the container is lost",
        ),
        (Side::Target, Some(Verdict::Commit), Phase::Running)
            if Filling::of(context, &track).missing().await != Missing::Nothing =>
        {
            (
                "the container runs here, and part of its memory is still at its source, which gave it away for good",
                "gives that memory up: the container is killed here and started from its files",
                "is refused: what has run here does not go back",
            )
        }
        (side, _, phase) => return Err(Error::NotOpen { id: migration.id, side, phase }),
    };
    let peer = match context.connect(&migration.peer, 1).await {
        Ok(_) => None,
        Err(failure) => Some(super::chain(&failure)),
    };
    let cloud = Occasion { cause: &migration.cause, deadline: migration.deadline }.taken_away();
    Ok(Open {
        known: known.to_owned(),
        unreachable: peer,
        source_taken_away: cloud,
        here: here.to_owned(),
        there: there.to_owned(),
        migration,
    })
}

/// Writes down where the container runs, on a person's word. The migration's own task reads it there and acts.
///
/// # Errors
/// [`Error::NotOpen`]; [`Error::PeerAnswers`]; the journal's.
pub async fn resolve(context: &Arc<Context>, migration: MigrationView, runs: Runs) -> Result<(), Error> {
    let open = look(context, migration).await?;
    let MigrationView { id, side, container, peer, .. } = open.migration;
    if open.unreachable.is_none() {
        return Err(Error::PeerAnswers { id, peer });
    }
    tracing::warn!(migration = id, %side, "resolved by hand: the container runs {runs}");
    let track = context.track(&id, side, &container);
    match (track.standing().await?.phase, side, runs) {
        (Phase::Running, Side::Target, Runs::Here) => Filling::of(context, &track).lose(REASON.to_owned()).await,
        (Phase::Running, Side::Target, Runs::There) => Err(Error::RunsHere { id, peer }),
        _ => record(&track, runs).await,
    }
}

async fn record(track: &Track, runs: Runs) -> Result<(), Error> {
    match (track.side, runs) {
        (Side::Target, Runs::Here) => track.decide(Verdict::Commit, Some(REASON.to_owned())).await.map(drop),
        (Side::Target, Runs::There) => track.decide(Verdict::Abort, Some(REASON.to_owned())).await.map(drop),
        (Side::Source, Runs::Here) => track.adopt(Verdict::Abort, REASON.to_owned()).await.map(drop),
        (Side::Source, Runs::There) => {
            track.adopt(Verdict::Commit, REASON.to_owned()).await?;
            track.enter(Phase::Running).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, NewMigration};
    use crate::migration::Events;

    fn track(side: Side, phases: &[Phase]) -> (tempfile::TempDir, Track) {
        let scratch = tempfile::tempdir().unwrap();
        let journal = Journal::open(&scratch.path().join("journal.db")).unwrap();
        let new = NewMigration {
            id: "m1".into(),
            side,
            container_id: "c".into(),
            container: "c".into(),
            peer: "b".into(),
            cause: "manual".into(),
            deadline: None,
            predicted: None,
        };
        journal.begin(&new, Timestamp::now()).unwrap();
        for &phase in phases {
            journal.enter("m1", side, phase, Timestamp::now()).unwrap();
        }
        (scratch, Track::new("m1", side, "c", Arc::new(journal), Events::default()))
    }

    const RESTORED: [Phase; 5] = [Phase::Reserved, Phase::Prepared, Phase::Frozen, Phase::Transferred, Phase::Restored];

    #[tokio::test]
    async fn a_word_is_recorded_as_if_the_other_host_had_said_it() {
        for (runs, verdict) in [(Runs::Here, Verdict::Commit), (Runs::There, Verdict::Abort)] {
            let (_scratch, target) = track(Side::Target, &RESTORED);
            record(&target, runs).await.unwrap();
            assert_eq!(target.verdict().await.unwrap(), Some(verdict));
        }
        let (_scratch, back) = track(Side::Source, &RESTORED);
        back.decide(Verdict::Commit, None).await.unwrap();
        record(&back, Runs::Here).await.unwrap();
        assert_eq!(back.standing().await.unwrap().phase, Phase::Aborted);
        let (_scratch, gone) = track(Side::Source, &RESTORED);
        gone.decide(Verdict::Commit, None).await.unwrap();
        record(&gone, Runs::There).await.unwrap();
        assert_eq!(gone.standing().await.unwrap().phase, Phase::Running);
    }
}
