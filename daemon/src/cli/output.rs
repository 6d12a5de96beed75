//! Standard output: text for people or JSON for programs, never both.

use std::io::{self, Write};

use serde::Serialize;

use super::exit::CliError;

/// Where a command's result goes.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    to: io::Stdout,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json, to: io::stdout() }
    }

    /// Whether JSON is wanted.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// The command's result: `value` as an indented document, or else the text.
    pub(super) fn result<T: Serialize>(&mut self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        let out = if self.json {
            let mut out = serde_json::to_string_pretty(value).map_err(|e| CliError::Output(e.into()))?;
            out.push('\n');
            out
        } else {
            text()
        };
        self.write(&out)
    }

    /// One line of text.
    pub(super) fn line(&mut self, line: &str) -> Result<(), CliError> {
        self.write(&format!("{line}\n"))
    }

    /// One JSON value on a line of its own.
    pub(super) fn json_line<T: Serialize>(&mut self, value: &T) -> Result<(), CliError> {
        let line = serde_json::to_string(value).map_err(|e| CliError::Output(e.into()))?;
        self.line(&line)
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush()).map_err(CliError::Output)
    }
}
