//! The root file system of a machine: an overlay over the Debian base, and the files that make each machine itself.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use uuid::Uuid;

use super::{Role, Spec};
use crate::base::remove_if_there;
use crate::error::{Context, Result};
use crate::layout::{CLIENT, CLIENT_ADDRESS, host_address, host_name};

/// Directories that are plain ones beside the overlay (their name in the machine's data directory, their place inside): engines
/// put overlays of their own there, and an overlay cannot lie on an overlay.
pub(super) const BOUND: &[(&str, &str)] = &[
    ("docker", "var/lib/docker"),
    ("containers", "var/lib/containers"),
    ("containerd", "var/lib/containerd"),
    ("spothop", "var/lib/spothop"),
];

/// Mount options of the root.
pub(super) fn overlay(base: &Path, data: &Path) -> String {
    format!(
        "lowerdir={},upperdir={},workdir={}",
        base.display(),
        data.join("upper").display(),
        data.join("work").display()
    )
}

/// Makes the directories of a new machine and the files it differs in; `hosts` is how many hosts the testbed has.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn prepare(spec: &Spec, hosts: u8) -> Result<()> {
    let layout = spec.layout()?;
    let data = layout.machine_data_dir(&spec.name);
    remove_if_there(&data)?;
    let run = layout.machine_run_dir(&spec.name);
    fs::create_dir_all(&run).on("make", &run)?;
    let upper = data.join("upper");
    for directory in [data.join("root"), data.join("work"), upper.clone()] {
        fs::create_dir_all(&directory).on("make", &directory)?;
    }
    for (name, inside) in BOUND {
        for directory in [data.join(name), upper.join(inside)] {
            fs::create_dir_all(&directory).on("make", &directory)?;
        }
    }
    // The upper directory's own mode is what / shows.
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).on("set the mode of", &upper)?;
    let name = &spec.name;
    write(&upper.join("etc/hostname"), &format!("{name}\n"))?;
    write(&upper.join("etc/hosts"), &hosts_file(hosts))?;
    write(&upper.join("etc/machine-id"), &format!("{}\n", Uuid::now_v7().simple()))?;
    if matches!(spec.role, Role::Host { .. }) {
        // What was said before the power was lost is wanted after it.
        write(&upper.join("etc/systemd/journald.conf.d/testbed.conf"), "[Journal]\nStorage=persistent\n")?;
    }
    Ok(())
}

fn hosts_file(hosts: u8) -> String {
    let mut text = format!("127.0.0.1 localhost\n::1 localhost\n{CLIENT_ADDRESS} {CLIENT}\n");
    for index in 0..hosts {
        let _ = writeln!(text, "{} {}", host_address(index), host_name(index)); // writing to a String cannot fail
    }
    text
}

/// Writes a file of a machine's root, with the directories above it.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).on("make", parent)?;
    }
    fs::write(path, text).on("write", path)
}
