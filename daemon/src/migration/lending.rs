//! The source's side of memory that follows: its tasks are frozen and given away, and the target asks for their last pages.
//!
//! Nothing about it is kept: the tasks are the ones that are frozen, by their ids in the container, whichever daemon reads them.

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
    let mut lent = 0;
    while let Answer::Lacking { pages, bytes } = answer {
        track.reach("fill")?;
        if lent == 0 {
            info!(migration = %track.id, bytes, "the container runs at its target, and the rest of its memory follows");
        }
        lent += 1;
        let request = match read(track, pages).await? {
            Ok(batch) => {
                target.say(&Request::Pages { bytes: batch.bytes, frozen: true }).await?;
                let stats = target.bulk().send_extents(batch as _, &track.progress("fill", None)).await?;
                track.count(stats).await?;
                None
            }
            Err(reason) => {
                warn!(migration = %track.id, reason, "the target lacks memory that is not here any more");
                Some(Request::Lost { reason })
            }
        };
        if let Some(lost) = request {
            target.say(&lost).await?;
        }
        answer = target.answer(step, RUN).await?;
    }
    Ok(answer)
}

/// The pages, of tasks that are still as they were frozen; or why there are none.
async fn read(track: &Track, pages: Vec<Piece>) -> Result<Result<std::sync::Arc<memory::Batch>, String>, Error> {
    let frozen = track.steps().await?.into_iter().find_map(|step| match step {
        Step::Freeze { task } => Some(task),
        _ => None,
    });
    let Some(task) = frozen.filter(|task: &Task| task.is_alive()) else {
        return Ok(Err("its tasks at the source have died".to_owned()));
    };
    unpanicked(spawn_blocking(move || memory::of_frozen(task.pid, &pages)).await)
}
