//! The source's side of memory that follows: its tasks are frozen and given away, and the target asks for their last pages.
//!
//! Nothing about it is kept: the tasks are the ones that are frozen, by their ids in the container, whichever daemon reads them.

use std::sync::Arc;

use spothop_criu::memory::pager::Piece;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::ending::RUN;
use super::memory;
use super::message::{Answer, Request};
use super::track::unpanicked;
use super::{Conversation, Error, Step, Task, Track};

/// Sends the target what it asks for, until it says something else.
pub(super) async fn lend(
    track: &Track,
    target: &mut Conversation,
    mut answer: Answer,
    step: &'static str,
) -> Result<Answer, Error> {
    let mut lends = false;
    while let Answer::Lacking { pages, bytes } = answer {
        track.reach("fill")?;
        if !std::mem::replace(&mut lends, true) {
            info!(migration = %track.id, bytes, "the container runs at its target, and the rest of its memory follows");
        }
        match read(track, pages).await? {
            Ok(batch) => {
                target.say(&Request::Pages { bytes: batch.bytes, frozen: true }).await?;
                let stats = target.bulk().send_extents(batch as _, &track.progress("fill", None)).await?;
                track.count(stats).await?;
            }
            Err(reason) => {
                warn!(migration = %track.id, reason, "the target lacks memory that is not here any more");
                target.say(&Request::Lost { reason }).await?;
            }
        }
        answer = target.answer(step, RUN).await?;
    }
    Ok(answer)
}

/// The pages, of tasks that are still as they were frozen; or why there are none.
async fn read(track: &Track, pages: Vec<Piece>) -> Result<Result<Arc<memory::Batch>, String>, Error> {
    let frozen = track.steps().await?.into_iter().find_map(|step| match step {
        Step::Freeze { task } => Some(task),
        _ => None,
    });
    let Some(task) = frozen.filter(|task: &Task| task.is_alive()) else {
        return Ok(Err("its tasks at the source have died".to_owned()));
    };
    unpanicked(spawn_blocking(move || memory::of_frozen(task.pid, &pages)).await)
}
