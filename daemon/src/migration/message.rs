//! What two daemons say to each other: JSON messages over a session's control connection, bulk beside it.
//!
//! ```text
//! source                                   target
//!   Probe ───────────────────────────────► Facts
//!   Warm{shipped} [stream] ──────────────► ImageReady | ImageNeeded
//!
//!   Offer ───────────────────────────────► Accepted | Refused            Reserved
//!   Image{shipped} [stream] ─────────────► ImageReady | ImageNeeded
//!   Create ──────────────────────────────► Done
//!   Files [stream] ──────────────────────► Done
//!   Start ───────────────────────────────► Done (create waits)           Prepared
//!   Pages [extents], again and again ────► Done                          PreCopy(n)
//!   LastFiles [stream] ──────────────────► Done                          Frozen
//!   Pages [extents] ─────────────────────► Done
//!   Images [files] ──────────────────────► Done                          Transferred
//!   Restore ─────────────────────────────► Done (held)                   Restored
//!   Decided{commit} ─────────────────────► Running                       Committed, Running
//!      the same, if memory follows ──────► Lacking, and so on until Running
//!      ▲ [Pages] or Lost ─────────────────►
//!   Decided{abort}, at any time before ──► Gone                          Aborted
//!
//!   (target, when the session broke)
//!   Verdict{?} ◄──────────────────────────  Ask
//! ```
//!
//! Every request has one answer; `Failed` answers any of them. `Decided` may come again in a session of its own, as often
//! as the source likes, until it is answered. A session that ends before `Restore` is answered is an abort.

use jiff::Timestamp;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use spothop_criu::handoff::is_migration_id;
use spothop_criu::memory::pager::Piece;
use spothop_criu::memory::{ADDRESSES, PAGE};

use super::Verdict;
use crate::orchestrator::{Image, Recipe};
use crate::provider::Instance;

/// The longest reason, in bytes: CRIU's first error, an engine's answer and all that they caused have a few hundred.
const LONGEST_REASON: usize = 4096;

/// The most images that a probe asks for: each is a question to the engine. More than any host has containers.
const MOST_IMAGES: usize = 10_000;

/// The most that is asked for at once of pages that follow, in bytes.
const MOST_LACKING: u64 = 16 << 20;

/// A request. All but `Ask` are the source's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What is this host, and could it take a container from a CPU like mine?
    Probe(Box<Probe>),
    /// Will you take this container?
    Offer(Box<Offer>),
    /// Have the image ready. If `shipped`, a stream with it follows (once the answer to the first was `ImageNeeded`).
    Image {
        /// Whether the image comes along.
        shipped: bool,
    },
    /// The same with no container on the way: one may come. A host of an earlier version takes it for nonsense.
    Warm {
        /// Which.
        image: Box<Image>,
        /// Whether the image comes along.
        shipped: bool,
    },
    /// Make the container and its volumes.
    Create,
    /// A stream with all files follows.
    Files,
    /// Have the engine start the container: its `create` will wait for the images.
    Start,
    /// Pages of the tasks' memory follow, in place of what was sent of them before.
    Pages {
        /// How many bytes at most.
        bytes: u64,
        /// Whether the tasks are frozen by now.
        frozen: bool,
    },
    /// To `Lacking`: it is not here any more.
    Lost {
        /// Why, for the operator.
        #[serde(deserialize_with = "reason")]
        reason: String,
    },
    /// A stream with the last changes of the files follows.
    LastFiles,
    /// CRIU's images follow.
    Images {
        /// Their total size in bytes.
        bytes: u64,
    },
    /// Restore, and keep the tasks stopped.
    Restore,
    /// The verdict that is durable in the source's journal.
    Decided {
        /// The migration.
        #[serde(deserialize_with = "migration_id")]
        migration: String,
        /// The verdict.
        verdict: Verdict,
        /// Why it was aborted.
        #[serde(default, deserialize_with = "maybe_reason")]
        reason: Option<String>,
    },
    /// Target to source: what does your journal say?
    Ask {
        /// The migration.
        #[serde(deserialize_with = "migration_id")]
        migration: String,
    },
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To `Probe`.
    Facts(Box<spothop_policy::Facts>),
    /// To `Offer`: room is reserved.
    Accepted {
        /// Whether memory may follow, as was offered.
        #[serde(default, skip_serializing_if = "is_false")]
        post_copy: bool,
    },
    /// To `Offer`: no, and why.
    Refused {
        /// For the operator.
        #[serde(deserialize_with = "reason")]
        reason: String,
    },
    /// To `Image`: it is here.
    ImageReady,
    /// To `Image`: it is not, and cannot be pulled.
    ImageNeeded {
        /// Why not, for the operator.
        #[serde(deserialize_with = "reason")]
        reason: String,
    },
    /// The step is done.
    Done,
    /// To `Decided{commit}`: the container runs, and nothing is needed of the source any more.
    Running {
        /// Why it was started from its files, if memory that was to follow was lost.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_reason")]
        lost: Option<String>,
    },
    /// To `Decided{commit}`, and to the pages that follow: the tasks run, and lack these. `Pages` or `Lost` is to follow.
    Lacking {
        /// What is to be sent now.
        #[serde(deserialize_with = "lacking")]
        pages: Vec<Piece>,
        /// How much is lacking in all, in bytes.
        bytes: u64,
    },
    /// To `Decided{abort}`: nothing of the migration is left here.
    Gone,
    /// To `Ask`.
    Verdict {
        /// None while the source has not decided.
        verdict: Option<Verdict>,
    },
    /// The step failed; the target has undone everything it did (before COMMIT).
    Failed {
        /// What went wrong, for the operator.
        #[serde(deserialize_with = "reason")]
        reason: String,
    },
}

/// What a source tells when it looks for targets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Probe {
    /// `criu cpuinfo dump` of the source, as hexadecimal digits; none where CRIU cannot tell.
    pub cpuinfo: Option<String>,
    /// Images of the containers that look for a place; the answer names those that are there already.
    #[serde(default, deserialize_with = "images")]
    pub images: Vec<Image>,
    /// Whether the source is certainly taken away.
    #[serde(default, skip_serializing_if = "is_false")]
    pub urgent: bool,
}

/// A container that wants to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration's id (UUIDv7).
    #[serde(deserialize_with = "migration_id")]
    pub migration: String,
    /// A notice's id, or `manual`.
    pub cause: String,
    /// When the source is taken away, if it is.
    pub deadline: Option<Timestamp>,
    /// How to make the container.
    pub recipe: Recipe,
    /// Memory of its tasks, in bytes.
    pub memory_bytes: u64,
    /// Its writable layer and its volumes, in bytes; 0 from a source of an earlier version.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Whether the memory comes page by page; in CRIU's images otherwise.
    #[serde(default)]
    pub paged: bool,
    /// Where its standard streams led when it started, as its runtime noted it.
    #[serde(default, deserialize_with = "descriptors")]
    pub descriptors: Vec<String>,
    /// Whether memory may follow when the container runs already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub post_copy: bool,
    /// Which instance of a cloud the source is, where it knows: the target asks that cloud when the source falls silent.
    #[serde(default)]
    pub instance: Option<Instance>,
    /// Whether the source is certainly taken away.
    #[serde(default, skip_serializing_if = "is_false")]
    pub urgent: bool,
}

/// A migration's id becomes part of paths: of another host's words only what is one is taken.
fn migration_id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if is_migration_id(&text) {
        return Ok(text);
    }
    Err(D::Error::invalid_value(Unexpected::Other("other text"), &"a migration's id, a lower-case UUID"))
}

/// Of the standard streams there are three, and their names are short.
fn descriptors<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    if names.len() <= 3 && names.iter().all(|name| name.len() <= LONGEST_REASON) {
        return Ok(names);
    }
    Err(D::Error::invalid_value(Unexpected::Other("other lists"), &"the names of three standard streams"))
}

/// Reasons end up in journals, logs and on people's terminals: not too long, and without control characters.
fn reason<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let mut text = String::deserialize(from)?;
    text.truncate(text.floor_char_boundary(LONGEST_REASON));
    let harmless = |letter: char| !letter.is_control() || letter == '\n' || letter == '\t';
    Ok(text.chars().map(|letter| if harmless(letter) { letter } else { ' ' }).collect())
}

/// The same, if there is one.
fn some_reason<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    reason(from).map(Some)
}

/// Pages of processes, whole ones, and no more at once than is read in a moment.
fn lacking<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Piece>, D::Error> {
    let pages = Vec::<Piece>::deserialize(from)?;
    let is_page = |address: &u64| address.is_multiple_of(PAGE) && *address <= ADDRESSES;
    let is_piece = |(vpid, start, end): &Piece| *vpid > 0 && start < end && is_page(start) && is_page(end);
    if let Some((vpid, start, _)) = pages.iter().find(|piece| !is_piece(piece)) {
        return Err(D::Error::custom(format_args!("there are no pages of process {vpid} at {start:#x}")));
    }
    let bytes = pages.iter().fold(0, |bytes: u64, (_, start, end)| bytes.saturating_add(end - start));
    if bytes > MOST_LACKING {
        return Err(D::Error::custom(format_args!("{bytes} bytes are more than is sent at once")));
    }
    Ok(pages)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn maybe_reason<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Reason(#[serde(deserialize_with = "reason")] String);
    Ok(Option::<Reason>::deserialize(from)?.map(|Reason(text)| text))
}

fn images<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Image>, D::Error> {
    let images = Vec::deserialize(from)?;
    if images.len() > MOST_IMAGES {
        return Err(D::Error::invalid_length(images.len(), &"ten thousand images at most"));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::Step;
    use crate::orchestrator::{DockerRecipe, EngineRecipe, Identity, Mode, RestartPolicy};

    const ID: &str = "0191e0a0-0000-7000-8000-000000000001";
    const SECRET: &str = "hunter2";

    fn offer() -> Offer {
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
        let secret = || Some(vec![format!("PASSWORD={SECRET}")]);
        let config = bollard::models::ContainerConfig { env: secret(), cmd: secret(), ..Default::default() };
        let labels = [("token".to_owned(), SECRET.to_owned())].into();
        let config = bollard::models::ContainerConfig { labels: Some(labels), ..config };
        let docker = DockerRecipe { config, host_config: Default::default(), endpoints: Vec::new() };
        let recipe = Recipe {
            name: "redis".into(),
            image,
            network: Identity { mode: Mode::None, attachments: Vec::new() },
            volumes: Vec::new(),
            shared_mounts: Vec::new(),
            restart_policy: RestartPolicy { name: "always".into(), maximum_retries: 0 },
            engine: EngineRecipe::Docker(Box::new(docker)),
        };
        Offer {
            migration: ID.into(),
            cause: "manual".into(),
            deadline: None,
            recipe,
            memory_bytes: 1,
            disk_bytes: 0,
            paged: false,
            descriptors: vec!["pipe:[1]".into()],
            post_copy: false,
            instance: None,
            urgent: false,
        }
    }

    #[test]
    fn no_secret_of_a_container_is_ever_shown() {
        let offer = offer();
        assert!(serde_json::to_string(&offer).unwrap().contains(SECRET), "it does go over the wire");
        let step = Step::Create { offer: Box::new(offer.clone()) };
        let request = Request::Offer(Box::new(offer.clone()));
        for shown in [format!("{offer:?}"), format!("{step:?}"), format!("{request:#?}"), format!("{:?}", offer.recipe)]
        {
            assert!(shown.contains("redis:7"), "it says what it is about: {shown}");
            assert!(!shown.contains(SECRET), "{shown}");
        }
        let container = crate::orchestrator::Container {
            id: "c0ffee".into(),
            name: "redis".into(),
            image: offer.recipe.image.clone(),
            init_pid: 1,
            labels: [("token".to_owned(), SECRET.to_owned())].into(),
            network: offer.recipe.network.clone(),
            upper_dir: None,
            merged_dir: None,
            volumes: Vec::new(),
            restart_policy: offer.recipe.restart_policy.clone(),
            runtime: "spothop".into(),
            tty: false,
            memory_limit: None,
            obstacles: Vec::new(),
            recipe: offer.recipe,
        };
        let shown = format!("{container:?}");
        assert!(shown.contains("redis:7") && !shown.contains(SECRET), "{shown}");
    }

    #[test]
    fn only_a_migrations_id_is_taken_for_one() {
        let words = |id: &str| {
            let mut offer = serde_json::to_value(Request::Offer(Box::new(offer()))).unwrap();
            offer["migration"] = id.into();
            [
                offer,
                serde_json::json!({ "request": "ask", "migration": id }),
                serde_json::json!({ "request": "decided", "migration": id, "verdict": "commit" }),
            ]
        };
        for good in words(ID) {
            serde_json::from_value::<Request>(good).unwrap();
        }
        for id in ["", ".", "..", "../../../etc", "/etc", "0191E0A0-0000-7000-8000-000000000001"] {
            for bad in words(id) {
                serde_json::from_value::<Request>(bad).unwrap_err();
            }
        }
    }

    #[test]
    fn a_peers_reason_is_short_and_harmless() {
        let said =
            serde_json::json!({ "answer": "failed", "reason": format!("\u{1b}[2Jno\nway{}", "é".repeat(1 << 20)) });
        let Answer::Failed { reason } = serde_json::from_value(said).unwrap() else { panic!("another answer") };
        assert!(reason.starts_with(" [2Jno\nwayé") && reason.len() <= LONGEST_REASON, "{}", reason.len());
        let said = serde_json::json!({ "request": "decided", "migration": ID, "verdict": "abort", "reason": "\u{7}" });
        assert!(
            matches!(serde_json::from_value(said).unwrap(), Request::Decided { reason: Some(text), .. } if text == " ")
        );
    }

    #[test]
    fn only_whole_pages_of_processes_are_lacking_and_not_too_many() {
        let said = |pages: serde_json::Value| {
            serde_json::from_value::<Answer>(serde_json::json!({ "answer": "lacking", "bytes": 1, "pages": pages }))
        };
        assert!(matches!(said(serde_json::json!([[1, 4096, 12288]])).unwrap(), Answer::Lacking { .. }));
        let top = ADDRESSES;
        for wrong in [[0, 4096, 8192], [1, 4095, 8192], [1, 4096, 8191], [1, 8192, 8192], [1, top, top + 4096]] {
            said(serde_json::json!([wrong])).unwrap_err();
        }
        said(serde_json::json!([[1, 0, MOST_LACKING], [1, MOST_LACKING, MOST_LACKING + 4096]])).unwrap_err();
    }

    #[test]
    fn without_memory_that_follows_the_words_are_those_of_before() {
        let accepted = serde_json::to_string(&Answer::Accepted { post_copy: false }).unwrap();
        assert_eq!(accepted, r#"{"answer":"accepted"}"#);
        let heard: Answer = serde_json::from_str(&accepted).unwrap();
        assert!(matches!(heard, Answer::Accepted { post_copy: false }));
        assert!(!serde_json::to_string(&offer()).unwrap().contains("post_copy"));
    }

    #[test]
    fn a_source_that_is_in_no_hurry_says_what_it_said_before() {
        assert!(!serde_json::to_string(&offer()).unwrap().contains("urgent"));
        let earlier = serde_json::to_value(offer()).unwrap();
        assert!(!serde_json::from_value::<Offer>(earlier).unwrap().urgent);
        assert!(!serde_json::to_string(&Probe::default()).unwrap().contains("urgent"));
        let image = Box::new(offer().recipe.image);
        let warm = serde_json::to_value(Request::Warm { image: image.clone(), shipped: true }).unwrap();
        assert_eq!(warm["request"], "warm");
        let heard: Request = serde_json::from_value(warm).unwrap();
        assert!(matches!(heard, Request::Warm { image: heard, shipped: true } if heard == image));
    }

    #[test]
    fn a_probe_asks_for_a_limited_number_of_images() {
        let probe = |count| Probe { images: vec![offer().recipe.image; count], ..Probe::default() };
        let again = |probe: Probe| serde_json::from_value::<Probe>(serde_json::to_value(probe).unwrap());
        assert_eq!(again(probe(MOST_IMAGES)).unwrap().images.len(), MOST_IMAGES);
        again(probe(MOST_IMAGES + 1)).unwrap_err();
    }
}
