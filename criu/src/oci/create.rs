//! `create` as a restore, up to the point where the tasks are held.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, id};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::Invocation;
use super::bundle::Bundle;
use super::error::{OciError, file};
use super::marker::Marker;
use super::swrk::{Entrance, Waiting};
use super::{gate, keeper, pager, remains, runtime, runtime_log};
use crate::TcpMode;
use crate::criu_config::{self, Options};
use crate::dump::DESCRIPTORS;
use crate::failpoint;
use crate::handoff::{Client, Directory, Network, Report, RestoreRequest, Verdict};
use crate::log::Triage;
use crate::netns::{self, OwnNetns, Release};

/// How soon, in milliseconds, `create` notices that a restore has failed; success it hears at once.
const FAILURE_POLL: u16 = 20;

/// Restores what `request` says and holds it. When this returns well the engine has its pid file, and the tasks exist but
/// have not run; on an error nothing is left.
pub(super) fn restore(
    invocation: &Invocation,
    directory: &Directory,
    request: &RestoreRequest,
) -> Result<(), OciError> {
    if invocation.console_socket.is_some() {
        // The engine takes our stdout's end for the end of `create`, and the restore goes on longer.
        close_stdio()?;
    }
    let _here = directory.enter()?;
    let mut client = Client::new(directory.clone());
    let mut network = RestoreNetwork::default();
    let done = hold(invocation, directory, request, &mut client, &mut network);
    if let Err(error) = &done {
        network.undo();
        client.try_tell(&Report::Failed { error: error.to_string() });
    }
    done
}

fn hold(
    invocation: &Invocation,
    directory: &Directory,
    request: &RestoreRequest,
    client: &mut Client,
    network: &mut RestoreNetwork,
) -> Result<(), OciError> {
    let mut bundle = Bundle::read(&invocation.bundle)?;
    let held = gate::listen_for_held(directory.path()).map_err(file("listen in", directory.path()))?;
    configure_criu(&mut bundle, directory, request)?;
    bundle.resolve_bind_sources();
    network.prepare(&mut bundle, request)?;
    bundle.write()?;

    remains::clear(invocation, &request.runtime)?;
    let entrance = Entrance::make(directory.path()).map_err(file("make a link in", directory.path()))?;
    let mut keeper = spawn_restore(invocation, directory, request, &entrance)?;
    let done =
        let_criu_in(invocation, directory, request, client, network, &entrance, &mut keeper).and_then(|_pager| {
            let init_pid = wait_until_held(invocation, &held, &mut keeper, directory)?;
            network.check(init_pid)?;
            hand_over(invocation, directory, client, network, init_pid)
        });
    if done.is_err() {
        // A CRIU that waits ends, one that holds tasks kills them, and the keeper ends after it.
        drop(entrance);
        let _ = gate::decide(directory.path(), false);
        let _ = keeper.wait();
    }
    done
}

/// Says that everything is ready, and lets CRIU begin when the images are there. If what is returned is dropped before the tasks are held,
/// their pager ends.
fn let_criu_in(
    invocation: &Invocation,
    directory: &Directory,
    request: &RestoreRequest,
    client: &mut Client,
    network: &mut RestoreNetwork,
    entrance: &Entrance,
    keeper: &mut Child,
) -> Result<Option<Child>, OciError> {
    let criu = wait_for_criu(invocation, directory, entrance, keeper)?;
    network.prepare_hand_over()?;
    let container_id = invocation.container.to_string_lossy().into_owned();
    let waiting = Report::Waiting { container_id, pid: id().cast_signed() };
    failpoint::reach("target:wrapper:waiting")?;
    match client.ask(&waiting)? {
        Verdict::Restore => {}
        Verdict::Abort { reason } => return Err(OciError::Aborted { reason }),
        verdict @ Verdict::Run => {
            return Err(OciError::Unexpected { verdict: format!("{verdict:?}"), verb: "create" });
        }
    }
    failpoint::reach("target:wrapper:restoring")?;
    let pager = request.lazy.as_ref().map(|_| pager::spawn(directory)).transpose()?;
    criu.go(network.own.as_ref().map(OwnNetns::path).as_deref()).map_err(file("start CRIU for", directory.path()))?;
    Ok(pager)
}

/// What is left to do once the tasks are held.
fn hand_over(
    invocation: &Invocation,
    directory: &Directory,
    client: &mut Client,
    network: &mut RestoreNetwork,
    init_pid: i32,
) -> Result<(), OciError> {
    failpoint::reach("target:wrapper:held")?;
    network.hand_over()?;
    network.marker(directory).write(invocation)?;
    if let Some(path) = &invocation.pid_file {
        write_pid_file(path, init_pid)?;
    }
    failpoint::reach("target:wrapper:handed-over")?;
    Ok(client.tell(&Report::Restored { init_pid })?)
}

/// Writes CRIU's configuration for this restore and names it in the bundle.
fn configure_criu(bundle: &mut Bundle, directory: &Directory, request: &RestoreRequest) -> Result<(), OciError> {
    let work = directory.work();
    fs::create_dir_all(&work).map_err(file("create", work))?;
    let script = gate::install(directory.path()).map_err(file("create a link in", directory.path()))?;
    let options = Options { tcp: request.tcp, action_script: Some(script), watched: Vec::new() };
    let theirs = bundle.criu_config().unwrap_or(criu_config::RUNC_DEFAULT);
    let ours = directory.criu_conf();
    options.write(&ours, &criu_config::foreign_text(Path::new(theirs))).map_err(file("write", &ours))?;
    bundle.set_criu_config(&ours)
}

fn spawn_restore(
    invocation: &Invocation,
    directory: &Directory,
    request: &RestoreRequest,
    entrance: &Entrance,
) -> Result<Child, OciError> {
    // runc reads it before it starts CRIU.
    let descriptors = request.images.join(DESCRIPTORS);
    fs::write(&descriptors, serde_json::json!(request.descriptors).to_string()).map_err(file("write", descriptors))?;
    let runtime = runtime::resolve(&request.runtime);
    let work = directory.work();
    let mut command: Vec<&OsStr> = vec![runtime.as_os_str()];
    command.extend(invocation.globals.iter().map(|global| global.as_os_str()));
    command.extend(["restore", "--detach", "--bundle"].map(OsStr::new));
    command.push(invocation.bundle.as_os_str());
    command.extend([OsStr::new("--image-path"), request.images.as_os_str()]);
    command.extend([OsStr::new("--work-path"), work.as_os_str()]);
    // Locks are restored if the dump has them. The engine has made the cgroup and set its limits.
    command.extend(["--file-locks", "--manage-cgroups-mode", "ignore"].map(OsStr::new));
    if request.lazy.is_some() {
        command.push(OsStr::new("--lazy-pages"));
    }
    if invocation.no_pivot {
        command.push(OsStr::new("--no-pivot"));
    }
    if let Some(socket) = &invocation.console_socket {
        command.extend([OsStr::new("--console-socket"), socket.as_os_str()]);
    }
    command.push(&invocation.container);
    let environment = entrance.environment();
    keeper::spawn(directory, &command, environment).map_err(file("start the restore of", directory.path()))
}

/// Waits until runc has come as far as to need the images; an error when it ended before that.
fn wait_for_criu(
    invocation: &Invocation,
    directory: &Directory,
    entrance: &Entrance,
    keeper: &mut Child,
) -> Result<Waiting, OciError> {
    loop {
        let waiting = entrance.waiting(FAILURE_POLL).map_err(file("listen in", directory.path()))?;
        if let Some(criu) = waiting {
            return Ok(criu);
        }
        if matches!(keeper.try_wait(), Ok(Some(_)) | Err(_)) {
            return Err(failure(invocation, directory));
        }
    }
}

/// The process id of init once the hook holds; an error when the restore ended before that.
fn wait_until_held(
    invocation: &Invocation,
    held: &UnixListener,
    keeper: &mut Child,
    directory: &Directory,
) -> Result<i32, OciError> {
    loop {
        let mut fds = [PollFd::new(held.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(FAILURE_POLL)).is_ok_and(|ready| ready > 0)
            && let Ok((stream, _)) = held.accept()
            && let Some(pid) = gate::held_pid(stream)
        {
            return Ok(pid);
        }
        if matches!(keeper.try_wait(), Ok(Some(_)) | Err(_)) {
            return Err(failure(invocation, directory));
        }
    }
}

/// Why the restore in `directory` failed.
pub(super) fn failure(invocation: &Invocation, directory: &Directory) -> OciError {
    let runtime_says = || match keeper::ending(directory) {
        None => "the restore was killed".to_owned(),
        Some(ending) => runtime_log::last_error(invocation).unwrap_or(ending.status),
    };
    OciError::Restore { cause: Triage::of_file(&directory.work().join("restore.log")).or_else(runtime_says) }
}

/// As runc writes it: without a newline, and never half.
fn write_pid_file(path: &Path, pid: i32) -> Result<(), OciError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".spothop");
    let new = PathBuf::from(new);
    fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, path)).map_err(file("write", path))
}

fn close_stdio() -> Result<(), OciError> {
    let error = |errno: nix::Error| file("open", "/dev/null")(errno.into());
    let null = fs::File::options().read(true).write(true).open("/dev/null").map_err(file("open", "/dev/null"))?;
    nix::unistd::dup2_stdin(&null).map_err(error)?;
    nix::unistd::dup2_stdout(&null).map_err(error)?;
    nix::unistd::dup2_stderr(&null).map_err(error)
}

/// The network namespace of a restore: what was made and what must be undone or handed on.
#[derive(Debug, Default)]
struct RestoreNetwork {
    own: Option<OwnNetns>,
    addresses: Vec<std::net::IpAddr>,
    release: Option<Release>,
    silent: Option<PathBuf>,
}

impl RestoreNetwork {
    fn prepare(&mut self, bundle: &mut Bundle, request: &RestoreRequest) -> Result<(), OciError> {
        match &request.network {
            Network::Own { addresses } => {
                let own = OwnNetns::of(&request.migration);
                bundle.set_netns(&own.path())?;
                own.create(addresses, &bundle.network_sysctls())?;
                self.silent = Some(own.path());
                self.addresses.clone_from(addresses);
                self.own = Some(own);
            }
            Network::Given => {
                let given = bundle.netns().filter(|path| !path.is_empty());
                // Without connections nobody can be misled by an early answer.
                if let (Some(path), TcpMode::Established) = (given, request.tcp) {
                    netns::hold(Path::new(path))?;
                    self.silent = Some(path.into());
                }
            }
        }
        Ok(())
    }

    /// Whether the tasks are in it. Images that bring a network of their own are not what was asked for.
    fn check(&self, init_pid: i32) -> Result<(), OciError> {
        match &self.own {
            Some(own) if netns::inode(init_pid)? != netns::inode_at(&own.path())? => {
                let cause = "the restored tasks are not in the network that was made for them".to_owned();
                Err(OciError::Restore { cause })
            }
            _ => Ok(()),
        }
    }

    fn prepare_hand_over(&mut self) -> Result<(), OciError> {
        let release = self.own.as_ref().map(|own| own.prepare_release(&self.addresses));
        self.release = release.transpose()?;
        Ok(())
    }

    /// The engine brings its own addresses now.
    fn hand_over(&mut self) -> Result<(), OciError> {
        match self.release.take() {
            Some(release) => Ok(release.release()?),
            None => Ok(()),
        }
    }

    fn marker(&self, directory: &Directory) -> Marker {
        Marker {
            directory: directory.path().to_owned(),
            silent_netns: self.silent.clone(),
            own_netns: self.own.as_ref().map(|own| own.name().to_owned()),
        }
    }

    fn undo(&self) {
        match (&self.own, &self.silent) {
            (Some(own), _) => own.delete(),
            // Best effort: the namespace is the engine's, which is about to remove it.
            (None, Some(path)) => drop(netns::open(path)),
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordinary() -> Invocation {
        Invocation::parse(&["create".into(), "c".into()]).unwrap()
    }

    #[test]
    fn a_pid_file_is_as_runc_writes_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("init.pid");
        write_pid_file(&path, 4711).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4711");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_restore_is_explained_by_crius_log() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        fs::create_dir(directory.work()).unwrap();
        fs::write(directory.work().join("restore.log"), "(00.1) Error (criu/x.c:1): Can't bind inet socket").unwrap();
        fs::write(scratch.path().join("restored.json"), r#"{"success":false,"status":"runtime: exit status: 1"}"#)
            .unwrap();
        let text = failure(&ordinary(), &directory).to_string();
        assert!(text.contains("Can't bind inet socket"), "{text}");
        fs::remove_file(directory.work().join("restore.log")).unwrap();
        assert_eq!(failure(&ordinary(), &directory).to_string(), "restore failed: runtime: exit status: 1");
    }

    #[test]
    fn a_restore_that_ends_early_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        let held = gate::listen_for_held(directory.path()).unwrap();
        let mut child = std::process::Command::new("false").spawn().unwrap();
        let error = wait_until_held(&ordinary(), &held, &mut child, &directory).unwrap_err();
        assert!(error.to_string().contains("the restore was killed"), "{error}");
    }
}
