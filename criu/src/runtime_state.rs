//! What runc remembers of a container: `<runtime root>/<container id>/state.json`.
//!
//! The layout is runc's own (libcontainer, `State` in container_linux.go), stable since runc 1.0; only what we need is read.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::criu_config;

/// Where Docker keeps its runtimes' state: `/run/docker/runtime-<name>/moby/<container id>`.
const DOCKER_RUN: &str = "/run/docker";

/// Docker's containerd namespace.
const DOCKER_NAMESPACE: &str = "moby";

/// A container as runc sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeState {
    /// Process id of the container's init.
    pub init_pid: i32,
    /// When it started, in clock ticks since the boot (proc(5), `/proc/pid/stat`, field 22): the id alone may be another's by now.
    pub init_started: u64,
    /// The CRIU configuration file that runc will have read; `None` when the container's annotation is empty, which
    /// turns the file off.
    pub criu_config: Option<PathBuf>,
    /// The path of the network namespace, when the container's spec named one: runc then declares it as external by
    /// itself. `None`: the container has a namespace that runc made.
    pub netns_path: Option<PathBuf>,
    /// Whether the container has a network namespace of its own at all; `false` is the host's network.
    pub own_netns: bool,
    /// Where its first three descriptors led when it started, such as `pipe:[4711]`. Whoever restores it gives it others for those that are
    /// pipes.
    pub descriptors: Vec<String>,
}

/// Why a state could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be read.
    #[error("cannot read the runtime's state {path}: {source}; is the container running under this runtime root?")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not as runc writes it.
    #[error("the runtime's state {path} is not understood: {source}; only runc 1.1 or later is supported")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct File {
    init_process_pid: i32,
    init_process_start: u64,
    config: Config,
    #[serde(default)]
    external_descriptors: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    labels: Option<Vec<String>>,
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    r#type: String,
    #[serde(default)]
    path: String,
}

impl RuntimeState {
    /// Reads the state of `container_id` under `runtime_root` (what runc is given as `--root`).
    ///
    /// # Errors
    /// When the file is missing, unreadable or not runc's.
    pub fn read(runtime_root: &Path, container_id: &str) -> Result<Self, StateError> {
        let path = runtime_root.join(container_id).join("state.json");
        let text = std::fs::read(&path).map_err(|source| StateError::Read { path: path.clone(), source })?;
        Self::parse(&text).map_err(|source| StateError::Parse { path, source })
    }

    fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let file: File = serde_json::from_slice(text)?;
        let annotation = file.config.labels.unwrap_or_default().into_iter().find_map(|label| {
            let (key, value) = label.split_once('=')?;
            (key == criu_config::ANNOTATION).then(|| value.to_owned())
        });
        let network = file.config.namespaces.unwrap_or_default().into_iter().find(|n| n.r#type == "NEWNET");
        Ok(Self {
            init_pid: file.init_process_pid,
            init_started: file.init_process_start,
            criu_config: match annotation {
                None => Some(criu_config::RUNC_DEFAULT.into()),
                Some(path) if path.is_empty() => None,
                Some(path) => Some(path.into()),
            },
            descriptors: file.external_descriptors.unwrap_or_default(),
            own_netns: network.is_some(),
            netns_path: network.map(|n| n.path).filter(|p| !p.is_empty()).map(PathBuf::from),
        })
    }
}

/// The runtime root (runc's `--root`) of a Docker container, whatever the name of its runtime; `None` when no runtime knows it.
pub fn find_runtime_root(container_id: &str) -> Option<PathBuf> {
    find_runtime_root_in(Path::new(DOCKER_RUN), container_id)
}

fn find_runtime_root_in(docker_run: &Path, container_id: &str) -> Option<PathBuf> {
    std::fs::read_dir(docker_run)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("runtime-"))
        .map(|entry| entry.path().join(DOCKER_NAMESPACE))
        .find(|root| root.join(container_id).join("state.json").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str) -> RuntimeState {
        RuntimeState::parse(
            format!(r#"{{"id":"c","init_process_pid":42,"init_process_start":7,"config":{config}}}"#).as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn an_ordinary_container_reads_runcs_default_file() {
        let state =
            parse(r#"{"labels":["bundle=/b"],"namespaces":[{"type":"NEWNS","path":""},{"type":"NEWNET","path":""}]}"#);
        assert_eq!(
            state,
            RuntimeState {
                init_pid: 42,
                init_started: 7,
                criu_config: Some("/etc/criu/runc.conf".into()),
                netns_path: None,
                own_netns: true,
                descriptors: Vec::new(),
            }
        );
    }

    #[test]
    fn a_restored_container_names_its_file_and_its_namespace() {
        let state = parse(
            r#"{"labels":["org.criu.config=/run/x/criu.conf","a=b=c"],"namespaces":[{"type":"NEWNET","path":"/run/netns/n"}]}"#,
        );
        assert_eq!(state.criu_config, Some("/run/x/criu.conf".into()));
        assert_eq!(state.netns_path, Some("/run/netns/n".into()));
    }

    #[test]
    fn an_empty_annotation_turns_the_file_off_and_no_namespace_is_the_hosts() {
        let state = parse(r#"{"labels":["org.criu.config="],"namespaces":null}"#);
        assert_eq!((state.criu_config, state.own_netns), (None, false));
    }

    #[test]
    fn the_runtime_root_is_found_by_the_containers_state() {
        let scratch = tempfile::tempdir().unwrap();
        for runtime in ["runtime-runc", "runtime-spothop", "containerd"] {
            std::fs::create_dir_all(scratch.path().join(runtime).join("moby/abc")).unwrap();
        }
        assert_eq!(find_runtime_root_in(scratch.path(), "abc"), None);
        std::fs::write(scratch.path().join("runtime-spothop/moby/abc/state.json"), "{}").unwrap();
        assert_eq!(find_runtime_root_in(scratch.path(), "abc"), Some(scratch.path().join("runtime-spothop/moby")));
    }
}
