//! The port on which other daemons reach this one.

use std::sync::Arc;
use std::time::Duration;

use spothop_transfer::Listener;
use tokio::time::timeout;
use tracing::info;

use super::error::chain;
use super::filling::Filling;
use super::message::{Answer, Request};
use super::{Context, Conversation, Error, Phase, Side, Track, Verdict, images, target};

/// For a target to run what a source says (again) is committed.
const RUN: Duration = Duration::from_secs(50);

/// Takes conversations until the listener is dropped.
pub async fn listen(context: Arc<Context>, mut listener: Listener) {
    loop {
        let conversation = Conversation::new(listener.accept().await);
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let peer = conversation.peer().to_owned();
            if let Err(failure) = converse(context, conversation).await {
                info!(peer, error = chain(&failure), "a conversation ended early");
            }
        });
    }
}

async fn converse(context: Arc<Context>, mut peer: Conversation) -> Result<(), Error> {
    let name = peer.peer().to_owned();
    while let Some(request) = peer.hear().await? {
        let answer = match request {
            Request::Offer(_) | Request::Probe(_) if !context.inventory.has(&name) => {
                Err(Error::Departed { peer: name.clone() })
            }
            Request::Offer(offer) => return target::take(context, peer, *offer).await,
            Request::Probe(probe) => {
                let notice = context.notice_against(probe.urgent).map(|notice| notice.id);
                context.capacity.facts(&context, &probe, notice).await.map(|facts| Answer::Facts(Box::new(facts)))
            }
            Request::Warm { image, shipped } => images::warmed(&context, &mut peer, &image, shipped).await,
            Request::Ask { migration } => {
                let track = of_peer(&context, &name, Side::Source, &migration).await;
                async { Ok(Answer::Verdict { verdict: track?.verdict().await? }) }.await
            }
            Request::Decided { migration, verdict, .. } => {
                let track = of_peer(&context, &name, Side::Target, &migration).await;
                async { confirm(&context, &track?, verdict, &mut peer).await }.await
            }
            _ => Err(peer.out_of_turn("a step without an offer")),
        };
        peer.reply(&answer.unwrap_or_else(|failure| Answer::Failed { reason: chain(&failure) })).await?;
    }
    Ok(())
}

/// The handle on a migration of ours with this very peer.
async fn of_peer(context: &Context, peer: &str, side: Side, migration: &str) -> Result<Track, Error> {
    let record = context.track(migration, side, "").record().await?;
    if record.peer != peer {
        return Err(Error::NotYours { peer: peer.to_owned(), migration: migration.to_owned() });
    }
    Ok(context.track(migration, side, &record.container))
}

/// A source tells its verdict in a session of its own, because the first one broke, and hears what stands in our journal. The
/// migration's own task hears of a COMMIT by asking; here we only wait until it has acted.
async fn confirm(
    context: &Context,
    track: &Track,
    verdict: Verdict,
    source: &mut Conversation,
) -> Result<Answer, Error> {
    let mut events = context.events.watch();
    if verdict == Verdict::Abort {
        track.decide(Verdict::Abort, Some("the source goes on".to_owned())).await?;
    }
    let waited = timeout(RUN, async {
        loop {
            let phases: Vec<_> = track.record().await?.phases.into_iter().map(|entry| entry.phase).collect();
            if phases.contains(&Phase::Running) {
                return Ok(Phase::Running);
            }
            if phases.contains(&Phase::Aborted) {
                return Ok(Phase::Aborted);
            }
            // Every phase is announced; lagging behind only means to look again at once.
            let _ = events.recv().await;
        }
    });
    match waited.await.unwrap_or(Err(Error::TimedOut { step: "acting on the verdict", limit: RUN }))? {
        Phase::Running => {
            let filling = Filling::of(context, track);
            if verdict == Verdict::Commit {
                // What this session does not bring, the next one will.
                filling.fetch(source).await?;
            }
            Ok(Answer::Running { lost: filling.lost().await? })
        }
        _ => Ok(Answer::Gone),
    }
}
