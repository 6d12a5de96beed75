//! The soak: one server goes back and forth between two hosts under one client's load, on one connection, and nothing grows.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::command::{command, output};
use crate::error::{Context, Result};
use crate::layout::Layout;
use crate::redis::lasting;
use crate::state::json;
use crate::torture::arena::{Arena, CONTAINER, HOSTS};
use crate::torture::check::leftovers;
use crate::torture::inside::Inside;
use crate::torture::report::distribution;
use crate::torture::sampler::{Sampler, Watch};

/// Hops after which the first measurement is taken, at least and at most, and which part of all: by then every cache has been
/// filled on both hosts, and the allocators of the daemons have nearly what they will ever have.
const WARM_UP: (u64, u64) = (6, 30);
const WARM_UP_PART: u64 = 4;
/// A client that hears nothing for so long has lost its server.
const REPLY: Duration = Duration::from_secs(60);
/// An allocator keeps what it had at its peak, and peaks differ a little.
const SLACK_BYTES: u64 = 16 << 20;
/// What tmpfs and descriptors may differ by: sockets that are just being closed, systemd's own files.
const SLACK_FILES: u64 = 8;
const SLACK_TMPFS: u64 = 1 << 20;

/// What a host has at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory of spothop's daemon, in bytes: RssAnon, which leaves out mapped files such as journald's growing ones.
    pub daemon_bytes: u64,
    /// The same of all processes outside of containers.
    pub host_bytes: u64,
    /// Bytes in /run, and in every tmpfs below /run/spothop.
    pub tmpfs_bytes: u64,
    /// Descriptors of spothop's daemon.
    pub daemon_files: u64,
    /// Descriptors of the engine.
    pub engine_files: u64,
    /// Lines of the host's nft rules.
    pub nft_lines: u64,
    /// Mounts.
    pub mounts: u64,
    /// Containers of the engine, in whatever state.
    pub containers: u64,
    /// The engine's layers on the disk.
    pub layers: u64,
    /// The engine's volumes.
    pub volumes: u64,
    /// Named network namespaces.
    pub namespaces: u64,
    /// Files and directories below /run/spothop, and markers.
    pub own_files: u64,
    /// Programs of the processes outside of containers, in the order of their names.
    pub processes: Vec<String>,
}

/// How it went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Moves that were made.
    pub hops: u64,
    /// How long all of them took, in seconds.
    pub seconds: f64,
    /// The client's longest gap in each hop, in milliseconds.
    pub gaps_ms: Vec<f64>,
    /// What the client has seen.
    pub client: lasting::Report,
    /// What ran where.
    pub watch: Watch,
    /// Host, after the warm-up, after the last hop.
    pub usage: Vec<(String, Usage, Usage)>,
    /// What must not be.
    pub wrong: Vec<String>,
}

/// Moves a server `hops` times. `say` hears of every tenth hop.
///
/// # Errors
/// What keeps the testbed from working; broken promises are in the outcome.
pub fn soak(
    program: &Path,
    layout: &Layout,
    hops: u64,
    build: bool,
    report: Option<PathBuf>,
    say: &dyn Fn(&str),
) -> Result<Outcome> {
    let arena = Arena::up(program, layout, "", build, say)?;
    let outcome = hop(&arena, hops, say);
    let down = arena.down();
    let outcome = outcome?;
    down?;
    if let Some(path) = report {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).on("make", directory)?;
        }
        fs::write(&path, json(&outcome)?).on("write", &path)?;
    }
    Ok(outcome)
}

/// The same on an arena that is up.
///
/// # Errors
/// Like [`soak`].
pub fn hop(arena: &Arena, hops: u64, say: &dyn Fn(&str)) -> Result<Outcome> {
    let sampler = Sampler::start([Inside::of(&arena.bed, "a")?, Inside::of(&arena.bed, "b")?]);
    let client = arena.client(&format!("soak.{}", Timestamp::now().as_second()))?;
    let mut wrong = Vec::new();
    let mut gaps_ms = Vec::new();
    let mut early = None;
    let start = Instant::now();
    // Compared at the same host, so that both have the container or not both times.
    let warm_up = (hops / WARM_UP_PART).clamp(WARM_UP.0, WARM_UP.1);
    let measured = warm_up + (hops + warm_up) % 2;
    for number in 1..=hops {
        let (from, to) = arena.source()?;
        if let Err(error) = arena.sh(from, &format!("spothop migrate {CONTAINER} --to {to}")) {
            wrong.push(format!("hop {number} from {from} to {to}: {error}"));
            break;
        }
        // The gap is over with the next reply.
        let (before, end) = (client.remote.replies(), Instant::now() + REPLY);
        while client.remote.replies() < before + 2 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        gaps_ms.push(client.remote.take_longest_gap());
        if number == measured.min(hops) {
            early = Some(measure(arena)?);
        }
        if number % 10 == 0 {
            say(&format!("{number} hops in {:.0} s", start.elapsed().as_secs_f64()));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let late = measure(arena)?;
    let (_, report) = client.finish(true);
    let client = report?;
    let watch = sampler.finish();
    let usage: Vec<_> = HOSTS
        .iter()
        .zip(early.unwrap_or_default().into_iter().zip(late))
        .map(|(host, (early, late))| ((*host).to_owned(), early, late))
        .collect();
    for (host, early, late) in &usage {
        wrong.extend(growth(early, late).into_iter().map(|what| format!("{host}: {what}")));
    }
    judge(arena, &client, &watch, &mut wrong)?;
    Ok(Outcome { hops: gaps_ms.len() as u64, seconds, gaps_ms, client, watch, usage, wrong })
}

fn judge(arena: &Arena, client: &lasting::Report, watch: &Watch, wrong: &mut Vec<String>) -> Result<()> {
    wrong.extend(client.breaks.iter().map(|one| format!("the connection broke at {}: {}", one.at, one.why)));
    if client.lost_writes > 0 {
        wrong.push(format!("{} acknowledged writes lost: {}", client.lost_writes, client.lost.join(", ")));
    }
    if client.run_ids.0 != client.run_ids.1 {
        wrong.push("the server was started anew".to_owned());
    }
    wrong.extend(client.unread.iter().map(|why| format!("the data cannot be read: {why}")));
    wrong.extend(arena.verify().err().map(|error| format!("the data of the beginning: {error}")));
    wrong.extend(arena.wrong_memory()?.map(|what| format!("memory corrupted: {what}")));
    if watch.doubled > 0 {
        wrong.push(format!("doubled: {}", watch.first_doubled.as_deref().unwrap_or_default()));
    }
    wrong.extend(leftovers(arena)?.into_iter().map(|what| format!("left on {what}")));
    Ok(())
}

/// What both hosts have.
fn measure(arena: &Arena) -> Result<[Usage; 2]> {
    // The source lets go a moment after the command line has heard of the end.
    for _ in 0..100 {
        if leftovers(arena)?.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok([usage(arena, HOSTS[0])?, usage(arena, HOSTS[1])?])
}

fn usage(arena: &Arena, host: &str) -> Result<Usage> {
    let inside = Inside::of(&arena.bed, host)?;
    let processes = inside.processes();
    let outside: Vec<i32> =
        processes.iter().filter(|process| !process.in_container).map(|process| process.pid).collect();
    let outsiders = processes.iter().filter(|process| !process.in_container);
    let mut names: Vec<String> = outsiders.map(|process| process.name().to_owned()).collect();
    names.sort();
    let daemon = inside.daemon().map_or(0, |process| process.pid);
    let engine = processes.iter().find(|process| process.name() == "dockerd").map_or(0, |process| process.pid);
    let mounts = inside.mounts();
    let tmpfs = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let tmpfs = tmpfs.filter(|at| *at == "/run" || at.starts_with("/run/spothop/"));
    let rules =
        output(&mut command("nsenter", [&format!("--net={}", inside.network().display()), "nft", "list", "ruleset"]))?;
    let entries = |directory: &str| fs::read_dir(inside.path(directory)).map_or(0, |entries| entries.count() as u64);
    Ok(Usage {
        daemon_bytes: resident(daemon),
        host_bytes: outside.iter().map(|pid| resident(*pid)).sum(),
        tmpfs_bytes: tmpfs
            .filter_map(|at| statvfs(&inside.path(at)).ok())
            .map(|fs| (fs.blocks() - fs.blocks_free()) * fs.fragment_size())
            .sum(),
        daemon_files: descriptors(daemon),
        engine_files: descriptors(engine),
        nft_lines: String::from_utf8_lossy(&rules.stdout).lines().count() as u64,
        mounts: mounts.lines().count() as u64,
        containers: arena.sh(host, "docker ps --all --quiet")?.lines().count() as u64,
        layers: entries("/var/lib/docker/overlay2"),
        volumes: entries("/var/lib/docker/volumes"),
        namespaces: entries("/run/netns"),
        own_files: entries_below(&inside.path("/run/spothop")) + entries("/var/lib/spothop/pending"),
        processes: names,
    })
}

/// RssAnon of proc_pid_status(5), in bytes; 0 for one that is gone.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

fn descriptors(pid: i32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

fn entries_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            1 + if entry.file_type().is_ok_and(|kind| kind.is_dir()) { entries_below(&entry.path()) } else { 0 }
        })
        .sum()
}

/// What has grown by more than its slack.
fn growth(early: &Usage, late: &Usage) -> Vec<String> {
    // A fifth more, and the slack: a leak of a megabyte a hop is seen after some fifty hops, one of a descriptor after eight.
    let memory = |bytes: u64| bytes + bytes / 5 + SLACK_BYTES;
    [
        ("daemon_bytes", late.daemon_bytes, memory(early.daemon_bytes)),
        ("host_bytes", late.host_bytes, memory(early.host_bytes)),
        ("tmpfs_bytes", late.tmpfs_bytes, early.tmpfs_bytes + SLACK_TMPFS),
        ("daemon_files", late.daemon_files, early.daemon_files + SLACK_FILES),
        ("engine_files", late.engine_files, early.engine_files + SLACK_FILES),
        ("nft_lines", late.nft_lines, early.nft_lines),
        ("mounts", late.mounts, early.mounts),
        ("containers", late.containers, early.containers),
        ("layers", late.layers, early.layers),
        ("volumes", late.volumes, early.volumes),
        ("namespaces", late.namespaces, early.namespaces),
        ("own_files", late.own_files, early.own_files),
    ]
    .into_iter()
    .filter(|(_, late, allowed)| late > allowed)
    .map(|(what, late, allowed)| format!("{what} has grown to {late}, more than {allowed}"))
    .chain(more_processes(early, late))
    .collect()
}

/// systemd's own helpers come and go; a process a hop does not.
fn more_processes(early: &Usage, late: &Usage) -> Option<String> {
    let (before, after) = (early.processes.len(), late.processes.len());
    (after > before + 2)
        .then(|| format!("processes have grown from {before} to {after}: {}", late.processes.join(", ")))
}

impl Outcome {
    /// It for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} hops in {:.0} s, {} breaks of the connection, {} acknowledged writes, {} lost\n",
            self.hops,
            self.seconds,
            self.client.breaks.len(),
            self.client.acknowledged_writes,
            self.client.lost_writes
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "gaps: {}", distribution(&mut self.gaps_ms.clone()));
        let _ = writeln!(
            text,
            "looked at both hosts {} times, {:.0} ms apart at most: doubled {} times",
            self.watch.samples, self.watch.longest_ms, self.watch.doubled
        );
        for (host, early, late) in &self.usage {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(
                text,
                "{host}: daemon {:.1} → {:.1} MiB, host {:.1} → {:.1} MiB, tmpfs {:.2} → {:.2} MiB, descriptors {} → {}, engine's {} → {}, \
                 nft lines {} → {}, mounts {} → {}, containers {} → {}, layers {} → {}, volumes {} → {}, namespaces {} → {}, \
                 own files {} → {}, processes {} → {}",
                mib(early.daemon_bytes),
                mib(late.daemon_bytes),
                mib(early.host_bytes),
                mib(late.host_bytes),
                mib(early.tmpfs_bytes),
                mib(late.tmpfs_bytes),
                early.daemon_files,
                late.daemon_files,
                early.engine_files,
                late.engine_files,
                early.nft_lines,
                late.nft_lines,
                early.mounts,
                late.mounts,
                early.containers,
                late.containers,
                early.layers,
                late.layers,
                early.volumes,
                late.volumes,
                early.namespaces,
                late.namespaces,
                early.own_files,
                late.own_files,
                early.processes.len(),
                late.processes.len()
            );
        }
        for what in &self.wrong {
            let _ = writeln!(text, "WRONG {what}");
        }
        text.push_str(if self.wrong.is_empty() { "nothing was lost, doubled, reset or left" } else { "see above" });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_told_and_slack_is_allowed() {
        let early = Usage { daemon_bytes: 100 << 20, daemon_files: 40, mounts: 20, ..Usage::default() };
        assert_eq!(growth(&early, &early), Vec::<String>::new());
        let late = Usage { daemon_bytes: 120 << 20, daemon_files: 45, ..early.clone() };
        assert_eq!(growth(&early, &late), Vec::<String>::new());
        let late = Usage { daemon_bytes: 200 << 20, daemon_files: 60, mounts: 21, ..early.clone() };
        let told = growth(&early, &late).join(", ");
        for what in ["daemon_bytes", "daemon_files", "mounts has grown to 21, more than 20"] {
            assert!(told.contains(what), "{told}");
        }
    }
}
