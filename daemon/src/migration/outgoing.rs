//! The source's talk about memory: rounds of pre-copy, and what is left for the freeze.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use spothop_criu::memory::{MOST_OWED, can_be_owed, holes, write_owed};
use spothop_policy::post_copy;
use spothop_policy::rounds::{self, Round};
use tokio::task::spawn_blocking;
use tracing::info;

use super::limit::Limit;
use super::memory::{Batch, Memory, Pace, Stage};
use super::message::Request;
use super::meter::{Meter, What};
use super::source::{Job, STEP};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Track};

/// The memory of a container that moves away.
pub(super) struct Outgoing<'a> {
    context: &'a Context,
    track: &'a Track,
    job: &'a Job,
    /// None where CRIU dumps it.
    memory: Option<Arc<Mutex<Memory>>>,
    meter: &'a Meter,
    limit: &'a Limit,
    /// What the rounds of pre-copy have shown.
    rounds: Vec<Round>,
    /// Whether memory may follow when the container runs already, and whether it does.
    may_follow: bool,
    follows: bool,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(
        context: &'a Context,
        track: &'a Track,
        job: &'a Job,
        meter: &'a Meter,
        limit: &'a Limit,
    ) -> Self {
        let memory = context.ways.outgoing(job.init_pid, job.mode).map(|memory| Arc::new(Mutex::new(memory)));
        Self { context, track, job, memory, meter, limit, rounds: Vec::new(), may_follow: false, follows: false }
    }

    /// Target and container are such that memory may follow.
    pub(super) fn let_follow(&mut self) {
        self.may_follow = true;
    }

    /// Whether part of it is to follow.
    pub(super) fn follows(&self) -> bool {
        self.follows
    }

    /// Whether it goes over page by page, and not in CRIU's images.
    pub(super) fn is_paged(&self) -> bool {
        self.memory.is_some()
    }

    /// Pre-copy: in rounds, until another one would not shorten the freeze.
    pub(super) async fn send_running(&mut self, target: &mut Conversation) -> Result<(), Error> {
        let mut left = self.look(Memory::look).await?;
        let mut rounds = Vec::new();
        let mut another = rounds::first(left, self.job.bytes_per_second, self.limit.left());
        while left > 0 && another.is_ok() {
            self.track.enter(Phase::PreCopy(rounds.len() as u32 + 1)).await?;
            let (began, sent_bytes) = (Instant::now(), left);
            // A deadline is no time to be modest.
            let pace = (!self.limit.presses()).then(|| Pace::new(self.context.config.memory.max_precopy_cpu));
            self.send(target, |memory| memory.batch(Stage::Running, pace)).await?;
            let elapsed = began.elapsed();
            left = self.look(Memory::look).await?;
            rounds.push(Round { sent_bytes, elapsed, dirty_bytes: left });
            another = rounds::another(&rounds, self.limit.left());
        }
        if let Err(enough) = another {
            info!(migration = %self.track.id, rounds = rounds.len(), left, ?enough, "the container is frozen now");
        }
        self.rounds = rounds;
        Ok(())
    }

    /// Finds what was written since, now that the tasks are frozen. Before CRIU touches them: it resets what the kernel notes of writes.
    pub(super) async fn look_at_frozen(&mut self) -> Result<(), Error> {
        let left = self.look(Memory::look_at_frozen).await?;
        if self.may_follow {
            let admitted = post_copy::may_follow(left, &self.rounds, self.limit.left());
            self.follows = admitted.is_ok();
            if self.follows {
                // What cannot be put off is little, and is counted among what is sent now as well.
                self.meter.follows(left);
            }
            match admitted {
                Ok(sending) => {
                    info!(migration = %self.track.id, left, ?sending, "what is left of the memory will follow")
                }
                Err(reason) => {
                    info!(migration = %self.track.id, left, ?reason, "what is left of the memory is sent now")
                }
            }
        }
        Ok(())
    }

    /// Sends that, unless it shall follow.
    pub(super) async fn send_changed(&self, target: &mut Conversation) -> Result<(), Error> {
        if self.follows { Ok(()) } else { self.send_all(target, Stage::Frozen).await }
    }

    async fn send_all(&self, target: &mut Conversation, stage: Stage) -> Result<(), Error> {
        let left = self.memory.as_ref().map_or(0, |memory| lock(memory).to_send());
        match left {
            0 => Ok(()),
            _ => self.send(target, |memory| memory.batch(stage, None)).await,
        }
    }

    /// Pages that CRIU's dump in `images` has left to us, and that the target does not have yet. Of what shall follow a list is put among
    /// the images.
    pub(super) async fn send_missing(&self, target: &mut Conversation, images: PathBuf) -> Result<(), Error> {
        let follows = self.follows;
        let owe = move |memory: &mut Memory| {
            memory.owe(holes(&images)?)?;
            if follows {
                write_owed(&images, &memory.put_off(can_be_owed(&images)?, MOST_OWED))?;
            }
            Ok(())
        };
        self.look(owe).await?;
        self.send_all(target, Stage::Dumped).await
    }

    /// Looks at the memory; returns how much is to be sent, in bytes.
    async fn look(&self, look: impl FnOnce(&mut Memory) -> Result<(), Error> + Send + 'static) -> Result<u64, Error> {
        let Some(memory) = self.memory.clone() else { return Ok(0) };
        let looked = spawn_blocking(move || {
            let mut memory = lock(&memory);
            look(&mut memory).map(|()| memory.to_send())
        });
        unpanicked(looked.await)
    }

    async fn send(
        &self,
        target: &mut Conversation,
        batch: impl FnOnce(&mut Memory) -> Arc<Batch>,
    ) -> Result<(), Error> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let batch = batch(&mut lock(memory));
        let (bytes, frozen) = (batch.bytes, batch.stage != Stage::Running);
        let began = Instant::now();
        target.say(&Request::Pages { bytes, frozen }).await?;
        let progress = self.track.progress(progress_name(frozen), Some(bytes));
        let stats = target.bulk().send_extents(Arc::clone(&batch) as _, &progress).await?;
        let sent_bytes = stats.raw_bytes;
        self.track.count(stats).await?;
        target.done("receiving pages", STEP).await?;
        self.meter.sent(if frozen { What::Frozen } else { What::Rounds }, sent_bytes, began);
        lock(memory).sent(&batch);
        Ok(())
    }
}

/// What those who watch a migration are told that its pages are.
pub(super) fn progress_name(frozen: bool) -> &'static str {
    if frozen { "memory" } else { "pre-copy" }
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}
