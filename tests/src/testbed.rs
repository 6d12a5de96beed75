//! A whole testbed: brought up, used, taken down.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;

use crate::base::{self, remove_if_there};
use crate::cgroup::Cgroup;
use crate::command::run;
use crate::error::{Context, Error, Result, system};
use crate::host::{self, Role, Spec, root};
use crate::imds::ahead::Document;
use crate::imds::control::{self, Request, ask};
use crate::imds::{Action, Cloud, Instance, Notice};
use crate::layout::{
    CLIENT, CLIENT_ADDRESS, GATEWAY, LAN, Layout, MAX_HOSTS, SUBNET, container_range, hardware_address, host_address,
    host_name,
};
use crate::machine;
use crate::product::{Product, SET_UP};
use crate::state::{Engine, Machine, Power, State};
use crate::switch::{Direction, Switch};

/// What kind of testbed is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many hosts, 1 to [`MAX_HOSTS`].
    pub hosts: u8,
    /// The engine that runs containers on them.
    pub engine: Engine,
    /// Rate of every host's port in each direction, in Mbit/s.
    pub link_mbit: Option<u32>,
    /// Give /var/lib/spothop a file system of its own of so many MiB on every host, which can be filled; the host's disk otherwise.
    pub state_mib: Option<u32>,
    /// Whose instances the hosts are.
    pub cloud: Cloud,
    /// Whether to build spothop first; otherwise what was built last is installed.
    pub build: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: 2,
            engine: Engine::Docker,
            link_mbit: None,
            state_mib: None,
            cloud: Cloud::default(),
            build: true,
        }
    }
}

/// A testbed that is up.
#[derive(Debug)]
pub struct Testbed {
    program: PathBuf,
    layout: Layout,
    state: State,
}

impl Testbed {
    /// Brings a testbed up; returns when every host has booted and its engine answers. `program` is the testbed binary, of which
    /// each machine's supervisor is made. `say` hears what is done.
    ///
    /// # Errors
    /// [`Error::AlreadyUp`]; [`Error::NotYet`] for other engines; [`Error::Boot`] and others when something fails, after which
    /// nothing is left.
    pub fn up(program: &Path, layout: Layout, options: &Options, say: &dyn Fn(&str)) -> Result<Self> {
        let start = Instant::now();
        if !geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        check(options)?;
        if layout.state_file().exists() && Cgroup::at(&layout.cgroup())?.exists() {
            return Err(Error::AlreadyUp(layout.name().to_owned()));
        }
        down(&layout)?; // what a crash has left
        machine::prepare(say)?;
        let base = base::ensure(say)?;
        if options.build {
            say("building spothop");
            Product::build()?;
        }
        let state = make(program, &layout, options, &base, say).inspect_err(|_| {
            // The first error is the one that counts.
            let _ = down(&layout);
        })?;
        let bed = Self {
            program: program.to_owned(),
            layout,
            state: State { up_seconds: start.elapsed().as_secs_f64(), ..state },
        };
        bed.state.save(&bed.layout)?;
        Ok(bed)
    }

    /// A testbed that was brought up before.
    ///
    /// # Errors
    /// [`Error::NotUp`].
    pub fn open(program: &Path, layout: Layout) -> Result<Self> {
        let state = State::load(&layout)?;
        Ok(Self { program: program.to_owned(), layout, state })
    }

    /// What is known about it.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A command inside a host.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`], [`Error::HostOff`].
    pub fn exec<I, S>(&self, host: &str, arguments: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.enter(self.state.host(host)?, arguments)
    }

    /// A command on the client machine.
    ///
    /// # Errors
    /// [`Error::HostOff`] when the client is gone.
    pub fn client<I, S>(&self, arguments: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.enter(&self.state.client, arguments)
    }

    /// Runs a command inside a host to its end, and returns what it printed.
    ///
    /// # Errors
    /// [`Error::Command`] with its standard error when it fails.
    pub fn output<I, S>(&self, host: &str, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let output = run(&mut self.exec(host, arguments)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Lets the metadata service of a host tell of an interruption `lead` from now. Returns the notice as it is told.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`]; [`Error::Io`] when the service does not answer.
    pub fn notice(&self, host: &str, action: Action, lead: Duration) -> Result<Notice> {
        self.state.host(host)?;
        // To the second, as it will be told.
        let time = Timestamp::from_second((Timestamp::now() + lead).as_second()).unwrap_or(Timestamp::MAX);
        let notice = Notice { action, time };
        ask(host, &self.layout.imds_socket(host), Request::Notice(notice))?;
        Ok(notice)
    }

    /// Lets the metadata service of a host tell what is ahead of the instance.
    ///
    /// # Errors
    /// Like [`Testbed::notice`].
    pub fn foretell(&self, host: &str, document: Document) -> Result<()> {
        self.say(host, document.path, Some(document.body))
    }

    /// Takes it back.
    ///
    /// # Errors
    /// Like [`Testbed::notice`].
    pub fn recant(&self, host: &str, document: &Document) -> Result<()> {
        self.say(host, document.path, None)
    }

    fn say(&self, host: &str, path: &str, body: Option<String>) -> Result<()> {
        self.state.host(host)?;
        ask(host, &self.layout.imds_socket(host), Request::Document { path: path.to_owned(), body })
    }

    /// Takes a host's notice back.
    ///
    /// # Errors
    /// Like [`Testbed::notice`].
    pub fn cancel_notice(&self, host: &str) -> Result<()> {
        self.state.host(host)?;
        ask(host, &self.layout.imds_socket(host), Request::Cancel)
    }

    /// Makes a host an instance of another cloud, without a notice. A daemon that has found out in which cloud it is must be started again.
    ///
    /// # Errors
    /// Like [`Testbed::notice`].
    pub fn set_cloud(&self, host: &str, cloud: Cloud) -> Result<()> {
        self.state.host(host)?;
        ask(host, &self.layout.imds_socket(host), Request::Cloud(cloud))
    }

    /// Which cloud a host is an instance of, and when it has told that that it need not wait for the time of the notice that is out.
    ///
    /// # Errors
    /// Like [`Testbed::notice`].
    pub fn metadata(&self, host: &str) -> Result<control::State> {
        self.state.host(host)?;
        control::state(host, &self.layout.imds_socket(host))
    }

    /// Gives a host's instance another id, which its metadata service tells from now on.
    ///
    /// # Errors
    /// Like [`Testbed::notice`].
    pub fn identify(&self, host: &str, id: &str) -> Result<()> {
        self.state.host(host)?;
        ask(host, &self.layout.imds_socket(host), Request::Identify { id: id.to_owned() })
    }

    /// Cuts a host off the network, or in one direction only.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`]; [`Error::HostOff`]; [`Error::Command`].
    pub fn cut(&self, host: &str, direction: Direction) -> Result<()> {
        Switch::of(&self.layout).cut(self.plugged(host)?, direction)
    }

    /// Undoes every [`Testbed::cut`] of the host.
    ///
    /// # Errors
    /// Like [`Testbed::cut`].
    pub fn heal(&self, host: &str) -> Result<()> {
        Switch::of(&self.layout).heal(self.plugged(host)?)
    }

    /// Holds a host's link to another rate in each direction, in Mbit/s, or to none any more where it was held to one.
    ///
    /// # Errors
    /// Like [`Testbed::cut`].
    pub fn shape(&self, host: &str, mbit: Option<u32>) -> Result<()> {
        Switch::of(&self.layout).shape(self.plugged(host)?, mbit, &|words| self.exec(host, words))
    }

    /// The name of a host that is on, which is that of its port.
    fn plugged(&self, host: &str) -> Result<&str> {
        let machine = self.state.host(host)?;
        match machine.power {
            Power::On => Ok(&machine.name),
            Power::Off => Err(Error::HostOff(host.to_owned())),
        }
    }

    /// Takes the power from a host: not a packet leaves it any more, and all in it dies at once.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`]; [`Error::HostOff`] when it is off already.
    pub fn power_off(&mut self, host: &str) -> Result<()> {
        let machine = self.state.host(host)?;
        if machine.power == Power::Off {
            return Err(Error::HostOff(host.to_owned()));
        }
        // First the network: dying processes close their connections, and a machine without power cannot say so.
        self.cut(host, Direction::Both)?;
        machine.cgroup(&self.layout)?.destroy()?;
        Switch::of(&self.layout).unplug(&machine.name)?;
        self.replace(Machine { power: Power::Off, ..machine.clone() })
    }

    /// Gives a host its power back: it boots on the root that it had. What was on its disks is there, what was in memory is not.
    /// Returns when it has booted.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`]; [`Error::HostOn`]; [`Error::Boot`].
    pub fn power_on(&mut self, host: &str) -> Result<()> {
        if self.state.host(host)?.power == Power::On {
            return Err(Error::HostOn(host.to_owned()));
        }
        let mut spec = Spec::load(&self.layout.spec_file(host))?;
        if let Role::Host { set_up, .. } = &mut spec.role {
            *set_up = None; // was done before its first boot
        }
        let machine = host::start(&self.program, spec)?.wait()?;
        self.replace(machine)
    }

    /// Runs `f` in a thread on the client machine's network.
    ///
    /// # Errors
    /// [`Error::Io`] when the client is gone. The thread's own is for whoever joins it.
    pub fn on_client_network<T, F>(&self, f: F) -> Result<JoinHandle<Result<T>>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.state.client.pid));
        let network = fs::File::open(&path).on("open", &path)?;
        Ok(thread::spawn(move || {
            system("enter the client's network", setns(network, CloneFlags::CLONE_NEWNET))?;
            Ok(f())
        }))
    }

    /// Where everything of this testbed is.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn replace(&mut self, fresh: Machine) -> Result<()> {
        for machine in &mut self.state.hosts {
            if machine.name == fresh.name {
                *machine = fresh.clone();
            }
        }
        self.state.save(&self.layout)
    }

    /// Ends it; nothing is left of it but the cached base.
    ///
    /// # Errors
    /// Like [`down`].
    pub fn down(self) -> Result<()> {
        down(&self.layout)
    }

    fn enter<I, S>(&self, machine: &Machine, arguments: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        machine.enter(&self.program, &self.layout, arguments)
    }
}

/// Ends whatever there is of the testbed with this layout, by what is really there and not by its state file. Mounts are in the
/// machines' own mount namespaces and go with their processes.
///
/// # Errors
/// [`Error::Io`] or [`Error::Command`] for what resists.
pub fn down(layout: &Layout) -> Result<()> {
    if !geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    Cgroup::at(&layout.cgroup())?.destroy()?;
    Switch::of(layout).destroy()?;
    unmount_below(&layout.data_dir())?;
    // The directories that all testbeds share stay: another one may be about to make its own in them.
    [layout.data_dir(), layout.run_dir()].iter().try_for_each(|directory| remove_if_there(directory))
}

/// Takes off the file systems that hosts were given.
fn unmount_below(directory: &Path) -> Result<()> {
    let mountinfo = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(mountinfo).on("read", mountinfo)?;
    // proc_pid_mountinfo(5): the fifth field; none of ours contains what would be escaped.
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new) {
        if at.starts_with(directory) {
            umount2(at, MntFlags::MNT_DETACH).on("unmount", at)?;
        }
    }
    Ok(())
}

fn check(options: &Options) -> Result<()> {
    if !(1..=MAX_HOSTS).contains(&options.hosts) {
        return Err(Error::OutOfRange {
            what: "the number of hosts",
            value: options.hosts.to_string(),
            allowed: format!("1 to {MAX_HOSTS}"),
        });
    }
    if options.link_mbit == Some(0) {
        return Err(Error::OutOfRange {
            what: "the rate of the links in Mbit/s",
            value: "0".to_owned(),
            allowed: "1 or more".to_owned(),
        });
    }
    match options.engine {
        Engine::Docker => Ok(()),
        Engine::Podman => Err(Error::NotYet("a testbed of Podman hosts".to_owned())),
        Engine::Containerd => Err(Error::NotYet("a testbed of containerd hosts".to_owned())),
    }
}

/// Makes the machines; the caller cleans up after a failure.
fn make(program: &Path, layout: &Layout, options: &Options, base: &Path, say: &dyn Fn(&str)) -> Result<State> {
    let product = Product::find(program);
    let set_up = product.as_ref().map(|_| SET_UP.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let specs: Vec<Spec> =
        (0..options.hosts).map(|index| host_spec(layout, options, base, index, set_up.clone())).collect();
    let client = Spec {
        testbed: layout.name().to_owned(),
        name: CLIENT.to_owned(),
        address: CLIENT_ADDRESS,
        link_mbit: None,
        base: base.to_owned(),
        role: Role::Client,
    };
    for spec in specs.iter().chain([&client]) {
        root::prepare(spec, options.hosts)?;
        if let Some(mib) = options.state_mib {
            let at = layout.state_disk(&spec.name);
            let size = format!("size={mib}m,mode=0700");
            mount(Some("state"), &at, Some("tmpfs"), MsFlags::empty(), Some(OsStr::new(&size)))
                .on("mount a file system at", &at)?;
        }
        let tool = layout.machine_data_dir(&spec.name).join("upper/usr/bin/testbed");
        copy(program, &tool)?;
    }
    match &product {
        Some(product) => product.install(layout, &specs)?,
        None => say("spothop is not built: the hosts come without it"),
    }
    Switch::of(layout).create()?;
    say(&format!("booting {} hosts and a client", options.hosts));
    // All of them boot at the same time.
    let mut starting = Vec::new();
    for spec in specs.into_iter().chain([client]) {
        starting.push(host::start(program, spec)?);
    }
    let mut machines = Vec::new();
    for machine in starting {
        machines.push(machine.wait()?);
    }
    let client = machines.pop().ok_or_else(|| Error::NotUp(layout.name().to_owned()))?;
    say("making the network of the containers");
    thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(&machines)
            .map(|(index, machine)| scope.spawn(move || make_lan(program, layout, machine, index)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            // A panic of ours goes on as a panic.
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(State {
        name: layout.name().to_owned(),
        engine: options.engine,
        hosts: machines,
        client,
        link_mbit: options.link_mbit,
        base: base.to_owned(),
        spothop: product.is_some(),
        up_seconds: 0.0,
    })
}

/// The id of a host's instance as long as nobody gives it another: it ends in the host's number, from 0.
#[must_use]
pub fn instance_id(index: u8) -> String {
    format!("i-{:017x}", 0x5b07_u64 << 32 | u64::from(index))
}

fn host_spec(layout: &Layout, options: &Options, base: &Path, index: u8, set_up: Option<Vec<String>>) -> Spec {
    let name = host_name(index);
    let address = host_address(index);
    Spec {
        testbed: layout.name().to_owned(),
        address,
        link_mbit: options.link_mbit,
        base: base.to_owned(),
        role: Role::Host {
            instance: Instance {
                id: instance_id(index),
                kind: "m7i.large".to_owned(),
                zone: "eu-central-1b".to_owned(),
                name: name.clone(),
                address,
                mac: hardware_address(address),
            },
            cloud: options.cloud,
            set_up,
        },
        name,
    }
}

/// Docker's macvlan network on the switch: containers have addresses of the hosts' own subnet, the same on every host.
fn make_lan(program: &Path, layout: &Layout, machine: &Machine, index: u8) -> Result<()> {
    let options = [
        format!("--subnet={SUBNET}"),
        format!("--gateway={GATEWAY}"),
        format!("--ip-range={}", container_range(index)),
    ];
    let mut create =
        machine.enter(program, layout, ["docker", "network", "create", "--driver=macvlan", "--opt=parent=eth0"])?;
    run(create.args(options).arg(LAN)).map(drop)
}

/// Copies a program into a machine's root.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).on("make", parent)?;
    }
    fs::copy(from, to).on("copy a program to", to).map(drop)
}
