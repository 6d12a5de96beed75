//! Sessions over TLS on 127.0.0.1: who gets in, who does not, and what each side hears; and messages over pipes in memory.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::certs::{self, CA_CERTIFICATE, Existing};
use crate::testing::{Authority, noise, pair};
use crate::version::VersionRange;
use crate::wire::hello::{Hello, Token, Verdict, Welcome};

fn quiet(_: u64) {}

/// A host `b` that accepts sessions, and a task that hands out the first of them.
async fn host_b(authority: &Authority, options: Options) -> (String, JoinHandle<Session>) {
    let identity = authority.identity("b");
    let mut listener = Listener::bind_with("127.0.0.1:0", &identity, options).await.unwrap();
    let address = listener.local_addr().to_string();
    (address, tokio::spawn(async move { listener.accept().await }))
}

/// Proves that whatever came before, `b` still takes in an honest host.
async fn still_open(authority: &Authority, address: &str, accepted: JoinHandle<Session>) {
    let session = connect(address, "b", &authority.identity("honest"), 2).await.unwrap();
    assert_eq!(accepted.await.unwrap().peer_name(), "honest");
    drop(session);
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let mut a = connect(&address, "b", &authority.identity("a"), 4).await.unwrap();
    let mut b = accepted.await.unwrap();
    assert_eq!((a.peer_name(), a.version()), ("b", 1));
    assert_eq!((b.peer_name(), b.version()), ("a", 1));
    assert_eq!(a.peer_addr().to_string(), address);
    assert_eq!(b.peer_addr().ip(), a.peer_addr().ip());
    a.send(b"ping").await.unwrap();
    assert_eq!(b.recv().await.unwrap().unwrap(), b"ping");
    b.send(b"").await.unwrap();
    assert_eq!(a.recv().await.unwrap().unwrap(), b"");
    let (closed, last) = tokio::join!(a.close(), b.recv());
    closed.unwrap();
    assert_eq!(last.unwrap(), None);
    assert!(matches!(b.send(b"more").await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn files_and_streams_go_through_tls() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let mut a = connect(&address, "b", &authority.identity("a"), 3).await.unwrap();
    let mut b = accepted.await.unwrap();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = noise(1, 5_000_000);
    std::fs::write(from.path().join("pages-1.img"), &data).unwrap();
    let names = ["pages-1.img".to_owned()];
    let limits = Limits::bytes(5_000_000);
    let (sent, received) =
        tokio::join!(a.send_files(from.path(), &names, &quiet), b.receive_files(to.path(), &limits, &quiet));
    assert_eq!((sent.unwrap().raw_bytes, received.unwrap().raw_bytes), (5_000_000, 5_000_000));
    assert!(std::fs::read(to.path().join("pages-1.img")).unwrap() == data);
    let mut out = Vec::new();
    // The other way round, on the same connections.
    let (sent, received) = tokio::join!(b.send_stream(&data[..], &quiet), a.receive_stream(&mut out, u64::MAX, &quiet));
    sent.unwrap();
    received.unwrap();
    assert!(out == data);
}

#[tokio::test]
async fn a_host_of_another_authority_is_refused_by_both() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (address, accepted) = host_b(&ours, Options::default()).await;
    // It does not believe us.
    let error = connect(&address, "b", &theirs.identity("a"), 2).await.unwrap_err();
    assert!(matches!(&error, Error::PeerCertificate { .. }), "{error}");
    assert!(error.to_string().contains("ca.pem"), "says where to look: {error}");
    // It believes us, but we do not believe it.
    std::fs::copy(ours.path().join(CA_CERTIFICATE), theirs.path().join("a").join(CA_CERTIFICATE)).unwrap();
    let intruder = Identity::load(&theirs.path().join("a")).unwrap();
    let error = connect(&address, "b", &intruder, 2).await.unwrap_err();
    assert!(matches!(&error, Error::OwnCertificate { .. }), "{error}");
    still_open(&ours, &address, accepted).await;
}

/// A client that shows the certificate of a foreign authority, or none, and notes what the server told it to choose by.
#[derive(Debug)]
struct Intruder {
    shown: Option<Arc<rustls::sign::CertifiedKey>>,
    hints: std::sync::Mutex<Vec<Vec<u8>>>,
}

impl rustls::client::ResolvesClientCert for Intruder {
    fn resolve(&self, hints: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.hints.lock().unwrap().extend(hints.iter().map(|hint| hint.to_vec()));
        self.shown.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_peer_without_a_valid_certificate_learns_nothing() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    foreign.identity("a");
    let key = PrivateKeyDer::from_pem_file(foreign.path().join("a").join(certs::HOST_KEY)).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let chain = vec![CertificateDer::from_pem_file(foreign.path().join("a").join(certs::HOST_CERTIFICATE)).unwrap()];
    for shown in [None, Some(Arc::new(rustls::sign::CertifiedKey::new(chain.clone(), key.clone())))] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.path().join(CA_CERTIFICATE)).unwrap()).unwrap();
        let intruder = Arc::new(Intruder { shown, hints: std::sync::Mutex::default() });
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(intruder.clone());
        let stream = TcpStream::connect(&address).await.unwrap();
        // To a client of TLS 1.3 its own handshake is over before the server has looked at its certificate.
        let name = ServerName::try_from("b").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let hello = Hello { versions: crate::version::SUPPORTED, role: Role::Control { data_connections: 1 } };
        let _ = stream.write_all(&hello.encode()).await;
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard).await;
        assert!(end.is_err(), "an alert, not an orderly end");
        assert_eq!(heard, b"", "not a byte of the protocol");
        assert_eq!(intruder.hints.lock().unwrap().as_slice(), [] as [Vec<u8>; 0], "nor whom it should be signed by");
        let presented = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(presented.len(), 1, "the host's own certificate, which TLS must show, and none beside it");
    }
    still_open(&authority, &address, accepted).await;
}

#[tokio::test]
async fn a_peer_has_a_limited_number_of_sessions() {
    let authority = Authority::new();
    let identity = authority.identity("b");
    let options = Options { max_sessions_per_peer: 2, ..Options::default() };
    let mut listener = Listener::bind_with("127.0.0.1:0", &identity, options).await.unwrap();
    let address = listener.local_addr().to_string();
    let (sender, mut sessions) = tokio::sync::mpsc::unbounded_channel();
    let accepting = tokio::spawn(async move { while sender.send(listener.accept().await).is_ok() {} });
    let greedy = authority.identity("greedy");
    let mut theirs = Vec::new();
    let mut ours = Vec::new();
    for _ in 0..2 {
        theirs.push(connect(&address, "b", &greedy, 1).await.unwrap());
        ours.push(sessions.recv().await.unwrap());
    }
    let refused = connect(&address, "b", &greedy, 1).await.unwrap_err();
    assert!(matches!(refused, Error::Protocol { .. }), "{refused}");
    let other = connect(&address, "b", &authority.identity("modest"), 1).await.unwrap();
    assert_eq!(sessions.recv().await.unwrap().peer_name(), "modest");
    ours.pop();
    connect(&address, "b", &greedy, 1).await.expect("one that ended counts no more");
    drop((theirs, ours, other));
    accepting.abort();
}

#[tokio::test]
async fn another_host_than_expected_is_refused() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let error = connect(&address, "c", &authority.identity("a"), 2).await.unwrap_err();
    assert!(
        matches!(&error, Error::PeerName { expected, presented, .. } if expected == "c" && presented.len() == 1 && presented[0].contains("\"b\"")),
        "{error}"
    );
    let error = connect(&address, "no name", &authority.identity("a2"), 2).await.unwrap_err();
    assert!(matches!(error, Error::HostName { .. }), "{error}");
    still_open(&authority, &address, accepted).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_its_file_and_its_date() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let late = authority.path().join("late");
    certs::issue(authority.path(), "late", &[], &late, Existing::Keep).unwrap();
    certs::testing::expire(authority.path(), "late", &late);
    let identity = Identity::load(&late).unwrap();
    // Our own is not even offered.
    let error = connect(&address, "b", &identity, 2).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, Error::OwnPeriod { .. }), "{text}");
    assert!(text.contains("late/host.pem expired on ") && text.contains("spothop cert issue late"), "{text}");
    assert!(text.contains(&identity.until()), "{text}");
    still_open(&authority, &address, accepted).await;

    // A peer's is named with its date.
    let mut listener = Listener::bind("127.0.0.1:0", &identity).await.unwrap();
    let address = listener.local_addr().to_string();
    let accepting = tokio::spawn(async move { listener.accept().await });
    let error = connect(&address, "late", &authority.identity("a"), 2).await.unwrap_err();
    assert!(matches!(&error, Error::PeerExpired { until, .. } if *until == identity.until()), "{error}");
    accepting.abort();
}

#[tokio::test]
async fn a_client_with_an_expired_certificate_is_refused_by_the_other_side_too() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let late = authority.path().join("late");
    certs::issue(authority.path(), "late", &[], &late, Existing::Keep).unwrap();
    certs::testing::expire(authority.path(), "late", &late);
    // As a host would whose clock is wrong.
    let stream = TcpStream::connect(&address).await.unwrap();
    let connector = TlsConnector::from(Identity::load(&late).unwrap().client);
    let mut stream = connector.connect(ServerName::try_from("b").unwrap(), stream).await.unwrap();
    let mut heard = Vec::new();
    let error = stream.read_to_end(&mut heard).await.unwrap_err();
    assert!(error.to_string().contains("CertificateExpired") && heard.is_empty(), "{error}");
    still_open(&authority, &address, accepted).await;
}

#[tokio::test]
async fn a_host_that_is_not_in_the_inventory_learns_only_that_it_is_refused() {
    let authority = Authority::new();
    let peers = Some(watch::channel(["honest".to_owned()].into()).1);
    let (address, accepted) = host_b(&authority, Options { peers, ..Options::default() }).await;
    let error = connect(&address, "b", &authority.identity("mallory"), 2).await.unwrap_err();
    assert!(matches!(&error, Error::Stranger { .. }), "{error}");

    let stream = TcpStream::connect(&address).await.unwrap();
    let connector = TlsConnector::from(authority.identity("eve").client);
    let mut stream = connector.connect(ServerName::try_from("b").unwrap(), stream).await.unwrap();
    let hello = Hello { versions: crate::version::SUPPORTED, role: Role::Control { data_connections: 1 } };
    stream.write_all(&hello.encode()).await.unwrap();
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    assert_eq!(heard, b"SPOTHOP\n\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    still_open(&authority, &address, accepted).await;
}

#[tokio::test]
async fn who_may_connect_follows_the_inventory_while_open_sessions_go_on() {
    let authority = Authority::new();
    let (inventory, peers) = watch::channel(["a".to_owned()].into());
    let options = Options { peers: Some(peers), ..Options::default() };
    let mut listener = Listener::bind_with("127.0.0.1:0", &authority.identity("b"), options).await.unwrap();
    let address = listener.local_addr().to_string();
    let (a, c) = (authority.identity("a"), authority.identity("c"));
    let (opened, accepted) = tokio::join!(connect(&address, "b", &a, 1), listener.accept());
    let (mut opened, mut accepted) = (opened.unwrap(), accepted);

    inventory.send_replace(["c".to_owned()].into());
    let again = tokio::spawn(async move { (listener.accept().await, listener) });
    let error = connect(&address, "b", &a, 1).await.unwrap_err();
    assert!(matches!(&error, Error::Stranger { .. }), "{error}");
    let come = connect(&address, "b", &c, 1).await.unwrap();
    assert_eq!(again.await.unwrap().0.peer_name(), "c");
    drop(come);
    opened.send(b"still there").await.unwrap();
    assert_eq!(accepted.recv().await.unwrap().as_deref(), Some(&b"still there"[..]));
}

/// A host's directory of certificates, in which they are replaced.
fn reissue(authority: &Authority, host: &str, directory: &Path) {
    certs::issue(authority.path(), host, &[], directory, Existing::Replace).unwrap();
}

#[tokio::test]
async fn an_authority_is_replaced_without_a_gap_while_sessions_go_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let read = |authority: &Authority| std::fs::read_to_string(authority.path().join(CA_CERTIFICATE)).unwrap();
    let both = read(&old) + &read(&new);
    let scratch = tempfile::tempdir().unwrap();
    let [dir_a, dir_b] = ["a", "b"].map(|host| scratch.path().join(host));
    for (host, directory) in [("a", &dir_a), ("b", &dir_b)] {
        reissue(&old, host, directory);
    }
    let [a, b] = [&dir_a, &dir_b].map(|directory| crate::Credentials::open(directory).unwrap());
    let mut listener = Listener::bind("127.0.0.1:0", &b).await.unwrap();
    let address = listener.local_addr().to_string();
    let (sender, mut accepted) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            sender.send(listener.accept().await).await.unwrap();
        }
    });
    let mut meet = async || {
        let identity = a.current();
        let (ours, theirs) = tokio::join!(connect(&address, "b", &identity, 2), accepted.recv());
        (ours.unwrap(), theirs.unwrap())
    };
    let (mut before, mut before_there) = meet().await;

    // Both are trusted everywhere before the first certificate of the new one appears.
    for directory in [&dir_a, &dir_b] {
        std::fs::write(directory.join(CA_CERTIFICATE), &both).unwrap();
    }
    meet().await;
    reissue(&new, "a", &dir_a);
    meet().await;
    reissue(&new, "b", &dir_b);
    meet().await;
    for directory in [&dir_a, &dir_b] {
        std::fs::write(directory.join(CA_CERTIFICATE), read(&new)).unwrap();
    }
    meet().await;
    // What the old authority has issued is worth nothing any more.
    let identity = old.identity("a");
    let error = connect(&address, "b", &identity, 2).await.unwrap_err();
    assert!(matches!(&error, Error::PeerCertificate { .. } | Error::OwnCertificate { .. }), "{error}");
    // And the first session has lived through all of it.
    before.send(b"still here").await.unwrap();
    assert_eq!(before_there.recv().await.unwrap().unwrap(), b"still here");
}

#[tokio::test]
async fn plain_http_is_told_apart_on_both_sides() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let mut browser = TcpStream::connect(&address).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = browser.read_to_end(&mut heard).await;
    // A TLS alert (type 21) at most.
    assert!(heard.len() <= 7 && heard.first().is_none_or(|byte| *byte == 21), "{heard:?}");
    still_open(&authority, &address, accepted).await;

    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = web.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = web.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = connect(&address, "b", &authority.identity("a"), 2).await.unwrap_err();
    assert!(matches!(&error, Error::NotSpothop { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_and_somebody_silent_are_different_errors() {
    let authority = Authority::new();
    let identity = authority.identity("a");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let options = Options { handshake_timeout: Duration::from_millis(50), ..Options::default() };
    let error = connect_with(&address, "b", &identity, 2, &options).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { step: "the TLS handshake", .. }), "{error}");
    drop(silent);
    let error = connect_with(&address, "b", &identity, 2, &options).await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused),
        "{error}"
    );
}

#[tokio::test]
async fn the_port_is_taken_once() {
    let authority = Authority::new();
    let identity = authority.identity("b");
    let first = Listener::bind("127.0.0.1:0", &identity).await.unwrap();
    let error = Listener::bind(&first.local_addr().to_string(), &identity).await.unwrap_err();
    assert!(matches!(error, Error::Bind { .. }), "{error}");
}

#[tokio::test]
async fn silent_peers_hold_up_nobody() {
    let authority = Authority::new();
    let options = Options { max_pending_per_address: 6, ..Options::default() };
    let (address, accepted) = host_b(&authority, options).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    // A session of one control and two data connections: just fits beside them.
    still_open(&authority, &address, accepted).await;
}

#[tokio::test]
async fn too_many_handshakes_from_one_address_are_closed_at_once() {
    let authority = Authority::new();
    let options = Options { max_pending_per_address: 2, ..Options::default() };
    let (address, _accepted) = host_b(&authority, options).await;
    let _silent = [TcpStream::connect(&address).await.unwrap(), TcpStream::connect(&address).await.unwrap()];
    let mut third = TcpStream::connect(&address).await.unwrap();
    // Long before the timeout of the first two.
    let end = tokio::time::timeout(Duration::from_secs(2), third.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(end.is_ok_and(|length| length == 0) || third.peer_addr().is_err());
}

#[tokio::test]
async fn a_silent_peer_is_dropped_after_the_timeout() {
    let authority = Authority::new();
    let options = Options { handshake_timeout: Duration::from_millis(50), ..Options::default() };
    let (address, accepted) = host_b(&authority, options).await;
    let mut silent = TcpStream::connect(&address).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(&mut Vec::new())).await;
    end.expect("the connection is closed").ok();
    assert!(!accepted.is_finished());
}

/// A TLS connection of a host with a valid certificate that then says what it likes, and what it is answered.
async fn say(identity: &Identity, address: &str, hello: &Hello) -> Result<Welcome, Error> {
    let (mut stream, ..) = handshake::connect(address, "b", identity, &Options::default()).await?;
    crate::wire::hello::write(&mut stream, &hello.encode(), "b").await?;
    Welcome::read(&mut stream, "b").await
}

#[tokio::test]
async fn a_wrong_or_stolen_token_is_refused() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let (a, thief) = (authority.identity("a"), authority.identity("thief"));
    let data = |token: Token| Hello { versions: crate::version::SUPPORTED, role: Role::Data { index: 0, token } };
    let answer = say(&a, &address, &data([7; 16])).await.unwrap();
    assert_eq!(answer.verdict, Verdict::UnknownSession);

    // A session of `a` that waits for its data connection; its token in another host's hands.
    let (mut control, ..) = handshake::connect(&address, "b", &a, &Options::default()).await.unwrap();
    let role = Role::Control { data_connections: 1 };
    let (_, token) = handshake::open(&mut control, role, "b", Duration::from_secs(5)).await.unwrap();
    assert_eq!(say(&thief, &address, &data(token)).await.unwrap().verdict, Verdict::UnknownSession);
    let mut own = handshake::connect(&address, "b", &a, &Options::default()).await.unwrap().0;
    let role = Role::Data { index: 0, token };
    handshake::open(&mut own, role, "b", Duration::from_secs(5)).await.unwrap();
    assert_eq!(accepted.await.unwrap().peer_name(), "a");
    // Once opened, the session takes no more.
    let (address, _accepted) = host_b_again(&authority).await;
    let error = handshake::open(
        &mut handshake::connect(&address, "b", &a, &Options::default()).await.unwrap().0,
        Role::Data { index: 0, token },
        "b",
        Duration::from_secs(5),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, Error::UnknownSession { .. }), "{error}");
}

/// Another listener of the same host.
async fn host_b_again(authority: &Authority) -> (String, JoinHandle<Session>) {
    let identity = Identity::load(&authority.path().join("b")).unwrap();
    let mut listener = Listener::bind("127.0.0.1:0", &identity).await.unwrap();
    let address = listener.local_addr().to_string();
    (address, tokio::spawn(async move { listener.accept().await }))
}

#[tokio::test]
async fn data_connections_out_of_number_are_refused() {
    let authority = Authority::new();
    let (address, _accepted) = host_b(&authority, Options::default()).await;
    let a = authority.identity("a");
    for count in [0, MAX_DATA_CONNECTIONS as u8 + 1] {
        let hello = Hello { versions: crate::version::SUPPORTED, role: Role::Control { data_connections: count } };
        assert_eq!(say(&a, &address, &hello).await.unwrap().verdict, Verdict::BadHello);
    }
    let (mut control, ..) = handshake::connect(&address, "b", &a, &Options::default()).await.unwrap();
    let role = Role::Control { data_connections: 2 };
    let (_, token) = handshake::open(&mut control, role, "b", Duration::from_secs(5)).await.unwrap();
    let hello = Hello { versions: crate::version::SUPPORTED, role: Role::Data { index: 2, token } };
    assert_eq!(say(&a, &address, &hello).await.unwrap().verdict, Verdict::BadHello);
}

#[tokio::test]
async fn versions_that_do_not_meet_are_told_to_both() {
    let authority = Authority::new();
    let (address, accepted) = host_b(&authority, Options::default()).await;
    let far = VersionRange { min: 900, max: 901 };
    let hello = Hello { versions: far, role: Role::Control { data_connections: 1 } };
    let answer = say(&authority.identity("a"), &address, &hello).await.unwrap();
    assert_eq!(answer, Welcome { versions: crate::version::SUPPORTED, verdict: Verdict::Version });
    still_open(&authority, &address, accepted).await;

    // The connecting side, with a host that answers so.
    let (mut near, mut remote) = tokio::io::duplex(1000);
    let opening = handshake::open(&mut near, Role::Control { data_connections: 1 }, "p", Duration::from_secs(5));
    let answering = async {
        Hello::read(&mut remote, "p").await.unwrap();
        let welcome = Welcome { versions: far, verdict: Verdict::Version };
        crate::wire::hello::write(&mut remote, &welcome.encode(), "p").await.unwrap();
    };
    let (opened, ()) = tokio::join!(opening, answering);
    assert!(matches!(opened, Err(Error::Version { theirs, .. }) if theirs == far));
}

#[tokio::test]
async fn a_version_that_was_not_offered_is_refused() {
    let (mut near, mut remote) = tokio::io::duplex(1000);
    let opening = handshake::open(&mut near, Role::Control { data_connections: 1 }, "p", Duration::from_secs(5));
    let answering = async {
        Hello::read(&mut remote, "p").await.unwrap();
        handshake::answer(&mut remote, Verdict::Accepted { version: 77, token: [0; 16] }, "p").await;
        // The answer names our own versions, but chose another.
    };
    let (opened, ()) = tokio::join!(opening, answering);
    assert!(matches!(opened, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_dropped_session_is_an_error_to_the_peer_and_a_closed_one_is_not() {
    let (mut a, b) = pair(1);
    drop(b);
    let end = a.recv().await;
    assert!(matches!(end, Err(Error::Truncated { .. })), "{end:?}");
    let again = a.send(b"x").await;
    assert!(matches!(again, Err(Error::Truncated { .. })), "the first cause stays: {again:?}");

    let (mut a, mut b) = pair(1);
    b.send(b"last words").await.unwrap();
    let (closed, ()) = tokio::join!(b.close(), async {
        assert_eq!(a.recv().await.unwrap().unwrap(), b"last words");
        assert_eq!(a.recv().await.unwrap(), None);
        assert_eq!(a.recv().await.unwrap(), None);
    });
    closed.unwrap();
    a.close().await.unwrap();
}

#[tokio::test]
async fn a_dropped_recv_loses_nothing() {
    let (control, mut peer) = tokio::io::duplex(1000);
    let address: SocketAddr = ([127, 0, 0, 1], 7077).into();
    let mut session = Session::new(Box::new(control), Vec::new(), "x".into(), address, 1);
    let mut bytes = Vec::new();
    frame::write(&mut bytes, frame::Kind::Message, b"first", "x").await.unwrap();
    frame::write(&mut bytes, frame::Kind::Message, b"second", "x").await.unwrap();
    let mut received = Vec::new();
    for byte in bytes {
        // `recv` is dropped after every byte, wherever in a frame that is.
        tokio::select! {
            biased;
            message = session.recv() => received.push(message.unwrap().unwrap()),
            () = std::future::ready(()) => {}
        }
        peer.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    while received.len() < 2 {
        received.push(session.recv().await.unwrap().unwrap());
    }
    assert_eq!(received, [&b"first"[..], b"second"]);
}

#[tokio::test]
async fn a_dropped_send_leaves_no_half_message() {
    let (mut a, mut b) = pair(1);
    let message = noise(1, 1_000_000);
    tokio::select! {
        biased;
        sent = a.send(&message) => panic!("{sent:?}"),
        () = std::future::ready(()) => {}
    }
    let (sent, received) =
        tokio::join!(a.send(b"next"), async { (b.recv().await.unwrap().unwrap(), b.recv().await.unwrap().unwrap()) });
    sent.unwrap();
    assert!(received.0 == message);
    assert_eq!(received.1, b"next");
}

#[tokio::test]
async fn messages_have_a_largest_size() {
    let (mut a, mut b) = pair(1);
    let too_large = vec![0; MAX_MESSAGE + 1];
    assert!(matches!(a.send(&too_large).await, Err(Error::Limit { .. })));
    let (sent, received) = tokio::join!(a.send(&too_large[1..]), b.recv());
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap().len(), MAX_MESSAGE);
}

#[tokio::test]
async fn messages_cross_and_keep_their_order() {
    let (mut a, mut b) = pair(1);
    async fn chat(session: &mut Session) {
        for number in 0..50u8 {
            session.send(&[number]).await.unwrap();
        }
        for number in 0..50u8 {
            assert_eq!(session.recv().await.unwrap().unwrap(), [number]);
        }
    }
    tokio::join!(chat(&mut a), chat(&mut b));
}

#[tokio::test]
async fn a_foreign_byte_on_the_control_connection_ends_the_session() {
    let (control, mut foreign) = tokio::io::duplex(1000);
    let address: SocketAddr = ([127, 0, 0, 1], 7077).into();
    let mut session = Session::new(Box::new(control), Vec::new(), "x".into(), address, 1);
    foreign.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let end = session.recv().await;
    assert!(matches!(end, Err(Error::Protocol { .. })), "{end:?}");
    assert!(matches!(session.send(b"x").await, Err(Error::Protocol { .. })));
}
