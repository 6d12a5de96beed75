//! The hosts of a scenario, and what scenarios do with them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Lines};
use std::ops::Deref;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use spothop_tests::command::output;
use spothop_tests::layout::Layout;
use spothop_tests::state::Power;
use spothop_tests::testbed::{Options, Testbed};
use spothop_tests::workload::Workload;

use crate::common::Bed;

/// The hosts.
pub(crate) const HOSTS: [&str; 2] = ["a", "b"];

/// Nothing that a scenario waits for takes this long, in seconds; what does hangs.
const LIMIT: &str = "120";

/// Where scenarios change the daemon's unit.
pub(crate) const DROP_INS: &str = "/run/systemd/system/spothop.service.d";

/// Exit codes of `spothop`, as its help documents them.
pub(crate) const MOVED: i32 = 0;
pub(crate) const REFUSED: i32 = 3;
pub(crate) const ABORTED: i32 = 5;

/// Hosts `a` and `b` with the images `redis` and `python`, and a client.
pub(crate) struct Scene {
    bed: Bed,
}

/// How a `spothop` command ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    /// What it printed; null when that was nothing.
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Deref for Scene {
    type Target = Testbed;

    fn deref(&self) -> &Testbed {
        &self.bed
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The shared one is told of by whoever catches the panic, and does not go with it.
        if thread::panicking() {
            self.tell_logs();
        }
    }
}

impl Scene {
    /// A testbed of its own.
    pub(crate) fn up(name: &str) -> Self {
        Self::up_with(name, 2)
    }

    /// A testbed of its own with more hosts: `c`, `d`… besides.
    pub(crate) fn up_with(name: &str, hosts: u8) -> Self {
        let bed = Bed::up(name, &Options { build: false, hosts, ..Options::default() });
        assert!(bed.state().spothop, "spothop is not built: cargo build --release -p spothop -p spothop-criu");
        for workload in [Workload::Redis, Workload::Python] {
            bed.import_workload(workload).expect("an image");
        }
        let scene = Self { bed };
        // The daemon may have been a moment late for the engine; from here on everything is ready.
        scene.eventually("a", "spothop hosts --json | grep -q reachable");
        scene
    }

    /// For scenarios that break a host.
    pub(crate) fn bed(&mut self) -> &mut Bed {
        &mut self.bed
    }

    /// Removes what an earlier scenario left on the hosts, also one that failed half-way.
    pub(crate) fn clear(&self) {
        for host in HOSTS {
            self.heal(host).expect("a link");
            self.sh(host, &format!("rm -rf {DROP_INS}; systemctl daemon-reload; systemctl start spothop"));
            self.sh(host, "docker ps -aq | xargs -r docker rm -fv; docker volume ls -q | xargs -r docker volume rm");
        }
    }

    /// Runs a shell script on a host, which must succeed, and returns what it printed.
    pub(crate) fn sh(&self, host: &str, script: &str) -> String {
        let result = self.bed.output(host, ["timeout", LIMIT, "sh", "-ec", script]);
        result.unwrap_or_else(|error| panic!("{host}: {error}"))
    }

    /// Waits until a script succeeds, for what nothing tells of.
    pub(crate) fn eventually(&self, host: &str, script: &str) {
        let poll = format!("until {{ {script}; }} >/dev/null 2>&1; do sleep 0.05; done");
        let result = self.bed.output(host, ["timeout", "60", "sh", "-c", &poll]);
        result.unwrap_or_else(|error| panic!("{host}: this never came true: {script}: {error}"));
    }

    /// `docker run --detach` with options and a command as a shell reads them. Returns the container's id.
    pub(crate) fn run(&self, host: &str, name: &str, options: &str, command: &[&str]) -> String {
        let script = format!("exec docker run --detach --name={name} {options} \"$@\"");
        let arguments = ["timeout", LIMIT, "sh", "-ec", &script, "sh"];
        let result = self.bed.output(host, arguments.iter().chain(command));
        result.unwrap_or_else(|error| panic!("{host}: {error}"))
    }

    /// A `spothop` command with `--json`, to its end.
    pub(crate) fn spothop(&self, host: &str, arguments: &[&str]) -> Answer {
        let all = ["timeout", LIMIT, "spothop", "--json"];
        let mut command = self.bed.exec(host, all.iter().chain(arguments)).expect("a host");
        let output = output(&mut command).expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        Answer {
            code: output.status.code().unwrap_or(-1),
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `spothop migrate`, which must move the container. Returns the migration as the source knows it.
    pub(crate) fn migrate(&self, from: &str, container: &str, to: &str) -> Value {
        let mut answer = self.spothop(from, &["migrate", container, "--to", to]);
        let migration = answer.json["migrations"][0].take();
        assert_eq!(migration["outcome"], "moved", "{migration:#} {answer:?}");
        assert_eq!(answer.code, MOVED);
        migration
    }

    /// Begins `spothop migrate`, to be watched phase by phase.
    pub(crate) fn begin(&self, from: &str, container: &str, to: &str) -> Moving {
        let script = format!("exec spothop migrate {container} --to {to} 2>&1");
        Moving { output: self.follow(from, &script) }
    }

    /// The lines that a shell script prints, as they come.
    pub(crate) fn follow(&self, host: &str, script: &str) -> Output {
        let mut command = self.bed.exec(host, ["timeout", LIMIT, "sh", "-ec", script]).expect("a host");
        Output::of(&mut command)
    }

    /// Tells a program by USR1 to look at all that it has and to end; its exit code says whether all is well.
    pub(crate) fn assert_ends_well(&self, host: &str, container: &str) {
        self.sh(host, &format!("docker kill --signal=USR1 {container}"));
        let code = self.sh(host, &format!("docker wait {container}"));
        assert_eq!(code, "0", "{}", self.sh(host, &format!("docker logs --tail=100 {container} 2>&1")));
    }

    /// `docker inspect` of a container.
    pub(crate) fn inspect(&self, host: &str, container: &str) -> Value {
        let text = self.sh(host, &format!("docker inspect {container}"));
        let mut all: Value = serde_json::from_str(&text).expect("JSON");
        all[0].take()
    }

    /// The container as `spothop ps` shows it.
    pub(crate) fn listed(&self, host: &str, container: &str) -> Value {
        let answer = self.spothop(host, &["ps"]);
        let all = answer.json.as_array().unwrap_or_else(|| panic!("{answer:?}"));
        let found = all.iter().find(|one| one["name"] == container);
        found.unwrap_or_else(|| panic!("{container} is not in {all:?}")).clone()
    }

    /// Runs `f` in a thread on the client machine's network.
    pub(crate) fn on_client<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/proc/{}/ns/net", self.bed.state().client.pid);
        let network = File::open(path).expect("the client's network");
        thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).expect("entering the client's network");
            f()
        })
    }

    /// Restarts the daemon of a host; returns when it is ready.
    pub(crate) fn restart_daemon(&self, host: &str) {
        self.sh(host, "systemctl daemon-reload; systemctl reset-failed spothop; systemctl restart spothop");
    }

    /// Gives a host another certificate of the testbed's own authority, under another host's name.
    pub(crate) fn issue_certificate(&self, name: &str, host: &str) {
        let authority = Layout::new(&self.bed.state().name).expect("a name that fits").tls_dir();
        for file in ["ca.pem", "ca.key"] {
            let mut write = self
                .bed
                .exec(host, ["sh", "-ec", "mkdir -p /tmp/authority; cat > /tmp/authority/$0", file])
                .expect("a host");
            let from = File::open(authority.join(file)).expect("the testbed's authority");
            assert!(write.stdin(from).status().expect("it starts").success());
        }
        self.sh(
            host,
            &format!(
                "rm -r /etc/spothop/tls; spothop cert issue {name} --dir /tmp/authority --out /etc/spothop/tls; \
                 rm -r /tmp/authority"
            ),
        );
    }

    /// Waits until `container` runs on `on` and nothing of a migration is left on any host that is up.
    pub(crate) fn nothing_is_left(&self, on: &str, container: &str, hosts: &[&str]) {
        for &host in hosts {
            let here = if host == on { container } else { "" };
            self.eventually(host, &format!("test \"$(docker ps -a --format='{{{{.Names}}}}')\" = '{here}'"));
            self.eventually(host, "spothop status --json | tr -d ' \\n' | grep -q '\"migrations\":\\[\\]'");
            self.eventually(host, "test -z \"$(ls -A /var/lib/spothop/pending)\"");
            self.eventually(host, "test -z \"$(ls -A /run/spothop/dump /run/spothop/restore | grep -v :)\"");
            let left = self.sh(
                host,
                "grep /run/spothop/ /proc/mounts || true; nft list tables | grep spothop || true; \
                 ls /run/netns 2>/dev/null | grep spothop || true",
            );
            // A restored container keeps the network namespace that was made for it, by its name and its mount.
            let own = if host == on { 1 } else { 0 };
            assert!(left.lines().count() <= own, "left on {host}: {left}");
        }
        let pid = self.sh(on, &format!("docker inspect --format='{{{{.State.Pid}}}}' {container}"));
        let tables = self.sh(on, &format!("nsenter --net=/proc/{pid}/ns/net nft list tables"));
        assert!(!tables.contains("spothop"), "{tables}");
    }

    /// What the daemons said, for whoever looks at a failure.
    pub(crate) fn tell_logs(&self) {
        for host in self.state().hosts.iter().filter(|host| host.power == Power::On).map(|host| host.name.as_str()) {
            let log = self
                .bed
                .output(host, ["journalctl", "--unit=spothop", "--no-pager", "--lines=60", "--output=short-precise"]);
            eprintln!("-- spothop on host {host}\n{}", log.unwrap_or_else(|error| error.to_string()));
        }
    }
}

/// A program's output, line by line. What was read is told when a line never comes.
pub(crate) struct Output {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    read: Vec<String>,
}

impl Output {
    fn of(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = process.stdout.take().expect("it was asked for");
        Self { process, lines: BufReader::new(stdout).lines(), read: Vec::new() }
    }

    /// The next line that is wanted.
    pub(crate) fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        for line in self.lines.by_ref() {
            let line = line.expect("text");
            self.read.push(line.clone());
            if wanted(&line) {
                return line;
            }
        }
        panic!("the line never came; there were:\n{}", self.read.join("\n"));
    }

    /// All that is left, and the exit code.
    pub(crate) fn end(mut self) -> (i32, String) {
        for line in self.lines.by_ref() {
            self.read.push(line.expect("text"));
        }
        let code = self.process.wait().expect("an end").code();
        (code.unwrap_or(-1), self.read.join("\n"))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // What it runs inside the host ends by its time limit, or when nobody reads it any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A migration under way, as the command line shows it.
pub(crate) struct Moving {
    output: Output,
}

impl Moving {
    /// Waits for a phase.
    pub(crate) fn until(&mut self, phase: &str) {
        self.output.until(|line| line.contains(&format!(": {phase} (after ")));
    }

    /// Waits for its end; returns the exit code and all that was said.
    pub(crate) fn end(self) -> (i32, String) {
        self.output.end()
    }
}
