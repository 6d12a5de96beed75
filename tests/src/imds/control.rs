//! The control socket of a metadata service: one JSON line asked, one JSON line answered.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::{Cloud, Metadata, Notice};
use crate::error::{Context, Error, Result};

/// What the testbed asks of the service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Put this notice out, in place of any other.
    Notice(Notice),
    /// Take the notice back.
    Cancel,
    /// Be the service of this cloud from now on, without a notice.
    Cloud(Cloud),
    /// Tell how things stand.
    State,
    /// Tell of the instance with this id from now on.
    Identify {
        /// `i-` and 17 hexadecimal digits.
        id: String,
    },
    /// Put this document out, in place of what was there before, or take it back.
    Document {
        /// Below the version, like `meta-data/autoscaling/target-lifecycle-state`.
        path: String,
        /// Its content.
        body: Option<String>,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Done,
    State(State),
    Refused { reason: String },
}

/// Asks the service of `host` through its socket.
///
/// # Errors
/// [`Error::Io`] when it does not answer, [`Error::Notice`] when it refuses.
pub fn ask(host: &str, socket: &Path, request: Request) -> Result<()> {
    exchange(host, socket, request).map(drop)
}

/// How things stand with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The cloud that it is of.
    pub cloud: Cloud,
    /// When the notice that is out was approved.
    pub approved: Option<Timestamp>,
}

/// Asks the service of `host` how things stand.
///
/// # Errors
/// Like [`ask`].
pub fn state(host: &str, socket: &Path) -> Result<State> {
    match exchange(host, socket, Request::State)? {
        Reply::State(state) => Ok(state),
        other => {
            Err(Error::Unexpected { what: "the state of a metadata service".to_owned(), text: format!("{other:?}") })
        }
    }
}

fn exchange(host: &str, socket: &Path, request: Request) -> Result<Reply> {
    let wrong = |source| Error::Json { what: "a message of the metadata service's control socket".to_owned(), source };
    let mut stream = UnixStream::connect(socket).on("connect to", socket)?;
    let line = serde_json::to_string(&request).map_err(wrong)?;
    writeln!(stream, "{line}").on("write to", socket)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).on("read from", socket)?;
    match serde_json::from_str(&reply).map_err(wrong)? {
        reply @ (Reply::Done | Reply::State(_)) => Ok(reply),
        Reply::Refused { reason } => Err(Error::Notice { host: host.to_owned(), reason }),
    }
}

/// Answers one request after the other; each is done at once.
pub(super) async fn serve(listener: UnixListener, metadata: Arc<Metadata>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = tokio::io::BufReader::new(stream);
        let mut line = String::new();
        if stream.read_line(&mut line).await.is_err() {
            continue; // the asker is gone
        }
        let reply = match serde_json::from_str(&line) {
            Ok(Request::Notice(Notice { action, .. })) if !metadata.cloud().gives(action) => {
                Reply::Refused { reason: format!("{:?} gives no notice to {action:?}", metadata.cloud()) }
            }
            Ok(Request::Notice(notice)) => {
                metadata.set_notice(Some(notice));
                Reply::Done
            }
            Ok(Request::Cancel) => {
                metadata.set_notice(None);
                Reply::Done
            }
            Ok(Request::Cloud(cloud)) => {
                metadata.set_cloud(cloud);
                Reply::Done
            }
            Ok(Request::State) => Reply::State(State { cloud: metadata.cloud(), approved: metadata.approved() }),
            Ok(Request::Identify { id }) => {
                metadata.identify(id);
                Reply::Done
            }
            Ok(Request::Document { path, body }) => {
                metadata.set_document(path, body);
                Reply::Done
            }
            Err(error) => Reply::Refused { reason: error.to_string() },
        };
        if let Ok(mut reply) = serde_json::to_string(&reply) {
            reply.push('\n');
            let _ = stream.write_all(reply.as_bytes()).await; // the asker may be gone
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::imds::{Action, Instance};

    #[tokio::test]
    async fn a_notice_asked_for_is_out_when_the_answer_comes() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("imds.sock");
        let metadata = Metadata::new(Instance {
            id: "i-0".to_owned(),
            kind: "m7i.large".to_owned(),
            zone: "eu-central-1b".to_owned(),
            name: "a".to_owned(),
            address: Ipv4Addr::LOCALHOST,
            mac: String::new(),
        });
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(serve(listener, Arc::clone(&metadata)));
        let notice = Notice { action: Action::Hibernate, time: "2026-01-01T00:00:00Z".parse().unwrap() };
        for (request, out) in [(Request::Notice(notice), Some(notice)), (Request::Cancel, None)] {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || ask("a", &socket, request)).await.unwrap().unwrap();
            assert_eq!(metadata.notice(), out);
        }
        for (request, cloud) in
            [(Request::Notice(notice), Cloud::Aws), (Request::Cloud(Cloud::Tencent), Cloud::Tencent)]
        {
            let socket = socket.clone();
            let asked = tokio::task::spawn_blocking(move || {
                ask("a", &socket, request)?;
                state("a", &socket)
            });
            assert_eq!(asked.await.unwrap().unwrap(), State { cloud, approved: None });
        }
        assert_eq!(metadata.notice(), None, "the notice of another cloud");
        let (refusing, refused) = (socket.clone(), Request::Notice(notice));
        let refused = tokio::task::spawn_blocking(move || ask("a", &refusing, refused)).await.unwrap();
        assert!(matches!(refused, Err(Error::Notice { .. })), "{refused:?}");
        let identify = Request::Identify { id: "i-1".to_owned() };
        tokio::task::spawn_blocking(move || ask("a", &socket, identify)).await.unwrap().unwrap();
        assert_eq!(metadata.instance().id, "i-1");
    }
}
