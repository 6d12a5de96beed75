//! Standard output: text for people or JSON for programs, never both.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::exit::CliError;

/// Where a command's result goes.
pub(super) struct Output {
    json: bool,
    terminal: bool,
    to: Box<dyn Write>,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        // Bars are drawn on standard error, and belong only where the result is read by people too.
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        Self { json, terminal, to: Box::new(io::stdout()) }
    }

    /// For tests that want to read it.
    #[cfg(test)]
    pub(super) fn into(to: impl Write + 'static, json: bool) -> Self {
        Self { json, terminal: false, to: Box::new(to) }
    }

    /// Whether JSON is wanted.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Whether somebody watches.
    pub(super) fn terminal(&self) -> bool {
        self.terminal
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
