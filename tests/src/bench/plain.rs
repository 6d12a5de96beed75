//! What CRIU alone can do: `runc checkpoint`, a copy of its images, `runc restore`.
//!
//! It gets the better choice wherever there is one: images are in memory on both sides, they go over one plain connection as fast as
//! tar and the kernel can, with no file between them and the link, what receives them waits beforehand, and so do the bundle and
//! the network at the target. The network is a macvlan that moves along, as spothop's and Podman's do: the source's is taken down
//! before the target's comes up, and nothing reaches the target's before its sockets are there.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Instant;

use crate::command::{check, output, run};
use crate::error::{Error, Result};
use crate::layout::PREFIX;
use crate::testbed::Testbed;

use super::bundle::Bundle;
use super::profile::Watch;
use super::witness::{Server, Talk};
use super::{HOSTS, Run, SOURCE, Step, TARGET, Way, seconds};

const NAME: &str = "bench-criu";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 71);
const HARDWARE_ADDRESS: &str = "02:00:00:00:00:71";
/// Where the images lie: /tmp is memory on the hosts.
const IMAGES: &str = "/tmp/spothop-bench-criu";
const RUNC_LOG: &str = "/tmp/spothop-bench-criu/work/runc.log";
const PORT: u16 = 8001;
/// The network namespace, and how it is made.
const NETWORK: &str = "spothop-bench";

/// Takes one connection and unpacks what comes. `$0` is the port, `$1` the directory.
const RECEIVE: &str = "import socket, subprocess, sys\n\
                       server = socket.create_server(('', int(sys.argv[1])))\n\
                       print('ready', flush=True)\n\
                       peer, _ = server.accept()\n\
                       peer.setblocking(True)\n\
                       tar = ['tar', '--extract', '--blocking-factor=512', '--directory', sys.argv[2]]\n\
                       sys.exit(subprocess.call(tar, stdin=peer))\n";

/// CRIU and runc on the hosts of a testbed.
#[derive(Debug)]
pub(super) struct Plain<'a> {
    bed: &'a Testbed,
    bundle: Bundle,
}

impl<'a> Plain<'a> {
    /// Makes bundle and network on both hosts.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub(super) fn new(bed: &'a Testbed) -> Result<Self> {
        let server = ["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"];
        let network = format!("/run/netns/{NETWORK}");
        Bundle::make(bed, SOURCE, NAME, &server, Some(&network))?;
        let bundle = Bundle::make(bed, TARGET, NAME, &server, Some(&network))?;
        let plain = Self { bed, bundle };
        plain.clear()?;
        Ok(plain)
    }

    /// Moves a fresh Redis with this much data once.
    ///
    /// # Errors
    /// [`Error::Command`] with runc's words; those of the client.
    pub(super) fn run(&self, mib: u64) -> Result<Run> {
        let result = self.start().and_then(|server| self.move_it(server, mib));
        self.clear()?;
        result
    }

    /// Takes away what [`Plain::new`] has made.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub(super) fn end(self) -> Result<()> {
        self.clear()?;
        HOSTS.into_iter().try_for_each(|host| Bundle::remove_all(self.bed, host))
    }

    fn start(&self) -> Result<Server<'a>> {
        for host in HOSTS {
            let network = format!(
                "ip netns add {NETWORK}; ip -n {NETWORK} link set lo up; \
                 nsenter --net=/run/netns/{NETWORK} sysctl -qw net.ipv4.conf.default.arp_notify=1; \
                 ip link add link eth0 name {NETWORK} address {HARDWARE_ADDRESS} type macvlan mode bridge; \
                 ip link set {NETWORK} netns {NETWORK}; ip -n {NETWORK} address add {ADDRESS}/{PREFIX} dev {NETWORK}; \
                 mkdir --parents {IMAGES}/images {IMAGES}/work"
            );
            self.sh(host, &network)?;
        }
        let bundle = &self.bundle.path;
        // A server that has a log file of the host open cannot be dumped.
        let start = format!(
            "ip -n {NETWORK} link set {NETWORK} up; \
             runc --log {RUNC_LOG} run --detach --bundle {bundle} {NAME} </dev/null >/dev/null 2>&1 || {{ cat {RUNC_LOG} >&2; exit 1; }}"
        );
        self.sh(SOURCE, &start)?;
        Ok(Server::new(self.bed, ADDRESS))
    }

    fn move_it(&self, server: Server<'_>, mib: u64) -> Result<Run> {
        server.fill(mib)?;
        let witness = server.watch(Talk::default())?;
        let images = format!("{IMAGES}/images");
        let port = PORT.to_string();
        let mut receive = self.bed.exec(TARGET, ["python3", "-c", RECEIVE, &port, &images])?;
        let failed = |source| Error::Start { program: "python3".to_owned(), source };
        let mut receiver =
            receive.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut ready = [0; 6];
        if let Some(said) = &mut receiver.stdout {
            // Its end, which is an error too, is told below.
            let _ = std::io::Read::read_exact(said, &mut ready);
        }
        let target = self.bed.state().host(TARGET)?.address;
        let watch = Watch::start(self.bed)?;
        let begin = Instant::now();
        let mut steps = Vec::new();
        let checkpoint = format!(
            "runc checkpoint --tcp-established --manage-cgroups-mode ignore --image-path {images} --work-path {IMAGES}/work {NAME} || \
             {{ grep Error {IMAGES}/work/dump.log >&2; exit 1; }}; \
             ip -n {NETWORK} link set {NETWORK} down"
        );
        self.timed(&mut steps, "checkpoint", SOURCE, &checkpoint)?;
        let start = Instant::now();
        let send = format!("tar --create --blocking-factor=512 --directory {images} . > /dev/tcp/{target}/{PORT}");
        run(&mut self.bed.exec(SOURCE, ["bash", "-ec", &send])?)?;
        let received = receiver.wait_with_output().map_err(failed)?;
        check(&receive, received)?;
        steps.push(Step::timed("copy", start));
        let bundle = &self.bundle.path;
        // Nothing reaches the target's network before the sockets are there, or the kernel would reset the connection.
        let restore = format!(
            "nsenter --net=/run/netns/{NETWORK} nft 'add table netdev bench; \
             add chain netdev bench in {{ type filter hook ingress device \"{NETWORK}\" priority 0; policy drop; }}'; \
             ip -n {NETWORK} link set {NETWORK} up; \
             runc --log {RUNC_LOG} restore --detach --tcp-established --manage-cgroups-mode ignore --image-path {images} \
             --work-path {IMAGES}/work --bundle {bundle} {NAME} </dev/null >/dev/null 2>&1 || {{ cat {RUNC_LOG} >&2; grep Error {IMAGES}/work/restore.log >&2; exit 1; }}; \
             nsenter --net=/run/netns/{NETWORK} nft delete table netdev bench"
        );
        self.timed(&mut steps, "restore", TARGET, &restore)?;
        let remove = format!("rm -r {images}; ip netns delete {NETWORK}");
        self.timed(&mut steps, "remove", SOURCE, &remove)?;
        let total = seconds(begin.elapsed());
        let usage = watch.stop()?.usage;
        let bytes = self.sh(TARGET, &format!("du --summarize --bytes {images} | cut -f1"))?.parse().ok();
        server.verify(mib)?;
        let seen = witness.report()?;
        Ok(Run { sent_bytes: bytes, wire_bytes: bytes, steps, usage, ..Run::seen(Way::Criu, mib, total, &seen) })
    }

    fn timed(&self, steps: &mut Vec<Step>, name: &str, host: &str, script: &str) -> Result<()> {
        let start = Instant::now();
        self.sh(host, script)?;
        steps.push(Step::timed(name, start));
        Ok(())
    }

    fn sh(&self, host: &str, script: &str) -> Result<String> {
        self.bed.output(host, ["sh", "-ec", script])
    }

    /// Removes container, network and images, where there are any.
    fn clear(&self) -> Result<()> {
        let clear = format!(
            "runc delete --force {NAME} 2>/dev/null; ip netns delete {NETWORK} 2>/dev/null; rm -rf {IMAGES}; \
             ip link delete {NETWORK} 2>/dev/null; :"
        );
        HOSTS.into_iter().try_for_each(|host| output(&mut self.bed.exec(host, ["sh", "-c", &clear])?).map(drop))
    }
}
