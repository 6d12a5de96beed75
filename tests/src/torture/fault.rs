//! Faults, done and undone.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;

use super::arena::Arena;
use super::inside::{Inside, Process, signal};
use super::plan::{CLI_LIMIT, Fault, Side, Until, Victim};
use crate::base::remove_if_there;
use crate::command::{command, output, run};
use crate::error::Result;

/// The port that daemons talk over.
const PORT: u16 = 7077;
/// Our table on the hosts while connections are reset: long enough that a packet of each passes.
const RESETTING: Duration = Duration::from_millis(400);
/// How long a disk stays full if the command line does not end before.
const FULL: Duration = Duration::from_secs(5);

/// The argument by which `spothop-oci` is guard and pager, one the child of the other (criu/src/oci/pager.rs).
pub const PAGER: &str = "--spothop-pager";

/// How often a tmpfs is made smaller that grows at the same time.
const SHRINKING: u32 = 20;

/// Who is who in this run.
#[derive(Debug, Clone, Copy)]
pub struct Roles {
    /// The source's name.
    pub source: &'static str,
    /// The target's name.
    pub target: &'static str,
}

impl Roles {
    /// The host of a side.
    #[must_use]
    pub fn host(&self, side: Side) -> &'static str {
        match side {
            Side::Source => self.source,
            Side::Target => self.target,
        }
    }
}

/// What is still to be undone.
#[derive(Debug)]
pub struct Pending {
    what: Undo,
    /// When at the latest.
    at: Instant,
    /// Also as soon as the command line has ended.
    with_cli: bool,
}

#[derive(Debug)]
enum Undo {
    PowerOn(&'static str),
    Heal(&'static str),
    Empty(PathBuf),
    LetPass([&'static str; 2]),
    Continue(i32),
}

/// Does a fault. Returns what there is to undo, and what was done in words; none when there was nothing to do it to.
///
/// `held` is the process that stands at the point; it goes on when this returns, unless it is to stall.
///
/// # Errors
/// The testbed's, when a fault cannot be done.
pub fn apply(
    arena: &mut Arena,
    roles: Roles,
    fault: Fault,
    held: Option<i32>,
) -> Result<(Option<Pending>, Option<String>)> {
    let now = Instant::now();
    let in_time = |what, after: Duration| Some(Pending { what, at: now + after, with_cli: false });
    let done = match fault {
        // Done by whoever reaches the point.
        Fault::Nothing | Fault::Error | Fault::Kill => (None, Some(fault.to_string())),
        Fault::Stall { length } => {
            let Some(held) = held else { return Ok((None, None)) };
            return Ok((in_time(Undo::Continue(held), length), Some(format!("process {held} stood for {length:?}"))));
        }
        Fault::KillOther { side, victim } => (None, kill(arena, roles.host(side), victim)?),
        Fault::PowerOff { side, back_after } => {
            let host = roles.host(side);
            arena.bed.power_off(host)?;
            (in_time(Undo::PowerOn(host), back_after), Some(format!("{host} off")))
        }
        Fault::Partition { side, direction, until } => {
            let host = roles.host(side);
            arena.bed.cut(host, direction)?;
            let pending = match until {
                Until::Passed(time) => in_time(Undo::Heal(host), time),
                Until::CliEnded => Some(Pending { what: Undo::Heal(host), at: now + CLI_LIMIT, with_cli: true }),
            };
            (pending, Some(format!("{host} cut off ({direction:?}, {until:?})")))
        }
        Fault::StreamCut => {
            let hosts = [roles.source, roles.target];
            for host in hosts {
                let rules = format!(
                    "add table inet torture; \
                     add chain inet torture out {{ type filter hook output priority 0; }}; \
                     add rule inet torture out tcp dport {PORT} reject with tcp reset; \
                     add rule inet torture out tcp sport {PORT} reject with tcp reset"
                );
                nft(&Inside::of(&arena.bed, host)?.network(), &rules)?;
            }
            (in_time(Undo::LetPass(hosts), RESETTING), Some("connections reset".to_owned()))
        }
        Fault::DiskFull { side } => {
            let filler = arena.bed.layout().state_disk(roles.host(side)).join("filler");
            fill(&filler);
            let pending = Pending { what: Undo::Empty(filler), at: now + FULL, with_cli: true };
            (Some(pending), Some(format!("disk of {} full", roles.host(side))))
        }
        Fault::TmpfsFull { side } => (None, shrink(arena, roles.host(side))?),
    };
    if let Some(held) = held {
        signal(held, Signal::SIGCONT);
    }
    Ok(done)
}

impl Pending {
    /// Undoes it if its time has come. Returns whether it is done.
    ///
    /// # Errors
    /// The testbed's.
    pub fn undo(&self, arena: &mut Arena, cli_ended: bool) -> Result<bool> {
        if Instant::now() < self.at && !(self.with_cli && cli_ended) {
            return Ok(false);
        }
        match &self.what {
            Undo::PowerOn(host) => arena.bed.power_on(host)?,
            Undo::Heal(host) => arena.bed.heal(host)?,
            Undo::Empty(filler) => remove_if_there(filler)?,
            Undo::LetPass(hosts) => {
                for host in hosts {
                    nft(&Inside::of(&arena.bed, host)?.network(), "delete table inet torture")?;
                }
            }
            Undo::Continue(pid) => signal(*pid, Signal::SIGCONT),
        }
        Ok(true)
    }
}

/// Kills what there is of a kind on a host.
fn kill(arena: &Arena, host: &str, victim: Victim) -> Result<Option<String>> {
    let inside = Inside::of(&arena.bed, host)?;
    let victims = match victim {
        Victim::Daemon => inside.daemon().into_iter().collect(),
        // Restored tasks begin as children of CRIU, and as its own program; those are the container.
        Victim::Criu => {
            let all = inside.named("criu");
            all.iter().filter(|one| !all.iter().any(|other| Some(other.pid) == one.parent())).cloned().collect()
        }
        Victim::Runc => inside.named("runc"),
        Victim::Dockerd => inside.named("dockerd"),
        Victim::Shim => inside.named("containerd-shim-runc-v2"),
        Victim::Pager | Victim::Guard => {
            let all = inside.with_argument(PAGER);
            let is_pager = |one: &Process| all.iter().any(|other| Some(other.pid) == one.parent());
            all.iter().filter(|one| is_pager(one) == (victim == Victim::Pager)).cloned().collect()
        }
    };
    for process in &victims {
        process.kill();
    }
    let words: Vec<String> = victims.iter().map(|process| process.pid.to_string()).collect();
    Ok((!words.is_empty()).then(|| format!("{victim} of {host} killed ({})", words.join(", "))))
}

/// Writes until nothing fits any more.
fn fill(filler: &Path) {
    if let Ok(mut file) = File::create(filler) {
        for size in [1 << 20, 4096] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
    }
}

/// Makes the tmpfs of every migration as small as what is in it.
fn shrink(arena: &Arena, host: &str) -> Result<Option<String>> {
    let inside = Inside::of(&arena.bed, host)?;
    let mounts = inside.mounts();
    let at = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with("/run/spothop/"));
    let mut shrunk = Vec::new();
    for at in at {
        // What comes in between the question and the word makes it too small.
        for _ in 0..SHRINKING {
            let Ok(now) = statvfs(&inside.path(at)) else { break };
            // None at all would mean no limit.
            let used = ((now.blocks() - now.blocks_free()) * now.fragment_size()).max(4096);
            let size = format!("remount,size={used}");
            if output(&mut arena.bed.exec(host, ["mount", "-o", &size, at])?)?.status.success() {
                shrunk.push(format!("{at} on {host} has {used} bytes"));
                break;
            }
        }
    }
    Ok((!shrunk.is_empty()).then(|| shrunk.join(", ")))
}

fn nft(network: &Path, commands: &str) -> Result<()> {
    let network = format!("--net={}", network.display());
    run(&mut command("nsenter", [&network, "nft", commands])).map(drop)
}
