//! `spothop setup docker`: tells Docker of the runtime `spothop`, in its `daemon.json`.
//!
//! Only `runtimes.spothop` is added, changed or removed; every other key keeps its value and its place. Docker takes new
//! runtimes over on a reload (SIGHUP), which does not touch running containers: moby's `daemon/reload.go` lists "Platform
//! runtime" first among the settings that it reloads, and the `dockerd` manual has `runtimes` in the same list.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Value, json};

use super::write_atomically;

/// Name of the runtime in Docker's configuration and in `docker run --runtime`.
pub const RUNTIME: &str = "spothop";
/// The program behind it.
pub const RUNTIME_PATH: &str = "/usr/bin/spothop-oci";
/// Docker's configuration unless told otherwise.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";
/// The file that a checkpoint binds its CRIU options over. It only has to exist; runc reads an empty one as no options.
pub const CRIU_RUNC_CONF: &str = "/etc/criu/runc.conf";

/// What was changed, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Docker's configuration file.
    pub daemon_json: PathBuf,
    /// Whether it was changed; when not, it said the right thing already.
    pub changed: bool,
    /// Where the previous content is; none when nothing was changed or there was no file.
    pub backup: Option<PathBuf>,
    /// Files made besides.
    pub created: Vec<PathBuf>,
    /// What the operator should do now, a line each.
    pub next: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.daemon_json.display();
        match (&self.backup, self.changed) {
            (_, false) => writeln!(f, "{path}: nothing to change")?,
            (None, true) => writeln!(f, "{path}: made")?,
            (Some(backup), true) => writeln!(f, "{path}: changed; the previous text is in {}", backup.display())?,
        }
        for created in &self.created {
            writeln!(f, "{}: made, empty", created.display())?;
        }
        self.next.iter().try_for_each(|next| writeln!(f, "Next: {next}"))
    }
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file could not be read or written.
    #[error("cannot {action} {}; nothing of Docker's configuration was changed", path.display())]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Docker's configuration is not JSON; Docker itself would not start with it either.
    #[error("{}:{}:{}: not valid JSON; correct it (`dockerd --validate` checks it), then run this again", path.display(), source.line(), source.column())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A value that must be a JSON object is something else.
    #[error("{}: {what} is not a JSON object; correct it, then run this again", path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// `the file` or the key.
        what: &'static str,
    },
    /// There is a runtime of our name that is not ours.
    #[error(
        "{}: the runtime `{RUNTIME}` runs `{found}`, which is not spothop's; rename or remove that entry, then run this again",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What the entry says.
        found: String,
    },
    /// The runtime is Docker's default; without it Docker would not start.
    #[error(
        "{}: `{RUNTIME}` is the default-runtime, and Docker would not start without it; set another default-runtime first",
        path.display()
    )]
    Default {
        /// The file.
        path: PathBuf,
    },
    /// Containers name the runtime; without it they could not be started again.
    #[error(
        "{} use the runtime `{RUNTIME}` and could not be started again without it: {}; recreate them with another runtime, or remove them, first",
        count(containers.len()), containers.join(", ")
    )]
    InUse {
        /// Their names.
        containers: Vec<String>,
    },
    /// Docker could not be asked who uses the runtime.
    #[error(
        "cannot ask Docker at {} which containers use the runtime `{RUNTIME}`; start Docker, then run this again",
        socket.display()
    )]
    Docker {
        /// The engine's API socket.
        socket: PathBuf,
        /// What the client said.
        source: Box<bollard::errors::Error>,
    },
}

fn count(containers: usize) -> String {
    match containers {
        1 => "1 container".to_owned(),
        n => format!("{n} containers"),
    }
}

/// Registers the runtime in the configuration at `daemon_json` and makes sure that `criu_conf` exists. Changes nothing that
/// is right already.
///
/// # Errors
/// Any of [`SetupError`] but those about users of the runtime; then `daemon_json` is as it was.
pub fn install(daemon_json: &Path, criu_conf: &Path) -> Result<Report, SetupError> {
    let old = read(daemon_json)?;
    let mut root = parse(old.as_deref(), daemon_json)?;
    let created = ensure_exists(criu_conf)?;
    let runtimes = root.entry("runtimes").or_insert_with(|| json!({}));
    let runtimes = runtimes
        .as_object_mut()
        .ok_or_else(|| SetupError::NotAnObject { path: daemon_json.to_owned(), what: "`runtimes`" })?;
    match runtimes.get_mut(RUNTIME) {
        // Options that somebody added to our entry stay.
        Some(entry) if is_ours(entry) => entry["path"] = json!(RUNTIME_PATH),
        Some(entry) => return Err(foreign(daemon_json, entry)),
        None => {
            runtimes.insert(RUNTIME.to_owned(), json!({ "path": RUNTIME_PATH }));
        }
    }
    let (changed, backup) = replace(daemon_json, old.as_deref(), &root)?;
    let mut next = Vec::new();
    if changed {
        next.push(reload_advice("know the runtime"));
    }
    if !Path::new(RUNTIME_PATH).exists() {
        next.push(format!("install {RUNTIME_PATH}: it is not there, and no container can move here without it"));
    }
    next.push("check the host with: spothop doctor".to_owned());
    Ok(Report { daemon_json: daemon_json.to_owned(), changed, backup, created: created.into_iter().collect(), next })
}

/// Removes the runtime from the configuration at `daemon_json`, if nobody needs it. `users` asks for the names of the
/// containers that do; it is called only when there is something to remove.
///
/// # Errors
/// Any of [`SetupError`]; then `daemon_json` is as it was.
pub async fn remove<F>(daemon_json: &Path, users: F) -> Result<Report, SetupError>
where
    F: AsyncFnOnce() -> Result<Vec<String>, SetupError>,
{
    let unchanged =
        Report { daemon_json: daemon_json.to_owned(), changed: false, backup: None, created: vec![], next: vec![] };
    let Some(old) = read(daemon_json)? else {
        return Ok(unchanged);
    };
    let mut root = parse(Some(&old), daemon_json)?;
    let Some(runtimes) = root.get_mut("runtimes").and_then(Value::as_object_mut) else {
        return Ok(unchanged);
    };
    match runtimes.get(RUNTIME) {
        None => return Ok(unchanged),
        Some(entry) if !is_ours(entry) => return Err(foreign(daemon_json, entry)),
        // Not `swap_remove`: the others keep their order.
        Some(_) => runtimes.shift_remove(RUNTIME),
    };
    let last = runtimes.is_empty();
    if last {
        root.shift_remove("runtimes");
    }
    if root.get("default-runtime").is_some_and(|default| default == RUNTIME) {
        return Err(SetupError::Default { path: daemon_json.to_owned() });
    }
    let containers = users().await?;
    if !containers.is_empty() {
        return Err(SetupError::InUse { containers });
    }
    let (changed, backup) = replace(daemon_json, Some(&old), &root)?;
    let next = if last {
        // Seen on Docker 28: a reload replaces the list of runtimes only when the file has one.
        "Docker forgets the runtime when it is started the next time; until then it is known, and merely not used"
            .to_owned()
    } else {
        reload_advice("forget the runtime")
    };
    Ok(Report { changed, backup, next: vec![next], ..unchanged })
}

/// Names of all containers, running or not, that were created with the runtime.
///
/// # Errors
/// [`SetupError::Docker`].
pub async fn users(socket: &Path) -> Result<Vec<String>, SetupError> {
    let error = |source| SetupError::Docker { socket: socket.to_owned(), source: Box::new(source) };
    let client =
        Docker::connect_with_unix(&socket.to_string_lossy(), 30, bollard::API_DEFAULT_VERSION).map_err(error)?;
    let all = ListContainersOptionsBuilder::new().all(true).build();
    let mut names = Vec::new();
    for id in client.list_containers(Some(all)).await.map_err(error)?.into_iter().filter_map(|c| c.id) {
        let container = match client.inspect_container(&id, None::<InspectContainerOptions>).await {
            Ok(container) => container,
            // Removed since the list was made.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => continue,
            Err(e) => return Err(error(e)),
        };
        if container.host_config.and_then(|host| host.runtime).as_deref() == Some(RUNTIME) {
            let name = container.name.unwrap_or(id);
            names.push(name.trim_start_matches('/').to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The runtimes that the running engine knows, by name with their paths; empty paths where it tells none.
///
/// # Errors
/// [`SetupError::Docker`].
pub async fn known_runtimes(socket: &Path) -> Result<HashMap<String, String>, SetupError> {
    let error = |source| SetupError::Docker { socket: socket.to_owned(), source: Box::new(source) };
    let client =
        Docker::connect_with_unix(&socket.to_string_lossy(), 10, bollard::API_DEFAULT_VERSION).map_err(error)?;
    let runtimes = client.info().await.map_err(error)?.runtimes.unwrap_or_default();
    Ok(runtimes.into_iter().map(|(name, runtime)| (name, runtime.path.unwrap_or_default())).collect())
}

fn reload_advice(to: &str) -> String {
    format!("let Docker {to}: systemctl reload docker (a reload is enough; running containers do not notice)")
}

fn is_ours(entry: &Value) -> bool {
    let program = entry["path"].as_str().map(Path::new).and_then(Path::file_name);
    program == Path::new(RUNTIME_PATH).file_name()
}

fn foreign(path: &Path, entry: &Value) -> SetupError {
    let found = entry["path"].as_str().map_or_else(|| entry.to_string(), str::to_owned);
    SetupError::Foreign { path: path.to_owned(), found }
}

fn read(path: &Path) -> Result<Option<String>, SetupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SetupError::File { action: "read", path: path.to_owned(), source }),
    }
}

fn parse(text: Option<&str>, path: &Path) -> Result<Map<String, Value>, SetupError> {
    // Docker, too, takes an empty file for an empty configuration.
    let text = text.map(str::trim_end).filter(|text| !text.is_empty()).unwrap_or("{}");
    match serde_json::from_str(text) {
        Ok(Value::Object(root)) => Ok(root),
        Ok(_) => Err(SetupError::NotAnObject { path: path.to_owned(), what: "the file" }),
        Err(source) => Err(SetupError::Malformed { path: path.to_owned(), source }),
    }
}

/// Writes `root` unless the file says the same already. Returns whether it did, and the backup's path.
fn replace(path: &Path, old: Option<&str>, root: &Map<String, Value>) -> Result<(bool, Option<PathBuf>), SetupError> {
    let error = |action, path: &Path, source| SetupError::File { action, path: path.to_owned(), source };
    if old.is_some() && parse(old, path)? == *root {
        return Ok((false, None));
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| error("create", dir, e))?;
    }
    let backup = match old {
        Some(old) => {
            let mut backup = path.as_os_str().to_owned();
            backup.push(".before-spothop");
            let backup = PathBuf::from(backup);
            write_atomically(&backup, old.as_bytes(), 0o600).map_err(|e| error("write", &backup, e))?;
            Some(backup)
        }
        None => None,
    };
    // 0644 is what Docker's own packages and manuals use; the file holds no secrets.
    write_atomically(path, &render(root, old), 0o644).map_err(|e| error("write", path, e))?;
    Ok((true, backup))
}

/// JSON in the indentation that the old text had, four spaces (as in Docker's manuals) if it had none.
fn render(root: &Map<String, Value>, old: Option<&str>) -> Vec<u8> {
    let indent = old
        .unwrap_or_default()
        .lines()
        .map(|line| &line[..line.len() - line.trim_start().len()])
        .find(|indent| !indent.is_empty())
        .unwrap_or("    ");
    let mut out = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(indent.as_bytes()));
    // A map of JSON values with string keys, into memory: neither can fail.
    root.serialize(&mut serializer).expect("JSON values serialize");
    out.push(b'\n');
    out
}

/// Makes an empty file, and its directory, where there is none; returns its path if it did.
fn ensure_exists(path: &Path) -> Result<Option<PathBuf>, SetupError> {
    let error = |action, source| SetupError::File { action, path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| error("create the directory of", e))?;
    }
    match fs::File::create_new(path) {
        Ok(_) => Ok(Some(path.to_owned())),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(e) => Err(error("create", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new(daemon_json: Option<&str>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            if let Some(text) = daemon_json {
                fs::write(dir.path().join("daemon.json"), text).unwrap();
            }
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn install(&self) -> Result<Report, SetupError> {
            install(&self.path("daemon.json"), &self.path("criu/runc.conf"))
        }

        async fn remove(&self, users: &[&str]) -> Result<Report, SetupError> {
            let users = users.iter().map(|&name| name.to_owned()).collect();
            remove(&self.path("daemon.json"), async || Ok(users)).await
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path("daemon.json")).unwrap()
        }

        /// An error's message with the temporary directory taken out.
        fn message(&self, error: &SetupError) -> String {
            error.to_string().replace(&self.dir.path().display().to_string(), "/etc/docker")
        }
    }

    const OTHERS: &str = r#"{
  "log-driver": "journald",
  "runtimes": {
    "kata": {
      "path": "/usr/bin/kata"
    }
  },
  "bip": "10.1.0.1/24"
}
"#;

    #[test]
    fn a_missing_or_empty_file_becomes_one_with_our_runtime() {
        for old in [None, Some(""), Some("\n")] {
            let host = Host::new(old);
            let report = host.install().unwrap();
            assert!(report.changed && report.backup.is_some() == old.is_some());
            insta::allow_duplicates! {
                insta::assert_snapshot!(host.text(), @r#"
                {
                    "runtimes": {
                        "spothop": {
                            "path": "/usr/bin/spothop-oci"
                        }
                    }
                }
                "#);
            }
        }
    }

    #[test]
    fn other_keys_keep_value_order_and_indentation() {
        let host = Host::new(Some(OTHERS));
        let report = host.install().unwrap();
        insta::assert_snapshot!(host.text(), @r#"
        {
          "log-driver": "journald",
          "runtimes": {
            "kata": {
              "path": "/usr/bin/kata"
            },
            "spothop": {
              "path": "/usr/bin/spothop-oci"
            }
          },
          "bip": "10.1.0.1/24"
        }
        "#);
        assert_eq!(fs::read_to_string(report.backup.unwrap()).unwrap(), OTHERS);
        assert!(report.next[0].contains("systemctl reload docker"));
    }

    #[tokio::test]
    async fn a_second_run_changes_nothing_and_undo_restores_the_first_text() {
        let host = Host::new(Some(OTHERS));
        host.install().unwrap();
        let second = host.install().unwrap();
        assert!(!second.changed && second.backup.is_none() && second.created.is_empty());
        let undone = host.remove(&[]).await.unwrap();
        assert!(undone.changed && undone.next[0].contains("systemctl reload docker"));
        assert_eq!(host.text(), OTHERS);
        assert!(!host.remove(&[]).await.unwrap().changed);
    }

    #[test]
    fn the_file_that_checkpoints_bind_over_is_made_but_never_emptied() {
        let host = Host::new(None);
        assert_eq!(host.install().unwrap().created, [host.path("criu/runc.conf")]);
        fs::write(host.path("criu/runc.conf"), "tcp-close\n").unwrap();
        assert!(host.install().unwrap().created.is_empty());
        assert_eq!(fs::read_to_string(host.path("criu/runc.conf")).unwrap(), "tcp-close\n");
    }

    #[test]
    fn malformed_json_is_refused_with_its_position_and_left_alone() {
        let text = "{\n  \"log-driver\": \"journald\",\n}\n";
        let host = Host::new(Some(text));
        let error = host.install().unwrap_err();
        insta::assert_snapshot!(host.message(&error), @"/etc/docker/daemon.json:3:1: not valid JSON; correct it (`dockerd --validate` checks it), then run this again");
        assert_eq!(host.text(), text);
        assert_eq!(fs::read_dir(host.dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_another_shape_is_refused() {
        for (text, wanted) in [("[]", "the file is not"), (r#"{"runtimes": []}"#, "`runtimes` is not")] {
            let host = Host::new(Some(text));
            let message = host.install().unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
            assert_eq!(host.text(), text);
        }
    }

    #[tokio::test]
    async fn a_foreign_runtime_of_our_name_is_never_touched() {
        let text = r#"{"runtimes": {"spothop": {"runtimeType": "io.containerd.kata.v2"}}}"#;
        let host = Host::new(Some(text));
        let error = host.install().unwrap_err();
        insta::assert_snapshot!(host.message(&error), @r#"/etc/docker/daemon.json: the runtime `spothop` runs `{"runtimeType":"io.containerd.kata.v2"}`, which is not spothop's; rename or remove that entry, then run this again"#);
        assert!(matches!(host.remove(&[]).await, Err(SetupError::Foreign { .. })));
        assert_eq!(host.text(), text);
    }

    #[tokio::test]
    async fn undo_is_refused_while_a_container_needs_the_runtime() {
        let host = Host::new(None);
        host.install().unwrap();
        let before = host.text();
        let error = host.remove(&["redis", "web"]).await.unwrap_err();
        insta::assert_snapshot!(error, @"2 containers use the runtime `spothop` and could not be started again without it: redis, web; recreate them with another runtime, or remove them, first");
        assert_eq!(host.text(), before);
    }

    #[tokio::test]
    async fn undo_is_refused_while_the_runtime_is_the_default() {
        let text = r#"{"default-runtime": "spothop", "runtimes": {"spothop": {"path": "/usr/bin/spothop-oci"}}}"#;
        let host = Host::new(Some(text));
        let error = host.remove(&[]).await.unwrap_err();
        insta::assert_snapshot!(host.message(&error), @"/etc/docker/daemon.json: `spothop` is the default-runtime, and Docker would not start without it; set another default-runtime first");
        assert_eq!(host.text(), text);
    }

    #[tokio::test]
    async fn undo_leaves_no_empty_list_and_says_that_docker_remembers_until_it_restarts() {
        let host = Host::new(Some("{}\n"));
        host.install().unwrap();
        let undone = host.remove(&[]).await.unwrap();
        assert_eq!(host.text(), "{}\n");
        assert!(undone.next[0].contains("started the next time"), "{undone}");
    }

    #[tokio::test]
    async fn undo_without_docker_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = users(&dir.path().join("docker.sock")).await.unwrap_err();
        assert!(error.to_string().ends_with("start Docker, then run this again"), "{error}");
    }
}
