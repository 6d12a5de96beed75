//! spothop as users get it, put into the root of every host: programs, unit, configuration, certificates.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run;
use crate::error::{Context, Result};
use crate::host::Spec;
use crate::host::root::write;
use crate::layout::Layout;
use crate::machine::{cargo, workspace};
use crate::testbed::copy;

/// The port of the daemons among each other.
const PORT: u16 = 7077;

/// Where spothop's programs look for the order to fail at some point, on every host; without the file nothing fails.
pub const FAIL_POINT: &str = "/run/spothop/failpoint";

/// Units whose processes reach fail points: the daemon, and the engine's, of which the runtime inherits its environment.
const REACH_FAIL_POINTS: [&str; 3] = ["spothop.service", "docker.service", "containerd.service"];

/// What its user would do next on each host; here it is done before the first boot, so that nothing has to be restarted.
pub const SET_UP: &[&str] = &["/usr/bin/spothop", "setup", "docker"];

/// The built programs.
#[derive(Debug)]
pub struct Product {
    spothop: PathBuf,
    runtime: PathBuf,
    unit: PathBuf,
    logind: PathBuf,
}

impl Product {
    /// Builds the programs as they are released.
    ///
    /// # Errors
    /// [`crate::Error::Command`] when cargo fails; it has said why.
    pub fn build() -> Result<()> {
        cargo(["build", "--quiet", "--release", "--bins", "-p", "spothop", "-p", "spothop-criu"])
    }

    /// What lies beside the testbed's own program, and the unit and logind's settings in the workspace.
    #[must_use]
    pub fn find(program: &Path) -> Option<Self> {
        let directory = program.parent()?;
        let product = Self {
            spothop: directory.join("spothop"),
            runtime: directory.join("spothop-oci"),
            unit: workspace().join("packaging/spothop.service"),
            logind: workspace().join("packaging/logind.conf"),
        };
        [&product.spothop, &product.runtime, &product.unit, &product.logind]
            .iter()
            .all(|file| file.is_file())
            .then_some(product)
    }

    /// Installs it on the hosts described by `specs`, whose roots are prepared. [`SET_UP`] does the rest inside each.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Command`] when spothop cannot issue a certificate.
    pub fn install(&self, layout: &Layout, specs: &[Spec]) -> Result<()> {
        let authority = layout.tls_dir();
        run(self.spothop(&["cert", "init", "--dir"]).arg(&authority))?;
        for spec in specs {
            let upper = layout.machine_data_dir(&spec.name).join("upper");
            copy(&self.spothop, &upper.join("usr/bin/spothop"))?;
            copy(&self.runtime, &upper.join("usr/bin/spothop-oci"))?;
            copy(&self.unit, &upper.join("usr/lib/systemd/system/spothop.service"))?;
            copy(&self.logind, &upper.join("usr/lib/systemd/logind.conf.d/spothop.conf"))?;
            let wanted = upper.join("etc/systemd/system/multi-user.target.wants/spothop.service");
            if let Some(parent) = wanted.parent() {
                fs::create_dir_all(parent).on("make", parent)?;
            }
            symlink("/usr/lib/systemd/system/spothop.service", &wanted).on("enable the unit", &wanted)?;
            for unit in REACH_FAIL_POINTS {
                let drop_in = upper.join(format!("etc/systemd/system/{unit}.d/fail-points.conf"));
                write(&drop_in, &format!("[Service]\nEnvironment=SPOTHOP_FAILPOINTS={FAIL_POINT}\n"))?;
            }
            let etc = upper.join("etc/spothop");
            write(&etc.join("config.toml"), &configuration(spec, specs))?;
            run(self
                .spothop(&["cert", "issue", &spec.name, "--address", &spec.address.to_string(), "--dir"])
                .arg(&authority)
                .arg("--out")
                .arg(etc.join("tls")))?;
        }
        Ok(())
    }

    fn spothop(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.spothop);
        command.args(arguments);
        command
    }
}

/// The configuration of one host: itself, and every other as a peer.
fn configuration(spec: &Spec, all: &[Spec]) -> String {
    let mut text = format!("[host]\nname = \"{}\"\nlisten = \"0.0.0.0:{PORT}\"\n", spec.name);
    for peer in all.iter().filter(|peer| peer.name != spec.name) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n[[peers]]\nname = \"{}\"\naddress = \"{}:{PORT}\"\n", peer.name, peer.address);
    }
    text
}
