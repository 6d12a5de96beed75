//! spothop's way: `spothop migrate`, and what its timeline says.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::command::{output, run};
use crate::error::Result;
use crate::layout::LAN;
use crate::testbed::Testbed;
use crate::workload::Workload;

use super::migration::{Gap, Migration};
use super::profile::{Profile, Watch};
use super::witness::{Server, Talk};
use super::{HOSTS, Run, SOURCE, TARGET, Way, seconds};

/// The container's name, address and hardware address.
const NAME: &str = "bench-spothop";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 51);
const HARDWARE_ADDRESS: &str = "02:00:00:00:00:51";

/// spothop and Docker on the hosts of a testbed.
#[derive(Debug)]
pub(super) struct Spothop<'a> {
    bed: &'a Testbed,
}

/// A move, seen from outside.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) migration: Migration,
    pub(super) profile: Profile,
    /// From the call until nothing is left on the source, in seconds.
    pub(super) total: f64,
}

impl<'a> Spothop<'a> {
    /// Clears what an earlier benchmark on the same testbed has left.
    ///
    /// # Errors
    /// [`crate::Error::Command`].
    pub(super) fn new(bed: &'a Testbed) -> Result<Self> {
        let spothop = Self { bed };
        spothop.clear()?;
        Ok(spothop)
    }

    /// Moves a fresh Redis with this much data once, under a client's load. `way` is how the daemons are configured.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with spothop's or Docker's words; those of the client.
    pub(super) fn run(&self, way: &Way, mib: u64) -> Result<Run> {
        let result = self.start().and_then(|server| self.under_load(server, way, mib));
        self.clear()?;
        result
    }

    /// Starts a Redis at the source.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with Docker's words.
    pub(super) fn start(&self) -> Result<Server<'a>> {
        let address = ADDRESS.to_string();
        let docker = ["docker", "run", "--detach", "--name", NAME];
        let options = ["--network", LAN, "--ip", &address, "--mac-address", HARDWARE_ADDRESS];
        self.bed.output(SOURCE, docker.into_iter().chain(options).chain([Workload::Redis.image()]))?;
        Ok(Server::new(self.bed, ADDRESS))
    }

    /// Moves it to the target, or back.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with spothop's words.
    pub(super) fn migrate(&self, from: &str, to: &str) -> Result<Moved> {
        let watch = Watch::start(self.bed)?;
        let start = Instant::now();
        let migration = Migration::make(self.bed, from, NAME, to)?;
        let total = seconds(start.elapsed());
        Ok(Moved { migration, profile: watch.stop()?, total })
    }

    fn under_load(&self, server: Server<'_>, way: &Way, mib: u64) -> Result<Run> {
        server.fill(mib)?;
        let witness = server.watch(Talk::default())?;
        let Moved { migration, profile, total } = self.migrate(SOURCE, TARGET)?;
        server.verify(mib)?;
        let seen = witness.report()?;
        let gap = Gap { from: seen.longest_gap_at, to: seen.longest_gap_at + seen.longest_gap() };
        Ok(Run {
            sent_bytes: Some(migration.bytes_sent),
            wire_bytes: Some(migration.bytes_on_wire),
            source_needed: migration.source_needed_for(),
            steps: migration.steps(&profile, Some(gap)),
            usage: profile.usage,
            ..Run::seen(way.clone(), mib, total, &seen)
        })
    }

    /// Removes the container, where there is one.
    pub(super) fn clear(&self) -> Result<()> {
        for host in HOSTS {
            // That there is none is no error, and Docker says so with the same code as everything else.
            output(&mut self.bed.exec(host, ["docker", "rm", "--force", NAME])?)?;
        }
        // A server that was killed holds no memory any more when this returns.
        run(&mut self.bed.exec(SOURCE, ["docker", "ps", "--quiet"])?).map(drop)
    }
}
