//! A real etcd of one member, from Debian's package, for hosts that find each other through it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::base::{lock, remove_if_there};
use crate::command::{command, output, run};
use crate::error::{Context, Error, Result};
use crate::layout::CACHE;

/// It answers within a second; on a busy machine later.
const START: Duration = Duration::from_secs(60);

/// Unpacks Debian's etcd below the cache, unless it is there, and returns the program. It is not installed: the package would start it as a
/// service of this machine.
///
/// # Errors
/// [`Error::Command`] with apt's words.
pub fn ensure(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let cache = Path::new(CACHE);
    let place = cache.join("etcd");
    let program = place.join("usr/bin/etcd");
    fs::create_dir_all(cache).on("make", cache)?;
    let _lock = lock(&cache.join("etcd.lock"))?;
    if program.is_file() {
        return Ok(program);
    }
    say(&format!("unpacking etcd in {} (once)", place.display()));
    let partial = cache.join("etcd.partial");
    remove_if_there(&partial)?;
    fs::create_dir_all(&partial).on("make", &partial)?;
    // Some source or other may be out of order without harm; what matters is whether the package can be had.
    output(&mut command("apt-get", ["-q", "update"]))?;
    run(command("apt-get", ["-q", "download", "etcd-server"]).current_dir(&partial))?;
    let package = fs::read_dir(&partial).on("list", &partial)?.flatten().map(|entry| entry.path()).next();
    let package = package.ok_or_else(|| Error::Unexpected {
        what: "apt-get download, which left no file".to_owned(),
        text: String::new(),
    })?;
    run(command("dpkg-deb", ["--extract"]).arg(&package).arg(&partial))?;
    remove_if_there(&place)?;
    fs::rename(&partial, &place).on("name", &place)?;
    Ok(program)
}

/// A server that runs until this is dropped. Its data outlive a [`Etcd::stop`].
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    data: TempDir,
    address: Ipv4Addr,
    port: u16,
    network: Option<PathBuf>,
    server: Option<Child>,
}

impl Etcd {
    /// Starts it on a free port of this address, in the caller's network or in a named one (a file such as `/proc/PID/ns/net`), and
    /// returns when it answers.
    ///
    /// # Errors
    /// [`Error::Command`] or [`Error::Start`] when it cannot be had or started.
    pub fn start(address: Ipv4Addr, network: Option<&Path>, say: &dyn Fn(&str)) -> Result<Self> {
        let program = ensure(say)?;
        let data = tempfile::tempdir().on("make", Path::new("a directory for etcd"))?;
        // In a network of its own any will do.
        let port = match network {
            Some(_) => 2379,
            None => TcpListener::bind((address, 0))
                .and_then(|free| free.local_addr())
                .on("find a port at", Path::new("127.0.0.1"))?
                .port(),
        };
        let mut etcd = Self { program, data, address, port, network: network.map(Path::to_owned), server: None };
        etcd.again()?;
        Ok(etcd)
    }

    /// Base URL of its API.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// Ends it as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself.
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts it once more, with the data that it had.
    ///
    /// # Errors
    /// As for [`Etcd::start`].
    pub fn again(&mut self) -> Result<()> {
        self.stop();
        let endpoint = self.endpoint();
        let data = self.data.path().to_string_lossy().into_owned();
        let arguments = [
            "--data-dir",
            &data,
            "--listen-client-urls",
            &endpoint,
            "--advertise-client-urls",
            &endpoint,
            // One member needs no others; a port of its own all the same.
            "--listen-peer-urls",
            "http://127.0.0.1:0",
        ];
        let program = self.program.to_string_lossy().into_owned();
        let mut start = self.within(&program);
        start.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = start.spawn().map_err(|source| Error::Start { program, source })?;
        self.server = Some(started);
        self.wait_until_it_answers()
    }

    /// Nothing tells when it does.
    fn wait_until_it_answers(&self) -> Result<()> {
        let ask = format!(
            "exec 3<>/dev/tcp/{}/{} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q true <&3",
            self.address, self.port
        );
        let end = Instant::now() + START;
        loop {
            let asked = output(self.within("bash").args(["-c", &ask]))?;
            if asked.status.success() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Error::Command {
                    command: "etcd".to_owned(),
                    status: asked.status,
                    output: "it does not answer".to_owned(),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The program in that network, with this machine's files.
    fn within(&self, program: &str) -> std::process::Command {
        match &self.network {
            Some(network) => command("nsenter", [format!("--net={}", network.display()).as_str(), "--", program]),
            None => command::<[&str; 0], _>(program, []),
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
