//! Programs that the testbed runs: `ip`, `tc`, `nsenter`, `apt-get`, `docker`…

use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

/// A command from a program and its arguments.
pub fn command<I, S>(program: &str, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a program to its end, without input, and takes its output; a failure carries what it said.
///
/// # Errors
/// [`Error::Start`] when it cannot be run, [`Error::Command`] when it ends with another code than 0.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = output(command)?;
    check(command, output)
}

/// Like [`run`], and the exit code is left to the caller.
///
/// # Errors
/// [`Error::Start`] when it cannot be run.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|source| Error::Start { program: program(command), source })
}

/// Runs a program with the caller's own output, for long work that someone watches.
///
/// # Errors
/// Like [`run`]; the output itself has gone to the caller's standard error already.
pub fn watch(command: &mut Command) -> Result<()> {
    let status =
        command.stdin(Stdio::null()).status().map_err(|source| Error::Start { program: program(command), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: line(command), status, output: "see above".to_owned() })
}

/// Turns an unsuccessful end into an error.
///
/// # Errors
/// [`Error::Command`] when the exit code is not 0.
pub fn check(command: &Command, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
    Err(Error::Command {
        command: line(command),
        status: output.status,
        output: String::from_utf8_lossy(said).trim().to_owned(),
    })
}

/// `ip ARGUMENTS`, split at white space: none of ours contains any.
///
/// # Errors
/// Like [`run`].
pub fn ip(arguments: &str) -> Result<()> {
    run(&mut command("ip", arguments.split_whitespace())).map(drop)
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let mut line = program(command);
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = run(&mut command("sh", ["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such thing"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut command("spothop-no-such-program", [""; 0])).unwrap_err();
        assert!(error.to_string().contains("spothop-no-such-program"));
    }
}
