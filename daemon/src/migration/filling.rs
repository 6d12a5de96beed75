//! The target's side of memory that follows: a container runs here already, and its last pages are still at its source, whose tasks stay
//! frozen until this host says `Running`.
//!
//! Only the pager knows what is missing ([`pager::ask`]), and only the source has it. Nothing about it is kept here: whoever has a
//! session with the source fetches what the pager names, and a daemon or a session that is lost is an ordinary beginning. A pager that is
//! gone has said how it ended ([`Paged`]). If it was killed what it lacked is lost: the tasks that need it die with it, and what they have
//! done since they ran is known to others, so that they go on neither here nor at their source.
//!
//! ```text
//! pager ── what is wanted ──► Lacking ──► source
//! store ◄──────────────────── pages ◄─── source
//! pager ◄── what has come
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spothop_criu::handoff::Directory;
use spothop_criu::memory::pager::{self, Lacking, Piece};
use spothop_criu::memory::{Pages, Store, Vpid};
use spothop_criu::paged::Paged;
use spothop_transfer::{ExtentSink, Limits};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info};

use super::error::chain;
use super::message::{Answer, Request};
use super::packing::{CLEARED, PACKED, unpack};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Side, Step, Track};

/// For the source to begin to send what it was asked for.
const ANSWER: Duration = Duration::from_secs(20);

/// For the source to send it: it is as much as the link took in a moment, a while ago.
const EXCHANGE: Duration = Duration::from_secs(60);

/// How much is asked for at once, in bytes: the first time, and at most. A thread that needs a page waits for what was asked for before it.
const FIRST: u64 = 256 << 10;
const MOST: u64 = 8 << 20;

/// How long an exchange may take: hardly noticed by who waits for its end.
const NOTICED: Duration = Duration::from_millis(20);

/// An exchange takes so many round trips that the one in which nothing is sent costs little.
const ROUND_TRIPS: u32 = 8;

/// How the remark begins about a container that came without all of its memory.
pub const MEMORY_LOST: &str = "part of its memory was lost, and it was started from its files";

/// The remark about one.
pub(super) fn remark(reason: &str) -> String {
    format!("{MEMORY_LOST} ({reason})")
}

/// Why it is lost when nobody has said so: nobody was left.
const BOTH_DIED: &str = "its pager and the pager's guard here have died";

/// What a container that runs here lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    Nothing,
    /// So many bytes. Of no answer from the pager nothing is concluded.
    Bytes(u64),
    /// Some of it, and nobody can give it that any more. This is why.
    Lost(String),
}

/// A container that runs here, and may lack pages.
pub(super) struct Filling<'a> {
    track: &'a Track,
    directory: Directory,
    socket: PathBuf,
    store: PathBuf,
}

impl<'a> Filling<'a> {
    pub(super) fn of(context: &Context, track: &'a Track) -> Self {
        let directory = Directory::at(context.workspace(Side::Target, &track.id).directory());
        Self { track, socket: directory.owed_socket(), store: directory.pages(), directory }
    }

    pub(super) async fn missing(&self) -> Missing {
        match self.ask(Vec::new(), 0).await {
            Ok(Asked::Whole) => Missing::Nothing,
            Ok(Asked::Lacks(lacking)) => Missing::Bytes(lacking.bytes),
            Ok(Asked::Failed(reason)) => Missing::Lost(reason),
            Err(failure) => {
                info!(migration = %self.track.id, error = chain(&failure), "the pager does not answer");
                Missing::Bytes(u64::MAX)
            }
        }
    }

    /// Fetches all of it from its source, which has just said that the container runs here. What is lost is on record then.
    pub(super) async fn fetch(&self, source: &mut Conversation) -> Result<(), Error> {
        let (mut arrived, mut most) = (Vec::new(), FIRST);
        let (began, mut total) = (Instant::now(), 0);
        loop {
            let Lacking { pages, bytes } = match self.ask(std::mem::take(&mut arrived), most).await? {
                Asked::Whole => break,
                Asked::Lacks(lacking) => lacking,
                Asked::Failed(reason) => return self.lose(reason).await,
            };
            self.track.reach("fill")?;
            let asked = Instant::now();
            source.reply(&Answer::Lacking { pages: pages.clone(), bytes }).await?;
            let heard = timeout(ANSWER, source.hear()).await;
            let (sent, round_trip) =
                match heard.map_err(|_| Error::TimedOut { step: "the missing pages", limit: ANSWER })?? {
                    Some(Request::Pages { bytes, .. }) => (bytes, asked.elapsed()),
                    Some(Request::Lost { reason }) => return self.lose(reason).await,
                    Some(_) => return Err(source.out_of_turn("the missing pages")),
                    None => return Err(Error::HungUp { peer: source.peer().to_owned(), step: "the missing pages" }),
                };
            let sink = Arc::new(Arriving::new(Store::at(&self.store), &pages));
            let (limits, progress) = (Limits::bytes(sent), self.track.progress("fill", None));
            let received = timeout(EXCHANGE, source.bulk().receive_extents(Arc::clone(&sink) as _, &limits, &progress));
            let stats =
                received.await.map_err(|_| Error::TimedOut { step: "the missing pages", limit: EXCHANGE })??;
            self.track.count(stats).await?;
            arrived = sink.arrived();
            total += sent;
            most = next_amount(sent, asked.elapsed(), round_trip);
        }
        if total > 0 {
            info!(migration = %self.track.id, bytes = total, took = ?began.elapsed(), "the rest of the memory has followed");
        }
        Ok(())
    }

    /// What is missing will never come. On record first: whoever comes back goes on with it.
    pub(super) async fn lose(&self, reason: String) -> Result<(), Error> {
        error!(migration = %self.track.id, reason, "memory that was to follow is lost; the container is killed and started from its files");
        if self.lost().await?.is_none() {
            self.track.intend(Step::Lost { reason }).await?;
        }
        self.say_lost().await
    }

    /// Why it is lost, if that is on record.
    pub(super) async fn lost(&self) -> Result<Option<String>, Error> {
        Ok(self.track.steps().await?.into_iter().find_map(|step| match step {
            Step::Lost { reason } => Some(reason),
            _ => None,
        }))
    }

    /// Has the tasks killed that wait.
    pub(super) async fn say_lost(&self) -> Result<(), Error> {
        let socket = self.socket.clone();
        let said = unpanicked(spawn_blocking(move || pager::lose(&socket, MEMORY_LOST)).await);
        said.map_err(|source| Error::File { action: "speak to the pager at", path: self.socket.clone(), source })
    }

    /// Nobody need be asked any more: the container was started from its files.
    pub(super) fn forget(&self) -> Result<(), Error> {
        match fs::remove_file(&self.socket) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { action: "remove", path: self.socket.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Whether there is, or was, a pager to which something was owed.
    pub(super) fn was_owed(&self) -> bool {
        self.socket.exists()
    }

    async fn ask(&self, arrived: Vec<Piece>, most: u64) -> Result<Asked, Error> {
        // Most containers have come with all of their memory.
        if !self.was_owed() {
            return Ok(Asked::Whole);
        }
        let (socket, directory) = (self.socket.clone(), self.directory.clone());
        let answer = spawn_blocking(move || match pager::ask(&socket, arrived, most)? {
            Some(lacking) if lacking.pages.is_empty() => Ok(Asked::Whole),
            Some(lacking) => Ok(Asked::Lacks(lacking)),
            // It was tidied up meanwhile.
            None if !socket.exists() => Ok(Asked::Whole),
            None => Paged::read(&directory).map(Asked::ended),
        });
        unpanicked(answer.await).map_err(|source| Error::File {
            action: "ask the pager at",
            path: self.socket.clone(),
            source,
        })
    }
}

/// What a pager has said, or has left.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// All is in the store, or nobody lives who misses it.
    Whole,
    Lacks(Lacking),
    /// It ended, and something was missing.
    Failed(String),
}

impl Asked {
    /// There is no pager any more, and this is what was noted about its end.
    fn ended(paged: Option<Paged>) -> Self {
        match paged {
            // Tasks that never ran are not these: what runs was started from its files.
            Some(Paged::Whole(_) | Paged::GivenUp) => Self::Whole,
            Some(Paged::Failed { reason }) => Self::Failed(reason),
            None => Self::Failed(BOTH_DIED.to_owned()),
        }
    }
}

/// How much to ask for when `bytes` took `elapsed`, of which `round_trip` went by before the first of them came.
fn next_amount(bytes: u64, elapsed: Duration, round_trip: Duration) -> u64 {
    let aim = NOTICED.max(round_trip * ROUND_TRIPS);
    let rate = bytes as f64 / elapsed.saturating_sub(round_trip).as_secs_f64().max(1e-6);
    // Never much more than what was shown to be possible.
    ((rate * aim.as_secs_f64()) as u64).min(bytes.saturating_mul(4)).clamp(FIRST / 4, MOST)
}

/// Missing pages on their way into the store.
struct Arriving {
    store: Store,
    wanted: BTreeMap<Vpid, Pages>,
    arrived: Mutex<BTreeMap<Vpid, Pages>>,
}

impl Arriving {
    fn new(store: Store, wanted: &[Piece]) -> Self {
        let mut pages: BTreeMap<Vpid, Pages> = BTreeMap::new();
        for &(vpid, start, end) in wanted {
            pages.entry(vpid).or_default().insert(start..end);
        }
        Self { store, wanted: pages, arrived: Mutex::default() }
    }

    /// Nothing else may be written: what the tasks have is right.
    fn take(&self, vpid: Vpid, address: u64, length: u64, put: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let strange = || io::Error::new(io::ErrorKind::InvalidData, "these pages were not asked for");
        let range = address..address.checked_add(length).ok_or_else(strange)?;
        let wanted = self.wanted.get(&vpid).ok_or_else(strange)?;
        if range.is_empty() || wanted.gaps(&range).next().is_some() {
            return Err(strange());
        }
        put()?;
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).entry(vpid).or_default().insert(range);
        Ok(())
    }

    fn arrived(&self) -> Vec<Piece> {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived
            .iter()
            .flat_map(|(&vpid, pages)| pages.iter().map(move |range| (vpid, range.start, range.end)))
            .collect()
    }

    fn put_pages(&self, vpid: Vpid, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.take(vpid, address, bytes.len() as u64, || self.store.put(vpid, address, bytes))
    }
}

impl ExtentSink for Arriving {
    fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match object & (PACKED | CLEARED) {
            0 => self.put_pages(object.cast_signed(), offset, bytes),
            PACKED => unpack(bytes, |address, bytes| self.put_pages((object & !PACKED).cast_signed(), address, bytes)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "nothing that was asked for is to be forgotten")),
        }
    }

    fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()> {
        let (vpid, length) = (object.cast_signed(), u64::from(length));
        self.take(vpid, offset, length, || self.store.zero(vpid, offset, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn arriving() -> (tempfile::TempDir, Arriving) {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Store::at(scratch.path().join("memory"));
        store.create().unwrap();
        (scratch, Arriving::new(store, &[(1, 0x1000, 0x4000), (7, 0x2000, 0x3000), (1, 0x8000, 0x9000)]))
    }

    #[test]
    fn only_what_was_asked_for_is_written_and_counted() {
        let (_scratch, arriving) = arriving();
        arriving.put(1, 0x2000, &[1; 2 * PAGE]).unwrap();
        arriving.zero(7, 0x2000, PAGE as u32).unwrap();
        for (object, offset, length) in
            [(1, 0x3000, 2 * PAGE), (1, 0, PAGE), (2, 0x1000, PAGE), (7 | CLEARED, 0x2000, PAGE), (1, !0xfff, PAGE)]
        {
            arriving.put(object, offset, &vec![2; length]).unwrap_err();
            arriving.zero(object, offset, length as u32).unwrap_err();
        }
        assert_eq!(arriving.arrived(), [(1, 0x2000, 0x4000), (7, 0x2000, 0x3000)]);
        let mut found = [0; PAGE];
        arriving.store.read_at(1, 0x3000, &mut found).unwrap();
        assert_eq!(found, [1; PAGE]);
    }

    #[test]
    fn a_pager_that_did_not_end_well_has_lost_what_was_missing() {
        let counters = pager::Counters::default();
        assert_eq!(Asked::ended(Some(Paged::Whole(counters))), Asked::Whole);
        assert_eq!(Asked::ended(Some(Paged::GivenUp)), Asked::Whole);
        assert_eq!(Asked::ended(Some(Paged::Failed { reason: "why".into() })), Asked::Failed("why".into()));
        assert_eq!(Asked::ended(None), Asked::Failed(BOTH_DIED.into()));
    }

    #[test]
    fn an_exchange_is_as_long_as_nobody_minds_and_a_round_trip_allows() {
        let ms = Duration::from_millis;
        // 100 MB/s, no delay: 20 ms.
        assert_eq!(next_amount(1_000_000, ms(10), ms(0)), 2_000_000);
        // The same over a round trip of 50 ms: 400 ms, and not more than four times what was tried.
        assert_eq!(next_amount(1_000_000, ms(60), ms(50)), 4_000_000);
        assert_eq!(next_amount(1_000_000, ms(1000), ms(0)), FIRST / 4);
        assert_eq!(next_amount(u64::MAX, ms(0), ms(0)), MOST);
        assert_eq!(next_amount(0, ms(0), ms(0)), FIRST / 4);
    }
}
