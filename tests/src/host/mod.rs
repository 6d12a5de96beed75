//! A machine of the testbed, seen from outside: started, entered, switched off.
//!
//! Three processes make a machine. `up` starts a *supervisor* ([`supervisor`]), which makes the namespaces, plugs the machine into
//! the switch, serves the metadata service in the machine's network, and starts *process 1* in the machine's pid namespace:
//! this program again ([`init`]), which mounts the root and becomes systemd.

pub mod init;
pub mod root;
pub mod supervisor;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::command::command;
use crate::error::{Context, Error, Result};
use crate::imds::{Cloud, Instance};
use crate::layout::Layout;
use crate::state::{Machine, Power, json};

/// The search path inside a machine.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a supervisor must know to make its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The testbed's name.
    pub testbed: String,
    /// The machine's name.
    pub name: String,
    /// Its address on the switch.
    pub address: Ipv4Addr,
    /// Rate of its port in each direction, in Mbit/s.
    pub link_mbit: Option<u32>,
    /// The Debian base under its root.
    pub base: PathBuf,
    /// What it is.
    pub role: Role,
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A host: systemd is process 1, the engine and spothop run, there is a metadata service.
    Host {
        /// What the metadata service tells.
        instance: Instance,
        /// Whose that is.
        cloud: Cloud,
        /// A command that is run in the root before the boot, if there is anything to set up.
        set_up: Option<Vec<String>>,
    },
    /// The client: nothing runs but what it is told to.
    Client,
}

impl Spec {
    /// The places of the testbed.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the name is none.
    pub fn layout(&self) -> Result<Layout> {
        Layout::new(&self.testbed)
    }

    /// Reads it from its file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`].
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).on("read", path)?;
        serde_json::from_str(&text).map_err(|source| Error::Json { what: path.display().to_string(), source })
    }

    fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, json(self)?).on("write", path)
    }
}

/// What a supervisor says once: that the machine is up, or why it is not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// Process 1 says that the boot is finished.
    Up {
        /// Process 1, as the carrying machine numbers it.
        pid: i32,
        /// The supervisor itself.
        supervisor: i32,
    },
    /// It will not come up.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A machine that was started and has not reported yet.
#[derive(Debug)]
pub struct Starting {
    spec: Spec,
    layout: Layout,
    /// Where the supervisor says its [`Report`].
    report: Option<ChildStdout>,
}

/// Starts a machine whose root is prepared. `program` is the testbed binary.
///
/// # Errors
/// [`Error::Io`] or [`Error::Start`]; what happens later is reported by [`Starting::wait`].
pub fn start(program: &Path, spec: Spec) -> Result<Starting> {
    let layout = spec.layout()?;
    let spec_file = layout.spec_file(&spec.name);
    spec.save(&spec_file)?;
    let console = layout.console(&spec.name);
    // A machine that boots again goes on with its log.
    let log = fs::File::options().create(true).append(true).open(&console).on("open", &console)?;
    // A session of its own, and a child of the machine's process 1 from the beginning: it outlives us, and others end it.
    let mut setsid = command("setsid", ["--fork"]);
    setsid.arg(program).arg("supervise").arg(&spec_file);
    setsid.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).current_dir("/");
    let failed = |source| Error::Start { program: "setsid".to_owned(), source };
    let mut forking = setsid.spawn().map_err(failed)?;
    let report = forking.stdout.take();
    forking.wait().map_err(failed)?;
    Ok(Starting { spec, layout, report })
}

impl Starting {
    /// Waits until the machine has booted.
    ///
    /// # Errors
    /// [`Error::Boot`] with the last lines of its console.
    pub fn wait(self) -> Result<Machine> {
        let mut line = String::new();
        let read = match self.report {
            Some(pipe) => BufReader::new(pipe).read_line(&mut line),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let reason = match (read, serde_json::from_str(&line)) {
            (_, Ok(Report::Up { pid, supervisor })) => {
                return Ok(Machine {
                    name: self.spec.name,
                    address: self.spec.address,
                    pid,
                    supervisor,
                    power: Power::On,
                });
            }
            (_, Ok(Report::Failed { reason })) => reason,
            (Err(error), _) => format!("its supervisor cannot be heard: {error}"),
            (Ok(_), Err(_)) => "its supervisor ended without a word".to_owned(),
        };
        let console = self.layout.console(&self.spec.name);
        let log = fs::read_to_string(&console).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        Err(Error::Boot { host: self.spec.name, reason, log: lines[lines.len().saturating_sub(20)..].join("\n") })
    }
}

impl Machine {
    /// A command that runs inside the machine, with the standard streams it is given. The process that enters belongs to the
    /// machine's cgroup, so it dies with the machine.
    ///
    /// # Errors
    /// [`Error::HostOff`] when the machine does not run.
    pub fn enter<I, S>(&self, program: &Path, layout: &Layout, arguments: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        if self.power == Power::Off || !self.runs(layout) {
            return Err(Error::HostOff(self.name.clone()));
        }
        let mut command = Command::new(program);
        command
            .args(["enter", "--pid", &self.pid.to_string(), "--cgroup"])
            .arg(layout.machine_root_cgroup(&self.name).join("testbed-exec"))
            .arg("--")
            .args(arguments);
        Ok(command)
    }

    /// Whether its process 1 is there, no zombie (those have no namespaces), and is what it was: numbers of dead processes are
    /// given to others.
    fn runs(&self, layout: &Layout) -> bool {
        let root = layout.machine_root_cgroup(&self.name);
        let process = Path::new("/proc").join(self.pid.to_string());
        fs::read_link(process.join("ns/net")).is_ok()
            && fs::read_to_string(process.join("cgroup"))
                .is_ok_and(|cgroups| cgroups.contains(&format!("/{}", root.display())))
    }

    /// The cgroup that all its processes are in.
    ///
    /// # Errors
    /// [`Error::NoCgroup2`].
    pub fn cgroup(&self, layout: &Layout) -> Result<Cgroup> {
        Cgroup::at(&layout.machine_cgroup(&self.name))
    }
}

/// Becomes `arguments` inside the machine whose process 1 is `pid`, as a member of `cgroup`. Returns only when that fails.
pub fn enter(pid: i32, cgroup: &Path, arguments: &[String]) -> Error {
    if let Err(error) = Cgroup::at(cgroup).and_then(|cgroup| cgroup.join()) {
        return error;
    }
    let mut nsenter = command(
        "nsenter",
        ["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"],
    );
    nsenter.args(arguments).env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    if let Some(terminal) = std::env::var_os("TERM") {
        nsenter.env("TERM", terminal);
    }
    Error::Start { program: "nsenter".to_owned(), source: nsenter.exec() }
}
