//! The note by which `start` and `delete` know a container that `create` has restored.
//!
//! It is a file in runc's own state directory of the container, which runc removes with the container; so it can neither be
//! left over nor be mistaken for that of another container with the same id.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::Invocation;
use super::error::{OciError, file};

/// The file's name; runc knows `state.json`, `exec.fifo`, `checkpoint` and `notify`.
const NAME: &str = "spothop.json";

/// What `create` leaves for `start` and `delete`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The migration's directory.
    pub(super) directory: PathBuf,
    /// The network namespace that is silent until the tasks run.
    pub(super) silent_netns: Option<PathBuf>,
    /// The name of the namespace that was made for the container and goes with it.
    pub(super) own_netns: Option<String>,
}

impl Marker {
    /// The note on the container that `invocation` is about; `None` for an ordinary container, in which case nothing
    /// but one failed open has happened.
    pub(super) fn read(invocation: &Invocation) -> Option<Self> {
        let text = fs::read(path(invocation)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn write(&self, invocation: &Invocation) -> Result<(), OciError> {
        let path = path(invocation);
        fs::write(&path, serde_json::json!(self).to_string()).map_err(file("write", path))
    }
}

fn path(invocation: &Invocation) -> PathBuf {
    Path::new(&invocation.root).join(&invocation.container).join(NAME)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn a_note_is_read_back_and_an_ordinary_container_has_none() {
        let scratch = tempfile::tempdir().unwrap();
        let line = ["--root".into(), scratch.path().as_os_str().to_owned(), "start".into(), OsString::from("c")];
        let invocation = Invocation::parse(&line).unwrap();
        assert_eq!(Marker::read(&invocation), None);
        fs::create_dir(scratch.path().join("c")).unwrap();
        let marker = Marker { directory: "/d".into(), silent_netns: Some("/n".into()), own_netns: None };
        marker.write(&invocation).unwrap();
        assert_eq!(Marker::read(&invocation), Some(marker));
    }
}
