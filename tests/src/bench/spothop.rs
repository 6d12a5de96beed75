//! spothop's way: `spothop migrate`, and what its timeline says.

use std::net::Ipv4Addr;
use std::time::Instant;

use jiff::Timestamp;
use serde::Deserialize;

use crate::command::{output, run};
use crate::error::{Error, Result};
use crate::layout::LAN;
use crate::testbed::Testbed;
use crate::workload::Workload;

use super::profile::{Profile, Watch};
use super::witness::Server;
use super::{Run, SOURCE, Step, TARGET, Way, seconds};

/// The container's name, address and hardware address.
const NAME: &str = "bench-spothop";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 51);
const HARDWARE_ADDRESS: &str = "02:00:00:00:00:51";

/// spothop and Docker on the hosts of a testbed.
#[derive(Debug)]
pub struct Spothop<'a> {
    bed: &'a Testbed,
}

/// What `spothop migrate --json` prints, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Printed {
    migrations: Vec<Migration>,
}

#[derive(Debug, Deserialize)]
struct Migration {
    phases: Vec<Entered>,
    /// Before compression.
    bytes_sent: u64,
}

/// A phase and when it began.
#[derive(Debug, Deserialize)]
struct Entered {
    phase: String,
    at: Timestamp,
}

impl<'a> Spothop<'a> {
    /// Clears what an earlier benchmark on the same testbed has left.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn new(bed: &'a Testbed) -> Result<Self> {
        let spothop = Self { bed };
        spothop.clear()?;
        Ok(spothop)
    }

    /// Moves a fresh Redis with this much data once.
    ///
    /// # Errors
    /// [`Error::Command`] with spothop's or Docker's words; those of the client.
    pub fn run(&self, mib: u64) -> Result<Run> {
        let result = self.start().and_then(|server| self.move_it(server, mib));
        self.clear()?;
        result
    }

    fn start(&self) -> Result<Server<'a>> {
        let address = ADDRESS.to_string();
        let docker = ["docker", "run", "--detach", "--name", NAME];
        let options = ["--network", LAN, "--ip", &address, "--mac-address", HARDWARE_ADDRESS];
        self.bed.output(SOURCE, docker.into_iter().chain(options).chain([Workload::Redis.image()]))?;
        Ok(Server::new(self.bed, ADDRESS))
    }

    fn move_it(&self, server: Server<'_>, mib: u64) -> Result<Run> {
        server.fill(mib)?;
        let witness = server.watch()?;
        let watch = Watch::start(self.bed)?;
        let start = Instant::now();
        let printed = self.bed.output(SOURCE, ["spothop", "migrate", NAME, "--to", TARGET, "--json"])?;
        let total = seconds(start.elapsed());
        let profile = watch.stop();
        let printed: Printed = serde_json::from_str(&printed)
            .map_err(|source| Error::Json { what: "what `spothop migrate --json` printed".to_owned(), source })?;
        server.verify(mib)?;
        let seen = witness.report()?;
        Ok(Run {
            way: Way::Spothop,
            mib,
            downtime: seen.longest_gap_ms / 1000.0,
            total,
            kept: seen.connections == 1,
            lost_writes: seen.lost_writes,
            sent_bytes: Some(printed.migrations.iter().map(|migration| migration.bytes_sent).sum()),
            steps: steps(&printed, &profile),
        })
    }

    fn clear(&self) -> Result<()> {
        for host in [SOURCE, TARGET] {
            // That there is none is no error, and Docker says so with the same code as everything else.
            output(&mut self.bed.exec(host, ["docker", "rm", "--force", NAME])?)?;
        }
        // A server that was killed holds no memory any more when this returns.
        run(&mut self.bed.exec(SOURCE, ["docker", "ps", "--quiet"])?).map(drop)
    }
}

/// Splits the timeline. Between `frozen` and `transferred` CRIU writes its images and then they are sent; that the one has ended
/// is seen in the file system.
fn steps(printed: &Printed, profile: &Profile) -> Vec<Step> {
    let mut moments: Vec<(&'static str, Timestamp)> = Vec::new();
    let mut before_freeze = "prepare";
    for entered in printed.migrations.iter().flat_map(|migration| &migration.phases) {
        let ends = match entered.phase.as_str() {
            "planned" => "",
            "pre-copy(1)" => std::mem::replace(&mut before_freeze, "pre-copy"),
            "frozen" => before_freeze,
            "transferred" => {
                moments.extend(profile.dumped.map(|at| ("dump", at)));
                "transfer"
            }
            "restored" => "restore",
            "running" => "commit and start",
            "cleaned" => "clean up",
            _ => continue,
        };
        moments.push((ends, entered.at));
    }
    let between = moments.windows(2).map(|pair| {
        let ((_, from), (name, to)) = (pair[0], pair[1]);
        Step {
            name,
            seconds: to.duration_since(from).as_secs_f64(),
            busy_cores: profile.busy_cores(from, to),
            programs: profile.programs(from, to),
        }
    });
    between.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(phase: &str, millis: u32) -> String {
        format!(r#"{{"phase":"{phase}","at":"2026-01-02T03:04:05.{millis:03}Z"}}"#)
    }

    #[test]
    fn the_timeline_is_split_where_the_dump_is_complete() {
        let phases: Vec<_> = [
            ("planned", 0),
            ("reserved", 10),
            ("prepared", 30),
            ("pre-copy(1)", 40),
            ("pre-copy(2)", 90),
            ("frozen", 100),
            ("transferred", 400),
            ("restored", 600),
            ("committed", 610),
            ("running", 650),
            ("cleaned", 900),
        ]
        .iter()
        .map(|(phase, millis)| entered(phase, *millis))
        .collect();
        let printed =
            format!(r#"{{"plan":{{}},"migrations":[{{"id":"x","bytes_sent":1,"phases":[{}]}}]}}"#, phases.join(","));
        let profile = Profile { dumped: "2026-01-02T03:04:05.250Z".parse().ok(), ..Profile::default() };
        let steps: Vec<_> = steps(&serde_json::from_str(&printed).unwrap(), &profile)
            .into_iter()
            .map(|step| (step.name, (step.seconds * 1000.0).round()))
            .collect();
        assert_eq!(
            steps,
            [
                ("prepare", 40.0),
                ("pre-copy", 60.0),
                ("dump", 150.0),
                ("transfer", 150.0),
                ("restore", 200.0),
                ("commit and start", 50.0),
                ("clean up", 250.0)
            ]
        );
    }
}
