//! Subprocesses: run one to its end with its output captured.

use std::io::{BufRead, BufReader, Read, Write};
use std::mem;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

/// A helper program that could not be run or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program could not be started at all.
    #[error("cannot run {program}: {source}; is it installed and in PATH?")]
    Spawn {
        /// The program's name or path.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program ran and reported an error.
    #[error("{program} {arguments} failed ({status}): {message}")]
    Failed {
        /// The program's name or path.
        program: String,
        /// Its arguments, separated by spaces.
        arguments: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it printed, on one line.
        message: String,
    },
}

/// Runs `command` to its end, `input` on its stdin, and returns what it printed.
///
/// # Errors
/// When it cannot be started, or when its exit status is not 0.
pub(crate) fn run(command: &mut Command, input: Option<&str>) -> Result<Output, CommandError> {
    let output = output(command, input)?;
    if output.status.success() {
        return Ok(output);
    }
    Err(CommandError::Failed {
        program: program(command),
        arguments: command.get_args().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "),
        status: output.status,
        message: message(&output),
    })
}

/// Like [`run`], but a bad exit status is not an error.
pub(crate) fn output(command: &mut Command, input: Option<&str>) -> Result<Output, CommandError> {
    let spawn_error = |program: String| move |source| CommandError::Spawn { program, source };
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(spawn_error(program(command)))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that does not read its input says why by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(spawn_error(program(command)))
}

/// Runs `command`, whose stdin the caller has chosen, to its end. A bad exit status is not an error.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn finish(command: &mut Command) -> Result<Output, CommandError> {
    command.output().map_err(|source| CommandError::Spawn { program: program(command), source })
}

/// A program that is started and waits for its input. It is killed if this is dropped.
#[derive(Debug)]
pub(crate) struct Started {
    /// None once it has ended.
    child: Option<Child>,
    program: String,
}

impl Started {
    /// Starts `command`, which reads its input to the end before it does anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn new(command: &mut Command) -> Result<Self, CommandError> {
        let program = program(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn() {
            Ok(child) => Ok(Self { child: Some(child), program }),
            Err(source) => Err(CommandError::Spawn { program, source }),
        }
    }

    /// Gives it `input` and waits for its end.
    ///
    /// # Errors
    /// When its exit status is not 0.
    pub(crate) fn finish(self, input: &str) -> Result<(), CommandError> {
        self.finish_at(input, |_| false)
    }

    /// Gives it `input` and waits for a line of its output that is `done`, or else for its end. What it does after that line is its own
    /// affair.
    ///
    /// # Errors
    /// When it has ended without that line, and its exit status is not 0.
    pub(crate) fn finish_at(mut self, input: &str, done: impl Fn(&str) -> bool) -> Result<(), CommandError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input says why by its exit status.
            let _ = stdin.write_all(input.as_bytes());
        }
        let program = mem::take(&mut self.program);
        // Else one that complains at length would wait for us, and we for its output.
        let complaints = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut complaints = Vec::new();
                let _ = stderr.read_to_end(&mut complaints);
                complaints
            })
        });
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take().map(BufReader::new) {
            let mut before = 0;
            while stdout.read_line(&mut said).is_ok_and(|bytes| bytes > 0) {
                if done(&said[before..]) {
                    // Somebody must reap it.
                    thread::spawn(move || child.wait());
                    return Ok(());
                }
                before = said.len();
            }
        }
        match child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let stderr = complaints.and_then(|thread| thread.join().ok()).unwrap_or_default();
                let message = message(&Output { status, stdout: said.into_bytes(), stderr });
                Err(CommandError::Failed { program, arguments: "(prepared)".to_owned(), status, message })
            }
            Err(source) => Err(CommandError::Spawn { program, source }),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Nobody else would reap it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a program said, on one line: stderr, or stdout when stderr is empty.
pub(crate) fn message(output: &Output) -> String {
    let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
    String::from_utf8_lossy(said).lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks;

    #[test]
    fn what_is_prepared_does_its_work_or_is_gone() {
        Started::new(&mut Command::new("cat")).unwrap().finish("x").unwrap();
        let failed = Started::new(&mut Command::new("sh")).unwrap().finish("echo no >&2; exit 3").unwrap_err();
        assert!(failed.to_string().ends_with(": no"), "{failed}");
        let both = Started::new(&mut Command::new("sh")).unwrap().finish("echo so; echo no >&2; exit 3").unwrap_err();
        assert!(both.to_string().ends_with(": no"), "{both}");
        let only = Started::new(&mut Command::new("sh")).unwrap().finish("echo so; exit 3").unwrap_err();
        assert!(only.to_string().ends_with(": so"), "{only}");
        let dropped = Started::new(&mut Command::new("cat")).unwrap();
        let pid = dropped.child.as_ref().unwrap().id();
        assert!(tasks::start_time(pid.cast_signed()).is_some());
        drop(dropped);
        let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
        assert!(gone, "it was not reaped");
    }

    #[test]
    fn what_a_program_does_after_its_word_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let fifo = scratch.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let waiting = Started::new(&mut Command::new("sh")).unwrap();
        let pid = waiting.child.as_ref().unwrap().id().cast_signed();
        let script = format!("echo begun; echo done; read line < {}", fifo.display());
        waiting.finish_at(&script, |line| line == "done\n").unwrap();
        assert!(!tasks::is_dead(pid));
        let end = crate::pidfd::open(pid).unwrap();
        std::fs::write(&fifo, "\n").unwrap();
        let mut ended = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&end), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut ended, 60_000_u16), Ok(1));
        let failed = Started::new(&mut Command::new("sh")).unwrap().finish_at("exit 3", |line| line == "done\n");
        assert!(failed.is_err());
    }

    #[test]
    fn a_program_may_complain_at_length() {
        // More than a pipe holds.
        let script = "dd if=/dev/zero bs=1024 count=256 2>/dev/null | tr '\\0' x >&2; echo done";
        Started::new(&mut Command::new("sh")).unwrap().finish_at(script, |line| line == "done\n").unwrap();
        let failed = Started::new(&mut Command::new("sh")).unwrap().finish(&format!("{script}; exit 3")).unwrap_err();
        assert!(failed.to_string().ends_with("xxx"));
    }
}
