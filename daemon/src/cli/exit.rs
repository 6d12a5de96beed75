//! How a command ends: exit codes and errors.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};

use serde_json::json;

use crate::api::{ClientError, ProblemCode};
use crate::config::ConfigError;
use crate::setup::docker::SetupError;

/// A command's exit code; the numbers are part of the interface and are listed in `spothop --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Cannot be moved; nothing was begun.
    Refused = 3,
    /// The daemon cannot be reached.
    Unreachable = 4,
    /// Aborted before the commit; the container goes on at the source.
    Aborted = 5,
    /// The end is not known.
    Uncertain = 6,
}

impl Exit {
    /// Every one.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Failed, Self::Usage, Self::Refused, Self::Unreachable, Self::Aborted, Self::Uncertain];
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon did not answer, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Docker's configuration was not changed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A certificate was not made.
    #[error(transparent)]
    Cert(#[from] spothop_transfer::certs::Error),
    /// The authority's key is not where a certificate is to be signed.
    #[error(
        "there is no authority in {}; make one with `spothop cert init`, or run this on the machine that has it",
        dir.display()
    )]
    NoAuthority {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Examples of plans cannot be used.
    #[error(transparent)]
    Examples(#[from] super::policy::ExampleError),
    /// A picture was not written.
    #[error("cannot write {}", file.display())]
    Plot {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The daemon went away after it had begun, and did not come back while we waited.
    #[error("the daemon went away before the end of {} was known; when it is back, ask: spothop status", .migrations.join(", "))]
    Lost {
        /// The migrations in question.
        migrations: Vec<String>,
        /// What was seen last.
        source: ClientError,
    },
    /// The request was sent, and no answer came: it may have been begun.
    #[error("it is not known whether the daemon began; when it is back, ask: spothop status")]
    Unanswered(#[source] ClientError),
    /// Standard output could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The asynchronous runtime could not be made.
    #[error("cannot start the program's runtime; is the machine out of memory or of processes?")]
    Runtime(#[source] io::Error),
}

impl CliError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::Unreachable { .. }) => Exit::Unreachable,
            Self::Client(ClientError::Refused(problem)) => match problem.code {
                ProblemCode::Refused => Exit::Refused,
                ProblemCode::BadRequest => Exit::Usage,
                ProblemCode::NotFound | ProblemCode::Unauthorized | ProblemCode::Busy | ProblemCode::Internal => {
                    Exit::Failed
                }
            },
            Self::Lost { .. } | Self::Unanswered(_) => Exit::Uncertain,
            Self::Client(_)
            | Self::Config(_)
            | Self::Setup(_)
            | Self::Cert(_)
            | Self::NoAuthority { .. }
            | Self::Examples(_)
            | Self::Plot { .. }
            | Self::Output(_)
            | Self::Runtime(_) => Exit::Failed,
        }
    }
}

/// An error with its causes as text for people, one a line, or as one JSON object.
#[must_use]
pub fn render_error(error: &dyn StdError, exit: Exit, as_json: bool) -> String {
    let mut causes = Vec::new();
    let (mut said, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some libraries repeat their cause in their own message.
        if !said.contains(&text) {
            causes.push(text.clone());
            said = text;
        }
        next = cause.source();
    }
    if as_json {
        return json!({ "error": error.to_string(), "causes": causes, "exit": exit as u8 }).to_string();
    }
    let mut out = format!("spothop: {error}");
    for cause in causes {
        out.push_str("\n  because: ");
        out.push_str(&cause);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Problem;

    fn refused(code: ProblemCode) -> CliError {
        ClientError::Refused(Problem { code, message: "no".to_owned(), advice: None }).into()
    }

    fn unreachable() -> ClientError {
        ClientError::Unreachable { socket: "/s".into(), source: io::ErrorKind::NotFound.into() }
    }

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        assert_eq!(refused(ProblemCode::Refused).exit(), Exit::Refused);
        assert_eq!(refused(ProblemCode::BadRequest).exit(), Exit::Usage);
        assert_eq!(refused(ProblemCode::NotFound).exit(), Exit::Failed);
        assert_eq!(CliError::from(unreachable()).exit(), Exit::Unreachable);
        assert_eq!(CliError::Unanswered(unreachable()).exit(), Exit::Uncertain);
        assert_eq!(CliError::Lost { migrations: vec![], source: unreachable() }.exit(), Exit::Uncertain);
    }

    #[test]
    fn an_error_is_shown_with_its_causes() {
        let error = CliError::Lost { migrations: vec!["m1".into(), "m2".into()], source: unreachable() };
        insta::assert_snapshot!(render_error(&error, error.exit(), false), @r"
        spothop: the daemon went away before the end of m1, m2 was known; when it is back, ask: spothop status
          because: cannot reach the spothop daemon at /s: it is not running; start it with: systemctl start spothop
          because: entity not found
        ");
        insta::assert_snapshot!(render_error(&error, error.exit(), true), @r#"{"error":"the daemon went away before the end of m1, m2 was known; when it is back, ask: spothop status","causes":["cannot reach the spothop daemon at /s: it is not running; start it with: systemctl start spothop","entity not found"],"exit":6}"#);
    }
}
