//! The Debian root that all hosts share: built once by debootstrap, cached outside the repository under a key made from its recipe.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use xxhash_rust::xxh3::xxh3_64;

use crate::command::{command, run};
use crate::error::{Context, Error, Result};
use crate::layout::CACHE;
use crate::machine;

/// The stable suite that most packages come from.
const SUITE: &str = "trixie";

/// Packages of [`SUITE`]. Podman and iperf3 are here for the benchmark's comparisons; Redis, Python and strace are for the workloads
/// and tests.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "iproute2",
    "nftables",
    "iptables",
    "procps",
    "iputils-ping",
    "iperf3",
    "ca-certificates",
    "curl",
    "kmod",
    "netbase",
    "openssl",
    "python3",
    "redis-server",
    "redis-tools",
    "strace",
    "podman",
    "netavark",
    "aardvark-dns",
];

/// Packages of sid: CRIU before 4.2 cannot dump sockets on kernels from 6.16 on, and libcriu2 is what crun's checkpoint needs.
const SID_PACKAGES: &[&str] = &["criu", "libcriu2", "runc", "crun", "docker.io", "docker-cli", "containerd"];

/// Units that a test host has no use for: timers, consoles, servers that only their program is needed of, and what would change
/// the kernel of the machine that carries it.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "getty.target",
    "console-getty.service",
    "systemd-logind.service",
    "systemd-pstore.service",
    "systemd-sysctl.service",
    "redis-server.service",
    "netavark-dhcp-proxy.socket",
    "netavark-dhcp-proxy.service",
    "podman-auto-update.timer",
    "podman-restart.service",
];

/// dpkg.cfg(5) of the base: it can be built again at any time, so no syncing, and nobody reads manuals in it.
const DPKG_SETTINGS: &str = "\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
";

/// apt.conf(5) of the base.
const APT_SETTINGS: &str = "APT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\n";

/// apt_preferences(5): from sid only what is asked for by name, and what that needs.
const APT_PREFERENCES: &str = "Package: *\nPin: release n=sid\nPin-Priority: 50\n";

/// Keeps maintainer scripts from starting services in the chroot (policy-rc.d: 101 = action forbidden).
const POLICY_RC_D: &str = "#!/bin/sh\nexit 101\n";

/// Where the base of this recipe is, or will be.
#[must_use]
pub fn path() -> PathBuf {
    let recipe = [
        SUITE,
        &PACKAGES.join(" "),
        &SID_PACKAGES.join(" "),
        &MASKED.join(" "),
        DPKG_SETTINGS,
        APT_SETTINGS,
        APT_PREFERENCES,
    ]
    .join("\n");
    Path::new(CACHE).join(format!("base-{:016x}", xxh3_64(recipe.as_bytes())))
}

/// Makes the base unless it is there, and returns its path. `say` hears what is done.
///
/// # Errors
/// [`Error::Command`] with the words of debootstrap or apt; what was made so far is removed at the next try.
pub fn ensure(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let base = path();
    if base.is_dir() {
        return Ok(base);
    }
    machine::prepare(say)?;
    fs::create_dir_all(CACHE).on("make", Path::new(CACHE))?;
    let _lock = lock(&Path::new(CACHE).join("lock"))?;
    if base.is_dir() {
        return Ok(base); // somebody else made it while we waited
    }
    say(&format!("building the Debian base of the hosts in {} (a minute or two, once)", base.display()));
    let partial = base.with_extension("partial");
    remove_if_there(&partial)?;
    build(&partial)?;
    fs::rename(&partial, &base).on("name", &base)?;
    Ok(base)
}

/// Waits for the lock at `path`, and holds it until the answer is dropped.
pub(crate) fn lock(path: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::create(path).on("create", path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::Io {
        action: "lock",
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn build(root: &Path) -> Result<()> {
    let mirror = machine::debian_mirror()?;
    run(command("debootstrap", ["--variant=minbase", SUITE]).arg(root).arg(&mirror))?;
    let write = |file: &str, text: &str| {
        let path = root.join(file);
        fs::write(&path, text).on("write", &path)
    };
    write("etc/dpkg/dpkg.cfg.d/90spothop-testbed", DPKG_SETTINGS)?;
    write("etc/apt/apt.conf.d/90spothop-testbed", &(APT_SETTINGS.to_owned() + &machine::apt_settings()?))?;
    write("etc/apt/preferences.d/90spothop-testbed", APT_PREFERENCES)?;
    write("etc/apt/sources.list", &format!("deb {mirror} {SUITE} main\ndeb {mirror} sid main\n"))?;
    write("usr/sbin/policy-rc.d", POLICY_RC_D)?;
    let policy = root.join("usr/sbin/policy-rc.d");
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).on("set the mode of", &policy)?;
    for file in ["etc/resolv.conf", "etc/hosts"] {
        let to = root.join(file);
        fs::copy(Path::new("/").join(file), &to).on("write", &to)?;
    }
    apt_get(root, &["update"])?;
    apt_get(root, &[&["install"], PACKAGES].concat())?;
    apt_get(root, &[&["install", "-t", "sid"], SID_PACKAGES].concat())?;
    apt_get(root, &["clean"])?;
    let lists = root.join("var/lib/apt/lists");
    fs::remove_dir_all(&lists).on("remove", &lists)?;
    fs::remove_file(&policy).on("remove", &policy)?;
    for unit in MASKED {
        let mask = root.join("etc/systemd/system").join(unit);
        remove_if_there(&mask)?;
        symlink("/dev/null", &mask).on("mask the unit", &mask)?;
    }
    write("etc/resolv.conf", "")?;
    // Every host gets its own; with the file left over they would all be the same machine.
    remove_if_there(&root.join("etc/machine-id"))?;
    remove_if_there(&root.join("var/lib/dbus/machine-id"))
}

fn apt_get(root: &Path, arguments: &[&str]) -> Result<()> {
    let mut chroot = command("chroot", [root.as_os_str()]);
    chroot
        .args(["apt-get", "-q", "-y"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    run(&mut chroot).map(drop)
}

/// Removes a file or a directory with all that is in it; nothing to do when it is not there.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", path),
        _ => Ok(()),
    }
}
