//! One run: a migration, a fault, the time until all is settled, and the verdict.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use super::arena::{Arena, CONTAINER, HOSTS};
use super::check::leftovers;
use super::fault::{Pending, Roles, apply};
use super::inside::{Inside, stopped};
use super::plan::{At, Cause, Fault, Plan, Side, Victim};
use super::report::{Line, Outcome};
use super::sampler::{Sampler, Watch};
use crate::error::{Context, Error, Result};
use crate::imds::Action;
use crate::redis::lasting;

/// The notice's lead: the longest there is.
const LEAD: Duration = Duration::from_secs(120);
/// A point that was not reached in this time will not be.
const REACH: Duration = Duration::from_secs(30);
/// The other side is through with it so long after the command line has heard the end.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// A migration by notice is tried again until then; after that the notice is taken back.
const EVACUATION: Duration = Duration::from_secs(8);
/// Whatever is not settled by now never will be.
const SETTLE: Duration = Duration::from_secs(100);
/// What was let go may take so long to be away.
const CLEAN: Duration = Duration::from_secs(15);
/// The command line has heard the end of its migration by then.
const CLI_END: Duration = Duration::from_secs(10);
/// Between two looks at what only files tell.
const GLANCE: Duration = Duration::from_millis(1);
/// Between two questions to the daemons.
const POLL: Duration = Duration::from_millis(100);
/// Looks in a row that must find all settled.
const STEADY: u32 = 3;

/// Does a run, on an arena that is ready. What explains a violation is put into the directory `evidence`.
///
/// # Errors
/// What keeps the testbed itself from working.
pub fn run(arena: &mut Arena, seed: u64, index: u64, plan: &Plan, evidence: &Path) -> Result<Line> {
    let start = Instant::now();
    let began = Timestamp::now();
    let (source, target) = arena.source()?;
    let roles = Roles { source, target };
    let client = arena.client(&format!("{seed}.{index}"))?;
    let sampler = Sampler::start([Inside::of(&arena.bed, "a")?, Inside::of(&arena.bed, "b")?]);

    let mut course = Course::begin(arena, plan, roles, index)?;
    course.disturb(arena)?;
    course.calm(arena)?;
    let settling = Instant::now();
    let settled = settle(arena);
    let served = settled.is_ok();
    let settle_s = settling.elapsed().as_secs_f64();
    let cli = course.end_cli();

    let mut violations = Vec::new();
    violations.extend(settled.err());
    violations.extend(clean(arena)?);
    let (hung, report) = client.finish(served);
    let watch = sampler.finish();
    judge_watch(&watch, &mut violations);
    let outcome = judge_data(arena, plan, roles, hung, &watch, &report, &mut violations);
    judge_word(plan, outcome, cli.as_deref(), &report, &mut violations);
    if served {
        judge_memory(arena, plan, roles, outcome, course.reached, &mut violations)?;
    }
    let report = report.unwrap_or_else(|_| lasting::Report::empty());

    let line = Line {
        seed,
        index,
        plan: plan.clone(),
        source: source.to_owned(),
        reached: course.reached,
        done: course.done,
        cli,
        outcome,
        kept: report.breaks.is_empty() && !hung,
        gap_ms: report.longest_gap_ms,
        settle_s,
        total_s: start.elapsed().as_secs_f64(),
        acknowledged_writes: report.acknowledged_writes,
        samples: watch.samples,
        longest_look_ms: watch.longest_ms,
        violations,
    };
    if !line.violations.is_empty() {
        keep(arena, evidence, began, &line, &watch, &report)?;
    }
    Ok(line)
}

/// What is under way in a run.
struct Course<'a> {
    plan: &'a Plan,
    roles: Roles,
    cli: Option<Child>,
    said: std::path::PathBuf,
    begun: Instant,
    reached: bool,
    done: Option<String>,
    pending: Option<Pending>,
}

impl<'a> Course<'a> {
    /// Orders the failure, and begins the migration.
    fn begin(arena: &Arena, plan: &'a Plan, roles: Roles, index: u64) -> Result<Self> {
        match &plan.at {
            Some(At::Point(point)) => arena.order(host_of(roles, point), point, action(plan.fault))?,
            Some(At::PointAfter(first, _)) => arena.order(host_of(roles, first), first, "stop")?,
            Some(At::Time(_)) | None => {}
        }
        let said = arena.bed.layout().run_dir().join(format!("cli-{index}"));
        let cli = match plan.cause {
            Cause::Manual => {
                let to = roles.target;
                let mut migrate =
                    arena.bed.exec(roles.source, ["timeout", "170", "spothop", "migrate", CONTAINER, "--to", to])?;
                let out = File::create(&said).on("create", &said)?;
                let err = out.try_clone().on("share", &said)?;
                let failed = |source| Error::Start { program: "spothop migrate".to_owned(), source };
                Some(migrate.stdin(Stdio::null()).stdout(out).stderr(err).spawn().map_err(failed)?)
            }
            Cause::Notice => {
                arena.bed.notice(roles.source, Action::Terminate, LEAD)?;
                None
            }
        };
        Ok(Self { plan, roles, cli, said, begun: Instant::now(), reached: false, done: None, pending: None })
    }

    /// Waits for the moment, and does the fault. Returns when it is done, or when the moment has not come.
    fn disturb(&mut self, arena: &mut Arena) -> Result<()> {
        let held = match &self.plan.at {
            None => {
                (self.reached, self.done) = (true, Some(self.plan.fault.to_string()));
                return Ok(());
            }
            Some(At::Time(after)) => {
                thread::sleep(after.saturating_sub(self.begun.elapsed()));
                self.reached = true;
                None
            }
            Some(At::Point(point)) => {
                let Some(process) = self.wait_for(arena, point) else { return Ok(()) };
                self.reached = true;
                self.stopped(arena, point, process)?
            }
            Some(At::PointAfter(first, point)) => {
                let Some(process) = self.wait_for(arena, first) else { return Ok(()) };
                let held = self.hold(arena, first, process)?;
                arena.order(host_of(self.roles, point), point, action(self.plan.fault))?;
                // Without the target's daemon there is no commit.
                apply(arena, self.roles, Fault::KillOther { side: Side::Target, victim: Victim::Daemon }, Some(held))?;
                let Some(process) = self.wait_for(arena, point) else { return Ok(()) };
                self.reached = true;
                self.stopped(arena, point, process)?
            }
        };
        (self.pending, self.done) = apply(arena, self.roles, self.plan.fault, held)?;
        Ok(())
    }

    /// The process that reached the point, or none when the migration is over without.
    fn wait_for(&mut self, arena: &Arena, point: &str) -> Option<i32> {
        let host = host_of(self.roles, point);
        let mut end = Instant::now() + REACH;
        let mut look = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            if let Some(process) = arena.reached(host) {
                return Some(process);
            }
            if self.cli_ended() {
                end = end.min(Instant::now() + AFTERWARDS);
            }
            if self.cli.is_none() && Instant::now() > look {
                look = Instant::now() + Duration::from_secs(1);
                if moved(arena, self.roles) {
                    end = end.min(Instant::now() + AFTERWARDS);
                }
            }
            thread::sleep(GLANCE);
        }
        if arena.withdraw(host) {
            return None;
        }
        // Taken in the last moment: that it was is said right after.
        let end = Instant::now() + AFTERWARDS;
        while Instant::now() < end && arena.reached(host).is_none() {
            thread::sleep(GLANCE);
        }
        arena.reached(host)
    }

    /// The process at the point as it is known outside, once it stands still; none when it was not to.
    fn stopped(&self, arena: &Arena, point: &str, process: i32) -> Result<Option<i32>> {
        if action(self.plan.fault) != "stop" {
            return Ok(None);
        }
        self.hold(arena, point, process).map(Some)
    }

    fn hold(&self, arena: &Arena, point: &str, process: i32) -> Result<i32> {
        let inside = Inside::of(&arena.bed, host_of(self.roles, point))?;
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if let Some(pid) = inside.outer(process).filter(|pid| stopped(*pid)) {
                return Ok(pid);
            }
            thread::sleep(GLANCE);
        }
        Err(Error::Unexpected {
            what: format!("the process at {point}"),
            text: format!("{process} does not stand still"),
        })
    }

    /// Undoes the fault in its time, and takes a notice back.
    fn calm(&mut self, arena: &mut Arena) -> Result<()> {
        while let Some(pending) = self.pending.take() {
            let cli_ended = match self.plan.cause {
                Cause::Manual => self.cli_ended(),
                Cause::Notice => moved(arena, self.roles),
            };
            if !pending.undo(arena, cli_ended)? {
                self.pending = Some(pending);
                thread::sleep(Duration::from_millis(10));
            }
        }
        if self.plan.cause == Cause::Notice {
            let end = Instant::now() + EVACUATION;
            while Instant::now() < end && !moved(arena, self.roles) {
                thread::sleep(POLL);
            }
            arena.bed.cancel_notice(self.roles.source)?;
        }
        Ok(())
    }

    fn cli_ended(&mut self) -> bool {
        self.cli.as_mut().is_some_and(|cli| !matches!(cli.try_wait(), Ok(None)))
    }

    /// How the command line has ended, in its last words.
    fn end_cli(&mut self) -> Option<String> {
        let end = Instant::now() + CLI_END;
        while self.cli.is_some() && !self.cli_ended() && Instant::now() < end {
            thread::sleep(POLL);
        }
        let mut cli = self.cli.take()?;
        let status = match cli.try_wait() {
            Ok(Some(status)) => status.code().map_or_else(|| status.to_string(), |code| code.to_string()),
            _ => {
                let _ = cli.kill();
                let _ = cli.wait();
                WAITING.to_owned()
            }
        };
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        let last = said.lines().rfind(|line| line.contains(CONTAINER)).unwrap_or_default();
        Some(format!("{status}: {last}"))
    }
}

/// Instead of an exit code.
const WAITING: &str = "still waiting";

fn host_of(roles: Roles, point: &str) -> &'static str {
    roles.host(if point.starts_with("target") { Side::Target } else { Side::Source })
}

fn action(fault: Fault) -> &'static str {
    match fault {
        Fault::Error => "error",
        Fault::Kill => "kill",
        _ => "stop",
    }
}

/// Whether the server runs at the target and no migration is open.
fn moved(arena: &Arena, roles: Roles) -> bool {
    arena.source().is_ok_and(|(now, _)| now == roles.target) && open(arena).is_empty()
}

/// What is not finished, in words: migrations of both daemons, or that one cannot be asked.
fn open(arena: &Arena) -> Vec<String> {
    HOSTS.iter().flat_map(|host| open_at(host, &arena.ask(host, &["status"]))).collect()
}

fn open_at(host: &str, status: &Value) -> Vec<String> {
    let Some(migrations) = status["migrations"].as_array() else {
        return vec![format!("the daemon of {host} does not answer")];
    };
    let told = |one: &Value| {
        let [side, phase, reason] = ["side", "phase", "reason"].map(|key| word(&one[key]));
        format!("{host} has an open migration ({side} {phase}, {reason})")
    };
    migrations.iter().map(told).collect()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Waits until nothing is open any more and the server runs in one place. The words are what is not so in the end.
fn settle(arena: &Arena) -> Result<(), String> {
    let end = Instant::now() + SETTLE;
    let mut steady = 0;
    loop {
        let mut unsettled = Vec::new();
        for host in HOSTS {
            let status = arena.ask(host, &["status"]);
            unsettled.append(&mut open_at(host, &status));
            if status["notices"].as_array().is_some_and(|notices| !notices.is_empty()) {
                unsettled.push(format!("{host} is under notice"));
            }
        }
        unsettled.extend(arena.source().err().map(|error| format!("LOST or DOUBLED: {error}")));
        steady = if unsettled.is_empty() { steady + 1 } else { 0 };
        if steady == STEADY {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("not settled after {} s: {}", SETTLE.as_secs(), unsettled.join(", ")));
        }
        thread::sleep(POLL);
    }
}

/// Waits until nothing is left; what is in the end.
fn clean(arena: &Arena) -> Result<Vec<String>> {
    let end = Instant::now() + CLEAN;
    loop {
        let left = leftovers(arena)?;
        if left.is_empty() || Instant::now() > end {
            return Ok(left.into_iter().map(|what| format!("left on {what}")).collect());
        }
        thread::sleep(POLL);
    }
}

fn judge_watch(watch: &Watch, violations: &mut Vec<String>) {
    if watch.doubled > 0 {
        let first = watch.first_doubled.as_deref().unwrap_or_default();
        violations.push(format!("DOUBLED in {} samples, first {first}", watch.doubled));
    }
}

fn judge_data(
    arena: &Arena,
    plan: &Plan,
    roles: Roles,
    hung: bool,
    watch: &Watch,
    report: &Result<lasting::Report>,
    violations: &mut Vec<String>,
) -> Outcome {
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            violations.push(format!("the client failed: {error}"));
            return Outcome::Lost;
        }
    };
    if report.lost_writes > 0 {
        violations.push(format!("{} acknowledged writes LOST: {}", report.lost_writes, report.lost.join(", ")));
    }
    if let Some(why) = &report.unread {
        violations.push(format!("the data cannot be read: {why}"));
    } else if let Err(error) = arena.verify() {
        violations.push(format!("the data of the beginning: {error}"));
    }
    let Ok((now, _)) = arena.source() else { return Outcome::Lost };
    if report.run_ids.0 != report.run_ids.1 {
        // The engine may have started it anew before it moved.
        let at_source = now != roles.target || watch.saw_another_at(roles.source);
        let side = if at_source { Side::Source } else { Side::Target };
        // One that cannot be asked is not known to be another.
        if report.unread.is_none() && !plan.allows_restart(side, arena.follows()) {
            violations.push(format!("started anew at the {side} without need"));
        }
        return Outcome::Restarted;
    }
    if hung {
        violations.push("the connection hangs although the server's memory lives".to_owned());
    }
    if now == roles.target { Outcome::Moved } else { Outcome::Stayed }
}

/// What the command line said must be so, and what nothing disturbs must succeed.
fn judge_word(
    plan: &Plan,
    outcome: Outcome,
    cli: Option<&str>,
    report: &Result<lasting::Report>,
    violations: &mut Vec<String>,
) {
    let said = cli.and_then(|cli| cli.split_once(':')).map_or("", |(code, _)| code);
    match (said, outcome) {
        // Exit codes: 0 moved, 5 aborted. A host that lost its power may have started it from its volume after either.
        ("0", Outcome::Stayed) => violations.push("the command said moved, and it stayed".to_owned()),
        ("5", Outcome::Moved) => violations.push("the command said aborted, and it moved".to_owned()),
        (WAITING, _) => violations.push("the command still waits".to_owned()),
        _ => {}
    }
    let kept = report.as_ref().is_ok_and(|report| report.breaks.is_empty());
    if plan.fault == Fault::Nothing && (outcome != Outcome::Moved || !kept) {
        violations.push("undisturbed, and it did not move with its connection".to_owned());
    }
}

/// Each page is what it must be, and what was lost of memory that followed is on record.
fn judge_memory(
    arena: &Arena,
    plan: &Plan,
    roles: Roles,
    outcome: Outcome,
    reached: bool,
    violations: &mut Vec<String>,
) -> Result<()> {
    let (now, _) = arena.source()?;
    violations.extend(arena.wrong_memory()?.map(|wrong| format!("memory CORRUPTED: {wrong}")));
    let takes_memory = match plan.fault {
        Fault::PowerOff { .. } => true,
        Fault::KillOther { victim, .. } => matches!(victim, Victim::Criu | Victim::Runc | Victim::Pager),
        _ => false,
    };
    if reached && takes_memory && plan.is_while_it_follows() && outcome == Outcome::Restarted && now == roles.target {
        let history = arena.ask(now, &["history", "--limit", "1"]).to_string();
        if !history.contains("memory was lost") {
            violations.push(format!("started from its files, and the record does not say why: {history}"));
        }
    }
    Ok(())
}

/// Keeps what explains a violation: the run itself, what was seen, and what both hosts have to say.
fn keep(
    arena: &Arena,
    directory: &Path,
    since: Timestamp,
    line: &Line,
    watch: &Watch,
    report: &lasting::Report,
) -> Result<()> {
    fs::create_dir_all(directory).on("make", directory)?;
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).on("write", &path)
    };
    put("run.json", &crate::state::json(line)?)?;
    put("watch.json", &crate::state::json(watch)?)?;
    put("client.json", &crate::state::json(report)?)?;
    let cli = arena.bed.layout().run_dir().join(format!("cli-{}", line.index));
    put("command", &fs::read_to_string(cli).unwrap_or_default())?;
    for host in HOSTS {
        let journal = format!("journalctl --no-pager --output=short-precise --since=@{}", since.as_second());
        for (name, script) in [
            ("journal", journal.as_str()),
            ("history.json", "spothop history --json --limit 4"),
            ("containers", "docker ps --all --no-trunc; docker inspect $(docker ps --all --quiet)"),
            ("mounts", "cat /proc/mounts; ls -lR /run/spothop /run/netns /var/lib/spothop"),
            ("processes", "ps -e -o pid,ppid,stat,wchan:20,lstart,args --forest"),
            (
                "criu-logs",
                "for log in $(ls -t /var/lib/spothop/logs/*/* /var/lib/spothop/logs/* | head -8); do test -f $log && echo == $log && tail -60 $log; done",
            ),
        ] {
            let said = arena.sh(host, script).unwrap_or_else(|error| error.to_string());
            put(&format!("{host}.{name}"), &said)?;
        }
    }
    Ok(())
}
