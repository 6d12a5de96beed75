//! Redis under a live client on one host, watched while it moves: what the demo, the end-to-end tests and the benchmarks have in
//! common.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;

use crate::cli::STARTED;
use crate::command::{check, run};
use crate::error::{Context, Error, Result};
use crate::layout::LAN;
use crate::redis::{data, live};
use crate::testbed::Testbed;

/// Redis's port.
const PORT: u16 = 6379;

/// A Redis container with data in it.
#[derive(Debug)]
pub struct Redis<'a> {
    bed: &'a Testbed,
    name: String,
    server: SocketAddr,
    mib: u64,
}

/// A client that is talking to it.
#[derive(Debug)]
pub struct LiveClient {
    process: Child,
    /// Its end is what stops the client.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl<'a> Redis<'a> {
    /// Starts a container `name` of the image `redis` on `host`, with this address on the network of the hosts, and puts `mib` MiB
    /// into it.
    ///
    /// # Errors
    /// [`Error::Command`] with the words of Docker or of the loading program.
    pub fn start(
        bed: &'a Testbed,
        host: &str,
        name: &str,
        address: Ipv4Addr,
        mib: u64,
    ) -> Result<(Self, data::Report)> {
        let mac = crate::layout::hardware_address(address);
        bed.output(
            host,
            [
                "docker",
                "run",
                "--detach",
                &format!("--name={name}"),
                &format!("--network={LAN}"),
                &format!("--ip={address}"),
                &format!("--mac-address={mac}"),
                "redis",
            ],
        )?;
        let redis = Self { bed, name: name.to_owned(), server: SocketAddr::from((address, PORT)), mib };
        let loaded = redis.tool("redis-load", &[&mib.to_string()])?;
        Ok((redis, loaded))
    }

    /// One that is there already, with `mib` MiB that [`Redis::start`] has put into it.
    #[must_use]
    pub fn at(bed: &'a Testbed, name: &str, address: Ipv4Addr, mib: u64) -> Self {
        Self { bed, name: name.to_owned(), server: SocketAddr::from((address, PORT)), mib }
    }

    /// The container's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts a client on the client machine; returns when all its keys are written.
    ///
    /// # Errors
    /// [`Error::Command`] with the client's words when it does not get so far.
    pub fn talk(&self, reconnect: bool) -> Result<LiveClient> {
        let mut command = self.bed.client(["testbed", "redis-client", &self.server.to_string()])?;
        if reconnect {
            command.arg("--reconnect");
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program: "redis-client".to_owned(), source })?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(unexpected("the client's pipes", ""));
        };
        let mut client = LiveClient { process, input: Some(input), output: BufReader::new(output) };
        let line = client.line()?;
        if line.trim() == STARTED {
            return Ok(client);
        }
        client.input = None;
        let status = client.process.wait().on("wait for", Path::new("redis-client"))?;
        Err(Error::Command { command: "redis-client".to_owned(), status, output: line })
    }

    /// Reads all data again and compares it.
    ///
    /// # Errors
    /// [`Error::Command`] with what is wrong.
    pub fn verify(&self) -> Result<data::Report> {
        self.tool("redis-verify", &[&self.mib.to_string()])
    }

    /// How many keys the server has.
    ///
    /// # Errors
    /// [`Error::Command`]; [`Error::Unexpected`] when the answer is no number.
    pub fn key_count(&self) -> Result<u64> {
        let address = self.server.ip().to_string();
        let output = run(&mut self.bed.client(["redis-cli", "-h", &address, "--raw", "DBSIZE"])?)?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        text.parse().map_err(|_| unexpected("the answer to DBSIZE", &text))
    }

    fn tool<T: DeserializeOwned>(&self, tool: &str, arguments: &[&str]) -> Result<T> {
        let mut command = self.bed.client(["testbed", tool, &self.server.to_string()])?;
        let output = run(command.args(arguments))?;
        report(&String::from_utf8_lossy(&output.stdout))
    }
}

impl LiveClient {
    /// Lets the client end: it reads every acknowledged write once more, and reports.
    ///
    /// # Errors
    /// [`Error::Command`] when it has given up before; its words are on our standard error.
    pub fn stop(mut self) -> Result<live::Report> {
        self.input = None;
        let line = self.line()?;
        let output = self.process.wait_with_output().on("wait for", Path::new("redis-client"))?;
        check(&Command::new("redis-client"), output)?;
        report(&line)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).on("read from", Path::new("redis-client"))?;
        Ok(line)
    }
}

fn report<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|source| Error::Json { what: format!("the report {line:?}"), source })
}

fn unexpected(what: &str, text: &str) -> Error {
    Error::Unexpected { what: what.to_owned(), text: text.to_owned() }
}
