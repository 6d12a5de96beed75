//! Waiting for migrations: the event stream shown as it comes, through restarts of the daemon.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::exit::CliError;
use super::output::Output;
use super::watch::Watch;
use crate::api::{Client, ClientError, Event, EventKind, Outcome};

/// How long to wait for a daemon that went away. systemd starts it again within seconds; past that it is stopped for good.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(250);

/// How events are shown.
#[derive(Debug)]
enum View {
    /// Nothing: the command prints one document at the end.
    Silent,
    /// One event a line, as JSON.
    Json,
    /// One line for what is worth one.
    Lines,
    /// A bar for each migration, on standard error.
    Bars { all: MultiProgress, each: HashMap<String, ProgressBar> },
}

/// Shows what happens to the named migrations until all are finished. With `--json` nothing is shown, or each event if
/// `stream` is set. No names: every migration's events, without end.
///
/// # Errors
/// [`CliError::Lost`] when the daemon stays away, or [`ClientError`].
pub(super) async fn follow(
    client: &Client,
    migrations: &[String],
    stream: bool,
    output: &mut Output,
) -> Result<Watch, CliError> {
    let mut view = match (output.json(), stream) {
        (true, true) => View::Json,
        (true, false) => View::Silent,
        (false, _) if output.terminal() && !migrations.is_empty() => {
            View::Bars { all: MultiProgress::new(), each: HashMap::new() }
        }
        (false, _) => View::Lines,
    };
    let mut watch = Watch::new(migrations);
    let mut heard = Instant::now();
    let mut said_lost = false;
    loop {
        let error = match events_until_broken(client, migrations, &mut watch, &mut view, &mut heard, output).await {
            Ok(()) if !migrations.is_empty() && watch.done() => {
                if let View::Bars { all, .. } = &view {
                    // The result says it all once more; if they cannot be cleared they stay, which does no harm.
                    let _ = all.clear();
                }
                return Ok(watch);
            }
            // The stream ended before the migrations did: the daemon is being stopped.
            Ok(()) => None,
            Err(CliError::Client(e @ (ClientError::Unreachable { .. } | ClientError::Interrupted { .. }))) => Some(e),
            Err(other) => return Err(other),
        };
        if heard.elapsed() > PATIENCE
            && let Some(source) = error
        {
            return Err(match migrations {
                [] => source.into(),
                _ => CliError::Lost { migrations: watch.unfinished(), source },
            });
        }
        if !said_lost {
            let text = format!("spothop: the daemon went away; waiting up to {} s for it", PATIENCE.as_secs());
            match &view {
                // Above the bars; best effort, as with any line to standard error.
                View::Bars { all, .. } => drop(all.println(text)),
                View::Silent | View::Json | View::Lines => eprintln!("{text}"),
            }
            said_lost = true;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One connection's worth of events. `heard` is when the daemon last gave a sign of life.
async fn events_until_broken(
    client: &Client,
    migrations: &[String],
    watch: &mut Watch,
    view: &mut View,
    heard: &mut Instant,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut events = client.events(migrations).await?;
    *heard = Instant::now();
    while let Some(event) = events.next().await? {
        *heard = Instant::now();
        let line = watch.note(&event);
        match view {
            View::Silent => {}
            View::Json => output.json_line(&event)?,
            View::Lines => {
                if let Some(line) = line {
                    output.line(&line)?;
                }
            }
            View::Bars { all, each } => {
                let bar = each.entry(event.migration.clone()).or_insert_with(|| all.add(new_bar(&event)));
                draw(bar, &event, watch.elapsed(&event));
            }
        }
    }
    Ok(())
}

fn new_bar(event: &Event) -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_style(style("{prefix}: {msg}"));
    bar.set_prefix(event.container.clone());
    // The elapsed time and the spinner move also while nothing is sent.
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn style(template: &str) -> ProgressStyle {
    // Only fails on a malformed template, and ours are constants that a test parses.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

const SENDING: &str = "{prefix}: {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
const SENDING_UNKNOWN: &str = "{prefix}: {msg} {spinner} {bytes} {bytes_per_sec}";
const WAITING: &str = "{prefix}: {msg} {spinner} {elapsed}";

fn draw(bar: &ProgressBar, event: &Event, elapsed: Duration) {
    match &event.what {
        EventKind::Phase { phase } => {
            bar.set_style(style(WAITING));
            bar.set_message(phase.to_string());
            bar.set_elapsed(elapsed);
        }
        EventKind::Progress { what, sent, total } => {
            let what = format!("sending {what}");
            if bar.message() != what {
                bar.reset_eta();
                bar.set_message(what);
            }
            bar.set_style(style(if total.is_some() { SENDING } else { SENDING_UNKNOWN }));
            if let Some(total) = total {
                bar.set_length(*total);
            }
            bar.set_position(*sent);
        }
        EventKind::Finished { outcome, .. } => {
            bar.set_style(style("{prefix}: {msg}"));
            bar.finish_with_message(match outcome {
                Outcome::Moved => "moved",
                Outcome::Aborted => "aborted",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::cli::exit::Exit;

    #[test]
    fn the_templates_of_the_bars_are_well_formed() {
        for template in [SENDING, SENDING_UNKNOWN, WAITING] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    /// A daemon that gives each connection the next of these event streams, each with or without its proper end.
    fn daemon(streams: Vec<(Vec<&'static str>, bool)>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            for (lines, whole) in streams {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                let mut answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
                for line in lines {
                    let line = format!(
                        r#"{{"migration":"m","side":"source","container":"redis","at":"2026-01-01T00:00:00Z",{line}}}"#
                    );
                    answer.push_str(&format!("{:x}\r\n{line}\n\r\n", line.len() + 1));
                }
                if whole {
                    answer.push_str("0\r\n\r\n");
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (dir, socket)
    }

    /// Standard output, to be read afterwards.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const FROZEN: &str = r#""event":"phase","phase":"frozen""#;
    const ABORTED: &str = r#""event":"finished","outcome":"aborted","reason":"b is full""#;

    #[tokio::test]
    async fn a_restart_of_the_daemon_is_waited_out_and_nothing_is_said_twice() {
        // Cut off, then ended early by a daemon that is being stopped, then told from the beginning to the end.
        let streams = vec![(vec![FROZEN], false), (vec![FROZEN], true), (vec![FROZEN, ABORTED], true)];
        let (_dir, socket) = daemon(streams);
        let paper = Paper::default();
        let mut output = Output::into(paper.clone(), false);
        let watch = follow(&Client::new(socket), &["m".to_owned()], false, &mut output).await.unwrap();
        assert_eq!(watch.exit(), Exit::Aborted);
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "redis: frozen (after 0 ms)\nredis: aborted: b is full\n");
    }

    #[tokio::test]
    async fn with_json_each_event_is_a_line() {
        let (_dir, socket) = daemon(vec![(vec![FROZEN, ABORTED], true)]);
        let paper = Paper::default();
        let mut output = Output::into(paper.clone(), true);
        follow(&Client::new(socket), &["m".to_owned()], true, &mut output).await.unwrap();
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), 2);
    }
}
