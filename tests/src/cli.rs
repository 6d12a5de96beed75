//! The command line.
//!
//! Results go to standard output, as text or, with `--json`, as one JSON document; what is being done goes to standard error. The
//! exit code is 0 on success, 1 when something failed, 2 for a wrong command line; `exec` and `client` end with the code of
//! their command.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use serde::Serialize;
use serde_json::{Value, json};

use crate::base;
use crate::bench;
use crate::demo;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::imds::{Action, Cloud};
use crate::layout::Layout;
use crate::machine::workspace;
use crate::older_kernel;
use crate::redis::{data, live};
use crate::soak;
use crate::state::{Engine, Power};
use crate::switch::Direction;
use crate::test_all;
use crate::testbed::{Options, Testbed, down};
use crate::torture;
use crate::torture::report::Report;
use crate::workload::Workload;

/// Test hosts on this machine: namespaces, systemd, Docker, a spot instance's metadata service, spothop.
#[derive(Debug, Parser)]
#[command(name = "testbed", version)]
struct Cli {
    /// Which testbed, `default` if not given; several can be up at the same time, each with networks of its own.
    #[arg(long, global = true, env = "SPOTHOP_TESTBED")]
    name: Option<String>,
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring hosts a, b, c… and a client up.
    Up(Up),
    /// Run a command inside a host; its exit code and streams are passed through.
    Exec {
        /// The host's name.
        host: String,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a command on the client machine; its exit code and streams are passed through.
    Client {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Container images on the hosts.
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Let a host's metadata service tell of an interruption.
    Notice(NoticeArguments),
    /// Cut a host off the network.
    Cut {
        /// The host's name.
        host: String,
        /// Which frames are lost, as the host sees it.
        #[arg(long, value_enum, default_value_t)]
        direction: Direction,
    },
    /// Undo every `cut` of a host.
    Heal {
        /// The host's name.
        host: String,
    },
    /// Take the power from a host: everything in it dies at once.
    PowerOff {
        /// The host's name.
        host: String,
    },
    /// Give a host its power back: it boots on the disks that it had.
    PowerOn {
        /// The host's name.
        host: String,
    },
    /// Show the testbed that is up.
    Show,
    /// Make the Debian base of the hosts, if it is not there, and print where it is.
    Base,
    /// End the testbed, whatever state it is in.
    Down,
    /// Check everything: format, lints, unit tests, end-to-end tests.
    TestAll,
    /// Run the unit tests that depend on the kernel on one that is older, in a virtual machine.
    OlderKernel,
    /// Measure what a move costs, beside Podman's and CRIU's own ways, and compare it with what was to be reached.
    ///
    /// Writes results.md and results.json; what it does not measure this time stays in them as it was. Brings up a testbed of its own,
    /// named `bench`, unless that is up, and puts everything back.
    BenchAll(bench::Options),
    /// Move a Redis under load again and again while things go wrong, and check each time that it is neither lost nor doubled.
    ///
    /// Each run has one fault at one point: programs are failed, killed or stopped there, hosts lose their power or their network,
    /// disks fill up. What happens follows from the seed and the run's number: --seed S --at I does one again. A checker outside of
    /// both daemons looks all the time where the server runs, compares every write that it has acknowledged, and looks for what is
    /// left on the hosts when all has settled. The exit code is 1 if any promise was broken; the table then tells the seed and
    /// number, and REPORT.run-I/ has journals, processes, mounts and what was seen. Brings up a testbed of its own, named `torture`.
    Torture(Torture),
    /// Move a Redis under load back and forth on one connection, and check that nothing is lost, reset or left, and nothing grows.
    ///
    /// Prints the distribution of the client's gaps, and what both hosts have of memory, descriptors, rules, mounts, containers and
    /// files after a warm-up and after the last move. The exit code is 1 if any promise was broken. Brings up a testbed of its own,
    /// named `soak`.
    Soak {
        /// How many moves.
        #[arg(long, default_value_t = 100)]
        hops: u64,
        /// All figures, as JSON.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Install spothop as it was built last.
        #[arg(long)]
        no_build: bool,
    },
    /// Show the main job: a spot notice, and Redis moves to another host under a live client.
    Demo {
        /// How much data Redis has, in MiB.
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Install spothop as it was built last.
        #[arg(long)]
        no_build: bool,
    },
    /// (internal) Talk to a Redis server until standard input ends.
    #[command(hide = true)]
    RedisClient {
        server: SocketAddr,
        /// Pause between a reply and the next request, in microseconds.
        #[arg(long, default_value_t = 1000)]
        pause_us: u64,
        /// Go on with another connection when one breaks.
        #[arg(long)]
        reconnect: bool,
        /// Report every request.
        #[arg(long)]
        samples: bool,
    },
    /// (internal) Fill a Redis server.
    #[command(hide = true)]
    RedisLoad {
        server: SocketAddr,
        mib: u64,
        #[arg(long, value_enum, default_value_t)]
        values: data::Values,
    },
    /// (internal) Compare what a Redis server has with what was put in.
    #[command(hide = true)]
    RedisVerify {
        server: SocketAddr,
        mib: u64,
        #[arg(long, value_enum, default_value_t)]
        values: data::Values,
    },
    /// (internal) Create and start a container with each of two runtimes in turn, and tell how long that takes.
    #[command(hide = true)]
    RuntimeCost { bundle: PathBuf, runs: usize, runtimes: Vec<String> },
    /// (internal) Make one machine and watch over it.
    #[command(hide = true)]
    Supervise { spec: PathBuf },
    /// (internal) Become process 1 of a machine.
    #[command(hide = true)]
    Init { spec: PathBuf, notify: String },
    /// (internal) Become a command inside a machine.
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        pid: i32,
        #[arg(long)]
        cgroup: PathBuf,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// How many hosts.
    #[arg(long, default_value_t = 2)]
    hosts: u8,
    /// The engine that runs containers on them.
    #[arg(long, value_enum, default_value_t = Engine::Docker)]
    engine: Engine,
    /// Whose instances the hosts are.
    #[arg(long, value_enum, default_value_t)]
    cloud: Cloud,
    /// Hold every host's link to this rate in each direction.
    #[arg(long, value_name = "N")]
    link_mbit: Option<u32>,
    /// Install spothop as it was built last.
    #[arg(long)]
    no_build: bool,
}

#[derive(Debug, Args)]
struct Torture {
    /// How many runs.
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// What happens in each run follows from this and the run's number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the run of this number, to see it again.
    #[arg(long, value_name = "I", conflicts_with_all = ["runs", "first"])]
    at: Option<u64>,
    /// Number of the first run.
    #[arg(long, value_name = "I", default_value_t = 0)]
    first: u64,
    /// Only combinations whose name contains this: part of a point, of a fault, or of 'source:frozen × kill'.
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
    /// A line under [memory] in the daemons' configuration, like 'mode = "stop-and-copy"'; may be repeated. With 'mode = "post-copy"' the
    /// container writes more than its link takes, so that memory follows it, and faults hit that as well.
    #[arg(long, value_name = "LINE")]
    memory: Vec<String>,
    /// The table of all runs, JSON lines; target/torture/report-SEED.jsonl if not given.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Install spothop as it was built last.
    #[arg(long)]
    no_build: bool,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import a root file system as an image, with the same ID on every host.
    Import {
        /// The image's name.
        name: String,
        /// A tar archive.
        archive: PathBuf,
        /// A Dockerfile instruction to apply, like 'CMD ["redis-server"]'; may be repeated.
        #[arg(long)]
        change: Vec<String>,
    },
    /// Make the image of one of the test workloads on every host.
    Workload {
        /// Which.
        #[arg(value_enum)]
        workload: Workload,
    },
}

#[derive(Debug, Args)]
struct NoticeArguments {
    /// The host's name.
    host: String,
    /// Whose notice. A host of another cloud becomes one of this cloud, and its daemon is started again to find that out.
    #[arg(long, value_enum)]
    cloud: Option<Cloud>,
    /// What will happen to the instance.
    #[arg(long, value_enum, default_value_t = Action::Terminate)]
    action: Action,
    /// How long from now.
    #[arg(long = "in", value_name = "TIME", default_value = "120s", value_parser = lead)]
    lead: Duration,
    /// Take the notice back instead.
    #[arg(long)]
    cancel: bool,
}

/// A time span like `120s` or `2m`.
fn lead(text: &str) -> Result<Duration, String> {
    let span: SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(span).map_err(|_| "it must not be negative".to_owned())
}

/// Runs the command line of the process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let program = std::env::current_exe().on("find", std::path::Path::new("/proc/self/exe"))?;
    let name = cli.name.as_deref().unwrap_or("default");
    let open = || Testbed::open(&program, Layout::new(name)?);
    let mut code = ExitCode::SUCCESS;
    let (text, document) = match cli.command {
        Command::Up(up) => {
            let options = Options {
                hosts: up.hosts,
                engine: up.engine,
                link_mbit: up.link_mbit,
                cloud: up.cloud,
                build: !up.no_build,
                ..Options::default()
            };
            let bed = Testbed::up(&program, Layout::new(name)?, &options, &say)?;
            show(&bed)?
        }
        Command::Show => show(&open()?)?,
        Command::Base => {
            let base = base::ensure(&say)?;
            (base.display().to_string(), json!({"base": base}))
        }
        Command::Exec { host, command } => return Err(replace(open()?.exec(&host, command)?)),
        Command::Client { command } => return Err(replace(open()?.client(command)?)),
        Command::Image { command } => image(&open()?, &command)?,
        Command::Notice(arguments) => notice(&open()?, &arguments)?,
        Command::Cut { host, direction } => {
            open()?.cut(&host, direction)?;
            let text = match direction {
                Direction::In => format!("nothing reaches {host}"),
                Direction::Out => format!("nothing of {host} gets out"),
                Direction::Both => format!("{host} is cut off"),
            };
            (text, json!({"host": host, "link": "cut", "direction": direction}))
        }
        Command::Heal { host } => {
            open()?.heal(&host)?;
            (format!("{host} is connected"), json!({"host": host, "link": "up"}))
        }
        Command::PowerOff { host } => {
            open()?.power_off(&host)?;
            (format!("{host} is off"), json!({"host": host, "power": Power::Off}))
        }
        Command::PowerOn { host } => {
            open()?.power_on(&host)?;
            (format!("{host} is on"), json!({"host": host, "power": Power::On}))
        }
        Command::Down => {
            down(&Layout::new(name)?)?;
            (format!("testbed {name} is down"), json!({"name": name, "up": false}))
        }
        Command::OlderKernel => {
            // As this program itself was built.
            let profile = if cfg!(debug_assertions) { "--profile=dev" } else { "--release" };
            older_kernel::run(&[profile, "--package=spothop-criu"])?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::TestAll => {
            test_all::run()?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::BenchAll(options) => {
            bench::run(&program, Layout::new(cli.name.as_deref().unwrap_or("bench"))?, &options, &say)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Torture(arguments) => {
            let layout = Layout::new(cli.name.as_deref().unwrap_or("torture"))?;
            let report = torture(&program, &layout, arguments)?;
            code = ExitCode::from(u8::from(report.wrong() > 0));
            let document = json!({
                "runs": report.lines().len(), "wrong": report.wrong(), "report": report.path(), "lines": report.lines()
            });
            (report.summary(), document)
        }
        Command::Soak { hops, report, no_build } => {
            let layout = Layout::new(cli.name.as_deref().unwrap_or("soak"))?;
            let outcome = soak::soak(&program, &layout, hops, !no_build, report, &say)?;
            code = ExitCode::from(u8::from(!outcome.wrong.is_empty()));
            let document = serde_json::to_value(&outcome)
                .map_err(|source| Error::Json { what: "the outcome".to_owned(), source })?;
            (outcome.text(), document)
        }
        Command::Demo { mib, no_build } => {
            let options = Options { build: !no_build, ..Options::default() };
            let layout = Layout::new(cli.name.as_deref().unwrap_or("demo"))?;
            let outcome = demo::run(&program, layout, &options, mib, &|line| eprintln!("{line}"))?;
            code = ExitCode::from(u8::from(!outcome.wrong.is_empty()));
            let document = serde_json::to_value(&outcome)
                .map_err(|source| Error::Json { what: "the outcome".to_owned(), source })?;
            (outcome.text(), document)
        }
        Command::RedisClient { server, pause_us, reconnect, samples } => {
            let options = live::Options { server, pause: Duration::from_micros(pause_us), reconnect, samples };
            let report = live::run(&options, &live::end_of_input(), || println!("{STARTED}"))?;
            return line(&report);
        }
        Command::RedisLoad { server, mib, values } => return line(&data::load_with(server, mib, values)?),
        Command::RedisVerify { server, mib, values } => return line(&data::verify_with(server, mib, values)?),
        Command::RuntimeCost { bundle, runs, runtimes } => {
            return line(&bench::runtime_cost(&bundle, runs, &runtimes)?);
        }
        Command::Supervise { spec } => {
            host::supervisor::run(&spec)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Init { spec, notify } => match host::init::run(&spec, &notify)? {},
        Command::Enter { pid, cgroup, command } => return Err(host::enter(pid, &cgroup, &command)),
    };
    if cli.json {
        println!("{document:#}");
    } else {
        println!("{text}");
    }
    Ok(code)
}

fn torture(program: &std::path::Path, layout: &Layout, arguments: Torture) -> Result<Report> {
    let Torture { runs, seed, at, first, only, memory, report, no_build } = arguments;
    let options = torture::Options {
        runs: at.map_or(runs, |_| 1),
        first: at.unwrap_or(first),
        seed,
        only,
        report: report.unwrap_or_else(|| workspace().join(format!("target/torture/report-{seed}.jsonl"))),
        memory,
        build: !no_build,
    };
    torture::torture(program, layout, &options, &say)
}

/// What `redis-client` prints as soon as it is served; its report is the next and last line.
pub(crate) const STARTED: &str = "started";

/// Prints a report for whoever started us.
fn line(report: &impl Serialize) -> Result<ExitCode> {
    let line =
        serde_json::to_string(report).map_err(|source| Error::Json { what: "our own report".to_owned(), source })?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) {
    eprintln!("testbed: {line}");
}

/// Becomes the command. Returns only when that fails.
fn replace(mut command: std::process::Command) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source: command.exec() }
}

fn image(bed: &Testbed, command: &ImageCommand) -> Result<(String, Value)> {
    let (name, id) = match command {
        ImageCommand::Import { name, archive, change } => {
            let changes: Vec<_> = change.iter().map(String::as_str).collect();
            (name.as_str(), bed.import_image(name, archive, &changes)?)
        }
        ImageCommand::Workload { workload } => (workload.image(), bed.import_workload(*workload)?),
    };
    Ok((format!("{name} is {id} on every host"), json!({"image": name, "id": id})))
}

fn notice(bed: &Testbed, arguments: &NoticeArguments) -> Result<(String, Value)> {
    let host = &arguments.host;
    if arguments.cancel {
        bed.cancel_notice(host)?;
        return Ok((format!("the notice of {host} is taken back"), json!({"host": host, "notice": null})));
    }
    let Some(cloud) = arguments.cloud else {
        return Err(Error::OutOfRange {
            what: "--cloud",
            value: "missing".to_owned(),
            allowed: "aws, gcp, azure, alibaba or tencent".to_owned(),
        });
    };
    if bed.metadata(host)?.cloud != cloud {
        bed.set_cloud(host, cloud)?;
        bed.output(host, ["systemctl", "try-restart", "spothop"])?;
    }
    let notice = bed.notice(host, arguments.action, arguments.lead)?;
    Ok((
        format!("{host}: {} at {}", json!(notice.action).as_str().unwrap_or_default(), notice.time),
        json!({"host": host, "notice": notice}),
    ))
}

fn show(bed: &Testbed) -> Result<(String, Value)> {
    let state = bed.state();
    let mut text = format!("testbed {} is up ({:.1} s)", state.name, state.up_seconds);
    for machine in state.hosts.iter().chain([&state.client]) {
        text.push_str(&format!(
            "\n  {:<6} {:<12} process {}{}",
            machine.name,
            machine.address.to_string(),
            machine.pid,
            if machine.power == Power::Off { ", off" } else { "" }
        ));
    }
    let document =
        serde_json::to_value(state).map_err(|source| Error::Json { what: "the state".to_owned(), source })?;
    Ok((text, document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_torture_says_of_a_run_makes_that_run_again() {
        let options = torture::Options {
            runs: 265,
            first: 10,
            seed: 911,
            only: Some("target:hook:go × kill shim of target".to_owned()),
            report: "a report".into(),
            memory: vec!["mode = \"post-copy\"\nrestore = 'eager'".to_owned(), "max_precopy_cpu = 2".to_owned()],
            build: true,
        };
        let again = options.again(17);
        let words = shlex::split(&format!("testbed torture {again}")).expect("words of a shell");
        let Command::Torture(torture) = Cli::try_parse_from(words).expect("a command line").command else {
            panic!("{again}");
        };
        assert_eq!((torture.seed, torture.at, torture.only), (options.seed, Some(17), options.only), "{again}");
        assert_eq!(torture.memory.join("\n"), options.memory.join("\n"), "{again}");
        assert_eq!(again.lines().count(), 1, "{again}");
    }
}
