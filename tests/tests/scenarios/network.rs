//! A container behind a published port, which has another address after the move.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use spothop_tests::layout::host_address;

use crate::scene::Scene;

/// Answers every byte with a token that it made up at its start and the number of bytes it has had from anybody.
const COUNTER: &str = include_str!("programs/counter.py");

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
