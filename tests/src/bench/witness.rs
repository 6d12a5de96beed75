//! The client: on a machine of its own, one connection, every answer checked.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Stdio};

use crate::command::run;
use crate::error::{Error, Result};
use crate::redis::data::Values;
use crate::redis::live;
use crate::testbed::Testbed;

/// Redis's port.
const PORT: u16 = 6379;

/// How the client goes about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Talk {
    /// Pause between a reply and the next request, in microseconds.
    pub(super) pause_us: u32,
    /// Whether every request's time is reported.
    pub(super) samples: bool,
}

impl Default for Talk {
    fn default() -> Self {
        Self { pause_us: 2000, samples: false }
    }
}

/// The server that is watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server<'a> {
    bed: &'a Testbed,
    address: SocketAddr,
}

impl<'a> Server<'a> {
    pub(super) fn new(bed: &'a Testbed, address: Ipv4Addr) -> Self {
        Self { bed, address: (address, PORT).into() }
    }

    /// Waits until it answers, and fills it. Most of a server's start is not to be seen from outside.
    pub(super) fn fill(&self, mib: u64) -> Result<()> {
        self.fill_with(Values::Random, mib)
    }

    /// Reads everything again that [`Server::fill`] has put in.
    pub(super) fn verify(&self, mib: u64) -> Result<()> {
        self.verify_with(Values::Random, mib)
    }

    /// Like [`Server::fill`], with values of this kind.
    pub(super) fn fill_with(&self, values: Values, mib: u64) -> Result<()> {
        self.tool(["redis-load", &self.address.to_string(), &mib.to_string(), "--values", values.name()])
    }

    /// Reads everything again that [`Server::fill_with`] has put in.
    pub(super) fn verify_with(&self, values: Values, mib: u64) -> Result<()> {
        self.tool(["redis-verify", &self.address.to_string(), &mib.to_string(), "--values", values.name()])
    }

    /// Starts the client; returns when it has its first answer.
    pub(super) fn watch(&self, talk: Talk) -> Result<Witness> {
        let address = self.address.to_string();
        let pause = talk.pause_us.to_string();
        let mut command =
            self.bed.client(["testbed", "redis-client", &address, "--pause-us", &pause, "--reconnect"])?;
        if talk.samples {
            command.arg("--samples");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let started = |source| Error::Start { program: "the client".to_owned(), source };
        let mut child = command.spawn().map_err(started)?;
        let output = child.stdout.take().map(BufReader::new);
        let mut witness = Witness { child, output };
        witness.line()?;
        Ok(witness)
    }

    fn tool<const N: usize>(&self, arguments: [&str; N]) -> Result<()> {
        let words = ["testbed"].into_iter().chain(arguments);
        run(&mut self.bed.client(words)?).map(drop)
    }
}

/// A client at work.
#[derive(Debug)]
pub(super) struct Witness {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl Witness {
    /// Lets it stop, and hears what it has seen.
    pub(super) fn report(mut self) -> Result<live::Report> {
        drop(self.child.stdin.take());
        let line = self.line()?;
        let failed = |source| Error::Start { program: "the client".to_owned(), source };
        self.child.wait().map_err(failed)?;
        serde_json::from_str(&line).map_err(|source| Error::Json { what: "the client's report".to_owned(), source })
    }

    /// Its next line; it says why on standard error when it ends without one.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.as_mut().map(|output| output.read_line(&mut line));
        match read {
            Some(Ok(1..)) => Ok(line),
            _ => Err(Error::Unexpected { what: "what the client says".to_owned(), text: line }),
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // Without its input it ends by itself.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
