//! A container as runc alone has it: a directory with `config.json`, no engine.

use std::fs;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::testbed::Testbed;
use crate::torture::inside::Inside;
use crate::workload::Workload;

/// Where bundles and their one root file system are on a host: on its disk, as an engine's would be.
const DIRECTORY: &str = "/var/lib/containers/spothop-bench";

/// Options of CRIU that runc has none for (runc-checkpoint(8)): the faster way to keep packets out.
const CRIU_CONFIG: &str = "/var/lib/containers/spothop-bench/criu.conf";

/// A bundle on a host.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Its directory.
    pub(super) path: String,
}

impl Bundle {
    /// Makes one, of the image of Redis, that runs `arguments`. `network` is the path of a network namespace; it gets one of its own
    /// otherwise.
    ///
    /// # Errors
    /// [`Error::Command`] with Docker's or runc's words.
    pub(super) fn make(
        bed: &Testbed,
        host: &str,
        name: &str,
        arguments: &[&str],
        network: Option<&str>,
    ) -> Result<Self> {
        let path = format!("{DIRECTORY}/{name}");
        let image = Workload::Redis.image();
        let script = format!(
            "mkdir --parents {path}; cd {DIRECTORY}; \
             if ! test -d rootfs; then mkdir rootfs.new; docker rm --force spothop-bench-root >/dev/null 2>&1 || :; \
             docker create --quiet --name spothop-bench-root {image}; docker export spothop-bench-root | tar -x -C rootfs.new; \
             docker rm spothop-bench-root; mv rootfs.new rootfs; fi; \
             echo 'network-lock nftables' > {CRIU_CONFIG}; rm -f {path}/config.json; runc spec --bundle {path}"
        );
        bed.output(host, ["sh", "-ec", &script])?;
        let file = Inside::of(bed, host)?.path(&format!("{path}/config.json"));
        let text = fs::read_to_string(&file).on("read", &file)?;
        let mut config: Value = serde_json::from_str(&text)
            .map_err(|source| Error::Json { what: "what `runc spec` wrote".to_owned(), source })?;
        adapt(&mut config, arguments, network);
        fs::write(&file, format!("{config:#}")).on("write", &file)?;
        Ok(Self { path })
    }

    /// Removes all that was made on a host.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub(super) fn remove_all(bed: &Testbed, host: &str) -> Result<()> {
        bed.output(host, ["rm", "-rf", DIRECTORY]).map(drop)
    }
}

/// Makes of `runc spec`'s shell a server: no terminal, a root that may be written, no view of the host's cgroups.
fn adapt(config: &mut Value, arguments: &[&str], network: Option<&str>) {
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(arguments);
    config["annotations"]["org.criu.config"] = json!(CRIU_CONFIG);
    config["root"] = json!({"path": format!("{DIRECTORY}/rootfs"), "readonly": false});
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
    }
    if let (Some(network), Some(namespaces)) = (network, config["linux"]["namespaces"].as_array_mut()) {
        for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "network") {
            namespace["path"] = json!(network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_becomes_a_server_in_a_network_that_is_there() {
        let mut config = json!({
            "process": {"terminal": true, "args": ["sh"], "cwd": "/"},
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/sys/fs/cgroup", "type": "cgroup"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]},
        });
        adapt(&mut config, &["sleep", "9"], Some("/run/netns/x"));
        assert_eq!(config["process"], json!({"terminal": false, "args": ["sleep", "9"], "cwd": "/"}));
        assert_eq!(config["root"]["readonly"], json!(false));
        assert_eq!(config["mounts"], json!([{"destination": "/proc", "type": "proc"}]));
        assert_eq!(
            config["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}])
        );
    }
}
