//! The other end of the control API: what the command line uses, and any Rust program may.
//!
//! One connection per request: they are to a unix socket on the same machine, and a command makes only a few.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use spothop_policy::Plan;
use tokio::net::UnixStream;

use super::{
    Accepted, Begun, ContainerView, EvacuateRequest, Event, HostView, LifecycleHookView, LogView, MigrateRequest,
    MigrationView, Open, ParkRequest, ParkedView, PlanRequest, Problem, ProblemCode, ProviderView, ResolveRequest,
    RestoreRequest, Runs, Status,
};

/// The largest answer that is read, in bytes. A plan for a thousand containers and hosts is far smaller.
const ANSWER_LIMIT: usize = 64 << 20;

/// Why the daemon's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no daemon to talk to, or we may not.
    #[error("cannot reach the spothop daemon at {}: {}", socket.display(), reach_advice(source))]
    Unreachable {
        /// The socket tried.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke before the answer was complete: the daemon was stopped or crashed. What was asked for may have
    /// been begun.
    #[error("the spothop daemon at {} went away while answering {request}; see: journalctl -u spothop", socket.display())]
    Interrupted {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// What the HTTP layer said.
        source: hyper::Error,
    },
    /// The daemon said no.
    #[error("{}{}", .0.message, advice(.0))]
    Refused(Problem),
    /// The answer is not what this version of the API says.
    #[error(
        "the answer to {request} is not understood; are `spothop` and its daemon of the same version? Restart the daemon after an upgrade: systemctl restart spothop"
    )]
    Unknown {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The answer is larger than any real one.
    #[error("the answer to {request} exceeds {ANSWER_LIMIT} bytes; is {} really spothop's socket?", socket.display())]
    TooLarge {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        request: String,
    },
}

fn reach_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            "it is not running; start it with: systemctl start spothop"
        }
        ErrorKind::PermissionDenied => "only root may talk to it; try again with sudo",
        _ => "see: systemctl status spothop",
    }
}

fn advice(problem: &Problem) -> String {
    problem.advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default()
}

/// Speaks to the daemon of this host. Every method can fail with any [`ClientError`].
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the daemon that listens on `socket`; nothing is opened yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the daemon is and does right now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// What this host's cloud says of it. The daemon asks the cloud, which takes seconds when it does not answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn provider(&self) -> Result<ProviderView, ClientError> {
        self.get("/v1/provider").await
    }

    /// How things stand with the lifecycle hook, if one is configured. The daemon asks Auto Scaling, which takes seconds when it does not answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lifecycle_hook(&self) -> Result<Option<LifecycleHookView>, ClientError> {
        self.get("/v1/lifecycle-hook").await
    }

    /// The running containers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn containers(&self) -> Result<Vec<ContainerView>, ClientError> {
        self.get("/v1/containers").await
    }

    /// The inventory. The daemon asks every peer first, so that this takes as long as the slowest of them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hosts(&self) -> Result<Vec<HostView>, ClientError> {
        self.get("/v1/hosts").await
    }

    /// What would be done; nothing is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn plan(&self, request: &PlanRequest) -> Result<Plan, ClientError> {
        self.post("/v1/plan", request).await
    }

    /// Begins to move one container.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn migrate(&self, request: &MigrateRequest) -> Result<Accepted, ClientError> {
        self.post("/v1/migrations", request).await
    }

    /// Begins to move every container that can be.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evacuate(&self, request: &EvacuateRequest) -> Result<Accepted, ClientError> {
        self.post("/v1/evacuations", request).await
    }

    /// Begins to park a container.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn park(&self, request: &ParkRequest) -> Result<Begun, ClientError> {
        self.post("/v1/parkings", request).await
    }

    /// Begins to restore a checkpoint. The daemon reads it first, which takes a moment.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn restore(&self, request: &RestoreRequest) -> Result<Begun, ClientError> {
        self.post("/v1/restores", request).await
    }

    /// The checkpoints at a place, the configured one if none is named.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn parked(&self, at: Option<&str>) -> Result<Vec<ParkedView>, ClientError> {
        match at {
            Some(at) => self.get(&format!("/v1/parkings?at={}", escape(at))).await,
            None => self.get("/v1/parkings").await,
        }
    }

    /// One migration, running or past.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn migration(&self, id: &str) -> Result<MigrationView, ClientError> {
        self.get(&format!("/v1/migrations/{}", escape(id))).await
    }

    /// What is known about a migration that only a person can end.
    ///
    /// # Errors
    /// [`ClientError`]; the daemon refuses when there is nothing to resolve.
    pub async fn resolution(&self, id: &str) -> Result<Open, ClientError> {
        self.get(&format!("/v1/migrations/{}/resolution", escape(id))).await
    }

    /// Says where the container of such a migration runs.
    ///
    /// # Errors
    /// [`ClientError`]; the daemon refuses while the other host answers.
    pub async fn resolve(&self, id: &str, runs: Runs) -> Result<MigrationView, ClientError> {
        self.post(&format!("/v1/migrations/{}/resolution", escape(id)), &ResolveRequest { runs }).await
    }

    /// CRIU's log of one migration on this host.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] when none is kept.
    pub async fn log(&self, id: &str) -> Result<LogView, ClientError> {
        self.get(&format!("/v1/migrations/{}/log", escape(id))).await
    }

    /// The last `limit` migrations, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn history(&self, limit: usize) -> Result<Vec<MigrationView>, ClientError> {
        self.get(&format!("/v1/history?limit={limit}")).await
    }

    /// What happens to these migrations, from their beginning until all are finished; to every one, from now on and without
    /// end, if none is named.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, migrations: &[String]) -> Result<Events, ClientError> {
        let mut path = "/v1/events".to_owned();
        for (n, id) in migrations.iter().enumerate() {
            path.push(if n == 0 { '?' } else { '&' });
            path.push_str("migration=");
            path.push_str(&escape(id));
        }
        let (request, response) = self.send(Method::GET, &path, Bytes::new()).await?;
        Ok(Events {
            socket: self.socket.clone(),
            request,
            body: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
        })
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.exchange(Method::GET, path, Bytes::new()).await
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, body: &Q) -> Result<A, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|source| ClientError::Unknown { request: format!("POST {path}"), source })?;
        self.exchange(Method::POST, path, body.into()).await
    }

    async fn exchange<A: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<A, ClientError> {
        let (request, response) = self.send(method, path, body).await?;
        let answer = self.read(&request, response).await?;
        serde_json::from_slice(&answer).map_err(|source| ClientError::Unknown { request, source })
    }

    /// Sends a request; returns its name for messages, and the head of a 2xx answer.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(String, Response<Incoming>), ClientError> {
        let name = format!("{method} {path}");
        let interrupted =
            |source| ClientError::Interrupted { socket: self.socket.clone(), request: name.clone(), source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(interrupted)?;
        // Drives the connection until the answer is read or dropped; its errors reach us through the answer.
        tokio::spawn(connection);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Our own paths with escaped ids: always a valid origin-form URI.
        *request.uri_mut() = path.parse().expect("the path is a URI");
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("spothop"));
        request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let response = sender.send_request(request).await.map_err(interrupted)?;
        if response.status().is_success() {
            return Ok((name, response));
        }
        let status = response.status();
        let body = self.read(&name, response).await?;
        Err(ClientError::Refused(problem(status, &body)))
    }

    async fn read(&self, request: &str, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let mut body = response.into_body();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| ClientError::Interrupted {
                socket: self.socket.clone(),
                request: request.to_owned(),
                source,
            })?;
            all.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if all.len() > ANSWER_LIMIT {
                return Err(ClientError::TooLarge { socket: self.socket.clone(), request: request.to_owned() });
            }
        }
        Ok(all.freeze())
    }
}

/// The body of an answer that is not 2xx, also when it did not come from our own handlers.
fn problem(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        let code = if status.is_client_error() { ProblemCode::BadRequest } else { ProblemCode::Internal };
        Problem { code, message: format!("the daemon answered {status}: {}", text.trim()), advice: None }
    })
}

/// Escapes what is not unreserved in a URI (RFC 3986, 2.3).
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A stream of [`Event`]s.
#[derive(Debug)]
pub struct Events {
    socket: PathBuf,
    request: String,
    body: Incoming,
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no newline.
    searched: usize,
}

impl Events {
    /// The next event; `None` when the daemon ended the stream: the named migrations are finished.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`] when the daemon went away, [`ClientError::Unknown`], [`ClientError::TooLarge`].
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(newline) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(self.searched + newline + 1);
                self.searched = 0;
                // Empty lines keep the connection alive.
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_reader(line.reader())
                    .map(Some)
                    .map_err(|source| ClientError::Unknown { request: self.request.clone(), source });
            }
            self.searched = self.buffer.len();
            if self.searched > ANSWER_LIMIT {
                return Err(ClientError::TooLarge { socket: self.socket.clone(), request: self.request.clone() });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(source)) => {
                    return Err(ClientError::Interrupted {
                        socket: self.socket.clone(),
                        request: self.request.clone(),
                        source,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::api::EventKind;

    /// A daemon that gives one answer, byte for byte, in the given pieces, and returns the request that it got.
    fn answers(pieces: &[&str]) -> (tempfile::TempDir, Client, tokio::task::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let pieces: Vec<String> = pieces.iter().map(|&piece| piece.to_owned()).collect();
        let daemon = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (dir, Client::new(socket), daemon)
    }

    fn with_length(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_request_names_its_path_and_body_and_the_answer_is_typed() {
        let (_dir, client, daemon) =
            answers(&[&with_length("200 OK", r#"{"strategy":"spread","moves":[],"stays":[]}"#)]);
        let request = PlanRequest { container: Some("redis".to_owned()), ..PlanRequest::default() };
        assert_eq!(client.plan(&request).await.unwrap(), Plan::default());
        let seen = daemon.await.unwrap();
        assert!(seen.starts_with("POST /v1/plan HTTP/1.1\r\n"), "{seen}");
        assert!(seen.ends_with(r#"{"container":"redis","to":null,"budget":null}"#), "{seen}");
    }

    #[tokio::test]
    async fn an_id_from_a_user_cannot_change_the_path() {
        let (_dir, client, daemon) = answers(&[&with_length("404 Not Found", "{}")]);
        client.migration("../hosts?x y").await.unwrap_err();
        assert!(daemon.await.unwrap().starts_with("GET /v1/migrations/..%2Fhosts%3Fx%20y HTTP/1.1"));
    }

    #[tokio::test]
    async fn no_daemon_is_told_apart_and_says_how_to_start_it() {
        let error = Client::new("/nonexistent/control.sock").status().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }));
        insta::assert_snapshot!(error, @"cannot reach the spothop daemon at /nonexistent/control.sock: it is not running; start it with: systemctl start spothop");
    }

    #[tokio::test]
    async fn the_daemons_no_comes_with_its_advice() {
        let body =
            r#"{"code":"refused","message":"redis cannot be moved: io_uring","advice":"restart it with io_uring off"}"#;
        let (_dir, client, _daemon) = answers(&[&with_length("409 Conflict", body)]);
        let request = MigrateRequest { container: "redis".to_owned(), to: None };
        let error = client.migrate(&request).await.unwrap_err();
        insta::assert_snapshot!(error, @"redis cannot be moved: io_uring; restart it with io_uring off");
    }

    #[tokio::test]
    async fn a_no_in_plain_text_is_shown_as_it_is() {
        let (_dir, client, _daemon) = answers(&[&with_length("405 Method Not Allowed", "no such method\n")]);
        let error = client.hosts().await.unwrap_err();
        insta::assert_snapshot!(error, @"the daemon answered 405 Method Not Allowed: no such method");
    }

    #[tokio::test]
    async fn an_answer_cut_short_is_an_interruption() {
        let (_dir, client, _daemon) = answers(&["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[{"]);
        assert!(matches!(client.containers().await, Err(ClientError::Interrupted { .. })));
    }

    #[tokio::test]
    async fn another_shape_asks_about_versions() {
        let (_dir, client, _daemon) = answers(&[&with_length("200 OK", r#"{"host":1}"#)]);
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, ClientError::Unknown { .. }));
        assert!(error.to_string().contains("same version"), "{error}");
    }

    #[tokio::test]
    async fn events_are_split_at_newlines_wherever_the_pieces_end() {
        let line = r#"{"migration":"m","side":"source","container":"c","at":"2026-01-01T00:00:00Z","event":"phase","phase":"frozen"}"#;
        let text = format!("{line}\n\n{line}\n");
        let (first, rest) = text.split_at(50);
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
        let (_dir, client, daemon) = answers(&[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            &chunk(first),
            &chunk(rest),
            "0\r\n\r\n",
        ]);
        let mut events = client.events(&["m".to_owned(), "n".to_owned()]).await.unwrap();
        for _ in 0..2 {
            let event = events.next().await.unwrap().unwrap();
            assert!(matches!(event.what, EventKind::Phase { .. }) && event.container == "c");
        }
        assert!(events.next().await.unwrap().is_none());
        assert!(daemon.await.unwrap().starts_with("GET /v1/events?migration=m&migration=n HTTP/1.1"));
    }

    #[tokio::test]
    async fn a_stream_without_its_end_is_an_interruption() {
        let (_dir, client, _daemon) = answers(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]);
        let mut events = client.events(&[]).await.unwrap();
        assert!(matches!(events.next().await, Err(ClientError::Interrupted { .. })));
    }
}
