//! What one would do without spothop: Podman's checkpoint into an archive, a copy of it, Podman's restore.
//!
//! Podman gets the better choice wherever there is one: the archive is not compressed and lies in memory on both sides, the server
//! that it is copied from runs beforehand, the removal at the source waits until the target runs. It runs runc, as Docker does
//! here; with crun, its default, the restore fails where controllers of cgroup v1 are mounted beside v2 ("cg: Can't move 1 into
//! cpuset"), as they are on many machines that carry a testbed.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::command::{check, output, run};
use crate::error::Result;
use crate::layout::{GATEWAY, LAN, SUBNET};
use crate::testbed::Testbed;
use crate::workload::Workload;

use super::profile::Watch;
use super::witness::{Server, Talk};
use super::{HOSTS, Run, SOURCE, Step, TARGET, Way, seconds};

/// The container's name, address and hardware address, the same on both hosts.
const NAME: &str = "bench-podman";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 61);
const HARDWARE_ADDRESS: &str = "02:00:00:00:00:61";
/// Where the archive lies: /tmp is memory on the hosts.
const DIRECTORY: &str = "/tmp/spothop-bench";
const ARCHIVE: &str = "/tmp/spothop-bench/redis.tar";
/// The unit of the server that the archive is fetched from, and its port.
const UNIT: &str = "spothop-bench";
const PORT: &str = "8000";

/// Podman on the hosts of a testbed.
#[derive(Debug)]
pub(super) struct Podman<'a> {
    bed: &'a Testbed,
}

impl<'a> Podman<'a> {
    /// Gives Podman on both hosts the network and the image, and starts what the archive is fetched from.
    ///
    /// # Errors
    /// [`crate::Error::Command`].
    pub(super) fn new(bed: &'a Testbed) -> Result<Self> {
        let podman = Self { bed };
        podman.clear()?;
        for host in HOSTS {
            bed.output(host, ["mkdir", "--parents", DIRECTORY])?;
            let subnet = format!("--subnet={SUBNET}");
            let gateway = format!("--gateway={GATEWAY}");
            let create = ["podman", "network", "create", "--ignore", "--driver=macvlan", "--opt=parent=eth0"];
            bed.output(host, create.into_iter().chain([&*subnet, &*gateway, LAN]))?;
            let copy = format!("docker save {} | podman load --quiet", Workload::Redis.image());
            bed.output(host, ["sh", "-ec", &copy])?;
        }
        // A unit of an earlier benchmark on the same testbed is no error.
        output(&mut bed.exec(SOURCE, ["systemctl", "stop", UNIT])?)?;
        let serve = ["systemd-run", "--quiet", "--collect", "--unit", UNIT, "--working-directory", DIRECTORY];
        bed.output(SOURCE, serve.into_iter().chain(["python3", "-m", "http.server", PORT]))?;
        Ok(podman)
    }

    /// Moves a fresh Redis with this much data once.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with Podman's words; those of the client.
    pub(super) fn run(&self, mib: u64) -> Result<Run> {
        let result = self.start().and_then(|server| self.move_it(server, mib));
        self.clear()?;
        result
    }

    /// Takes away what [`Podman::new`] has made, but for the image.
    ///
    /// # Errors
    /// [`crate::Error::Command`].
    pub(super) fn end(self) -> Result<()> {
        output(&mut self.bed.exec(SOURCE, ["systemctl", "stop", UNIT])?)?;
        self.clear()?;
        for host in HOSTS {
            self.bed.output(host, ["sh", "-ec", &format!("rm -rf {DIRECTORY}; podman network rm {LAN}")])?;
        }
        Ok(())
    }

    fn start(&self) -> Result<Server<'a>> {
        let address = ADDRESS.to_string();
        let podman = ["podman", "--runtime=runc", "run", "--detach", "--name", NAME];
        // There is no pids controller on a host of the testbed; Podman asks for one by default.
        let options = ["--pids-limit=0", "--network", LAN, "--ip", &address, "--mac-address", HARDWARE_ADDRESS];
        self.bed.output(SOURCE, podman.into_iter().chain(options).chain([Workload::Redis.image()]))?;
        Ok(Server::new(self.bed, ADDRESS))
    }

    fn move_it(&self, server: Server<'_>, mib: u64) -> Result<Run> {
        server.fill(mib)?;
        let witness = server.watch(Talk::default())?;
        let export = ["--export", ARCHIVE, "--compress=none", "--tcp-established", NAME];
        let import = ["--import", ARCHIVE, "--tcp-established"];
        let source = self.bed.state().host(SOURCE)?.address;
        let url = format!("http://{source}:{PORT}/redis.tar");
        let watch = Watch::start(self.bed)?;
        let start = Instant::now();
        let mut steps = Vec::new();
        let mut step = |name: &str, host, words: &[&str]| -> Result<()> {
            let start = Instant::now();
            let mut command = self.bed.exec(host, words)?;
            let output = output(&mut command)?;
            steps.push(Step::timed(name, start));
            check(&command, output).map(drop)
        };
        step("checkpoint", SOURCE, &[&["podman", "--runtime=runc", "container", "checkpoint"][..], &export].concat())?;
        step("copy", TARGET, &["curl", "--silent", "--show-error", "--fail", "--output", ARCHIVE, &url])?;
        step("restore", TARGET, &[&["podman", "--runtime=runc", "container", "restore"][..], &import].concat())?;
        step("remove", SOURCE, &["podman", "rm", NAME])?;
        let total = seconds(start.elapsed());
        let usage = watch.stop()?.usage;
        let archive = self.bed.output(TARGET, ["stat", "--format=%s", ARCHIVE])?.parse().ok();
        server.verify(mib)?;
        let seen = witness.report()?;
        Ok(Run { sent_bytes: archive, wire_bytes: archive, steps, usage, ..Run::seen(Way::Podman, mib, total, &seen) })
    }

    /// Removes container and archive, where there are any.
    fn clear(&self) -> Result<()> {
        let remove = ["podman", "rm", "--force", "--ignore", "--time=0", NAME];
        for host in HOSTS {
            run(&mut self.bed.exec(host, remove)?)?;
            run(&mut self.bed.exec(host, ["rm", "--force", ARCHIVE])?)?;
        }
        Ok(())
    }
}
