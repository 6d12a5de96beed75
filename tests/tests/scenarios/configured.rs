//! Daemons with more in their configuration.

use crate::scene::{HOSTS, Scene};

/// Daemons with another configuration, until this is dropped.
pub(crate) struct Configured<'a> {
    scene: &'a Scene,
    hosts: &'a [&'a str],
}

impl<'a> Configured<'a> {
    /// Both hosts with another `[memory]`.
    pub(crate) fn memory(scene: &'a Scene, table: &str) -> Self {
        Self::adding(scene, &HOSTS, &format!("[memory]\n{table}"))
    }

    /// These hosts with this at the end of their configuration.
    pub(crate) fn adding(scene: &'a Scene, hosts: &'a [&'a str], text: &str) -> Self {
        let configured = Self { scene, hosts };
        for host in hosts {
            let script = "cp -n /etc/spothop/config.toml /etc/spothop/config.kept; \
                          { cat /etc/spothop/config.kept; printf '\\n%s\\n' \"$0\"; } > /etc/spothop/config.toml";
            scene.output(host, ["sh", "-ec", script, text]).expect("a configuration");
            scene.restart_daemon(host);
        }
        scene.eventually("a", "spothop hosts --json | grep -q reachable");
        configured
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        for host in self.hosts {
            self.scene.sh(host, "mv /etc/spothop/config.kept /etc/spothop/config.toml");
            self.scene.restart_daemon(host);
        }
    }
}
