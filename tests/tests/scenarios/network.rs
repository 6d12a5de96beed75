//! Connections: kept with their address, or reset where the address changes.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use spothop_tests::layout::{CLIENT_ADDRESS, host_address};

use crate::scene::Scene;

/// Answers every byte with a token that it made up at its start and the number of bytes it has had from anybody.
const COUNTER: &str = include_str!("programs/counter.py");

/// Connects to port 7000 of `argv[1]`, and listens at its own. On every connection it sends the numbers from 0 as fast as it can
/// and checks that it receives them likewise, until the other side ends; then it says how many it had.
const FIREHOSE: &str = include_str!("programs/firehose.py");

/// Streams that a container has at the same time, beside the one that it opens itself.
const STREAMS: usize = 4;

/// A reset that comes later than this is a hang to a client.
const PROMPT: Duration = Duration::from_secs(2);

fn ask(stream: &mut TcpStream) -> (String, u64) {
    stream.write_all(b"?").expect("a question sent");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    let (token, count) = line.trim().split_once(' ').expect("token and count");
    (token.to_owned(), count.parse().expect("a number"))
}

pub(crate) fn a_published_port_lives_on_at_the_new_address_and_old_connections_are_reset(scene: &Scene) {
    scene.run("a", "c1", "--publish=7000:7000 python", &["python3", "-c", COUNTER]);
    scene.follow("a", "docker logs --follow c1").until(|line| line == "ready");
    let [old, new] = [0, 1].map(|index| SocketAddr::from((host_address(index), 7000)));
    let (asked, first_answer) = mpsc::channel();
    let client = scene.on_client(move || {
        let mut stream = TcpStream::connect(old).expect("a connection");
        asked.send(ask(&mut stream)).expect("the test listens");
        // Waiting for a push, as many clients do: only a reset can tell it that the other side is gone.
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        let end = stream.read(&mut [0]);
        (end.map_err(|error| error.kind()), Instant::now())
    });
    let (token, count) = first_answer.recv().expect("an answer");
    assert_eq!(count, 1);

    scene.migrate("a", "c1", "b");

    let moved = Instant::now();
    let (end, ended) = client.join().expect("no panic");
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert!(ended < moved + PROMPT, "the reset came {:?} after the move", ended - moved);
    let answers = scene.on_client(move || {
        let answer = ask(&mut TcpStream::connect(new).expect("a connection to the new address"));
        let refused = TcpStream::connect_timeout(&old, Duration::from_secs(5)).map_err(|error| error.kind());
        (answer, refused.map(drop))
    });
    let (answer, refused) = answers.join().expect("no panic");
    assert_eq!(answer, (token, 2), "the memory did not come along");
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "the old address");
    assert_eq!(scene.sh("b", "docker port c1 7000/tcp | head -1"), "0.0.0.0:7000");
    scene.nothing_is_left("b", "c1", &["a", "b"]);
}

/// The other end of [`FIREHOSE`]: returns how many numbers were read, after checking each, and after the container has said that it
/// had all that were written.
fn drink(stream: TcpStream, stop: &AtomicBool, read: &mpsc::Sender<u64>) -> u64 {
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let numbers: Vec<u8> = (written..written + 1024).flat_map(u64::to_be_bytes).collect();
                (&stream).write_all(&numbers).expect("numbers sent");
                written += 1024;
            }
            stream.shutdown(Shutdown::Write).expect("an end");
            written
        });
        let mut reader = BufReader::with_capacity(1 << 16, &stream);
        let mut next = || {
            let mut number = [0; 8];
            reader.read_exact(&mut number).expect("a number");
            u64::from_be_bytes(number)
        };
        let mut expected = 0;
        loop {
            match next() {
                u64::MAX => break,
                number => assert_eq!(number, expected),
            }
            expected += 1;
            if expected % 100_000 == 0 {
                // Nobody may be listening any more.
                let _ = read.send(expected);
            }
        }
        let received = next();
        assert_eq!(received, writer.join().expect("no panic"), "numbers that the container had");
        expected
    })
}

pub(crate) fn streams_in_full_flow_lose_no_byte_in_either_direction(scene: &Scene) {
    let server = SocketAddr::from(([172, 30, 0, 59], 7000));
    let stop = Arc::new(AtomicBool::new(false));
    let (read, progress) = mpsc::channel();
    let (listening, ready) = mpsc::channel();
    let (flag, flowing) = (Arc::clone(&stop), read.clone());
    let client = scene.on_client(move || {
        let listener = TcpListener::bind((CLIENT_ADDRESS, 7000)).expect("a port of the client");
        listening.send(()).expect("the test listens");
        let mut streams = vec![listener.accept().expect("the container calls").0];
        // It listens by now: it does so before it calls.
        streams.extend((0..STREAMS).map(|_| TcpStream::connect(server).expect("a connection")));
        thread::scope(|scope| {
            let threads: Vec<_> =
                streams.into_iter().map(|stream| scope.spawn(|| drink(stream, &flag, &flowing))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a whole stream")).collect::<Vec<u64>>()
        })
    });
    drop(read);
    ready.recv().expect("a listener");
    let caller = CLIENT_ADDRESS.to_string();
    scene.run("a", "h1", "--network=lan --ip=172.30.0.59 python", &["python3", "-c", FIREHOSE, &caller]);
    // Every stream is in full flow when each has had time to fill all buffers.
    for _ in 0..4 * STREAMS {
        progress.recv().expect("streams that flow");
    }

    scene.migrate("a", "h1", "b");

    progress.try_iter().for_each(drop);
    for _ in 0..4 * STREAMS {
        progress.recv().expect("streams that flow on");
    }
    stop.store(true, Ordering::Relaxed);
    let numbers = client.join().unwrap_or_else(|_| panic!("a stream broke: {}", scene.sh("b", "docker logs h1 2>&1")));
    assert_eq!(numbers.len(), STREAMS + 1);
    scene.nothing_is_left("b", "h1", &["a", "b"]);
}

pub(crate) fn a_listener_on_the_hosts_network_lives_on_at_the_other_host(scene: &Scene) {
    scene.run("a", "c1", "--network=host python", &["python3", "-c", COUNTER]);
    scene.follow("a", "docker logs --follow c1").until(|line| line == "ready");
    let asked = |index| {
        let address = SocketAddr::from((host_address(index), 7000));
        let client = scene.on_client(move || ask(&mut TcpStream::connect(address).expect("a connection")));
        client.join().expect("an answer")
    };
    let (token, count) = asked(0);

    scene.migrate("a", "c1", "b");

    assert_eq!(asked(1), (token, count + 1));
    assert_eq!(scene.sh("b", "docker exec c1 cat /proc/sys/kernel/hostname"), "a", "the host name that it knows");
}
