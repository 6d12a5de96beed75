//! A client that outlives its connection: it tells what was lost apart from what was only interrupted.
//!
//! It keeps one connection for as long as that lives, notes when and why it broke, opens another and goes on. A write counts
//! once it is acknowledged; one that was under way when the connection broke may or may not have happened.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Connection, Reply};
use crate::error::{Error, Result};

/// Keys that are written again and again.
const KEYS: u64 = 100;
/// Losses that are told one by one.
const TOLD: usize = 10;
/// A frozen server says nothing for as long as its host takes to come back, and its connection is whole all the while.
const PATIENCE: Duration = Duration::from_secs(600);
/// Long enough for a handshake, short enough to try again while a host boots.
const CONNECT: Duration = Duration::from_secs(1);
/// How long the last questions may take.
const LAST: Duration = Duration::from_secs(10);

/// Whom to talk to, and how fast.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub server: SocketAddr,
    /// Pause between a reply and the next request.
    pub pause: Duration,
    /// Makes the values of this client differ from those of all others.
    pub mark: String,
}

/// The end of a connection that was not ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Break {
    /// When it was noticed.
    pub at: Timestamp,
    /// What the system said.
    pub why: String,
}

/// What the client has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Writes that the server has acknowledged.
    pub acknowledged_writes: u64,
    /// How many of them were not there when they were read.
    pub lost_writes: u64,
    /// The first of those, in words.
    pub lost: Vec<String>,
    /// Connections that broke.
    pub breaks: Vec<Break>,
    /// The longest time between one reply and the next, in milliseconds.
    pub longest_gap_ms: f64,
    /// When that began.
    pub longest_gap_at: Timestamp,
    /// The server's `run_id` at the beginning and at the end; another one means that it was started anew.
    pub run_ids: (String, String),
    /// Why the last look at the data did not happen, if it did not.
    pub unread: Option<String>,
}

impl Report {
    /// Of a client that has heard nothing yet.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            acknowledged_writes: 0,
            lost_writes: 0,
            lost: Vec::new(),
            breaks: Vec::new(),
            longest_gap_ms: 0.0,
            longest_gap_at: Timestamp::now(),
            run_ids: Default::default(),
            unread: None,
        }
    }
}

/// The handle by which others ask and stop a client.
#[derive(Debug, Clone, Default)]
pub struct Remote {
    flag: Arc<AtomicBool>,
    longest_ms: Arc<Mutex<f64>>,
    replies: Arc<AtomicU64>,
    /// The connection in use: shut down when the server does not answer.
    stream: Arc<Mutex<Option<TcpStream>>>,
}

impl Remote {
    /// The longest time between one reply and the next since this was asked last, in milliseconds.
    #[must_use]
    pub fn take_longest_gap(&self) -> f64 {
        std::mem::take(&mut *self.longest_ms.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many requests were answered so far.
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    fn note_gap(&self, gap_ms: f64) {
        let mut longest = self.longest_ms.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = longest.max(gap_ms);
        self.replies.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets the client end after the reply that it waits for.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Takes its connection away, because it waits for a reply that does not come.
    pub fn hang_up(&self) {
        if let Some(stream) = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stream.shutdown(Shutdown::Both); // broken already
        }
    }

    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// Connects, writes all keys once, calls `started`, talks to the server until it is stopped, and reads every acknowledged write
/// again. What is measured is measured from `started` on.
///
/// # Errors
/// Only before `started`; what goes wrong later is in the report.
pub fn run(options: &Options, stop: &Remote, started: impl FnOnce()) -> Result<Report> {
    let mut client = Client::new(options, stop)?;
    for _ in 0..2 * KEYS {
        client.step()?;
    }
    client.report.run_ids.0 = client.run_id()?;
    client.last_reply = Instant::now();
    client.report.longest_gap_ms = 0.0;
    let _ = stop.take_longest_gap();
    started();
    while !stop.is_set() {
        if let Err(error) = client.step() {
            client.renew(&error);
        }
        thread::sleep(options.pause);
    }
    Ok(client.finish())
}

struct Client<'a> {
    options: &'a Options,
    stop: &'a Remote,
    /// None while there is none to be had.
    connection: Option<Connection>,
    /// Number of the next request; even ones write, odd ones read.
    next: u64,
    written: HashMap<String, String>,
    last_reply: Instant,
    report: Report,
}

impl<'a> Client<'a> {
    fn new(options: &'a Options, stop: &'a Remote) -> Result<Self> {
        let mut client = Self {
            options,
            stop,
            connection: None,
            next: 0,
            written: HashMap::new(),
            last_reply: Instant::now(),
            report: Report::empty(),
        };
        client.connect()?;
        Ok(client)
    }

    fn connect(&mut self) -> Result<()> {
        let connection = Connection::open_within(self.options.server, CONNECT, PATIENCE)?;
        *self.stop.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.stream()?);
        self.connection = Some(connection);
        Ok(())
    }

    /// Notes why the connection broke, and tries to get another; whoever asks next tries again.
    fn renew(&mut self, error: &Error) {
        if self.connection.take().is_some() {
            self.report.breaks.push(Break { at: Timestamp::now(), why: format!("{:#}", Chain(error)) });
        }
        if self.connect().is_err() {
            // Refused at once while nobody listens: do not ask a thousand times a second.
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn call(&mut self, words: &[&[u8]]) -> Result<Reply> {
        match &mut self.connection {
            Some(connection) => connection.call(words),
            None => Err(Error::RedisConnection {
                peer: self.options.server,
                source: std::io::ErrorKind::NotConnected.into(),
            }),
        }
    }

    /// One request and its reply.
    fn step(&mut self) -> Result<()> {
        let turn = self.next / 2;
        if self.next.is_multiple_of(2) {
            let (key, value) = (format!("lasting:{}", turn % KEYS), format!("{}:{turn}", self.options.mark));
            // Until it is acknowledged nobody knows which value the server has.
            self.written.remove(&key);
            match self.call(&[b"SET", key.as_bytes(), value.as_bytes()])? {
                Reply::Simple(word) if word == "OK" => {
                    self.written.insert(key, value);
                    self.report.acknowledged_writes += 1;
                }
                // Not acknowledged, so nothing is promised: a server that just starts says LOADING.
                Reply::Error(_) => return Ok(()),
                reply => self.lose(format!("SET {key} was answered with {reply:?}")),
            }
        } else {
            let key = format!("lasting:{}", turn.wrapping_mul(7) % KEYS.min(turn + 1));
            self.compare(&key)?;
        }
        self.next += 1;
        let now = Instant::now();
        let gap = (now - self.last_reply).as_secs_f64() * 1000.0;
        self.stop.note_gap(gap);
        if gap > self.report.longest_gap_ms {
            self.report.longest_gap_ms = gap;
            self.report.longest_gap_at = Timestamp::now() - (now - self.last_reply);
        }
        self.last_reply = now;
        Ok(())
    }

    /// Reads one key; what was acknowledged must be there.
    fn compare(&mut self, key: &str) -> Result<()> {
        let Some(expected) = self.written.get(key).cloned() else { return Ok(()) };
        let reply = self.call(&[b"GET", key.as_bytes()])?;
        if matches!(&reply, Reply::Error(text) if text.starts_with("LOADING")) {
            return Ok(());
        }
        if reply != Reply::Bulk(expected.clone().into_bytes()) {
            self.written.remove(key);
            self.lose(format!("{key} was {expected:?} and is {}", super::brief(&reply)));
        }
        Ok(())
    }

    fn lose(&mut self, what: String) {
        self.report.lost_writes += 1;
        if self.report.lost.len() < TOLD {
            self.report.lost.push(what);
        }
    }

    /// Redis makes a new one at every start (INFO, section `server`).
    fn run_id(&mut self) -> Result<String> {
        let reply = self.call(&[b"INFO", b"server"])?;
        let text = match &reply {
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes),
            _ => Default::default(),
        };
        let id = text.lines().find_map(|line| line.strip_prefix("run_id:"));
        id.map(str::to_owned).ok_or_else(|| Error::RedisAnswer {
            peer: self.options.server,
            problem: format!("told no run_id: {}", super::brief(&reply)),
        })
    }

    fn finish(mut self) -> Report {
        let end = Instant::now() + LAST;
        loop {
            match self.read_all() {
                Ok(id) => {
                    self.report.run_ids.1 = id;
                    return self.report;
                }
                Err(error) if Instant::now() < end => self.renew(&error),
                Err(error) => {
                    self.report.unread = Some(format!("{:#}", Chain(&error)));
                    return self.report;
                }
            }
        }
    }

    fn read_all(&mut self) -> Result<String> {
        let id = self.run_id()?;
        let keys: Vec<String> = self.written.keys().cloned().collect();
        for key in keys {
            self.compare(&key)?;
        }
        Ok(id)
    }
}

/// An error with its cause.
struct Chain<'a>(&'a Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        match std::error::Error::source(self.0) {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::redis::decode;

    type Kept = HashMap<Vec<u8>, Vec<u8>>;

    /// Serves a connection for so many requests, then closes it.
    fn serve(stream: TcpStream, kept: &mut Kept, run_id: &str, requests: u64) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut writer = stream;
        for _ in 0..requests {
            let mut count = String::new();
            std::io::BufRead::read_line(&mut reader, &mut count).ok()?;
            let mut words = Vec::new();
            for _ in 0..count.trim().get(1..)?.parse().ok()? {
                let Ok(Some(Reply::Bulk(word))) = decode(&mut reader) else { return None };
                words.push(word);
            }
            let bulk = |bytes: &[u8]| [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
            let reply = match words.as_slice() {
                [set, key, value] if set == b"SET" => {
                    kept.insert(key.clone(), value.clone());
                    b"+OK\r\n".to_vec()
                }
                [get, key] if get == b"GET" => kept.get(key).map_or_else(|| b"$-1\r\n".to_vec(), |value| bulk(value)),
                _ => bulk(format!("# Server\r\nrun_id:{run_id}\r\n").as_bytes()),
            };
            writer.write_all(&reply).ok()?;
        }
        Some(())
    }

    /// A server that is another one on every connection but the first, and has what `between` leaves it.
    fn run_against(requests: u64, between: fn(&mut Kept)) -> Report {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut kept = Kept::new();
            for (number, requests) in [requests, u64::MAX].into_iter().enumerate() {
                serve(listener.accept().unwrap().0, &mut kept, &format!("id{number}"), requests);
                between(&mut kept);
            }
        });
        let remote = Remote::default();
        let options = Options { server, pause: Duration::ZERO, mark: "t".to_owned() };
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while remote.replies() < 1000 {
                    thread::yield_now();
                }
                remote.stop();
            });
            let report = run(&options, &remote, || ()).unwrap();
            watcher.join().unwrap();
            report
        })
    }

    #[test]
    fn a_faithful_server_on_one_connection_is_told_as_such() {
        let report = run_against(u64::MAX, |_| ());
        assert_eq!((report.lost_writes, report.breaks.len(), report.unread), (0, 0, None));
        assert_eq!(report.run_ids, ("id0".to_owned(), "id0".to_owned()));
        assert!(report.acknowledged_writes >= 500);
    }

    #[test]
    fn a_broken_connection_is_told_apart_from_lost_data() {
        let report = run_against(600, |_| ());
        assert_eq!((report.lost_writes, report.breaks.len(), report.unread), (0, 1, None));
        assert_eq!(report.run_ids.1, "id1");
    }

    #[test]
    fn every_acknowledged_write_that_is_gone_is_counted() {
        let report = run_against(600, |kept| kept.retain(|key, _| key != b"lasting:7"));
        assert_eq!(report.breaks.len(), 1);
        // It may have been written again before it was read.
        assert!(report.lost_writes <= 1);
        let all = run_against(600, Kept::clear);
        assert!(all.lost_writes > 0, "{all:?}");
        assert!(all.lost[0].contains("and is Nil"), "{all:?}");
    }
}
