//! The daemon's log: for journald where systemd started it, for a person's eyes otherwise.
//!
//! Lines to standard error rather than journald's own protocol: there, the fields of an event are hidden from
//! `journalctl -u spothop`, and it is the fields that say which migration, which container, which phase.

use std::env;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging. `SPOTHOP_LOG` filters, as in `SPOTHOP_LOG=debug` or `SPOTHOP_LOG=info,spothop::migration=trace`.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("SPOTHOP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if stderr_is_the_journal() {
        log.with_ansi(false).event_format(ForJournal).init();
    } else {
        log.init();
    }
}

/// systemd.exec(5): `JOURNAL_STREAM` is set to device and inode of the stream, so that a program whose standard error was
/// sent elsewhere can tell.
fn stderr_is_the_journal() -> bool {
    let stream = env::var("JOURNAL_STREAM").ok();
    let stderr = std::fs::metadata("/proc/self/fd/2").ok();
    stream.zip(stderr).is_some_and(|(stream, stderr)| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// The message and its fields, after the level in the way that journald understands (sd-daemon(3)); it adds the time itself.
struct ForJournal;

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // syslog(3): error, warning, informational, debug.
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_for_the_journal_has_priority_message_and_fields() {
        let paper = Paper::default();
        let to = paper.clone();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(ForJournal)
            .with_writer(move || to.clone())
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::info!(container = "redis", phase = %"frozen", "a phase was entered");
            tracing::error!("no");
        });
        let text = String::from_utf8(paper.0.lock().expect("no panic while writing").clone()).expect("text");
        assert_eq!(text, "<6>a phase was entered container=\"redis\" phase=frozen\n<3>no\n");
    }
}
