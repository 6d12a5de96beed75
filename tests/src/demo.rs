//! `cargo demo`: the main job, in front of the reader's eyes.

use std::io::IsTerminal as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::events::{Events, Kind};
use crate::imds::Action;
use crate::layout::Layout;
use crate::redis::live;
use crate::scenario::Redis;
use crate::testbed::{Options, Testbed, down};
use crate::workload::Workload;

/// The container's name.
const NAME: &str = "redis";
/// Its address, the same on both hosts.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 50);
/// What a spot instance on EC2 is given at best.
const LEAD: Duration = Duration::from_secs(120);
/// How long the client goes on after the move: long enough for a connection that only seemed to live.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// What the demo has shown.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// MiB of data that moved.
    pub mib: u64,
    /// Time from the notice to the end, in seconds.
    pub seconds: f64,
    /// Phases, with the milliseconds from the first to each.
    pub phases: Vec<(String, f64)>,
    /// Keys before.
    pub keys_before: u64,
    /// Keys after.
    pub keys_after: u64,
    /// What the client has seen.
    pub client: live::Report,
    /// What is not as it must be; empty when all is well.
    pub wrong: Vec<String>,
}

/// Shows it with `mib` MiB of data on a testbed of its own, which is gone afterwards.
///
/// # Errors
/// Whatever kept the demo from its end; when it gets there and something is wrong, [`Outcome::wrong`] says so.
pub fn run(program: &Path, layout: Layout, options: &Options, mib: u64, say: &dyn Fn(&str)) -> Result<Outcome> {
    down(&layout)?; // what an interrupted demo has left
    let bed = Testbed::up(program, layout, options, say)?;
    let outcome = show(&bed, mib, say);
    if outcome.as_ref().map_or(true, |outcome| !outcome.wrong.is_empty()) {
        tell_logs(&bed, say);
    }
    bed.down()?;
    outcome
}

fn show(bed: &Testbed, mib: u64, say: &dyn Fn(&str)) -> Result<Outcome> {
    say("two hosts are up, a and b; making the image of Redis on both");
    bed.import_workload(Workload::Redis)?;
    say(&format!("filling Redis on host a with {mib} MiB"));
    let (redis, loaded) = Redis::start(bed, "a", NAME, ADDRESS, mib)?;
    say(&format!(
        "{} keys in {:.1} s; a client begins to write and read over one connection",
        loaded.keys, loaded.seconds
    ));
    let client = redis.talk(false)?;
    let keys_before = redis.key_count()?;
    say(&bed.output("a", ["spothop", "plan"])?);

    let mut events = Events::follow(bed, "a")?;
    let notice = bed.notice("a", Action::Terminate, LEAD)?;
    let noticed = Timestamp::now();
    say(&format!("AWS tells host a: terminate at {}", notice.time));
    let mut watcher = Watcher::new(say);
    let ended = watcher.watch(&mut events)?;
    drop(events);
    std::thread::sleep(AFTERWARDS);

    let mut wrong = Vec::new();
    if ended != "moved" {
        wrong.push(format!("the migration ended as {ended:?}"));
    }
    let client = client.stop()?;
    if client.connections != 1 {
        wrong.push(format!("the client needed {} connections", client.connections));
    }
    if client.lost_writes != 0 {
        wrong.push(format!("{} acknowledged writes are lost", client.lost_writes));
    }
    let keys_after = redis.key_count()?;
    if keys_after != keys_before {
        wrong.push(format!("there were {keys_before} keys, and there are {keys_after}"));
    }
    say("comparing every value with what was put in");
    if let Err(error) = redis.verify() {
        wrong.push(error.to_string());
    }
    wrong.extend(misplaced(bed)?);
    let end = watcher.phases.last().map_or(noticed, |(_, at)| *at);
    Ok(Outcome {
        mib,
        seconds: end.duration_since(noticed).as_secs_f64(),
        phases: watcher.timeline(),
        keys_before,
        keys_after,
        client,
        wrong,
    })
}

/// Where the container must be and must not be.
fn misplaced(bed: &Testbed) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let filter = format!("name=^{NAME}$");
    for (host, there) in [("a", false), ("b", true)] {
        let all = if there { "--no-trunc" } else { "--all" };
        let found = bed.output(host, ["docker", "ps", all, "--quiet", "--filter", &filter])?;
        if found.is_empty() == there {
            let state = if there { "does not run" } else { "is still there" };
            wrong.push(format!("the container {state} on host {host}"));
        }
    }
    Ok(wrong)
}

/// Shows events as they come: a line for each phase, a bar for the bytes where there is a terminal.
struct Watcher<'a> {
    say: &'a dyn Fn(&str),
    phases: Vec<(String, Timestamp)>,
    bar: Option<ProgressBar>,
}

impl<'a> Watcher<'a> {
    fn new(say: &'a dyn Fn(&str)) -> Self {
        Self { say, phases: Vec::new(), bar: None }
    }

    /// Returns how the migration ended.
    fn watch(&mut self, events: &mut Events) -> Result<String> {
        for event in events {
            let event = event?;
            if event.container != NAME {
                continue;
            }
            match event.kind {
                Kind::Phase { phase } => {
                    self.end_bar();
                    let start = self.phases.first().map_or(event.at, |(_, at)| *at);
                    let after = milliseconds(event.at.duration_since(start));
                    (self.say)(&format!("  {after:7.0} ms  {phase}"));
                    self.phases.push((phase, event.at));
                }
                Kind::Progress { what, sent, total } => self.progress(&what, sent, total),
                Kind::Finished { outcome, reason } => {
                    self.end_bar();
                    return Ok(match reason {
                        Some(reason) => format!("{outcome}: {reason}"),
                        None => outcome,
                    });
                }
            }
        }
        Err(Error::Unexpected { what: "the events of host a".to_owned(), text: "no end of the migration".to_owned() })
    }

    fn progress(&mut self, what: &str, sent: u64, total: Option<u64>) {
        if !std::io::stderr().is_terminal() {
            return; // the phases tell enough where nothing can be drawn
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template("  {msg:>12} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}");
            let bar = ProgressBar::new(total.unwrap_or(sent));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        bar.set_message(what.to_owned());
        bar.set_length(total.unwrap_or(sent));
        bar.set_position(sent);
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    fn timeline(&self) -> Vec<(String, f64)> {
        let Some((_, start)) = self.phases.first() else {
            return Vec::new();
        };
        self.phases.iter().map(|(phase, at)| (phase.clone(), milliseconds(at.duration_since(*start)))).collect()
    }
}

impl Outcome {
    /// The end of the story, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let client = &self.client;
        let verdict = if self.wrong.is_empty() {
            "Redis goes on on host b, on the same connection, and nothing is lost.".to_owned()
        } else {
            format!("WRONG: {}", self.wrong.join("; "))
        };
        format!(
            "\n  from notice to done    {:.1} s\n  longest gap            {:.0} ms (median reply {:.2} ms)\n  requests answered      \
             {} on {} connection\n  acknowledged writes    {}, lost {}\n  keys before and after  {} and {}\n\n{verdict}",
            self.seconds,
            client.longest_gap_ms,
            client.median_ms,
            client.requests,
            client.connections,
            client.acknowledged_writes,
            client.lost_writes,
            self.keys_before,
            self.keys_after,
        )
    }
}

/// What the daemons have to say about a failure.
fn tell_logs(bed: &Testbed, say: &dyn Fn(&str)) {
    for host in ["a", "b"] {
        let log =
            bed.output(host, ["journalctl", "--unit=spothop", "--no-pager", "--lines=40", "--output=short-precise"]);
        if let Ok(log) = log {
            say(&format!("-- spothop on host {host}\n{log}"));
        }
    }
}

fn milliseconds(time: SignedDuration) -> f64 {
    time.as_secs_f64() * 1000.0
}
