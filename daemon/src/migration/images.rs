//! Images of containers that go to another host, or may go: there already, pulled there, or shipped from here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spothop_transfer::Stats;
use tracing::info;

use super::error::chain;
use super::message::{Answer, Request};
use super::target::MOST_BYTES;
use super::{Context, Conversation, Error};
use crate::orchestrator::{Image, Orchestrator};

/// For pulling an image or taking one in.
const LIMIT: Duration = Duration::from_secs(600);

const STEP: &str = "having the image ready";

/// Source: has the target have the image. `request` says so, with whether the image comes along. Returns what was shipped and since when,
/// if it had to be.
pub(super) async fn ship(
    context: &Context,
    target: &mut Conversation,
    image: &Image,
    request: impl Fn(bool) -> Request,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Option<(Stats, Instant)>, Error> {
    match target.ask(&request(false), STEP, LIMIT).await? {
        Answer::ImageReady => return Ok(None),
        Answer::ImageNeeded { reason } => {
            info!(image = image.reference, target = target.peer(), reason, "the image is shipped from here");
        }
        _ => return Err(target.out_of_turn(STEP)),
    }
    let began = Instant::now();
    let archive = context.engine.export_image(image).await?;
    target.say(&request(true)).await?;
    let stats = target.bulk().send_stream(archive, progress).await?;
    match target.answer(STEP, LIMIT).await? {
        Answer::ImageReady => Ok(Some((stats, began))),
        _ => Err(target.out_of_turn(STEP)),
    }
}

/// Target: looks for the image here, and then at the registries that have it.
pub(super) async fn have(engine: &Arc<dyn Orchestrator>, image: &Image) -> Result<Answer, Error> {
    if engine.has_image(image).await? {
        return Ok(Answer::ImageReady);
    }
    match engine.pull_image(image).await {
        Ok(()) => Ok(Answer::ImageReady),
        Err(error) => Ok(Answer::ImageNeeded { reason: chain(&error) }),
    }
}

/// Target: takes in the image that follows.
pub(super) async fn receive(
    engine: &Arc<dyn Orchestrator>,
    image: &Image,
    source: &mut Conversation,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Stats, Error> {
    let (reader, writer) = tokio::io::simplex(1 << 20);
    let (received, imported) = tokio::join!(
        source.bulk().receive_stream(writer, MOST_BYTES, progress),
        engine.import_image(image, Box::new(reader)),
    );
    // A broken stream explains a failed import, not the other way round.
    let received = received?;
    imported?;
    Ok(received)
}

/// Target: the answer to [`Request::Warm`].
pub(super) async fn warmed(
    context: &Context,
    source: &mut Conversation,
    image: &Image,
    shipped: bool,
) -> Result<Answer, Error> {
    if let Some(notice) = context.notice_against(false) {
        return Err(Error::UnderNotice { notice: notice.id });
    }
    if !shipped {
        return have(&context.engine, image).await;
    }
    receive(&context.engine, image, source, &|_| {}).await?;
    info!(image = image.reference, source = source.peer(), "has come for a container that may come");
    Ok(Answer::ImageReady)
}
