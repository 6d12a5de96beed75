//! What the machine that carries the testbed needs, and what it knows about Debian packages.

use std::env;
use std::path::Path;

use crate::command::{command, output, run, watch};
use crate::error::{Error, Result};

/// Programs that the testbed calls, and the Debian package of each.
const NEEDED: [(&str, &str); 7] = [
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("tar", "tar"),
];

/// Settings of the machine's apt that a new root needs too: a mirror that serves a day in the past is past its validity.
const CARRIED_OVER: [&str; 4] =
    ["Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::http::Proxy", "Acquire::https::Proxy"];

/// Installs what is missing. `say` hears what is done.
///
/// # Errors
/// [`Error::Command`] when apt fails.
pub fn prepare(say: &dyn Fn(&str)) -> Result<()> {
    let mut packages: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    install(&packages, say)
}

/// Installs Python with what makes virtual environments, unless it is there.
///
/// # Errors
/// [`Error::Command`] when apt fails.
pub fn prepare_python(say: &dyn Fn(&str)) -> Result<()> {
    let there =
        is_installed("python3") && output(&mut command("python3", ["-c", "import ensurepip, venv"]))?.status.success();
    if there { Ok(()) } else { install(&["python3", "python3-venv"], say) }
}

/// Installs what runs a virtual machine, unless it is there.
///
/// # Errors
/// [`Error::Command`] when apt fails.
pub fn prepare_emulator(say: &dyn Fn(&str)) -> Result<()> {
    let needed = [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio")];
    let missing: Vec<&str> =
        needed.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect();
    install(&missing, say)
}

fn install(packages: &[&str], say: &dyn Fn(&str)) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    say(&format!("installing {} on this machine", packages.join(", ")));
    // Some source or other may be out of order without harm; what matters is whether the packages can be had.
    output(&mut command("apt-get", ["-q", "update"]))?;
    let mut install = command("apt-get", ["-q", "-y", "--no-install-recommends", "install"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut install).map(drop)
}

/// Whether a program is found where root's programs are.
fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// The archive that the machine's own Debian packages come from, as it stands in apt's sources.
///
/// # Errors
/// [`Error::NoMirror`] when there is none.
pub fn debian_mirror() -> Result<String> {
    let targets = run(&mut command(
        "apt-get",
        ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
    ))?;
    let release = std::fs::read_to_string(Path::new("/etc/os-release")).unwrap_or_default();
    mirror_among(&String::from_utf8_lossy(&targets.stdout), &release).ok_or(Error::NoMirror)
}

/// The first archive that has component `main` of the very release that os-release(5) names.
fn mirror_among(targets: &str, os_release: &str) -> Option<String> {
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?.trim_matches('"');
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (archive, release, component) = (words.next()?, words.next()?, words.next()?);
        (release == codename && component == "main").then(|| archive.trim_end_matches('/').to_owned())
    })
}

/// The machine's apt settings that a root made from the same archive needs, as lines of apt.conf(5).
///
/// # Errors
/// [`Error::Command`] when apt-config fails.
pub fn apt_settings() -> Result<String> {
    let dump = run(command("apt-config", ["dump"]).args(CARRIED_OVER))?;
    Ok(String::from_utf8_lossy(&dump.stdout)
        .lines()
        .filter(|line| !line.ends_with("\"\";"))
        .fold(String::new(), |text, line| text + line + "\n"))
}

/// Runs cargo in the workspace, its output on standard error.
///
/// # Errors
/// [`Error::Command`] when it fails.
pub fn cargo<const N: usize>(arguments: [&str; N]) -> Result<()> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    watch(
        command(&cargo, arguments)
            .current_dir(workspace())
            // `cargo run` told us about this package; the build is about others.
            .env_remove("CARGO_MANIFEST_DIR"),
    )
}

/// The workspace that this program was built from.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_the_running_release() {
        let targets = "https://packages.example/apt tool main\n\
                       http://deb.example/debian/ bookworm-updates main\n\
                       http://deb.example/debian/ bookworm main\n";
        let release = "NAME=\"Debian\"\nVERSION_CODENAME=bookworm\n";
        assert_eq!(mirror_among(targets, release).as_deref(), Some("http://deb.example/debian"));
        assert_eq!(mirror_among(targets, "VERSION_CODENAME=sid\n"), None);
    }
}
