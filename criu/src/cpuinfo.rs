//! Whether a task dumped on one CPU can go on with another: CRIU's `cpuinfo`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::command::{self, CommandError};
use crate::log::Triage;

/// The one image that `criu cpuinfo dump` writes.
const IMAGE: &str = "cpuinfo.img";

/// Whether this host's CPU can run the tasks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum CpuVerdict {
    /// It has every feature that the other has.
    Compatible,
    /// It lacks something.
    Incompatible {
        /// CRIU's first complaint.
        reason: String,
    },
}

/// Why CRIU could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CpuinfoError {
    /// CRIU could not be run, or could not read this CPU.
    #[error(transparent)]
    Criu(#[from] CommandError),
    /// The image could not be read or written.
    #[error("cannot access {path}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// This host's CPU as an image for [`cpuinfo_check`] elsewhere (a few hundred bytes). `directory` is used for scratch.
///
/// # Errors
/// When CRIU cannot be run, or the directory cannot be written.
pub fn cpuinfo_dump(criu: &Path, directory: &Path) -> Result<Vec<u8>, CpuinfoError> {
    let path = directory.join(IMAGE);
    command::run(&mut cpuinfo(criu, "dump", directory), None)?;
    fs::read(&path).map_err(|source| CpuinfoError::Image { path, source })
}

/// Can this host's CPU run tasks that were dumped where `image` ([`cpuinfo_dump`]) comes from? `directory` is used for
/// scratch; it must be another one for each check at the same time.
///
/// # Errors
/// When CRIU cannot be run, or the directory cannot be written.
pub fn cpuinfo_check(criu: &Path, directory: &Path, image: &[u8]) -> Result<CpuVerdict, CpuinfoError> {
    let path = directory.join(IMAGE);
    fs::write(&path, image).map_err(|source| CpuinfoError::Image { path, source })?;
    let output = command::output(&mut cpuinfo(criu, "check", directory), None)?;
    if output.status.success() {
        return Ok(CpuVerdict::Compatible);
    }
    let said = command::message(&output);
    let reason = Triage::of_text(&String::from_utf8_lossy(&output.stderr)).error.unwrap_or(said);
    Ok(CpuVerdict::Incompatible { reason })
}

fn cpuinfo(criu: &Path, verb: &str, directory: &Path) -> Command {
    let mut command = Command::new(criu);
    command.args(["cpuinfo", verb, "-v1", "--images-dir"]).arg(directory);
    command
}
