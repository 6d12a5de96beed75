//! Two hosts, a client and a server that keeps its data on a volume and says nothing before that is on the disk; beside the server, a
//! program that knows what all of its memory must be.

use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::inside::Inside;
use crate::command::output;
use crate::error::{Context, Error, Result};
use crate::layout::{LAN, Layout, hardware_address};
use crate::product::FAIL_POINT;
use crate::redis::{data, lasting};
use crate::testbed::{Options, Testbed, down};
use crate::workload::Workload;

/// The container.
pub const CONTAINER: &str = "r1";
/// Its restart policy: the one that does the most.
pub const POLICY: &str = "always";
/// Both hosts.
pub const HOSTS: [&str; 2] = ["a", "b"];

/// Its address, the same on both.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 50);
const PORT: u16 = 6379;
/// The daemon's configuration on a host.
const CONFIGURATION: &str = "/etc/spothop/config.toml";
/// Data that never changes, in MiB.
const MIB: u64 = 2;
/// Room for spothop's journal and logs: enough for hundreds of runs, and quickly filled.
const STATE_MIB: u32 = 48;
/// What runs beside the server, and where it answers.
const MEMORY: &str = include_str!("memory.py");
const MEMORY_PORT: u16 = 7001;
/// How many MiB it writes, and in a second: little; and where memory is to follow more than the hosts' links take then.
const WRITES: [&str; 2] = ["4", "8"];
const FOLLOWING_WRITES: [&str; 2] = ["32", "60"];
/// The rate of these links, in Mbit/s.
const LINK_MBIT: u32 = 200;
/// No command of ours in a host takes this long, in seconds.
pub(super) const LIMIT: &str = "60";
/// How long a server may need until it answers its first client.
const START: Duration = Duration::from_secs(60);
/// How long a client that was stopped may wait for a last reply: a peer's retransmission timer may have grown that far.
const LAST_REPLY: Duration = Duration::from_secs(45);

/// The testbed, and what it was made of.
#[derive(Debug)]
pub struct Arena {
    /// The hosts.
    pub bed: Testbed,
    program: PathBuf,
    layout: Layout,
    /// `[memory]` of the daemons' configuration.
    memory: String,
    follows: bool,
}

/// A client under way.
#[derive(Debug)]
pub struct Client {
    /// How it is asked and stopped.
    pub remote: lasting::Remote,
    /// None once it is joined.
    thread: Option<JoinHandle<Result<Result<lasting::Report>>>>,
}

impl Arena {
    /// Brings it up under the name of `layout`, with the server on host `a`, and with these lines under `[memory]` in the daemons'
    /// configuration.
    ///
    /// # Errors
    /// Like [`Testbed::up`]; [`Error::Command`] when spothop is not built, or does not take the lines.
    pub fn up(program: &Path, layout: &Layout, memory: &str, build: bool, say: &dyn Fn(&str)) -> Result<Self> {
        let follows = follows(memory);
        let link_mbit = follows.then_some(LINK_MBIT);
        let options = Options { build, link_mbit, state_mib: Some(STATE_MIB), ..Options::default() };
        let bed = Testbed::up(program, layout.clone(), &options, say)?;
        let arena =
            Self { bed, program: program.to_owned(), layout: layout.clone(), memory: memory.to_owned(), follows };
        arena.furnish().inspect_err(|_| {
            // The first error is the one that counts.
            let _ = down(layout);
        })?;
        Ok(arena)
    }

    /// Takes it down and brings it up again.
    ///
    /// # Errors
    /// Like [`Arena::up`].
    pub fn renew(&mut self, say: &dyn Fn(&str)) -> Result<()> {
        down(&self.layout)?;
        *self = Self::up(&self.program, &self.layout, &self.memory, false, say)?;
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// Like [`down`].
    pub fn down(self) -> Result<()> {
        down(&self.layout)
    }

    /// Image, container, data; returns when both daemons know each other.
    fn furnish(&self) -> Result<()> {
        let workload = Workload::RedisPython;
        self.bed.import_workload(workload)?;
        let run = format!(
            "docker run --detach --name={CONTAINER} --restart={POLICY} --network={LAN} --ip={ADDRESS} --mac-address={} \
             --volume={CONTAINER}-data:/data {}",
            hardware_address(ADDRESS),
            workload.image(),
        );
        let both = "program=$1 mib=$2 rate=$3; shift 3; python3 -c \"$program\" $mib $rate & exec \"$@\"";
        let server = "redis-server --dir /data --appendonly yes --appendfsync always --protected-mode no --save";
        let writes = if self.follows { FOLLOWING_WRITES } else { WRITES };
        let beside = ["sh", "-c", both, "sh", MEMORY].into_iter().chain(writes);
        let all =
            ["timeout", LIMIT].into_iter().chain(run.split(' ')).chain(beside).chain(server.split(' ')).chain([""]);
        self.bed.output("a", all)?;
        let server = self.server();
        join(self.bed.on_client_network(move || data::load(server, MIB))?)??;
        if !self.memory.is_empty() {
            let configure =
                format!("printf '\\n[memory]\\n%s\\n' \"$1\" >> {CONFIGURATION}; systemctl restart spothop");
            for host in HOSTS {
                self.bed.output(host, ["timeout", LIMIT, "sh", "-ec", &configure, "sh", &self.memory])?;
            }
        }
        for host in HOSTS {
            self.sh(host, "until spothop hosts --json | grep -q reachable; do sleep 0.1; done")?;
        }
        Ok(())
    }

    /// Makes sure that a run can begin: both hosts on and connected, nothing ordered to fail, both daemons and engines up.
    ///
    /// # Errors
    /// [`Error::Command`] for what is not so; [`Error::Unexpected`] when the server runs nowhere or twice.
    pub fn ready(&mut self) -> Result<()> {
        for host in HOSTS {
            self.bed.heal(host)?;
            for suffix in ["", ".claimed", ".hit"] {
                let file = Inside::of(&self.bed, host)?.path(&format!("{FAIL_POINT}{suffix}"));
                crate::base::remove_if_there(&file)?;
            }
            self.bed.cancel_notice(host)?;
            // systemd counts starts; those that we have caused are no reason to give up.
            let up = "systemctl reset-failed; systemctl start docker spothop; \
                      until spothop hosts --json | grep -q reachable; do sleep 0.1; done";
            self.sh(host, up)?;
        }
        self.source().map(drop)
    }

    /// The host that runs the server, and the other.
    ///
    /// # Errors
    /// [`Error::Unexpected`] when none does or both do.
    pub fn source(&self) -> Result<(&'static str, &'static str)> {
        let on = |host| Inside::of(&self.bed, host).map(|inside| inside.running().len());
        match (on("a")?, on("b")?) {
            (1, 0) => Ok(("a", "b")),
            (0, 1) => Ok(("b", "a")),
            (a, b) => Err(Error::Unexpected {
                what: "where the server runs".to_owned(),
                text: format!("{a} on host a, {b} on host b"),
            }),
        }
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        SocketAddr::from((ADDRESS, PORT))
    }

    /// Starts a client; returns when it talks.
    ///
    /// # Errors
    /// [`Error::RedisConnection`] when the server does not answer.
    pub fn client(&self, mark: &str) -> Result<Client> {
        let options =
            lasting::Options { server: self.server(), pause: Duration::from_millis(1), mark: mark.to_owned() };
        let remote = lasting::Remote::default();
        let (started, wait) = mpsc::channel();
        let thread = self.bed.on_client_network({
            let remote = remote.clone();
            move || {
                lasting::run(&options, &remote, || {
                    let _ = started.send(()); // whoever waited has given up
                })
            }
        })?;
        let client = Client { remote, thread: Some(thread) };
        match wait.recv_timeout(START) {
            Ok(()) => Ok(client),
            // It has ended without, and says why; or it hangs.
            Err(_) => Err(client.finish(false).1.err().unwrap_or_else(|| Error::Unexpected {
                what: "the client".to_owned(),
                text: "it took a minute to begin".to_owned(),
            })),
        }
    }

    /// Whether memory is to follow the container: it writes more than its link takes.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// What the program beside the server has found in its memory that was not what it must be, or why it does not say; none when all is
    /// right.
    ///
    /// # Errors
    /// [`Error::Io`] when the client's network is not there.
    pub fn wrong_memory(&self) -> Result<Option<String>> {
        let program = SocketAddr::from((ADDRESS, MEMORY_PORT));
        let said = join(self.bed.on_client_network(move || ask_about_memory(program))?)?;
        Ok(match said {
            Ok(said) if said == "right" => None,
            Ok(said) => Some(said),
            Err(error) => Some(format!("the program that knows does not answer: {error}")),
        })
    }

    /// Compares the data that never changes.
    ///
    /// # Errors
    /// [`Error::RedisAnswer`] with what is wrong.
    pub fn verify(&self) -> Result<data::Report> {
        let server = self.server();
        join(self.bed.on_client_network(move || data::verify(server, MIB))?)?
    }

    /// What `spothop --json ARGUMENTS` answers on a host; null when it does not.
    #[must_use]
    pub fn ask(&self, host: &str, arguments: &[&str]) -> Value {
        let all = ["timeout", "10", "spothop", "--json"];
        let Ok(mut command) = self.bed.exec(host, all.iter().chain(arguments)) else { return Value::Null };
        let answer = output(&mut command).ok().filter(|output| output.status.success());
        answer.and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or(Value::Null)
    }

    /// Runs a shell script on a host.
    ///
    /// # Errors
    /// [`Error::Command`] when it fails or takes longer than [`LIMIT`] seconds.
    pub fn sh(&self, host: &str, script: &str) -> Result<String> {
        self.bed.output(host, ["timeout", LIMIT, "sh", "-ec", script])
    }

    /// Orders a failure on a host, in one step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn order(&self, host: &str, point: &str, action: &str) -> Result<()> {
        let inside = Inside::of(&self.bed, host)?;
        let (file, new) = (inside.path(FAIL_POINT), inside.path(&format!("{FAIL_POINT}.order")));
        crate::base::remove_if_there(&inside.path(&format!("{FAIL_POINT}.hit")))?;
        fs::write(&new, format!("{point} {action}\n")).on("write", &new)?;
        fs::rename(&new, &file).on("name", &file)
    }

    /// Takes an order back; false when somebody has taken it before.
    #[must_use]
    pub fn withdraw(&self, host: &str) -> bool {
        Inside::of(&self.bed, host).is_ok_and(|inside| fs::remove_file(inside.path(FAIL_POINT)).is_ok())
    }

    /// The process that has reached the point ordered on a host, as it knows itself.
    #[must_use]
    pub fn reached(&self, host: &str) -> Option<i32> {
        let inside = Inside::of(&self.bed, host).ok()?;
        fs::read_to_string(inside.path(&format!("{FAIL_POINT}.hit"))).ok()?.trim().parse().ok()
    }
}

impl Client {
    /// Stops it; whether it had to be torn from a connection that said nothing any more, and what it has seen. It is waited for
    /// only if there should be a server.
    pub fn finish(mut self, served: bool) -> (bool, Result<lasting::Report>) {
        self.remote.stop();
        let end = Instant::now() + if served { LAST_REPLY } else { Duration::ZERO };
        let ended = |client: &Self| client.thread.as_ref().is_none_or(JoinHandle::is_finished);
        while !ended(&self) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10)); // a thread's end is no event that one can wait for with a limit
        }
        let hung = !ended(&self);
        if hung {
            self.remote.hang_up();
        }
        let gone = || Error::Unexpected { what: "the client".to_owned(), text: "it has ended before".to_owned() };
        let report = self.thread.take().ok_or_else(gone).and_then(join).and_then(|report| report);
        (served && hung, report)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.remote.stop();
        self.remote.hang_up();
    }
}

/// What it says, to the end. It begins to listen a moment after the server, where both have just been started.
fn ask_about_memory(program: SocketAddr) -> io::Result<String> {
    let end = Instant::now() + START;
    let mut stream = loop {
        match TcpStream::connect_timeout(&program, START) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(100)); // that somebody listens elsewhere is no event here
            }
            connected => break connected?,
        }
    };
    stream.set_read_timeout(Some(START))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said.trim().to_owned())
}

/// Whether lines of a configuration ask for it.
fn follows(memory: &str) -> bool {
    let mut pairs = memory.lines().filter_map(|line| line.split_once('='));
    pairs.any(|(key, value)| key.trim() == "mode" && value.trim().trim_matches(['"', '\'']) == "post-copy")
}

/// A panic of ours goes on as a panic.
fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_where_the_configuration_says_so() {
        for memory in ["mode = \"post-copy\"", "restore = 'lazy'\nmode='post-copy'"] {
            assert!(follows(memory), "{memory}");
        }
        for memory in ["", "mode = \"pre-copy\"", "restore = 'eager'"] {
            assert!(!follows(memory), "{memory}");
        }
    }
}
