//! The live client: one connection, one request at a time, every reply checked, every acknowledged write remembered.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Connection, Reply};
use crate::error::{Error, Result};

/// Keys that are written again and again.
const KEYS: u64 = 1000;

/// How the client goes about.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub server: SocketAddr,
    /// Pause between a reply and the next request.
    pub pause: Duration,
    /// Open a new connection when one breaks, instead of giving up.
    pub reconnect: bool,
    /// Report every request.
    pub samples: bool,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was sent, in microseconds from the beginning.
    pub at_us: u64,
    /// Time until its reply, in microseconds.
    pub reply_us: u32,
}

/// What the client has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were answered, and rightly, the first round included.
    pub requests: u64,
    /// Writes among them.
    pub acknowledged_writes: u64,
    /// Values of acknowledged writes that the server did not have at the end, or had otherwise.
    pub lost_writes: u64,
    /// Connections that it took; 1 means that the first one lived to the end.
    pub connections: u64,
    /// The longest time between one reply and the next, in milliseconds.
    pub longest_gap_ms: f64,
    /// When that began.
    pub longest_gap_at: Timestamp,
    /// Median time from a request to its reply, in milliseconds.
    pub median_ms: f64,
    /// How long the client ran.
    pub seconds: f64,
    /// When what is measured began.
    pub began: Timestamp,
    /// Every request, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

impl Report {
    /// The longest time between one reply and the next.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        Duration::try_from_secs_f64(self.longest_gap_ms / 1000.0).unwrap_or_default()
    }
}

/// Writes all its keys once, calls `started`, talks to the server until `stop` is set, then reads every acknowledged write again.
/// What is measured is measured from `started` on.
///
/// # Errors
/// [`Error::RedisConnection`] when the connection breaks and a new one is not allowed; [`Error::RedisAnswer`] on a reply that is
/// wrong, a value read that is not the one written included.
pub fn run(options: &Options, stop: &AtomicBool, started: impl FnOnce()) -> Result<Report> {
    let mut client = Client::new(options)?;
    for _ in 0..2 * KEYS {
        client.step()?;
    }
    client.begin_measuring();
    started();
    while !stop.load(Ordering::Relaxed) {
        match client.step() {
            Err(Error::RedisConnection { .. }) if options.reconnect => client.reconnect(stop)?,
            result => result?,
        }
        thread::sleep(options.pause);
    }
    client.finish()
}

/// A flag that is set when standard input ends: how whoever started the client stops it.
#[must_use]
pub fn end_of_input() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&flag);
    thread::spawn(move || {
        let mut rest = [0; 256];
        while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
        ended.store(true, Ordering::Relaxed);
    });
    flag
}

struct Client<'a> {
    options: &'a Options,
    connection: Connection,
    connections: u64,
    /// Number of the next request; even ones write, odd ones read.
    next: u64,
    written: HashMap<String, String>,
    writes: u64,
    start: Instant,
    began: Timestamp,
    last_reply: Instant,
    longest: Duration,
    longest_at: Timestamp,
    samples: Vec<Sample>,
}

impl<'a> Client<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            options,
            connection: Connection::open(options.server)?,
            connections: 1,
            next: 0,
            written: HashMap::new(),
            writes: 0,
            start: now,
            began: Timestamp::now(),
            last_reply: now,
            longest: Duration::ZERO,
            longest_at: Timestamp::now(),
            samples: Vec::new(),
        })
    }

    /// One request and its reply.
    fn step(&mut self) -> Result<()> {
        let turn = self.next / 2;
        let asked = Instant::now();
        if self.next.is_multiple_of(2) {
            let (key, value) = (format!("live:{}", turn % KEYS), turn.to_string());
            // Until it is acknowledged nobody knows which value the server has.
            self.written.remove(&key);
            self.connection.send(&request(&[b"SET", key.as_bytes(), value.as_bytes()]))?;
            self.connection.expect(&Reply::Simple("OK".to_owned()), &format!("SET {key}"))?;
            self.written.insert(key, value);
            self.writes += 1;
        } else {
            // Not only the newest: a stride that meets all keys.
            let key = format!("live:{}", turn.wrapping_mul(7) % KEYS.min(turn + 1));
            let Some(value) = self.written.get(&key) else {
                self.next += 1;
                return Ok(());
            };
            let expected = Reply::Bulk(value.clone().into_bytes());
            self.connection.send(&request(&[b"GET", key.as_bytes()]))?;
            self.connection.expect(&expected, &format!("GET {key}"))?;
        }
        self.next += 1;
        self.note_reply(asked);
        Ok(())
    }

    fn begin_measuring(&mut self) {
        self.start = Instant::now();
        self.began = Timestamp::now();
        self.last_reply = self.start;
        self.longest = Duration::ZERO;
        self.samples.clear();
    }

    fn note_reply(&mut self, asked: Instant) {
        let now = Instant::now();
        let gap = now - self.last_reply;
        if gap > self.longest {
            self.longest = gap;
            self.longest_at = Timestamp::now() - gap;
        }
        self.last_reply = now;
        self.samples.push(Sample {
            at_us: u64::try_from((asked - self.start).as_micros()).unwrap_or(u64::MAX),
            reply_us: u32::try_from((now - asked).as_micros()).unwrap_or(u32::MAX),
        });
    }

    /// Opens another connection, for as long as that takes.
    fn reconnect(&mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            match Connection::open(self.options.server) {
                Ok(connection) => {
                    self.connection = connection;
                    self.connections += 1;
                    return Ok(());
                }
                Err(error) if stop.load(Ordering::Relaxed) => return Err(error),
                // A refused connection is refused at once: do not ask a thousand times a second.
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn finish(mut self) -> Result<Report> {
        let mut lost = 0;
        for (key, value) in &self.written {
            let reply = self.connection.call(&[b"GET", key.as_bytes()])?;
            lost += u64::from(reply != Reply::Bulk(value.clone().into_bytes()));
        }
        let mut latencies: Vec<u32> = self.samples.iter().map(|sample| sample.reply_us).collect();
        latencies.sort_unstable();
        let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        let samples = if self.options.samples { self.samples } else { Vec::new() };
        Ok(Report {
            requests: self.next,
            acknowledged_writes: self.writes,
            lost_writes: lost,
            connections: self.connections,
            longest_gap_ms: self.longest.as_secs_f64() * 1000.0,
            longest_gap_at: self.longest_at,
            median_ms: f64::from(median) / 1000.0,
            seconds: self.start.elapsed().as_secs_f64(),
            began: self.began,
            samples,
        })
    }
}

fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut request = Vec::new();
    super::encode(&mut request, words);
    request
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::redis::decode;

    /// Serves one connection from a map, for so many requests; then closes it.
    fn serve(stream: TcpStream, kept: &mut HashMap<Vec<u8>, Vec<u8>>, requests: usize) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        for _ in 0..requests {
            let mut count = String::new();
            if std::io::BufRead::read_line(&mut reader, &mut count).unwrap_or(0) == 0 {
                return;
            }
            let words: Vec<Vec<u8>> = (0..count.trim()[1..].parse().unwrap())
                .map(|_| match decode(&mut reader).unwrap() {
                    Some(Reply::Bulk(word)) => word,
                    other => panic!("{other:?}"),
                })
                .collect();
            if let [set, key, value] = words.as_slice() {
                assert_eq!(set, b"SET");
                kept.insert(key.clone(), value.clone());
                writer.write_all(b"+OK\r\n").unwrap();
            } else {
                let value = &kept[&words[1]];
                let mut reply = format!("${}\r\n", value.len()).into_bytes();
                reply.extend_from_slice(value);
                reply.extend_from_slice(b"\r\n");
                writer.write_all(&reply).unwrap();
            }
        }
    }

    /// A server that closes each connection after so many requests; `spoil` changes its data in between.
    fn server(requests: &'static [usize], spoil: fn(&mut HashMap<Vec<u8>, Vec<u8>>)) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut kept = HashMap::new();
            for requests in requests {
                serve(listener.accept().unwrap().0, &mut kept, *requests);
                spoil(&mut kept);
            }
        });
        address
    }

    fn options(server: SocketAddr, reconnect: bool) -> Options {
        Options { server, pause: Duration::ZERO, reconnect, samples: true }
    }

    #[test]
    fn a_faithful_server_loses_nothing() {
        let stop = AtomicBool::new(false);
        let options = options(server(&[usize::MAX], |_| ()), false);
        let report = run(&options, &stop, || stop.store(true, Ordering::Relaxed)).unwrap();
        assert_eq!((report.connections, report.lost_writes), (1, 0));
        assert_eq!(report.acknowledged_writes, KEYS);
        // The first round is none of what is measured.
        assert!(report.samples.len() <= 1, "{:?}", report.samples);
    }

    #[test]
    fn a_broken_connection_is_an_error_unless_another_is_allowed() {
        let stop = AtomicBool::new(false);
        let broken = run(&options(server(&[2500], |_| ()), false), &stop, || ());
        assert!(matches!(broken, Err(Error::RedisConnection { .. })), "{broken:?}");
    }

    #[test]
    fn a_server_that_forgets_is_found_out() {
        let stop = AtomicBool::new(false);
        let server = server(&[2500, usize::MAX], |kept| {
            for value in kept.values_mut() {
                value.push(b'!');
            }
        });
        let found = run(&options(server, true), &stop, || ());
        assert!(matches!(found, Err(Error::RedisAnswer { .. })), "{found:?}");
    }
}
