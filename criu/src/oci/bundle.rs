//! The bundle's `config.json` (OCI runtime specification): our annotation in it, and what a restore changes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{OciError, file};
use crate::criu_config;
use crate::handoff::ANNOTATION;

/// The migration that the bundle's annotation names. `None` also when the bundle cannot be read or understood: saying so is
/// runc's job.
pub(super) fn migration(bundle: &Path) -> Option<String> {
    let text = fs::read(bundle.join("config.json")).ok()?;
    // Parsing costs more than all the rest of an ordinary call.
    if !contains(&text, ANNOTATION.as_bytes()) {
        return None;
    }
    let config: Value = serde_json::from_slice(&text).ok()?;
    config["annotations"][ANNOTATION].as_str().map(str::to_owned)
}

fn contains(text: &[u8], piece: &[u8]) -> bool {
    // Annotations are few and most text is names: looking for the first byte is fast enough (20 KiB in 10 µs).
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| byte == piece[0]) {
        rest = &rest[at..];
        if rest.starts_with(piece) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// A bundle that is being changed for a restore.
pub(super) struct Bundle {
    path: PathBuf,
    /// Always an object.
    config: Value,
}

/// Without its contents: the container's environment is among them.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Bundle {
    pub(super) fn read(bundle: &Path) -> Result<Self, OciError> {
        let path = bundle.join("config.json");
        let text = fs::read(&path).map_err(file("read", &path))?;
        let refuse = |why| OciError::Bundle { path: path.clone(), why };
        let config: Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        if !config.is_object() {
            return Err(refuse("it is no object".to_owned()));
        }
        Ok(Self { path, config })
    }

    /// The CRIU configuration file that the engine or its user has named in the bundle.
    pub(super) fn criu_config(&self) -> Option<&str> {
        self.config["annotations"][criu_config::ANNOTATION].as_str()
    }

    /// Names the CRIU configuration file that runc shall have read.
    pub(super) fn set_criu_config(&mut self, path: &Path) -> Result<(), OciError> {
        let why = "its annotations are no object";
        let annotations = self.config["annotations"].as_object_mut();
        let annotations =
            annotations.ok_or_else(|| OciError::Bundle { path: self.path.clone(), why: why.to_owned() })?;
        annotations.insert(criu_config::ANNOTATION.to_owned(), path.to_string_lossy().into());
        Ok(())
    }

    /// The path of the network namespace: `None` without a network namespace (the host's is used), `Some("")` for one that runc
    /// would make.
    pub(super) fn netns(&self) -> Option<&str> {
        let namespaces = self.config["linux"]["namespaces"].as_array()?;
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
        Some(network["path"].as_str().unwrap_or_default())
    }

    /// Gives the network namespace a path.
    pub(super) fn set_netns(&mut self, path: &Path) -> Result<(), OciError> {
        let refuse = |why: &str| OciError::Bundle { path: self.path.clone(), why: why.to_owned() };
        match self.netns() {
            None => return Err(refuse("it has the host's network, and the request asks for a namespace of its own")),
            Some("") => {}
            Some(_) => return Err(refuse("its network namespace is made by the engine already")),
        }
        for namespace in self.config["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            if namespace["type"] == "network" {
                namespace["path"] = path.to_string_lossy().into();
            }
        }
        Ok(())
    }

    /// The kernel parameters of the network namespace. runc sets them when it starts a container, not when it restores one.
    pub(super) fn network_sysctls(&self) -> Vec<(String, String)> {
        let all = self.config["linux"]["sysctl"].as_object().into_iter().flatten();
        all.filter(|(key, _)| key.starts_with("net.") || key.starts_with("net/"))
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }

    /// Names every bind mount's source by its real path. An ordinary start follows links; CRIU takes the link itself for the
    /// source (criu, `criu/mount-v2.c`), and fails. Debian's `docker-init` is one.
    pub(super) fn resolve_bind_sources(&mut self) {
        for mount in self.config["mounts"].as_array_mut().into_iter().flatten() {
            let is_bind = |option: &Value| option == "bind" || option == "rbind";
            if !mount["options"].as_array().is_some_and(|options| options.iter().any(is_bind)) {
                continue;
            }
            // One that is not there is runc's to complain about.
            if let Some(real) = mount["source"].as_str().and_then(|source| fs::canonicalize(source).ok()) {
                mount["source"] = real.to_string_lossy().into();
            }
        }
    }

    /// Writes the bundle back, atomically.
    pub(super) fn write(&self) -> Result<(), OciError> {
        let new = self.path.with_extension("json.spothop");
        let written = fs::write(&new, self.config.to_string());
        written.and_then(|()| fs::rename(&new, &self.path)).map_err(file("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("config.json"), config).unwrap();
        scratch
    }

    #[test]
    fn the_annotation_is_found_and_its_name_elsewhere_is_not() {
        let ours = bundle(r#"{"annotations":{"io.spothop.migration":"m1"}}"#);
        assert_eq!(migration(ours.path()), Some("m1".into()));
        let env = bundle(r#"{"process":{"env":["io.spothop.migration=m1"]},"annotations":{"a":"b"}}"#);
        assert_eq!(migration(env.path()), None);
        assert_eq!(migration(bundle("not json").path()), None);
        assert_eq!(migration(Path::new("/nonexistent")), None);
    }

    #[test]
    fn an_edit_changes_the_namespace_and_the_configuration_and_nothing_else() {
        let scratch = bundle(
            r#"{"annotations":{"io.spothop.migration":"m"},"linux":{"namespaces":[{"type":"pid"},{"type":"network"}],"resources":{"memory":{"limit":9223372036854771712}}}}"#,
        );
        let mut edited = Bundle::read(scratch.path()).unwrap();
        assert_eq!((edited.criu_config(), edited.netns()), (None, Some("")));
        edited.set_criu_config(Path::new("/run/x/criu.conf")).unwrap();
        edited.set_netns(Path::new("/run/netns/n")).unwrap();
        edited.write().unwrap();
        let again = Bundle::read(scratch.path()).unwrap();
        assert_eq!((again.criu_config(), again.netns()), (Some("/run/x/criu.conf"), Some("/run/netns/n")));
        assert_eq!(again.config["linux"]["namespaces"][0], serde_json::json!({"type": "pid"}));
        assert_eq!(again.config["linux"]["resources"]["memory"]["limit"], 9223372036854771712_u64);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_bundle_of_another_shape_is_refused_and_shows_no_secret() {
        for text in ["[]", "7", "\"annotations\""] {
            assert!(matches!(Bundle::read(bundle(text).path()), Err(OciError::Bundle { .. })), "{text}");
        }
        for text in ["{}", r#"{"annotations":"x"}"#, r#"{"annotations":[]}"#] {
            let refused = Bundle::read(bundle(text).path()).unwrap().set_criu_config(Path::new("/x"));
            assert!(matches!(refused, Err(OciError::Bundle { .. })), "{text}");
        }
        let secret = bundle(r#"{"annotations":{},"process":{"env":["PASSWORD=hunter2"]}}"#);
        let shown = format!("{:?}", Bundle::read(secret.path()).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn kernel_parameters_of_the_network_are_found() {
        let scratch = bundle(r#"{"linux":{"sysctl":{"kernel.shmmax":"1","net.core.somaxconn":"99"}}}"#);
        let found = Bundle::read(scratch.path()).unwrap().network_sysctls();
        assert_eq!(found, [("net.core.somaxconn".to_owned(), "99".to_owned())]);
        assert_eq!(Bundle::read(bundle("{}").path()).unwrap().network_sysctls(), []);
    }

    #[test]
    fn the_source_of_a_bind_mount_is_no_link() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().canonicalize().unwrap().join("real");
        let link = scratch.path().join("link");
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let mounts = serde_json::json!([
            {"destination": "/init", "type": "bind", "source": link, "options": ["bind", "ro"]},
            {"destination": "/gone", "type": "bind", "source": "/nonexistent", "options": ["rbind"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ]);
        let scratch = bundle(&serde_json::json!({"mounts": mounts}).to_string());
        let mut bundle = Bundle::read(scratch.path()).unwrap();
        bundle.resolve_bind_sources();
        assert_eq!(bundle.config["mounts"][0]["source"], real.to_string_lossy().as_ref());
        assert_eq!(bundle.config["mounts"].as_array().unwrap()[1..], mounts.as_array().unwrap()[1..]);
    }

    #[test]
    fn a_namespace_that_is_not_runcs_to_make_is_not_replaced() {
        let host = bundle(r#"{"annotations":{},"linux":{"namespaces":[{"type":"pid"}]}}"#);
        let error = Bundle::read(host.path()).unwrap().set_netns(Path::new("/n")).unwrap_err();
        assert!(error.to_string().contains("the host's network"), "{error}");
        let given = bundle(r#"{"linux":{"namespaces":[{"type":"network","path":"/run/netns/pod"}]}}"#);
        let error = Bundle::read(given.path()).unwrap().set_netns(Path::new("/n")).unwrap_err();
        assert!(error.to_string().contains("made by the engine"), "{error}");
    }
}
