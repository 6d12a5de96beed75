//! The first process of a machine: makes the root file system as a booted Debian machine has it, then becomes systemd.

use std::convert::Infallible;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{close, pivot_root};

use super::root::{BOUND, overlay};
use super::{PATH, Role, Spec};
use crate::cgroup::Cgroup;
use crate::command::{command, watch};
use crate::error::{Context, Error, Result, system};

/// Device nodes that a machine gets from the one that carries it (those that are there).
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"];

/// The usual links of /dev.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Runs as process 1 of the machine described in `spec_file`. `notify` is the socket that systemd reports to
/// (sd_notify(3)). Returns only when something fails.
///
/// # Errors
/// Whatever step failed; the supervisor has our standard error in the machine's console log.
pub fn run(spec_file: &Path, notify: &str) -> Result<Infallible> {
    close_inherited()?;
    // The machine does not outlive its supervisor.
    system("ask for a signal at the supervisor's death", set_pdeathsig(Signal::SIGKILL))?;
    let spec = Spec::load(spec_file)?;
    let layout = spec.layout()?;
    Cgroup::at(&layout.machine_root_cgroup(&spec.name))?.join()?;
    system("leave the mount and cgroup namespaces", unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP))?;
    change_root(&spec, &layout.machine_data_dir(&spec.name))?;
    if let Role::Host { set_up: Some(set_up), .. } = &spec.role
        && let [program, arguments @ ..] = set_up.as_slice()
    {
        watch(command(program, arguments).env_clear().env("PATH", PATH))?;
    }
    Err(Error::Start {
        program: format!("process 1 of {}", spec.name),
        source: first_program(&spec.role, notify).exec(),
    })
}

/// What becomes process 1.
fn first_program(role: &Role, notify: &str) -> Command {
    let mut command = match role {
        Role::Host { .. } => Command::new("/usr/lib/systemd/systemd"),
        Role::Client => {
            // Children that lost their parents are reaped by the kernel: an ignored SIGCHLD survives exec (signal(7)).
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "trap '' CHLD; exec sleep infinity"]);
            shell
        }
    };
    command.env_clear().env("PATH", PATH).env("container", "spothop-testbed").env("NOTIFY_SOCKET", notify);
    command
}

/// Closes all descriptors but the standard ones: one that leads into the carrying machine's mounts makes CRIU fail with "Can't
/// lookup mount".
fn close_inherited() -> Result<()> {
    let directory = Path::new("/proc/self/fd");
    let open: Vec<i32> = fs::read_dir(directory)
        .on("list", directory)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        let _ = close(descriptor); // the one of the listing itself is closed already
    }
    Ok(())
}

fn change_root(spec: &Spec, data: &Path) -> Result<()> {
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let root = data.join("root");
    attach(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(&overlay(&spec.base, data)))?;
    for (name, inside) in BOUND {
        bind(&data.join(name), &root.join(inside))?;
    }
    mount_kernel_trees(&root)?;
    make_devices(&root.join("dev"))?;
    env::set_current_dir(&root).on("enter", &root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is taken off.
    pivot_root(".", ".").on("change the root to", &root)?;
    umount2(".", MntFlags::MNT_DETACH).on("take off the old root at", &root)?;
    env::set_current_dir("/").on("enter", Path::new("/"))?;
    // systemd leaves this to whoever makes its container; ordinary machines have it so.
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED, None)
}

fn mount_kernel_trees(root: &Path) -> Result<()> {
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let exchange = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let none = MsFlags::empty();
    for (kind, at, flags, options) in [
        ("proc", "proc", guarded, None),
        ("sysfs", "sys", guarded, None),
        ("cgroup2", "sys/fs/cgroup", guarded, None),
        ("tmpfs", "run", exchange, Some("mode=755")),
        ("tmpfs", "tmp", exchange, Some("mode=1777")),
        ("tmpfs", "dev", MsFlags::MS_NOSUID, Some("mode=755")),
    ] {
        attach(Some(kind), &root.join(at), Some(kind), flags, options)?;
    }
    for (kind, at, options) in [
        ("devpts", "dev/pts", "newinstance,ptmxmode=0666,mode=620,gid=5"),
        ("tmpfs", "dev/shm", "mode=1777"),
        ("mqueue", "dev/mqueue", ""),
    ] {
        let at = root.join(at);
        fs::create_dir(&at).on("make", &at)?;
        attach(Some(kind), &at, Some(kind), none, Some(options))?;
    }
    Ok(())
}

fn make_devices(dev: &Path) -> Result<()> {
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            bind_file(&source, &dev.join(name))?;
        }
    }
    // The kernel's log is the carrying machine's.
    bind_file(Path::new("/dev/null"), &dev.join("kmsg"))?;
    for (target, name) in DEVICE_LINKS {
        let link = dev.join(name);
        symlink(target, &link).on("make the link", &link)?;
    }
    Ok(())
}

fn bind_file(source: &Path, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).on("make", parent)?;
    }
    fs::File::create(target).on("create", target)?;
    bind(source, target)
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&Path>, MsFlags::MS_BIND, None::<&str>)
        .on("bind a directory or device to", target)
}

fn attach(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(source, &PathBuf::from(target), kind, flags, options).on("mount onto", target)
}
