//! The program `spothop`: the daemon, its command line, and the action script that CRIU calls.

mod logging;

use std::env;
use std::path::Path;
use std::process::{ExitCode, Termination};

use clap::Parser;
use spothop::cli::args::{Cli, Command, Global};
use spothop::cli::{self, CliError, Exit, render_error};
use spothop::config::Config;
use spothop::daemon;
use spothop::migration::gate;
use spothop_criu::hook::Event;
use tokio::runtime::Builder;

fn main() -> ExitCode {
    // CRIU runs its action script by a bare path, so that the name is all there is to know it by.
    let program = env::args_os().next().unwrap_or_default();
    if let Some(directory) = gate::called_as_script(Path::new(&program)) {
        return action_script(directory);
    }
    let Cli { command, global } = Cli::parse();
    let exit = match command {
        Command::Daemon => run_daemon(&global),
        Command::Action(action) => run_action(action, &global),
    };
    exit.report()
}

/// Exit code 0 lets CRIU kill the container at `post-dump`; anything else gives it back to its host.
fn action_script(directory: &Path) -> ExitCode {
    match gate::script(directory, Event::from_env().as_ref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", render_error(&error, Exit::Failed, false));
            ExitCode::FAILURE
        }
    }
}

fn run_action(action: cli::args::Action, global: &Global) -> Exit {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(cli::run(action, global))) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("{}", render_error(&error, error.exit(), global.json));
            error.exit()
        }
    }
}

fn run_daemon(global: &Global) -> Exit {
    logging::start();
    let result = Config::load(global.config.as_deref()).map_err(anyhow::Error::from).and_then(|config| {
        let runtime = Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)?;
        Ok(runtime.block_on(daemon::run(config, &global.socket))?)
    });
    match result {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!("{}", render_error(error.as_ref(), Exit::Failed, false));
            Exit::Failed
        }
    }
}
