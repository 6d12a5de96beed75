//! Transfers between two sessions over pipes in memory: what arrives, and what each side says when something is wrong.

mod extents;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::transfer::{Transfer, write_chunk};
use super::{CHUNK, Limits, Stats};
use crate::codec::{Packer, Place, seal};
use crate::error::{AbortCode, Error};
use crate::link::Link;
use crate::session::Session;
use crate::testing::{cut, flip, noise, pair, tampered_pair};
use crate::wire::chunk::{HEADER, Header};
use crate::wire::message::{Content, File};

const CHUNK_LENGTH: usize = CHUNK as usize;
const ALL: Limits = Limits::bytes(u64::MAX);

fn quiet(_: u64) {}

/// Makes the files and gives their names.
fn fill(root: &Path, files: &[(&str, Vec<u8>)]) -> Vec<String> {
    for (name, content) in files {
        fs::write(root.join(name), content).unwrap();
    }
    files.iter().map(|(name, _)| (*name).to_owned()).collect()
}

struct Dirs {
    from: tempfile::TempDir,
    to: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Self {
        Self { from: tempfile::tempdir().unwrap(), to: tempfile::tempdir().unwrap() }
    }
}

/// Sends and receives at once, for at most ten seconds: both sides must come to an end.
async fn move_files(
    a: &mut Session,
    b: &mut Session,
    dirs: &Dirs,
    names: &[String],
    limits: &Limits,
) -> (Result<Stats, Error>, Result<Stats, Error>) {
    let both = async {
        tokio::join!(a.send_files(dirs.from.path(), names, &quiet), b.receive_files(dirs.to.path(), limits, &quiet))
    };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("both sides end")
}

/// After a failed transfer the two can still talk, but not transfer.
async fn still_talking(a: &mut Session, b: &mut Session) {
    a.send(b"so what now?").await.unwrap();
    assert_eq!(b.recv().await.unwrap().as_deref(), Some(&b"so what now?"[..]));
    b.send(b"nothing").await.unwrap();
    assert_eq!(a.recv().await.unwrap().as_deref(), Some(&b"nothing"[..]));
    for session in [a, b] {
        let again = session.send_files(Path::new("/"), &[], &quiet).await;
        assert!(matches!(again, Err(Error::NoDataConnections { .. })), "{again:?}");
    }
}

#[tokio::test]
async fn files_of_all_sizes_arrive_as_they_were() {
    let dirs = Dirs::new();
    let mut mixed = noise(1, CHUNK_LENGTH);
    mixed.extend(vec![0; CHUNK_LENGTH]);
    mixed.extend(vec![7; CHUNK_LENGTH + 17]);
    let files = [
        ("empty", Vec::new()),
        ("one", vec![1]),
        ("exactly", noise(2, CHUNK_LENGTH)),
        ("one-more", noise(3, CHUNK_LENGTH + 1)),
        ("mixed", mixed),
        ("zeros", vec![0; 2 * CHUNK_LENGTH + 5]),
    ];
    let names = fill(dirs.from.path(), &files);
    for connections in [1, 3] {
        let (mut a, mut b) = pair(connections);
        // The same connections carry one transfer after the other.
        for round in 0..2 {
            let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &ALL).await;
            let (sent, received) = (sent.unwrap(), received.unwrap());
            for (name, content) in &files {
                let path = dirs.to.path().join(name);
                assert!(fs::read(&path).unwrap() == *content, "{name}, {connections} connections, round {round}");
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                fs::remove_file(path).unwrap();
            }
            let total: usize = files.iter().map(|(_, content)| content.len()).sum();
            assert_eq!(sent.raw_bytes, total as u64);
            assert_eq!(sent.zero_bytes, 3 * u64::from(CHUNK) + 5);
            let most = sent.raw_bytes - sent.zero_bytes + 100 * HEADER as u64;
            assert!(sent.wire_bytes <= most, "headers and no more than the raw bytes: {sent:?}");
            assert_eq!(Stats { elapsed: sent.elapsed, ..received }, sent);
        }
    }
}

#[tokio::test]
async fn no_files_are_a_transfer_too() {
    let dirs = Dirs::new();
    let (mut a, mut b) = pair(2);
    let (sent, received) = move_files(&mut a, &mut b, &dirs, &[], &ALL).await;
    assert_eq!((sent.unwrap().raw_bytes, received.unwrap().raw_bytes), (0, 0));
}

#[tokio::test]
async fn zero_chunks_become_holes() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("sparse", vec![0; 8 * CHUNK_LENGTH])]);
    let (mut a, mut b) = pair(2);
    let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &ALL).await;
    assert_eq!(sent.unwrap().wire_bytes, (8 + 2) * HEADER as u64, "headers only");
    received.unwrap();
    let metadata = fs::metadata(dirs.to.path().join("sparse")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (8 * u64::from(CHUNK), 0));
}

#[tokio::test]
async fn progress_grows_to_the_total_on_both_sides() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("a", noise(1, 3 * CHUNK_LENGTH)), ("b", noise(2, 1000))]);
    let (mut a, mut b) = pair(2);
    let (told_a, told_b) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (progress_a, progress_b) = (|n| told_a.lock().unwrap().push(n), |n| told_b.lock().unwrap().push(n));
    let (sent, received) = tokio::join!(
        a.send_files(dirs.from.path(), &names, &progress_a),
        b.receive_files(dirs.to.path(), &ALL, &progress_b)
    );
    sent.unwrap();
    received.unwrap();
    for told in [told_a, told_b] {
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted());
        assert_eq!(told.last(), Some(&(3 * u64::from(CHUNK) + 1000)));
    }
}

#[tokio::test]
async fn a_cut_in_the_middle_of_a_chunk_fails_both_sides() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("pages", noise(1, 8 * CHUNK_LENGTH))]);
    let (mut a, mut b) = tampered_pair(3, |index| (index == 1).then(|| cut(u64::from(CHUNK) / 2)));
    let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &ALL).await;
    assert_cut(&sent, &received);
    still_talking(&mut a, &mut b).await;
}

/// Both sides find the connection broken by themselves; to one of them the other may have said so before.
fn assert_cut(sent: &Result<Stats, Error>, received: &Result<Stats, Error>) {
    let told = |result: &Result<Stats, Error>| matches!(result, Err(Error::Peer { code: AbortCode::Connection, .. }));
    assert!(matches!(received, Err(Error::Truncated { during: "a chunk", .. })) || told(received), "{received:?}");
    assert!(matches!(sent, Err(Error::Disconnected { during: "a transfer", .. })) || told(sent), "{sent:?}");
    assert!(!(told(sent) && told(received)), "one of them has seen it");
}

#[tokio::test]
async fn a_flipped_byte_is_named_by_file_and_offset() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("small", vec![1; 9]), ("pages", noise(1, 3 * CHUNK_LENGTH))]);
    // Compressed and incompressible content alike: of the one connection, the first chunk is `small`.
    let second_chunk = 200 + HEADER as u64 + u64::from(CHUNK);
    for (position, object, at) in
        [(HEADER as u64 + 2, "small", 0), (5000, "pages", 0), (second_chunk, "pages", u64::from(CHUNK))]
    {
        let (mut a, mut b) = tampered_pair(1, |_| Some(flip(position)));
        let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &ALL).await;
        let received = received.unwrap_err();
        assert!(
            matches!(&received, Error::Checksum { object: o, offset, .. } if o == object && *offset == at),
            "{received}"
        );
        assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Corrupt, .. })), "{sent:?}");
        still_talking(&mut a, &mut b).await;
        for name in &names {
            fs::remove_file(dirs.to.path().join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_of_a_header_is_noticed() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("pages", noise(1, 100))]);
    let (mut a, mut b) = tampered_pair(1, |_| Some(flip(20)));
    let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &ALL).await;
    assert!(matches!(received, Err(Error::Checksum { .. })), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Corrupt, .. })), "{sent:?}");
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_not_sent() {
    let dirs = Dirs::new();
    for name in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b"] {
        let (mut a, mut b) = pair(1);
        let (sent, received) = move_files(&mut a, &mut b, &dirs, &[name.into()], &ALL).await;
        assert!(matches!(sent, Err(Error::FileName { .. })), "{name:?}: {sent:?}");
        assert!(matches!(received, Err(Error::Peer { code: AbortCode::Protocol, .. })), "{received:?}");
    }
}

/// A peer that announces what an honest one would not.
async fn announced(content: Content, b: &mut Session, a: &mut Session, root: &Path, limits: &Limits) -> Error {
    let (mut hostile, _connections) = Transfer::new(a.begin_transfer().unwrap(), &quiet);
    hostile.announce(content).await.unwrap();
    b.receive_files(root, limits, &quiet).await.unwrap_err()
}

fn announce(files: &[(&str, u64)]) -> Content {
    let file = |(name, size): &(&str, u64)| File { name: (*name).into(), size: *size };
    Content::Files { files: files.iter().map(file).collect() }
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_not_received() {
    let dirs = Dirs::new();
    for name in ["../x", "/tmp/x", "a/b", "..", ".", "", "a\0b"] {
        let (mut a, mut b) = pair(1);
        let error = announced(announce(&[(name, 0)]), &mut b, &mut a, dirs.to.path(), &ALL).await;
        assert!(matches!(&error, Error::FileName { name: n } if n == name), "{name:?}: {error}");
    }
    let (mut a, mut b) = pair(1);
    let error = announced(announce(&[("x", 0), ("x", 0)]), &mut b, &mut a, dirs.to.path(), &ALL).await;
    assert!(matches!(error, Error::FileName { .. }), "{error}");
    assert_eq!(fs::read_dir(dirs.to.path()).unwrap().count(), 0, "nothing was made");
}

#[tokio::test]
async fn too_much_is_refused_before_anything_is_written() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("a", vec![1; 600]), ("b", vec![1; 401])]);
    let (mut a, mut b) = pair(1);
    let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &Limits::bytes(1000)).await;
    assert!(matches!(received, Err(Error::Limit { actual: 1001, limit: 1000, .. })), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Limit, .. })), "{sent:?}");
    let (mut a, mut b) = pair(1);
    let limits = Limits { max_files: 1, ..ALL };
    let (_, received) = move_files(&mut a, &mut b, &dirs, &names, &limits).await;
    assert!(matches!(received, Err(Error::Limit { actual: 2, limit: 1, .. })), "{received:?}");
    let (mut a, mut b) = pair(1);
    let overflow = announce(&[("a", u64::MAX), ("b", 2)]);
    let error = announced(overflow, &mut b, &mut a, dirs.to.path(), &Limits::bytes(1000)).await;
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    assert_eq!(fs::read_dir(dirs.to.path()).unwrap().count(), 0, "nothing was made");
}

#[tokio::test]
async fn an_announced_exabyte_takes_no_memory() {
    // A tmpfs, as images are received into: other filesystems refuse such a file by themselves.
    let to = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (mut a, mut b) = pair(1);
    // The most that a file may be large: a list of all its chunks would not fit into any memory.
    let size = i64::MAX as u64;
    let received = tokio::join!(
        async {
            let (mut transfer, _connections) = Transfer::new(a.begin_transfer().unwrap(), &quiet);
            transfer.announce(announce(&[("pages-1.img", size)])).await.unwrap();
        },
        b.receive_files(to.path(), &ALL, &quiet)
    )
    .1;
    // The sender that hangs up is what goes wrong.
    let error = received.unwrap_err();
    assert!(matches!(error, Error::File { .. } | Error::Peer { .. } | Error::Truncated { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_there_is_not_overwritten() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("x", b"new".to_vec())]);
    fs::write(dirs.to.path().join("x"), "old").unwrap();
    let (mut a, mut b) = pair(2);
    let (sent, received) = move_files(&mut a, &mut b, &dirs, &names, &ALL).await;
    assert!(
        matches!(&received, Err(Error::File { action: "create", path, source })
            if path.ends_with("x") && source.kind() == io::ErrorKind::AlreadyExists),
        "{received:?}"
    );
    assert!(matches!(&sent, Err(Error::Peer { code: AbortCode::Storage, .. })), "{sent:?}");
    assert_eq!(fs::read_to_string(dirs.to.path().join("x")).unwrap(), "old");
    still_talking(&mut a, &mut b).await;
}

#[tokio::test]
async fn missing_sources_fail_both_sides() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.from.path().join("dir")).unwrap();
    for name in ["absent", "dir"] {
        let (mut a, mut b) = pair(1);
        let (sent, received) = move_files(&mut a, &mut b, &dirs, &[name.into()], &ALL).await;
        assert!(matches!(&sent, Err(Error::File { action: "open", .. })), "{sent:?}");
        assert!(
            matches!(&received, Err(Error::Peer { code: AbortCode::Storage, message, .. }) if message.contains(name)),
            "{received:?}"
        );
    }
}

/// A peer that sends the given chunks of one file `x` (of two chunks) over its only connection, after them an end mark counting `end`, and
/// claims that the file has the given digest.
async fn hostile_chunks(chunks: &[(u32, u64, Vec<u8>)], end: u64, digest: &str) -> Error {
    let to = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair(1);
    let send = async {
        let (mut hostile, mut connections) = Transfer::new(a.begin_transfer().unwrap(), &quiet);
        hostile.announce(announce(&[("x", 2 * u64::from(CHUNK))])).await.unwrap();
        for (object, offset, raw) in chunks {
            let mut packer = Packer::new(Link::new(1).into()).unwrap();
            packer.pack(Place { transfer: 1, object: *object, offset: *offset }, raw, seal(raw));
            // The receiver may have given up already.
            let _ = write_chunk(&mut connections[0], packer.frame(), "p").await;
        }
        let _ = write_chunk(&mut connections[0], &Header::end(1, end).encode(), "p").await;
        let _ = hostile.finish(vec![digest.into()]).await;
    };
    let (received, ()) = tokio::join!(b.receive_files(to.path(), &ALL, &quiet), send);
    received.unwrap_err()
}

#[tokio::test]
async fn chunks_out_of_place_are_refused() {
    let full = || noise(1, CHUNK_LENGTH);
    let second = u64::from(CHUNK);
    let doubled = hostile_chunks(&[(0, 0, full()), (0, 0, full())], 2, "").await;
    assert!(matches!(doubled, Error::Protocol { rule: "a chunk comes once", .. }), "{doubled}");
    let stranger = hostile_chunks(&[(1, 0, full())], 1, "").await;
    assert!(matches!(stranger, Error::Protocol { rule: "a chunk is of an announced file", .. }), "{stranger}");
    for (offset, raw) in [(5, full()), (2 * second, full()), (second, vec![1]), (u64::MAX - 5, full())] {
        let misplaced = hostile_chunks(&[(0, offset, raw)], 1, "").await;
        assert!(matches!(misplaced, Error::Protocol { .. }), "{offset}: {misplaced}");
    }
    let miscounted = hostile_chunks(&[(0, 0, full())], 2, "").await;
    assert!(matches!(miscounted, Error::Protocol { .. }), "{miscounted}");
}

#[tokio::test]
async fn what_differs_from_the_manifest_is_not_taken() {
    let missing = hostile_chunks(&[(0, 0, noise(1, CHUNK_LENGTH))], 1, "").await;
    assert!(matches!(&missing, Error::Digest { object, .. } if object == "x"), "{missing}");
    let chunks = [(0, 0, noise(1, CHUNK_LENGTH)), (0, u64::from(CHUNK), noise(2, CHUNK_LENGTH))];
    let other = hostile_chunks(&chunks, 2, "00000000000000000000000000000000").await;
    assert!(matches!(other, Error::Digest { .. }), "{other}");
}

#[tokio::test]
async fn a_dropped_transfer_fails_the_other_side_at_once() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("pages", noise(1, 8 * CHUNK_LENGTH))]);
    let (mut a, mut b) = pair(2);
    let sent = {
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let progress = move |bytes| begun.send(bytes).unwrap();
        let receive = async {
            tokio::select! {
                received = b.receive_files(dirs.to.path(), &ALL, &progress) => panic!("{received:?}"),
                _ = has_begun.recv() => {} // And so the future is dropped.
            }
        };
        tokio::join!(a.send_files(dirs.from.path(), &names, &quiet), receive).0
    };
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Cancelled, .. })), "{sent:?}");
    still_talking(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_dropped_session_fails_the_other_side_at_once() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("pages", noise(1, 8 * CHUNK_LENGTH))]);
    let (mut a, b) = pair(2);
    drop(b);
    let sent = a.send_files(dirs.from.path(), &names, &quiet).await;
    assert!(matches!(sent, Err(Error::Truncated { .. } | Error::Disconnected { .. })), "{sent:?}");
}

async fn move_stream(
    a: &mut Session,
    b: &mut Session,
    data: &[u8],
    max: u64,
) -> (Result<Stats, Error>, Result<Vec<u8>, Error>) {
    let mut out = Vec::new();
    let both = async { tokio::join!(a.send_stream(data, &quiet), b.receive_stream(&mut out, max, &quiet)) };
    let (sent, received) = tokio::time::timeout(Duration::from_secs(10), both).await.expect("both sides end");
    (sent, received.map(|_| out))
}

#[tokio::test]
async fn streams_of_all_lengths_arrive_in_order() {
    let mut data = noise(1, CHUNK_LENGTH);
    data.extend(vec![0; CHUNK_LENGTH]);
    data.extend(noise(2, 3 * CHUNK_LENGTH));
    data.extend(vec![7; CHUNK_LENGTH]);
    for connections in [1, 3, 16] {
        let (mut a, mut b) = pair(connections);
        for length in [0, 1, CHUNK_LENGTH - 1, CHUNK_LENGTH, CHUNK_LENGTH + 1, 3 * CHUNK_LENGTH, data.len()] {
            let (sent, received) = move_stream(&mut a, &mut b, &data[..length], u64::MAX).await;
            assert_eq!(sent.unwrap().raw_bytes, length as u64);
            assert!(received.unwrap() == data[..length], "{length} bytes, {connections} connections");
        }
        // The other way, on the same connections.
        let (sent, received) = move_stream(&mut b, &mut a, &data, u64::MAX).await;
        sent.unwrap();
        assert!(received.unwrap() == data);
    }
}

#[tokio::test]
async fn the_sink_is_shut_down_after_the_last_byte() {
    let (mut a, mut b) = pair(2);
    let (near, mut far) = tokio::io::duplex(1000);
    let data = noise(1, CHUNK_LENGTH + 5);
    let mut out = Vec::new();
    let (sent, received, read) = tokio::join!(
        a.send_stream(&data[..], &quiet),
        b.receive_stream(near, u64::MAX, &quiet),
        far.read_to_end(&mut out)
    );
    sent.unwrap();
    received.unwrap();
    read.unwrap();
    assert!(out == data);
}

#[tokio::test]
async fn a_cut_stream_is_an_error_on_both_sides() {
    let data = noise(1, 8 * CHUNK_LENGTH);
    let (mut a, mut b) = tampered_pair(3, |index| (index == 2).then(|| cut(1000)));
    let (sent, received) = move_stream(&mut a, &mut b, &data, u64::MAX).await;
    assert!(matches!(received, Err(Error::Truncated { .. })), "{:?}", received.err());
    assert!(matches!(sent, Err(Error::Disconnected { .. })), "{sent:?}");
    still_talking(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_damaged_stream_is_named_by_offset() {
    let data = noise(1, 4 * CHUNK_LENGTH);
    let (mut a, mut b) = tampered_pair(2, |index| (index == 1).then(|| flip(5000)));
    let (sent, received) = move_stream(&mut a, &mut b, &data, u64::MAX).await;
    let received = received.unwrap_err();
    assert!(
        matches!(&received, Error::Checksum { object, offset, .. } if object == "the stream" && *offset == u64::from(CHUNK)),
        "{received}"
    );
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Corrupt, .. })), "{sent:?}");
}

#[tokio::test]
async fn a_stream_that_is_too_long_is_refused() {
    let (mut a, mut b) = pair(2);
    let data = noise(1, 2 * CHUNK_LENGTH);
    let (sent, received) = move_stream(&mut a, &mut b, &data, u64::from(CHUNK) + 1).await;
    assert!(matches!(received, Err(Error::Limit { .. })), "{:?}", received.err());
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Limit, .. })), "{sent:?}");
}

#[tokio::test]
async fn a_failing_source_and_a_failing_sink_are_told_to_the_other_side() {
    let (mut a, mut b) = pair(2);
    let broken = broken_reader("the disk is gone");
    let (sent, received) =
        tokio::join!(a.send_stream(broken, &quiet), b.receive_stream(tokio::io::sink(), u64::MAX, &quiet));
    assert!(matches!(sent, Err(Error::Source { .. })), "{sent:?}");
    assert!(
        matches!(&received, Err(Error::Peer { code: AbortCode::Storage, message, .. }) if message.contains("the disk is gone")),
        "{received:?}"
    );

    let (mut a, mut b) = pair(2);
    let (near, far) = tokio::io::duplex(10);
    drop(far);
    let data = noise(1, 8 * CHUNK_LENGTH);
    let (sent, received) = tokio::join!(a.send_stream(&data[..], &quiet), b.receive_stream(near, u64::MAX, &quiet));
    assert!(matches!(received, Err(Error::Sink { .. })), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Storage, .. })), "{sent:?}");
}

/// A reader that gives some bytes and then an error.
fn broken_reader(text: &'static str) -> impl tokio::io::AsyncRead + Send + Unpin {
    struct Broken(&'static str);
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::Error::other(self.0)))
        }
    }
    AsyncReadExt::chain(&[1; 3000][..], Broken(text))
}

#[tokio::test]
async fn both_sides_must_mean_the_same_kind() {
    let dirs = Dirs::new();
    let (mut a, mut b) = pair(1);
    let (sent, received) =
        tokio::join!(a.send_stream(&b"x"[..], &quiet), b.receive_files(dirs.to.path(), &ALL, &quiet));
    assert!(matches!(received, Err(Error::Protocol { .. })), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Protocol, .. })), "{sent:?}");

    let (mut a, mut b) = pair(1);
    let (sent, received) = tokio::join!(
        a.send_files(dirs.from.path(), &[], &quiet),
        b.receive_stream(tokio::io::sink(), u64::MAX, &quiet)
    );
    assert!(matches!(received, Err(Error::Protocol { .. })), "{received:?}");
    assert!(sent.is_err());
}

#[tokio::test]
async fn messages_and_transfers_follow_each_other() {
    let dirs = Dirs::new();
    let names = fill(dirs.from.path(), &[("x", noise(1, 2 * CHUNK_LENGTH))]);
    let (mut a, mut b) = pair(2);
    // All of it sent ahead: the receiver takes one thing after the other.
    let send = async {
        a.send(b"files next").await.unwrap();
        a.send_files(dirs.from.path(), &names, &quiet).await.unwrap();
        a.send(b"stream next").await.unwrap();
        a.send_stream(&b"abc"[..], &quiet).await.unwrap();
        a.send(b"done").await.unwrap();
    };
    let mut out = Vec::new();
    let receive = async {
        assert_eq!(b.recv().await.unwrap().unwrap(), b"files next");
        b.receive_files(dirs.to.path(), &ALL, &quiet).await.unwrap();
        assert_eq!(b.recv().await.unwrap().unwrap(), b"stream next");
        b.receive_stream(&mut out, 3, &quiet).await.unwrap();
        assert_eq!(b.recv().await.unwrap().unwrap(), b"done");
    };
    tokio::join!(send, receive);
    assert_eq!(out, b"abc");
}
