//! How fast a transfer is between two ends on this machine: `cargo run --release -p spothop-transfer --example throughput`.
//!
//! Both ends share the machine's cores and the loopback device, so two real hosts on a fast network do better. Files are kept in /dev/shm,
//! as CRIU's images are on a tmpfs. Optional arguments: MiB of data (default 1024), number of data connections (default 4).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use spothop_transfer::certs::{self, Existing};
use spothop_transfer::{Extent, ExtentSink, ExtentSource, Identity, Limits, Listener, Session, Stats, connect};

type Failure = Box<dyn std::error::Error>;

/// What the data is like.
const KINDS: [&str; 4] = ["random", "half", "text", "zero"];

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let mebibytes = arguments.next().transpose()?.unwrap_or(1024);
    let connections = arguments.next().transpose()?.unwrap_or(4);

    let dir = tempfile::tempdir_in("/dev/shm")?;
    certs::init(&dir.path().join("ca"), Existing::Keep)?;
    let identity = |host: &str| -> Result<Identity, Failure> {
        let out = dir.path().join(host);
        certs::issue(&dir.path().join("ca"), host, &[], &out, Existing::Keep)?;
        Ok(Identity::load(&out)?)
    };
    let (a, b) = (identity("a")?, identity("b")?);
    let mut listener = Listener::bind("127.0.0.1:0", &b).await?;
    let address = listener.local_addr().to_string();

    println!("{mebibytes} MiB, {connections} data connections, both ends on this machine");
    println!("data    what      GB/s   wire/raw  CPU s (both ends)");
    for kind in KINDS {
        let (opened, mut target) = tokio::join!(connect(&address, "b", &a, connections), listener.accept());
        let mut source = opened?;
        let root = dir.path().join("data");
        std::fs::create_dir_all(&root)?;
        make(&root.join(kind), kind, mebibytes)?;
        files(&mut source, &mut target, &root, kind, &dir.path().join("warm-up")).await?;
        for round in 0..2 {
            let cpu = cpu_seconds();
            let stats = files(&mut source, &mut target, &root, kind, &dir.path().join("out")).await?;
            report(kind, if round == 0 { "files" } else { "again" }, &stats, cpu_seconds() - cpu);
        }
        let cpu = cpu_seconds();
        let stats = stream(&mut source, &mut target, &root.join(kind)).await?;
        report(kind, "stream", &stats, cpu_seconds() - cpu);
        // Whole chunks, and single pages: the best and the worst that the memory of a task can look like.
        for (what, length) in [("extents", Extent::MAX_LENGTH), ("pages", 4096)] {
            let cpu = cpu_seconds();
            let stats = extents(&mut source, &mut target, &root.join(kind), &dir.path().join("out"), length).await?;
            report(kind, what, &stats, cpu_seconds() - cpu);
        }
        std::fs::remove_dir_all(&root)?;
        let (closed, last) = tokio::join!(source.close(), target.recv());
        closed?;
        last?;
    }
    Ok(())
}

async fn files(
    source: &mut Session,
    target: &mut Session,
    root: &Path,
    name: &str,
    out: &Path,
) -> Result<Stats, Failure> {
    std::fs::create_dir_all(out)?;
    let names = [name.to_owned()];
    let limits = Limits::bytes(u64::MAX);
    let (sent, received) =
        tokio::join!(source.send_files(root, &names, &|_| {}), target.receive_files(out, &limits, &|_| {}));
    std::fs::remove_dir_all(out)?;
    received?;
    Ok(sent?)
}

async fn stream(source: &mut Session, target: &mut Session, path: &Path) -> Result<Stats, Failure> {
    let file = tokio::fs::File::open(path).await?;
    let (sent, received) =
        tokio::join!(source.send_stream(file, &|_| {}), target.receive_stream(tokio::io::sink(), u64::MAX, &|_| {}));
    received?;
    Ok(sent?)
}

/// A file in pieces of one length, from its start.
struct Pieces {
    file: File,
    size: u64,
    length: u32,
    next: AtomicU64,
}

impl ExtentSource for Pieces {
    fn next(&self) -> Option<Extent> {
        let offset = self.next.fetch_add(u64::from(self.length), Ordering::Relaxed);
        (offset < self.size).then_some(Extent { object: 1, offset, length: self.length })
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read_at(buffer, extent.offset)
    }
}

/// A sparse file.
struct Store(File);

impl ExtentSink for Store {
    fn put(&self, _: u32, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn zero(&self, _: u32, _: u64, _: u32) -> std::io::Result<()> {
        Ok(())
    }
}

async fn extents(
    source: &mut Session,
    target: &mut Session,
    path: &Path,
    out: &Path,
    length: u32,
) -> Result<Stats, Failure> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let pieces = Arc::new(Pieces { file, size, length, next: AtomicU64::new(0) });
    let store = Arc::new(Store(File::create(out)?));
    let limits = Limits::bytes(size);
    let (sent, received) =
        tokio::join!(source.send_extents(pieces, &|_| {}), target.receive_extents(store, &limits, &|_| {}));
    std::fs::remove_file(out)?;
    received?;
    Ok(sent?)
}

fn report(kind: &str, what: &str, stats: &Stats, cpu: f64) {
    let speed = stats.bytes_per_second() / 1e9;
    let ratio = stats.wire_bytes as f64 / stats.raw_bytes as f64;
    println!("{kind:7} {what:7} {speed:6.2}   {ratio:8.3}  {cpu:5.2}");
}

/// Fills a file with data of the kind.
fn make(path: &Path, kind: &str, mebibytes: usize) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut file = File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        match kind {
            "random" => block.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random().to_le_bytes())),
            // Every other 64 bytes random, the rest one value: a stand-in for heaps.
            "half" => block.chunks_exact_mut(128).for_each(|line| {
                line[..64].chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random().to_le_bytes()));
                line[64..].fill(7);
            }),
            "text" => block.chunks_exact_mut(16).for_each(|word| {
                let number = random() % 100_000;
                word.copy_from_slice(format!("key:{number:010}\r\n").as_bytes());
            }),
            _ => {}
        }
        file.write_all(&block)?;
    }
    eprintln!("({kind}: made in {:.1} s)", begin.elapsed().as_secs_f64());
    Ok(())
}

/// User and system time of this process so far (/proc/self/stat, fields 14 and 15, in hundredths of a second).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: f64 = stat.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
