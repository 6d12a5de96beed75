//! Waiting for migrations: the event stream shown as it comes, through restarts of the daemon.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
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
        (false, _) if io::stdout().is_terminal() && io::stderr().is_terminal() && !migrations.is_empty() => {
            View::Bars { all: MultiProgress::new(), each: HashMap::new() }
        }
        (false, _) => View::Lines,
    };
    let mut watch = Watch::new(migrations);
    let mut heard = Instant::now();
    let mut said_lost = false;
    loop {
        let error = match events_until_broken(client, migrations, &mut watch, &mut view, &mut heard, output).await {
            Ok(()) if !migrations.is_empty() && watch.done() => return Ok(watch),
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
            eprintln!("spothop: the daemon went away; waiting up to {} s for it", PATIENCE.as_secs());
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
    use super::*;

    #[test]
    fn the_templates_of_the_bars_are_well_formed() {
        for template in [SENDING, SENDING_UNKNOWN, WAITING] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
