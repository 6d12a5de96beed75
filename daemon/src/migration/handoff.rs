//! The daemon's end of the handoff with `spothop-oci`, which the engine runs for us at the target.

use std::io;
use std::path::PathBuf;

use spothop_criu::handoff::{Directory, Report, Verdict, line};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::debug;

use super::Error;

/// Listens on a migration's `handoff.sock`. The wrapper may connect again and repeat itself at any time; dropping this
/// closes the socket.
#[derive(Debug)]
pub(super) struct Handoff {
    reports: mpsc::UnboundedReceiver<Report>,
    answers: watch::Sender<Answers>,
    server: JoinHandle<()>,
}

/// What the wrapper is to be told, once that is known.
#[derive(Debug, Clone, Default)]
struct Answers {
    to_waiting: Option<Verdict>,
    to_attached: Option<Verdict>,
}

impl Handoff {
    /// Opens the socket.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn listen(directory: &Directory) -> Result<Self, Error> {
        let path = directory.socket();
        let listener = bind(&path).map_err(|source| Error::File { action: "make", path, source })?;
        let (sender, reports) = mpsc::unbounded_channel();
        let (answers, known) = watch::channel(Answers::default());
        let server = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        tokio::spawn(converse(stream, sender.clone(), known.clone()));
                    }
                    Err(error) => debug!(%error, "a wrapper's connection was lost before it was taken"),
                }
            }
        });
        Ok(Self { reports, answers, server })
    }

    /// The wrapper's next word.
    pub(super) async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// Images and files are whole: restore.
    pub(super) fn restore(&self) {
        self.answers.send_modify(|answers| answers.to_waiting = Some(Verdict::Restore));
    }

    /// The source has committed: let the tasks run.
    pub(super) fn run(&self) {
        self.answers.send_modify(|answers| answers.to_attached = Some(Verdict::Run));
    }

    /// Give up, whatever the wrapper waits for.
    pub(super) fn abort(&self, reason: &str) {
        let abort = Some(Verdict::Abort { reason: reason.to_owned() });
        self.answers.send_replace(Answers { to_waiting: abort.clone(), to_attached: abort });
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn bind(path: &PathBuf) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Hears one connection's reports and answers those that ask.
async fn converse(stream: UnixStream, reports: mpsc::UnboundedSender<Report>, known: watch::Receiver<Answers>) {
    if let Err(error) = try_converse(stream, reports, known).await {
        debug!(%error, "the conversation with a wrapper broke; it will connect again");
    }
}

async fn try_converse(
    stream: UnixStream,
    reports: mpsc::UnboundedSender<Report>,
    mut known: watch::Receiver<Answers>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut text = String::new();
        if stream.read_line(&mut text).await? == 0 {
            return Ok(());
        }
        let report: Report = serde_json::from_str(&text)?;
        let answer: Option<fn(&Answers) -> Option<&Verdict>> = match report {
            Report::Waiting { .. } => Some(|answers| answers.to_waiting.as_ref()),
            Report::Attached { .. } => Some(|answers| answers.to_attached.as_ref()),
            Report::Restored { .. } | Report::Running | Report::Failed { .. } => None,
        };
        // Nobody listens any more once the migration is over.
        let _ = reports.send(report);
        if let Some(answer) = answer {
            let Ok(answers) = known.wait_for(|answers| answer(answers).is_some()).await.map(|answers| answers.clone())
            else {
                return Ok(());
            };
            if let Some(verdict) = answer(&answers) {
                stream.get_mut().write_all(&line(verdict)?).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use spothop_criu::handoff::Client;

    use super::*;

    #[tokio::test]
    async fn the_wrapper_waits_for_each_verdict_and_every_word_arrives() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        let mut handoff = Handoff::listen(&directory).unwrap();
        let wrapper = tokio::task::spawn_blocking(move || {
            let mut create = Client::new(directory.clone());
            let waiting = create.ask(&Report::Waiting { container_id: "c".into(), pid: 1 }).unwrap();
            create.tell(&Report::Restored { init_pid: 7 }).unwrap();
            let mut start = Client::new(directory);
            (waiting, start.ask(&Report::Attached { container_id: "c".into() }).unwrap())
        });
        assert!(matches!(handoff.report().await, Some(Report::Waiting { .. })));
        handoff.restore();
        assert_eq!(handoff.report().await, Some(Report::Restored { init_pid: 7 }));
        assert!(matches!(handoff.report().await, Some(Report::Attached { .. })));
        handoff.run();
        assert_eq!(wrapper.await.unwrap(), (Verdict::Restore, Verdict::Run));
    }

    #[tokio::test]
    async fn an_abort_answers_whatever_is_asked_and_however_often() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        let handoff = Handoff::listen(&directory).unwrap();
        handoff.abort("the source is gone");
        let abort = Verdict::Abort { reason: "the source is gone".into() };
        for _ in 0..2 {
            let directory = directory.clone();
            let asked = tokio::task::spawn_blocking(move || {
                Client::new(directory).ask(&Report::Waiting { container_id: "c".into(), pid: 1 }).unwrap()
            });
            assert_eq!(asked.await.unwrap(), abort);
        }
    }
}
