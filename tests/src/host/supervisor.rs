//! The supervisor of a machine: the process that makes the namespaces, starts process 1 in them, and serves the metadata service
//! from outside of the pid and mount namespaces and inside of the network namespace.

use std::fs::File;
use std::io::Write as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;
use tokio::process::{Child, Command};

use super::{Report, Role, Spec};
use crate::cgroup::Cgroup;
use crate::command::ip;
use crate::error::{Context, Error, Result, system};
use crate::imds;
use crate::layout::{CLIENT_ADDRESS, GATEWAY, PREFIX, hardware_address};
use crate::switch::Switch;

/// The abstract socket in the machine's network namespace on which systemd says that the boot is finished.
const NOTIFY: &str = "spothop-testbed/notify";

/// A boot takes 3 to 10 s on two cores; after this it has failed.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Runs the machine described in `spec_file` to its end. Says one [`Report`] on standard output.
///
/// # Errors
/// Whatever failed; the report has said so too.
pub fn run(spec_file: &Path) -> Result<()> {
    let outcome = Spec::load(spec_file).and_then(|spec| supervise(&spec, spec_file));
    if let Err(error) = &outcome {
        report(&Report::Failed { reason: chain(error) });
    }
    outcome
}

fn supervise(spec: &Spec, spec_file: &Path) -> Result<()> {
    let layout = spec.layout()?;
    // Below the machine's cgroup: killing that ends supervisor and machine alike.
    Cgroup::at(&layout.machine_cgroup(&spec.name))?.child("supervisor").join()?;
    system(
        "make the namespaces of a machine",
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC),
    )?;
    system("set the machine's name", sethostname(&spec.name))?;
    set_up_network(spec)?;
    // One thread only: none can be made while children are born into another pid namespace (clone(2), EINVAL).
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .on("start the runtime in", Path::new("/"))?;
    runtime.block_on(async {
        let notify = Path::new(NOTIFY);
        let address = SocketAddr::from_abstract_name(NOTIFY).on("name the socket", notify)?;
        let notify_socket = UnixDatagram::bind_addr(&address).on("bind", notify)?;
        notify_socket.set_nonblocking(true).on("set the mode of", notify)?;
        let notify_socket = tokio::net::UnixDatagram::from_std(notify_socket).on("bind", notify)?;
        let metadata = match &spec.role {
            Role::Host { instance, cloud, .. } => {
                Some(imds::Server::bind(instance.clone(), *cloud, &layout.imds_socket(&spec.name)).await?)
            }
            Role::Client => None,
        };
        let first = start_first(spec_file)?;
        let _metadata = metadata.map(|server| tokio::spawn(server.run()));
        let is_host = matches!(spec.role, Role::Host { .. });
        watch_over(first, is_host.then_some(notify_socket)).await
    })
}

/// The machine's interfaces: `lo`, with the metadata services' addresses on a host, and `eth0` on the switch.
fn set_up_network(spec: &Spec) -> Result<()> {
    let layout = spec.layout()?;
    let address = spec.address;
    ip("link set lo up")?;
    if matches!(spec.role, Role::Host { .. }) {
        for address in imds::ADDRESSES {
            let options = if address.is_ipv6() { "/128 dev lo nodad" } else { "/32 dev lo" };
            ip(&format!("address add {address}{options}"))?;
        }
    }
    Switch::of(&layout).plug(&spec.name, &hardware_address(address), spec.link_mbit)?;
    ip(&format!("address add {address}/{PREFIX} broadcast + dev eth0"))?;
    ip("link set eth0 up")?;
    if address == CLIENT_ADDRESS {
        return ip(&format!("address add {GATEWAY}/{PREFIX} dev eth0"));
    }
    ip(&format!("route add default via {GATEWAY}"))
}

/// Starts process 1 in a new pid namespace; children after it are born into our own again.
fn start_first(spec_file: &Path) -> Result<Child> {
    let own_pids = Path::new("/proc/self/ns/pid");
    let own_pids = File::open(own_pids).on("open", own_pids)?;
    system("make a pid namespace", unshare(CloneFlags::CLONE_NEWPID))?;
    let program = Path::new("/proc/self/exe");
    let first = Command::new(program)
        .arg("init")
        .arg(spec_file)
        .arg(format!("@{NOTIFY}"))
        .stdin(Stdio::null())
        // Our own standard output is the report's pipe; the child's goes to the console log with its errors.
        .stdout(std::io::stderr())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::Start { program: program.display().to_string(), source })?;
    system("go back to the own pid namespace", setns(&own_pids, CloneFlags::CLONE_NEWPID))?;
    Ok(first)
}

/// Reports when the machine is up, then waits for its end. Without a `notify` socket it is up as soon as it runs.
async fn watch_over(mut first: Child, notify: Option<tokio::net::UnixDatagram>) -> Result<()> {
    let pid = first.id().map_or(0, u32::cast_signed);
    if let Some(notify) = notify {
        tokio::select! {
            ready = tokio::time::timeout(BOOT_LIMIT, wait_ready(&notify)) => match ready {
                Ok(ready) => ready?,
                Err(_) => return Err(unexpected("the boot", &format!("no end after {} s", BOOT_LIMIT.as_secs()))),
            },
            end = first.wait() => return Err(ended(end)),
        }
    }
    report(&Report::Up { pid, supervisor: std::process::id().cast_signed() });
    let _ = first.wait().await; // however it ends, the machine is off
    Ok(())
}

/// Returns when systemd says that all jobs of the boot are done (sd_notify(3): datagrams of `NAME=value` lines).
async fn wait_ready(socket: &tokio::net::UnixDatagram) -> Result<()> {
    let mut message = [0; 4096];
    loop {
        let length = socket.recv(&mut message).await.on("receive from", Path::new(NOTIFY))?;
        if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

fn ended(end: std::io::Result<ExitStatus>) -> Error {
    match end {
        Ok(status) => unexpected("the boot", &format!("process 1 ended: {status}")),
        Err(error) => unexpected("the boot", &format!("process 1 is lost: {error}")),
    }
}

fn unexpected(what: &str, text: &str) -> Error {
    Error::Unexpected { what: what.to_owned(), text: text.to_owned() }
}

/// Says the one line that `up` waits for. If nobody listens any more there is nobody to tell.
fn report(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
