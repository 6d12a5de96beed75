//! One checkpoint of a container through its own runtime.
//!
//! ```text
//! Checkpoint::run   runc checkpoint → CRIU: pre-dump ── action script holds ──────────────────┐
//! caller            freezes the cgroup (crate::cgroup), Checkpoint::frozen                    │
//! action script     exits 0: CRIU goes on … post-dump ── action script holds ──┐ ◄────────────┘
//! caller            sends the images, waits for the target, writes COMMIT or   │
//!                   ABORT                                                      │
//! action script     exits 0 (COMMIT) → tasks are killed  → Outcome::Killed   ◄─┤
//!                   exits 1 (ABORT)  → tasks are resumed → Outcome::Resumed     ◄─────────────┘
//! caller            after Resumed, or an error: thaws the cgroup
//! ```
//! CRIU's options go through a configuration file. A container that was there before us reads `/etc/criu/runc.conf`, which
//! belongs to everybody on the host: runc is therefore run in a private mount namespace with our file bound over it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::TcpMode;
use crate::breakpoints;
use crate::command;
use crate::criu_config::{self, Options};
use crate::handoff::RESTORE_ROOT;
use crate::hook::Event;
use crate::log::{self, Triage};
use crate::memory::{self, ConstantParent};
use crate::netns::{self, NetnsError, OwnNetns};
use crate::pidfd;
use crate::private_mounts;
use crate::repair;
use crate::runtime_state::{RuntimeState, StateError};
use crate::stand_in::StandIns;
use crate::tasks::{self, TaskError};

pub use crate::runtime_state::find_runtime_root;

/// CRIU writes this image last: without it an image set is not whole.
const LAST_IMAGE: &str = "inventory.img";

/// runc's own part of an image set: where the container's stdio went, as in [`RuntimeState::descriptors`].
pub const DESCRIPTORS: &str = "descriptors.json";

/// The directory of the constant parent, beside that of the images; and how CRIU finds it from there.
const PARENT: &str = "parent";
const PARENT_FROM_IMAGES: &str = "../parent";

/// What CRIU is to see as its cache, in the work directory.
const CACHE: &str = "criu.kdat";

/// Locked in the work directory as long as runc runs.
const LOCK: &str = "dump.lock";

/// The CRIU that works in the work directory, as its action script noted it.
const CRIU: &str = "criu.json";

/// What is to be taken away should the process that made the checkpoint die; in the work directory.
const REMAINS: &str = "remains.json";

/// What `runc checkpoint` leaves in a container's state directory at `post-dump`, also when the tasks are resumed.
const RUNC_MARKER: &str = "checkpoint";

/// The lines with which CRIU ends after it has resumed the tasks, and after it has killed them (criu/cr-dump.c, `cr_dump_finish`).
const RESUMED: &str = "Dumping FAILED";
const FINISHED: &str = "Dumping finished successfully";

/// A checkpoint to be made. All paths must be absolute.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The runtime program: a path, or a name to be looked up in PATH. Only runc is supported.
    pub runtime: PathBuf,
    /// The runtime's `--root` that knows the container, see [`find_runtime_root`].
    pub runtime_root: PathBuf,
    /// The container's id.
    pub container_id: String,
    /// Where the images go; must exist and be empty. Usually a tmpfs.
    pub images: PathBuf,
    /// Where CRIU's `dump.log` and our `criu.conf` go; must exist.
    pub work_dir: PathBuf,
    /// What becomes of TCP connections.
    pub tcp: TcpMode,
    /// Run CRIU in the container's network namespace, so that the namespace is none of what it dumps: when the target restores into one
    /// that the engine or the wrapper made ([`crate::handoff::Network::Own`]), and runs CRIU in that.
    pub in_its_network: bool,
    /// The program that CRIU calls at each event; its exit status at [`crate::hook::Action::PostDump`] decides the outcome. It
    /// may take as long as it likes: CRIU's `timeout` covers only the seizing of the tasks. At [`crate::hook::Action::PreDump`] it is to
    /// wait until the tasks are frozen and [`Checkpoint::frozen`] has returned.
    pub action_script: PathBuf,
    /// The program `spothop-oci`, which stands in for what the runtime and CRIU call; where it is missing the dump only takes longer.
    pub stand_in: PathBuf,
    /// Dump file locks (flock, fcntl) as well. Without it a container that holds one cannot be dumped.
    pub file_locks: bool,
    /// What the container's tasks watch, from [`crate::watches::watched`]; CRIU finds no names on an overlay without it.
    pub watched: Vec<PathBuf>,
    /// Leave the pages of private memory in the tasks, for who reads them while the dump is held ([`crate::memory::holes`]): the images
    /// alone are not enough for a restore then. With one that is not [current](ConstantParent::is_current) the checkpoint may fail.
    pub parent: Option<ConstantParent>,
}

/// How a checkpoint ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The action script committed: the image set is whole and every task is dead; runc has forgotten the container.
    Killed,
    /// The action script aborted after a whole dump: the tasks were resumed. If the caller had frozen the cgroup it is
    /// frozen again, and the caller thaws it.
    Resumed,
}

/// Why a checkpoint failed. The container's tasks were resumed, as after [`Outcome::Resumed`].
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The runtime does not know the container.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its tasks cannot be looked at.
    #[error(transparent)]
    Tasks(#[from] TaskError),
    /// The container's `org.criu.config` annotation is empty: CRIU would read no options of ours.
    #[error(
        "container {container_id} turns CRIU's configuration file off by an empty annotation org.criu.config; create it without that annotation"
    )]
    ConfigTurnedOff {
        /// The container.
        container_id: String,
    },
    /// A file of ours or a mount could not be made.
    #[error("cannot prepare {path} for the checkpoint: {source}")]
    Prepare {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime could not be run, or not in the container's network namespace.
    #[error(transparent)]
    Runtime(#[from] NetnsError),
    /// CRIU or the runtime failed before the action script was asked. CRIU's whole log is `dump.log` in the work directory.
    #[error("checkpoint of container {container_id:.12} failed: {cause}")]
    Failed {
        /// The container.
        container_id: String,
        /// What CRIU's log says, or else the runtime's own words.
        cause: String,
    },
    /// CRIU was killed while it held the dump. Its last act was to stop the tasks; they run now unless the cgroup was frozen
    /// again meanwhile, and their connections have been released ([`crate::repair`]). The action script may still be
    /// waiting, and its answer has no effect any more.
    #[error("CRIU was killed while it held the dump of container {container_id:.12}")]
    Died {
        /// The container.
        container_id: String,
    },
    /// The runtime reported success, and the image set is not whole. Nothing may be done with it.
    #[error(
        "the runtime reports a finished checkpoint of container {container_id}, but {missing} is missing in it; whether the tasks live must be looked at"
    )]
    Incomplete {
        /// The container.
        container_id: String,
        /// The image that is missing.
        missing: &'static str,
    },
}

impl Checkpoint {
    /// Makes the checkpoint; returns after the action script has decided. [`Checkpoint::frozen`] belongs to it.
    ///
    /// # Errors
    /// See [`DumpError`]; the tasks live, except perhaps with [`DumpError::Incomplete`].
    pub fn run(&self) -> Result<Outcome, DumpError> {
        let state = RuntimeState::read(&self.runtime_root, &self.container_id)?;
        let target = state
            .criu_config
            .clone()
            .ok_or_else(|| DumpError::ConfigTurnedOff { container_id: self.container_id.clone() })?;
        let ours = self.work_dir.join("criu.conf");
        self.options().write(&ours, &criu_config::foreign_text(&target)).map_err(prepare(&ours))?;
        make_mount_target(&target).map_err(prepare(&target))?;
        let lock = lock(&self.work_dir)?;
        let remains = Remains {
            mount_target: target.clone(),
            own_netns: state.netns_path.clone(),
            marker: self.runtime_root.join(&self.container_id).join(RUNC_MARKER),
        };
        remains.note(&self.work_dir).map_err(prepare(&self.work_dir))?;

        let stand_ins = self.stand_in.exists().then(|| StandIns::make(&self.work_dir, &self.stand_in));
        let stand_ins = stand_ins.transpose().map_err(prepare(&self.work_dir))?;
        let environment = stand_ins.iter().flat_map(StandIns::environment);

        let cache = self.work_dir.join(CACHE);
        let cover = match &self.parent {
            None => None,
            Some(parent) => {
                // CRIU looks for it when it starts, and into it when it dumps.
                let directory = self.parent_directory();
                parent.make(&directory, []).map_err(prepare(&directory))?;
                parent.write_cache(&cache).map_err(prepare(&cache))?
            }
        };

        let _breakpoints = breakpoints::Quick::keep();
        let output = private_mounts::within(|| {
            private_mounts::bind(&ours, &target).map_err(prepare(&target))?;
            if let Some(cover) = cover {
                cover.mount().map_err(prepare(&cache))?;
            }
            let run = || Ok(command::finish(self.command().envs(environment).stdin(lock))?);
            let output = if self.in_its_network { netns::within_pid(state.init_pid, run) } else { run() };
            Ok::<_, DumpError>(output?)
        });
        let output = output.map_err(prepare(Path::new("/")))??;
        if !output.status.success() {
            // A CRIU whose runtime was killed goes on: it holds the dump, asks the action script, and leaves the cgroup as it found it.
            wait_for_criu(&self.work_dir);
        }
        let outcome = self.outcome(&output);
        remains.clear(matches!(outcome, Ok(Outcome::Killed)));
        if let Err(DumpError::Died { .. }) = &outcome {
            // Best effort: whether the container lives on is not decided here.
            match repair::release(state.init_pid) {
                Ok(released) => warn!(container = self.container_id, ?released, "CRIU was killed; cleaned up after it"),
                Err(failure) => {
                    warn!(container = self.container_id, %failure, "CRIU was killed; not cleaned up after it")
                }
            }
        }
        outcome
    }

    /// What is to be done between the freeze and CRIU's work.
    ///
    /// # Errors
    /// As [`Checkpoint::run`].
    pub fn frozen(&self) -> Result<(), DumpError> {
        let Some(parent) = &self.parent else { return Ok(()) };
        let state = RuntimeState::read(&self.runtime_root, &self.container_id)?;
        let processes = memory::processes(state.init_pid)?;
        let directory = self.parent_directory();
        parent.make(&directory, processes.iter().map(|process| process.vpid)).map_err(prepare(&directory))?;
        for memory::Process { pid, .. } in processes {
            parent.clear_dirty(pid).map_err(prepare(Path::new(&format!("/proc/{pid}/clear_refs"))))?;
        }
        Ok(())
    }

    fn parent_directory(&self) -> PathBuf {
        self.images.with_file_name(PARENT)
    }

    fn options(&self) -> Options {
        Options { tcp: self.tcp, action_script: Some(self.action_script.clone()), watched: self.watched.clone() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(&self.runtime_root);
        command.arg("checkpoint").arg("--image-path").arg(&self.images).arg("--work-path").arg(&self.work_dir);
        // The target's cgroups are made by its engine; CRIU shall neither record nor restore them.
        command.args(["--manage-cgroups-mode", "ignore"]);
        if self.parent.is_some() {
            command.args(["--parent-path", PARENT_FROM_IMAGES]);
        }
        if self.file_locks {
            command.arg("--file-locks");
        }
        command.arg(&self.container_id);
        command
    }

    fn outcome(&self, output: &std::process::Output) -> Result<Outcome, DumpError> {
        let missing = [LAST_IMAGE, DESCRIPTORS].into_iter().find(|name| !self.images.join(name).exists());
        if output.status.success() {
            return match missing {
                None => Ok(Outcome::Killed),
                Some(missing) => Err(DumpError::Incomplete { container_id: self.container_id.clone(), missing }),
            };
        }
        // runc writes its marker when CRIU says post-dump: with it, the failure is the script's answer.
        let marker = self.runtime_root.join(&self.container_id).join(RUNC_MARKER);
        let held = marker.exists();
        let log = self.work_dir.join("dump.log");
        if held && missing.is_none() {
            let said = log::tail(&log).unwrap_or_default();
            return match () {
                () if said.contains(RESUMED) => Ok(Outcome::Resumed),
                // The runtime has died, and CRIU went on.
                () if said.contains(FINISHED) => Ok(Outcome::Killed),
                () => Err(DumpError::Died { container_id: self.container_id.clone() }),
            };
        }
        let cause = Triage::of_file(&log).or_else(|| command::message(output));
        Err(DumpError::Failed { container_id: self.container_id.clone(), cause })
    }
}

/// Waits until no checkpoint of an earlier process works in `work_dir` any more: runc outlives a daemon that dies. Returns at once
/// when there never was one.
///
/// To be called before the tasks are thawed: CRIU leaves the freezer as it found it, frozen by us (criu, `criu/seize.c`,
/// `freezer_restore_state`).
///
/// # Errors
/// When the lock cannot be waited for.
pub fn wait_until_ended(work_dir: &Path) -> Result<(), DumpError> {
    let path = work_dir.join(LOCK);
    match fs::File::open(&path).and_then(|lock| lock.lock()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(prepare(&path)(error)),
        _ => {}
    }
    wait_for_criu(work_dir);
    Ok(())
}

/// A process that is meant, and not one that has its id later.
#[derive(Debug, Serialize, Deserialize)]
struct Process {
    pid: i32,
    started: u64,
}

/// To be called by the action script at `pre-dump`: notes which CRIU it belongs to, for whoever must know that it has ended.
///
/// # Errors
/// CRIU is gone already; or what the file system says.
pub fn note_criu(work_dir: &Path, event: &Event) -> io::Result<()> {
    // Not our parent: that is another one once CRIU is dead.
    let pid = event.criu_pid.ok_or(io::ErrorKind::NotFound)?;
    let started = tasks::start_time(pid).ok_or(io::ErrorKind::NotFound)?;
    fs::write(work_dir.join(CRIU), serde_json::to_vec(&Process { pid, started })?)
}

/// Waits for the end of the CRIU that was noted in `work_dir`, whatever became of its runtime. All that keeps it from ending is its
/// action script, which is answered by then, or will be.
fn wait_for_criu(work_dir: &Path) {
    let noted = fs::read(work_dir.join(CRIU)).ok().and_then(|text| serde_json::from_slice::<Process>(&text).ok());
    let Some(noted) = noted else { return };
    let Ok(criu) = pidfd::open(noted.pid) else { return };
    if tasks::start_time(noted.pid) != Some(noted.started) {
        return;
    }
    let mut ended = [PollFd::new(criu.as_fd(), PollFlags::POLLIN)];
    while poll(&mut ended, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

/// Takes away what a checkpoint in `work_dir` that has ended left outside of it, if its own process did not live to do that. `gone`: the
/// container has moved away, and is not resumed here.
pub fn clear_remains(work_dir: &Path, gone: bool) {
    if let Some(remains) = Remains::read(work_dir) {
        remains.clear(gone);
    }
}

/// What a checkpoint leaves outside of its work directory, noted there before it begins.
#[derive(Debug, Serialize, Deserialize)]
struct Remains {
    /// What our configuration file was bound over.
    mount_target: PathBuf,
    /// The network namespace that the container has, if it has one by name.
    own_netns: Option<PathBuf>,
    /// runc's note that it has checkpointed the container.
    marker: PathBuf,
}

impl Remains {
    fn note(&self, work_dir: &Path) -> io::Result<()> {
        fs::write(work_dir.join(REMAINS), serde_json::to_vec(self)?)
    }

    fn read(work_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(work_dir.join(REMAINS)).ok()?).ok()
    }

    fn clear(&self, gone: bool) {
        remove_own_mount_target(&self.mount_target);
        // Left behind it would make a later failure look like one after the dump was whole.
        let _ = fs::remove_file(&self.marker);
        if gone && let Some(own) = self.own_netns.as_deref().and_then(OwnNetns::at) {
            // runc has forgotten the container, so nobody asks the wrapper to delete what it made for it.
            own.delete();
        }
    }
}

/// The lock that runc holds as its standard input, which is empty: the kernel gives it up with the last process that has it.
fn lock(work_dir: &Path) -> Result<fs::File, DumpError> {
    let path = work_dir.join(LOCK);
    let made = fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
    made.and_then(|lock| lock.lock().map(|()| lock)).map_err(prepare(&path))
}

fn prepare(path: &Path) -> impl Fn(io::Error) -> DumpError + '_ {
    move |source| DumpError::Prepare { path: path.to_owned(), source }
}

/// A bind mount needs a file to cover: an empty one, which changes nothing for anybody, and which stays (removing it
/// would undo the mount of another dump).
fn make_mount_target(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(path).map(drop)
}

/// The file that a container restored by us names lies in the directory of a migration that is long over: what was made
/// there for this dump goes again, unlike [`criu_config::RUNC_DEFAULT`], which other dumps may be covering.
fn remove_own_mount_target(path: &Path) {
    if path.starts_with(RESTORE_ROOT) {
        // Left behind they are an empty file and directory on a tmpfs, and used again by the next dump.
        let _ = fs::remove_file(path);
        if let Some(directory) = path.parent() {
            let _ = fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{ExitStatus, Output};

    use super::*;
    use crate::hook::Action;

    struct Case {
        _scratch: tempfile::TempDir,
        checkpoint: Checkpoint,
    }

    fn case(files: &[&str]) -> Case {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for directory in ["images", "work", "root/c"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for file in files {
            fs::write(at(file), "").unwrap();
        }
        let checkpoint = Checkpoint {
            runtime: "runc".into(),
            runtime_root: at("root"),
            container_id: "c".into(),
            images: at("images"),
            work_dir: at("work"),
            tcp: TcpMode::Established,
            in_its_network: true,
            action_script: "/hook".into(),
            stand_in: "/nonexistent/spothop-oci".into(),
            file_locks: true,
            watched: Vec::new(),
            parent: None,
        };
        Case { _scratch: scratch, checkpoint }
    }

    fn exit(code: i32) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: Vec::new(), stderr: b"criu failed\n".to_vec() }
    }

    #[test]
    fn killed_needs_a_good_exit_and_a_whole_image_set() {
        let whole = case(&["images/inventory.img", "images/descriptors.json"]);
        assert_eq!(whole.checkpoint.outcome(&exit(0)).unwrap(), Outcome::Killed);
        let torn = case(&["images/descriptors.json"]);
        assert!(matches!(torn.checkpoint.outcome(&exit(0)), Err(DumpError::Incomplete { missing: LAST_IMAGE, .. })));
    }

    #[test]
    fn a_bad_exit_after_post_dump_is_the_scripts_abort_and_the_marker_goes() {
        let case = case(&["images/inventory.img", "images/descriptors.json", "root/c/checkpoint"]);
        fs::write(case.checkpoint.work_dir.join("dump.log"), "(00.1) Error (criu/cr-dump.c:1): Dumping FAILED.")
            .unwrap();
        assert_eq!(case.checkpoint.outcome(&exit(1)).unwrap(), Outcome::Resumed);
    }

    #[test]
    fn a_criu_that_outlived_its_runtime_says_how_it_ended() {
        let case = case(&["images/inventory.img", "images/descriptors.json", "root/c/checkpoint"]);
        fs::write(case.checkpoint.work_dir.join("dump.log"), "(00.731439) Dumping finished successfully").unwrap();
        assert_eq!(case.checkpoint.outcome(&exit(-1)).unwrap(), Outcome::Killed);
    }

    #[test]
    fn the_end_of_a_criu_is_waited_for_whose_runtime_has_died() {
        let work = tempfile::tempdir().unwrap();
        let mut criu = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = criu.id().cast_signed();
        let noted = |started| serde_json::to_vec(&Process { pid, started }).unwrap();
        // Nobody, and somebody else with that id.
        wait_for_criu(work.path());
        let started = tasks::start_time(pid).unwrap();
        fs::write(work.path().join(CRIU), noted(started + 1)).unwrap();
        wait_for_criu(work.path());
        fs::write(work.path().join(CRIU), noted(started)).unwrap();
        let directory = work.path().to_owned();
        let waiting = std::thread::spawn(move || wait_until_ended(&directory).unwrap());
        criu.kill().unwrap();
        waiting.join().unwrap();
        assert!(tasks::is_dead(pid));
        criu.wait().unwrap();
        let event = |criu_pid| Event { action: Action::PreDump, init_pid: None, criu_pid };
        note_criu(work.path(), &event(Some(std::process::id().cast_signed()))).unwrap();
        for gone in [None, Some(pid)] {
            assert!(note_criu(work.path(), &event(gone)).is_err());
        }
    }

    #[test]
    fn a_criu_that_ended_without_a_word_has_not_resumed_anything() {
        let case = case(&["images/inventory.img", "images/descriptors.json", "root/c/checkpoint", "work/dump.log"]);
        assert!(matches!(case.checkpoint.outcome(&exit(1)), Err(DumpError::Died { .. })));
    }

    #[test]
    fn a_bad_exit_before_post_dump_is_an_error_with_crius_words() {
        let case = case(&["images/descriptors.json"]);
        fs::write(case.checkpoint.work_dir.join("dump.log"), "(00.1) Error (criu/files.c:1): Can't dump file 3")
            .unwrap();
        let error = case.checkpoint.outcome(&exit(1)).unwrap_err().to_string();
        assert!(error.contains("Can't dump file 3"), "{error}");
        fs::remove_file(case.checkpoint.work_dir.join("dump.log")).unwrap();
        let error = case.checkpoint.outcome(&exit(1)).unwrap_err().to_string();
        assert!(error.contains("criu failed"), "{error}");
    }

    #[test]
    fn a_dump_with_a_parent_finds_it_from_the_images() {
        let case = case(&[]);
        let arguments = |checkpoint: &Checkpoint| -> Vec<String> {
            checkpoint.command().get_args().map(|a| a.to_string_lossy().into_owned()).collect()
        };
        assert!(!arguments(&case.checkpoint).iter().any(|a| a == "--parent-path"));
        let checkpoint = Checkpoint { parent: Some(ConstantParent::for_tests()), ..case.checkpoint.clone() };
        let arguments = arguments(&checkpoint);
        let at = arguments.iter().position(|a| a == "--parent-path").unwrap();
        let found = checkpoint.images.join(&arguments[at + 1]);
        let made = checkpoint.images.with_file_name(PARENT);
        fs::create_dir(&made).unwrap();
        assert_eq!(fs::canonicalize(found).unwrap(), fs::canonicalize(made).unwrap());
    }

    #[test]
    fn the_end_of_a_checkpoint_is_awaited_through_its_lock() {
        let work = tempfile::tempdir().unwrap();
        wait_until_ended(work.path()).unwrap();
        let fifo = work.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut orphan = Command::new("cat").arg(&fifo).stdin(lock(work.path()).unwrap()).spawn().unwrap();
        let held = fs::File::open(work.path().join(LOCK)).unwrap().try_lock();
        assert!(matches!(held, Err(fs::TryLockError::WouldBlock)), "{held:?}");
        drop(fs::File::options().write(true).open(&fifo).unwrap());
        wait_until_ended(work.path()).unwrap();
        orphan.wait().unwrap();
    }

    #[test]
    fn what_a_dead_checkpoint_left_outside_is_known_and_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let marker = scratch.path().join("checkpoint");
        fs::write(&marker, "").unwrap();
        let theirs = scratch.path().join("runc.conf");
        fs::write(&theirs, "").unwrap();
        let remains = Remains { mount_target: theirs.clone(), own_netns: None, marker: marker.clone() };
        clear_remains(scratch.path(), true);
        assert!(marker.exists());
        remains.note(scratch.path()).unwrap();
        clear_remains(scratch.path(), true);
        assert!(!marker.exists() && theirs.exists());
    }

    #[test]
    fn a_missing_mount_target_is_made_empty_and_an_existing_one_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("gone/criu.conf");
        make_mount_target(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::write(&path, "theirs").unwrap();
        make_mount_target(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }
}
