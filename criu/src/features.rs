//! What this host has of what spothop needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Version;
use crate::command::{self, CommandError};

/// CRIU must be at least this: the first that dumps sockets on Linux ≥ 6.16 (SO_PASSCRED), has `pidfd` and network-lock nftables.
pub const CRIU_NEEDED: Version = Version::new(4, 2, 0);

/// runc must be at least this: the first with the `org.criu.config` annotation, external namespaces and cgroup v2 freezing.
pub const RUNC_NEEDED: Version = Version::new(1, 1, 0);

/// Linux must be at least this: the first with nftables' `egress` hook, by which the source is silenced.
pub const KERNEL_NEEDED: Version = Version::new(5, 16, 0);

/// What was found on this host. Serializable, so that hosts can compare themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// CRIU's path or name, as given.
    pub criu_path: PathBuf,
    /// CRIU's version; `None` when it cannot be run.
    pub criu: Option<Version>,
    /// What `criu check` complains about; `None` when all is well (or when there is no CRIU).
    pub criu_complaint: Option<String>,
    /// runc's path or name, as given.
    pub runc_path: PathBuf,
    /// runc's version; `None` when it cannot be run.
    pub runc: Option<Version>,
    /// The kernel's version.
    pub kernel: Version,
    /// Can `nft` be run?
    pub nft: bool,
    /// Can iproute2's `ip` be run?
    pub ip: bool,
    /// Can CRIU restore tasks whose memory comes when they touch it (`uffd-noncoop`)?
    pub lazy_pages: bool,
    /// Are we root?
    pub root: bool,
}

/// Something without which spothop cannot work on this host. The message says what to install or change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// We are not root.
    #[error("spothop must run as root: CRIU needs it")]
    Root,
    /// CRIU is not there.
    #[error("CRIU is not installed ({} cannot be run); install criu {CRIU_NEEDED} or later", path.display())]
    Criu {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// CRIU is too old.
    #[error("CRIU {found} is too old; install {CRIU_NEEDED} or later (Debian: from sid)")]
    CriuVersion {
        /// What is installed.
        found: Version,
    },
    /// CRIU finds that this kernel lacks something.
    #[error("`criu check` reports: {complaint}; run `criu check` and use a kernel with CONFIG_CHECKPOINT_RESTORE")]
    CriuCheck {
        /// CRIU's first complaint.
        complaint: String,
    },
    /// runc is not there.
    #[error("runc is not installed ({} cannot be run); install runc {RUNC_NEEDED} or later", path.display())]
    Runc {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// runc is too old.
    #[error("runc {found} is too old; install {RUNC_NEEDED} or later")]
    RuncVersion {
        /// What is installed.
        found: Version,
    },
    /// The kernel is too old.
    #[error("Linux {found} is too old; spothop needs {KERNEL_NEEDED} or later")]
    Kernel {
        /// What runs.
        found: Version,
    },
    /// nftables' program is not there.
    #[error("nft cannot be run; install nftables")]
    Nft,
    /// iproute2's program is not there.
    #[error("ip cannot be run; install iproute2")]
    Ip,
}

/// Looks at this host. Takes about 100 ms, and fills CRIU's cache of kernel features, which saves 30 to 50 ms later: call
/// it at start.
///
/// `criu` and `runc` are paths, or names to be looked up in PATH.
pub fn probe(criu: &Path, runc: &Path) -> Features {
    let criu_version = version(criu);
    let check = criu_version.map(|_| command::run(Command::new(criu).arg("check"), None));
    Features {
        criu_path: criu.to_owned(),
        criu: criu_version,
        criu_complaint: check.and_then(Result::err).map(complaint),
        runc_path: runc.to_owned(),
        runc: version(runc),
        kernel: kernel(),
        nft: succeeds(Command::new("nft").arg("--version")),
        ip: succeeds(Command::new("ip").arg("-V")),
        lazy_pages: criu_version.is_some() && succeeds(Command::new(criu).args(["check", "--feature", "uffd-noncoop"])),
        root: nix::unistd::geteuid().is_root(),
    }
}

impl Features {
    /// Everything that is missing; empty when spothop can work here.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        if !self.root {
            missing.push(Missing::Root);
        }
        match self.criu {
            None => missing.push(Missing::Criu { path: self.criu_path.clone() }),
            Some(found) if found < CRIU_NEEDED => missing.push(Missing::CriuVersion { found }),
            Some(_) => missing.extend(self.criu_complaint.clone().map(|complaint| Missing::CriuCheck { complaint })),
        }
        match self.runc {
            None => missing.push(Missing::Runc { path: self.runc_path.clone() }),
            Some(found) if found < RUNC_NEEDED => missing.push(Missing::RuncVersion { found }),
            Some(_) => {}
        }
        if self.kernel < KERNEL_NEEDED {
            missing.push(Missing::Kernel { found: self.kernel });
        }
        if !self.nft {
            missing.push(Missing::Nft);
        }
        if !self.ip {
            missing.push(Missing::Ip);
        }
        missing
    }
}

fn version(program: &Path) -> Option<Version> {
    let output = command::run(Command::new(program).arg("--version"), None).ok()?;
    Version::find(&String::from_utf8_lossy(&output.stdout))
}

fn succeeds(command: &mut Command) -> bool {
    command::run(command, None).is_ok()
}

/// The kernel's version, `0.0.0` if it is written in a way we do not know.
fn kernel() -> Version {
    let release = nix::sys::utsname::uname().ok().and_then(|name| Version::find(&name.release().to_string_lossy()));
    release.unwrap_or(Version::new(0, 0, 0))
}

fn complaint(error: CommandError) -> String {
    match error {
        CommandError::Failed { message, .. } => message,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Features {
        Features {
            criu_path: "criu".into(),
            criu: Some(Version::new(4, 2, 1)),
            criu_complaint: None,
            runc_path: "runc".into(),
            runc: Some(Version::new(1, 3, 6)),
            kernel: Version::new(6, 18, 0),
            nft: true,
            ip: true,
            lazy_pages: false,
            root: true,
        }
    }

    #[test]
    fn a_good_host_misses_nothing() {
        assert_eq!(good().missing(), []);
    }

    #[test]
    fn each_shortcoming_is_named_with_what_to_install() {
        let old = Features { criu: Some(Version::new(4, 1, 1)), criu_complaint: Some("x".into()), ..good() };
        assert_eq!(old.missing(), [Missing::CriuVersion { found: Version::new(4, 1, 1) }]);
        assert!(old.missing()[0].to_string().contains("install 4.2.0 or later"));
        let bare = Features { criu: None, runc: None, nft: false, kernel: Version::new(5, 10, 0), ..good() };
        let names: Vec<String> = bare.missing().iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 4);
        assert!(names[0].contains("criu 4.2.0 or later") && names[3].contains("nftables"));
    }

    #[test]
    fn a_host_without_criu_is_probed_without_error() {
        let features = probe(Path::new("/nonexistent/criu"), Path::new("/nonexistent/runc"));
        assert_eq!((features.criu, features.runc, features.lazy_pages), (None, None, false));
        assert!(features.kernel > Version::new(0, 0, 0));
    }
}
