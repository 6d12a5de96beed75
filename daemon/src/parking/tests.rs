//! Whole checkpoints, and stores that fail at any moment.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult, UploadPart,
};
use spothop_transfer::{Extent, ExtentSink, ExtentSource, Limits};

use super::claim::{self, Claim};
use super::key::tests::key_file;
use super::manifest::Sealed;
use super::retention::sweep;
use super::store::PART;
use super::*;
use crate::journal::Journal;
use crate::migration::Verdict;
use crate::migration::message::{Answer, Offer, Request};
use crate::orchestrator::{DockerRecipe, EngineRecipe, Image, Recipe, RestartPolicy};

const ID: &str = "0191e0a0-0000-7000-8000-000000000001";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A container with a password in its environment.
pub(super) fn offer() -> Offer {
    let image = Image {
        id: "sha256:1".into(),
        reference: "redis:7".into(),
        tags: Vec::new(),
        digests: Vec::new(),
        architecture: "amd64".into(),
        os: "linux".into(),
        variant: None,
        size: 0,
    };
    let env = Some(vec!["PASSWORD=hunter2".to_owned()]);
    let config = bollard::models::ContainerConfig { env, ..Default::default() };
    let docker = DockerRecipe { config, host_config: Default::default(), endpoints: Vec::new() };
    let recipe = Recipe {
        name: "redis".into(),
        image,
        network: Identity { mode: Mode::None, attachments: Vec::new() },
        volumes: Vec::new(),
        shared_mounts: Vec::new(),
        restart_policy: RestartPolicy::default(),
        engine: EngineRecipe::Docker(Box::new(docker)),
    };
    Offer {
        migration: ID.into(),
        cause: "manual".into(),
        deadline: None,
        recipe,
        memory_bytes: 1 << 20,
        disk_bytes: 0,
        paged: true,
        descriptors: Vec::new(),
        post_copy: false,
        instance: None,
        urgent: false,
    }
}

pub(super) fn source() -> spothop_policy::Source {
    spothop_policy::Source {
        name: "a".into(),
        kernel: Default::default(),
        criu: Default::default(),
        protocol: spothop_policy::ProtocolRange { min: 1, max: 1 },
        ..Default::default()
    }
}

/// When a store fails.
#[derive(Debug, Clone, Copy)]
enum Fails {
    Never,
    /// The call of this number, from 1.
    Once(usize),
    /// That one and all that follow.
    From(usize),
}

/// A store whose calls are counted, and fail when they are told to. What fails has had no effect.
#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    calls: Arc<AtomicUsize>,
    fails: Arc<Mutex<Fails>>,
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    fn new(fails: Fails) -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), calls: Arc::default(), fails: Arc::new(Mutex::new(fails)) })
    }

    fn heal(&self) {
        *self.fails.lock().unwrap() = Fails::Never;
    }
}

fn reach(calls: &AtomicUsize, fails: &Mutex<Fails>) -> StoreResult<()> {
    let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
    let fails = match *fails.lock().unwrap() {
        Fails::Never => false,
        Fails::Once(number) => call == number,
        Fails::From(number) => call >= number,
    };
    match fails {
        true => Err(object_store::Error::Generic { store: "Faulty", source: format!("call {call} fails").into() }),
        false => Ok(()),
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        reach(&self.calls, &self.fails)?;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        reach(&self.calls, &self.fails)?;
        let upload = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(FaultyUpload { upload, calls: Arc::clone(&self.calls), fails: Arc::clone(&self.fails) }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        reach(&self.calls, &self.fails)?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        match reach(&self.calls, &self.fails) {
            Ok(()) => self.inner.delete_stream(paths),
            Err(error) => futures_util::stream::iter([Err(error)]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match reach(&self.calls, &self.fails) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures_util::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    calls: Arc<AtomicUsize>,
    fails: Arc<Mutex<Fails>>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match reach(&self.calls, &self.fails) {
            Ok(()) => self.upload.put_part(data),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        reach(&self.calls, &self.fails)?;
        self.upload.complete().await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.upload.abort().await
    }
}

/// Pages of one process: each is full of its number.
struct Pages(AtomicUsize);

impl ExtentSource for Pages {
    fn next(&self) -> Option<Extent> {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).ok()?;
        Some(Extent { object: 1, offset: (left as u64 - 1) * 4096, length: 4096 })
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill((extent.offset / 4096) as u8);
        Ok(buffer.len())
    }
}

/// The memory that a target has.
#[derive(Default)]
struct Memory(Mutex<std::collections::BTreeMap<u64, u8>>);

impl ExtentSink for Memory {
    fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(object == 1 && bytes.iter().all(|byte| *byte == bytes[0]));
        self.0.lock().unwrap().insert(offset / 4096, bytes[0]);
        Ok(())
    }

    fn zero(&self, _: u32, offset: u64, _: u32) -> io::Result<()> {
        self.0.lock().unwrap().insert(offset / 4096, 0);
        Ok(())
    }
}

/// What a container consists of: an image of more than one part, and two archives of the same length.
struct Parts {
    image: Vec<u8>,
    files: Vec<u8>,
    last_files: Vec<u8>,
    images: tempfile::TempDir,
}

impl Parts {
    fn new() -> Self {
        let images = tempfile::tempdir().unwrap();
        std::fs::write(images.path().join("core-1.img"), "registers").unwrap();
        // An LCG's high byte (Knuth, MMIX): zstd finds nothing in it.
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let image = (0..PART + 100_000).map(|_| noise()).collect();
        Self { image, files: b"all files".to_vec(), last_files: b"new files".to_vec(), images }
    }
}

struct World {
    scratch: tempfile::TempDir,
    faulty: Arc<Faulty>,
    key_file: PathBuf,
    journal: Arc<Journal>,
}

impl World {
    fn new(fails: Fails) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let key_file = key_file(scratch.path(), 1);
        let journal = Arc::new(Journal::open(&scratch.path().join("journal.db")).unwrap());
        Self { scratch, faulty: Faulty::new(fails), key_file, journal }
    }

    fn store(&self) -> Store {
        Store::over(Arc::clone(&self.faulty) as Arc<dyn ObjectStore>)
    }

    fn upload(&self) -> Upload {
        Upload::over(self.store(), self.key_file.clone(), Arc::clone(&self.journal))
    }

    /// Everything that a source says up to COMMIT.
    async fn park(&self, parts: &Parts) -> Result<(), Error> {
        let mut store = self.upload();
        let none = |_| {};
        assert!(matches!(ask(&mut store, Request::Offer(Box::new(offer()))).await?, Answer::Accepted { .. }));
        assert!(matches!(ask(&mut store, Request::Image { shipped: false }).await?, Answer::ImageNeeded { .. }));
        store.say(&Request::Image { shipped: true });
        store.send_stream(&parts.image[..], &none).await?;
        assert!(matches!(store.answer().await?, Answer::ImageReady));
        done(ask(&mut store, Request::Create).await?);
        store.say(&Request::Files);
        store.send_stream(&parts.files[..], &none).await?;
        done(store.answer().await?);
        done(ask(&mut store, Request::Start).await?);
        for (pages, frozen) in [(9, false), (3, true)] {
            if frozen {
                store.say(&Request::LastFiles);
                store.send_stream(&parts.last_files[..], &none).await?;
                done(store.answer().await?);
            }
            store.say(&Request::Pages { bytes: pages * 4096, frozen });
            store.send_extents(Arc::new(Pages(AtomicUsize::new(pages as usize))), &none).await?;
            done(store.answer().await?);
        }
        store.say(&Request::Images { bytes: 9 });
        store.send_files(parts.images.path(), &["core-1.img".to_owned()], &none).await?;
        done(store.answer().await?);
        done(ask(&mut store, Request::Restore).await?);
        Ok(())
    }

    /// What the source says until it is answered.
    async fn commit(&self) -> Result<(), Error> {
        let decided = Request::Decided { migration: ID.to_owned(), verdict: Verdict::Commit, reason: None };
        assert!(matches!(ask(&mut self.upload(), decided).await?, Answer::Running { lost: None }));
        Ok(())
    }

    async fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.store().list().await.unwrap().into_iter().map(|object| object.name).collect();
        names.sort();
        names
    }

    async fn manifest(&self) -> Sealed {
        Manifest::read(&self.store().of(ID)).await.unwrap()
    }

    async fn download(&self, claim: Option<Claim>) -> Result<Download, Error> {
        let place = self.store().of(ID);
        let sealed = Manifest::read(&place).await?;
        let (_, key) = sealed.open(&place, &MasterKey::read(&self.key_file)?)?;
        Ok(Download::new(place, key, &sealed.manifest, claim, 2, DAY)?.0)
    }

    /// Does what a target does, up to and with the last word that it hears.
    async fn restore(&self, parts: &Parts, claim: Option<Claim>) -> Result<Verdict, Error> {
        let mut source = self.download(claim).await?;
        let (memory, to, none) = (Arc::new(Memory::default()), tempfile::tempdir().unwrap(), |_| {});
        source.reply(&Answer::Accepted { post_copy: false });
        let mut heard = Vec::new();
        while let Some(request) = source.hear().await? {
            let stream = match &request {
                Request::Image { shipped: true } => Some(&parts.image),
                Request::Files => Some(&parts.files),
                Request::LastFiles => Some(&parts.last_files),
                _ => None,
            };
            let mut answer = Answer::Done;
            if let Some(wanted) = stream {
                let mut got = Vec::new();
                match source.receive_stream(&mut got, 1 << 30, &none).await {
                    Ok(_) => assert!(got == *wanted),
                    Err(Received::Store(failure)) => return Err(failure),
                    Err(Received::Sink(error)) => panic!("{error}"),
                }
            }
            match &request {
                Request::Image { shipped: false } => answer = Answer::ImageNeeded { reason: "none".into() },
                Request::Pages { bytes, .. } => {
                    let sink = Arc::clone(&memory);
                    source.receive_extents(sink, &Limits::bytes(*bytes), &none).await?;
                }
                Request::Images { bytes } => {
                    source.receive_files(to.path(), &Limits::bytes(*bytes), &none).await?;
                }
                Request::Decided { verdict, .. } => {
                    let words = [
                        "Image",
                        "Image",
                        "Create",
                        "Files",
                        "Start",
                        "Pages",
                        "LastFiles",
                        "Pages",
                        "Images",
                        "Restore",
                    ];
                    assert!(
                        heard.iter().zip(words).all(|(heard, word): (&String, _)| heard.starts_with(word)),
                        "{heard:?}"
                    );
                    assert_eq!(heard.len(), words.len());
                    let pages: Vec<_> = memory.0.lock().unwrap().clone().into_iter().collect();
                    assert_eq!(pages, (0..9).map(|page| (page, page as u8)).collect::<Vec<_>>());
                    assert_eq!(std::fs::read(to.path().join("core-1.img")).unwrap(), b"registers");
                    return Ok(*verdict);
                }
                _ => {}
            }
            heard.push(format!("{request:?}"));
            source.reply(&answer);
        }
        panic!("it ended without a verdict");
    }
}

async fn ask(store: &mut Upload, request: Request) -> Result<Answer, Error> {
    store.say(&request);
    store.answer().await
}

fn done(answer: Answer) {
    assert!(matches!(answer, Answer::Done), "{answer:?}");
}

#[tokio::test]
async fn what_was_parked_is_said_again_word_for_word_and_byte_for_byte() {
    let (world, parts) = (World::new(Fails::Never), Parts::new());
    world.park(&parts).await.unwrap();
    assert!(!world.names().await.iter().any(|name| name.ends_with(COMMITTED)));
    world.commit().await.unwrap();
    let listed = list(&world.store()).await.unwrap();
    assert_eq!((listed.len(), listed[0].container.as_str(), listed[0].committed), (1, "redis", true));
    assert_eq!(world.restore(&parts, Some(Claim::new("b", "m2"))).await.unwrap(), Verdict::Commit);
    // A second one is refused before it hears of anything to do, unless it asks for a copy.
    let refused = world.restore(&parts, Some(Claim::new("c", "m3"))).await.unwrap_err();
    assert!(matches!(&refused, Error::Claimed { host, .. } if host == "b"), "{refused}");
    assert_eq!(world.restore(&parts, None).await.unwrap(), Verdict::Commit);
    Claim::release(&world.store().of(ID), "m2").await.unwrap();
    assert_eq!(world.restore(&parts, Some(Claim::new("c", "m3"))).await.unwrap(), Verdict::Commit);
}

#[tokio::test]
async fn a_target_that_comes_back_hears_whether_the_checkpoint_is_its_own() {
    let world = World::new(Fails::Never);
    let place = world.store().of(ID);
    Claim::new("b", "m2").take(&place).await.unwrap();
    for (migration, verdict) in [("m2", Verdict::Commit), ("m3", Verdict::Abort)] {
        let mut store = Upload::over(place.clone(), world.key_file.clone(), Arc::clone(&world.journal));
        let answer = ask(&mut store, Request::Ask { migration: migration.to_owned() }).await.unwrap();
        assert!(matches!(answer, Answer::Verdict { verdict: Some(said) } if said == verdict), "{answer:?}");
    }
}

#[tokio::test]
async fn a_parking_that_fails_at_any_request_leaves_nothing_or_parts_that_are_swept() {
    let parts = Parts::new();
    let calls = {
        let world = World::new(Fails::Never);
        world.park(&parts).await.unwrap();
        world.faulty.calls.load(Ordering::SeqCst)
    };
    assert!(calls >= 10, "{calls}");
    for call in 1..=calls {
        // A request that fails, and a store that goes away.
        for fails in [Fails::Once(call), Fails::From(call)] {
            let world = World::new(fails);
            let failure = world.park(&parts).await.expect_err("a call has failed");
            assert!(matches!(failure, Error::Store { .. }), "{fails:?}: {failure}");
            let place = world.store().of(ID);
            let taken_back = claim::take_back(&place, "a", ID).await;
            if matches!(fails, Fails::Once(_)) {
                assert!(taken_back.unwrap(), "{fails:?}");
                assert_eq!(world.names().await, Vec::<String>::new(), "{fails:?}");
                continue;
            }
            taken_back.unwrap_err();
            world.faulty.heal();
            assert!(
                !world.names().await.iter().any(|name| name.ends_with(manifest::NAME) || name.ends_with(COMMITTED))
            );
            sweep(&world.store(), None, Timestamp::now() + DAY * 2).await.unwrap();
            assert_eq!(world.names().await, Vec::<String>::new(), "{fails:?}");
        }
    }
}

#[tokio::test]
async fn commit_is_said_again_until_the_store_has_heard_it_and_no_one_restores_before() {
    let parts = Parts::new();
    let world = World::new(Fails::Never);
    world.park(&parts).await.unwrap();
    *world.faulty.fails.lock().unwrap() = Fails::From(1);
    world.commit().await.unwrap_err();
    world.faulty.heal();
    assert!(!list(&world.store()).await.unwrap()[0].committed);
    world.commit().await.unwrap();
    world.commit().await.unwrap();
    assert!(list(&world.store()).await.unwrap()[0].committed);
}

#[tokio::test]
async fn a_source_that_gives_up_late_takes_its_checkpoint_back_or_hears_who_has_it() {
    let parts = Parts::new();
    let world = World::new(Fails::Never);
    world.park(&parts).await.unwrap();
    let place = world.store().of(ID);
    let abort = || Request::Decided { migration: ID.to_owned(), verdict: Verdict::Abort, reason: None };
    Claim::new("b", "m2").take(&place).await.unwrap();
    assert!(matches!(ask(&mut world.upload(), abort()).await.unwrap(), Answer::Running { .. }));
    Claim::release(&place, "m2").await.unwrap();
    assert!(matches!(ask(&mut world.upload(), abort()).await.unwrap(), Answer::Gone));
    assert_eq!(world.names().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_restore_whose_requests_fail_now_and_then_reads_on() {
    let parts = Parts::new();
    let world = World::new(Fails::Never);
    world.park(&parts).await.unwrap();
    world.commit().await.unwrap();
    let before = world.faulty.calls.load(Ordering::SeqCst);
    world.restore(&parts, None).await.unwrap();
    let calls = world.faulty.calls.load(Ordering::SeqCst) - before;
    // The first reads the manifest, which is not tried again: nothing has begun by then.
    for call in 2..=calls {
        let now = world.faulty.calls.load(Ordering::SeqCst);
        *world.faulty.fails.lock().unwrap() = Fails::Once(now + call);
        assert_eq!(world.restore(&parts, None).await.unwrap(), Verdict::Commit, "{call}");
    }
}

#[tokio::test]
async fn the_wrong_key_and_objects_that_are_not_those_of_the_manifest_are_told() {
    let (mut world, parts) = (World::new(Fails::Never), Parts::new());
    world.park(&parts).await.unwrap();
    world.commit().await.unwrap();
    let right = std::mem::replace(&mut world.key_file, key_file(world.scratch.path(), 2));
    assert!(matches!(world.restore(&parts, None).await, Err(Error::WrongKey { .. })));
    world.key_file = right;
    let place = world.store().of(ID);
    let manifest = world.manifest().await.manifest;
    let [one, other] = [1, 3].map(|at| manifest.objects[at].name.clone());
    let swapped = [place.get(&other).await.unwrap().unwrap(), place.get(&one).await.unwrap().unwrap()];
    for (name, bytes) in [&one, &other].into_iter().zip(swapped) {
        place.put(name, bytes).await.unwrap();
    }
    let failure = world.restore(&parts, Some(Claim::new("b", "m2"))).await.unwrap_err();
    assert!(matches!(failure, Error::Tampered { .. }), "{failure}");
}
