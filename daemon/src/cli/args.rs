//! The command line's grammar.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{DEFAULT_PATH, DEFAULT_SOCKET, units};
use crate::setup::docker::DAEMON_JSON;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  refused: the container, or at least one of them, cannot be moved; nothing was begun for it
  4  the daemon cannot be reached
  5  aborted before the commit: the container goes on on this host as if nothing had happened
  6  uncertain: the daemon went away before the end was known; ask `spothop status`";

/// Live migration of containers off spot machines.
#[derive(Debug, Parser)]
#[command(name = "spothop", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print JSON instead of text: one document, or one event a line with --follow
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub json: bool,
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", help = format!("The configuration file [default: {DEFAULT_PATH}]"))]
    pub config: Option<PathBuf>,
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// The commands: the daemon, and all that people run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon (what spothop.service does)
    Daemon,
    /// Everything else.
    #[command(flatten)]
    Action(Action),
}

/// What people run; see [`super::run`].
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Move one container to another host, and wait until it is there
    Migrate(Migrate),
    /// Move everything that can be moved off this host, and wait until it is done
    Evacuate(Evacuate),
    /// Checkpoint a container to an object store and stop it here, and wait until it is there
    Park(Park),
    /// Make a container of a parked checkpoint run on this host, and wait until it does
    Restore(Restore),
    /// List the parked checkpoints, the newest first
    Parked(Parked),
    /// Show what an evacuation would do, and why
    Plan(PlanArgs),
    /// List the running containers, and whether they can be moved
    Ps,
    /// List the hosts of the inventory, and what they have room for
    Hosts,
    /// Show what the daemon is doing, or one migration
    Status(StatusArgs),
    /// List past and running migrations, the newest first
    History(History),
    /// Show or end a migration whose other host is gone for good
    Resolve(Resolve),
    /// Check this host, its configuration, its certificates and its containers
    Doctor,
    /// Make the certificates by which hosts know each other
    #[command(subcommand)]
    Cert(Cert),
    /// Prepare a container engine for restoring
    #[command(subcommand)]
    Setup(Setup),
    /// Try the rules of [policy] on examples, or play mass reclaims; nothing is moved
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// `spothop migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Name or id (a unique prefix will do) of a running container
    pub container: String,
    /// The host to move it to; the best one otherwise
    #[arg(long, value_name = "HOST")]
    pub to: Option<String>,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// `spothop evacuate`.
#[derive(Debug, Args)]
pub struct Evacuate {
    /// Time until this host is taken away, such as 120s; without it there is no deadline
    #[arg(long = "in", value_name = "TIME", value_parser = units::parse_duration)]
    pub within: Option<Duration>,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// `spothop park`.
#[derive(Debug, Args)]
pub struct Park {
    /// Name or id (a unique prefix will do) of a running container
    pub container: String,
    /// s3://BUCKET/PREFIX or file:///DIRECTORY [default: [parking] url of the configuration]
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
}

/// `spothop restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// URL of the checkpoint, as `spothop parked` shows it, or its id alone at the configured place; or a place with a single one
    pub checkpoint: String,
    /// Another name for the container
    #[arg(long)]
    pub name: Option<String>,
    /// Make a second container, even if the checkpoint was restored already
    #[arg(long)]
    pub copy: bool,
    /// Restore what its host has not given away: that host is gone for good
    #[arg(long)]
    pub source_gone: bool,
}

/// `spothop parked`.
#[derive(Debug, Args)]
pub struct Parked {
    /// s3://BUCKET/PREFIX or file:///DIRECTORY [default: [parking] url of the configuration]
    pub url: Option<String>,
}

/// `spothop plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Only this container
    pub container: Option<String>,
    /// Only this host as a target
    #[arg(long, value_name = "HOST")]
    pub to: Option<String>,
    /// Time until this host is taken away, such as 120s
    #[arg(long = "in", value_name = "TIME", value_parser = units::parse_duration)]
    pub within: Option<Duration>,
}

/// `spothop status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A migration's id
    pub id: Option<String>,
    /// Go on showing what happens: to that migration until it is finished, or to all without end
    #[arg(long, short)]
    pub follow: bool,
    /// Show CRIU's log of that migration on this host, and nothing else
    #[arg(long, requires = "id", conflicts_with = "follow")]
    pub log: bool,
}

/// `spothop resolve`.
#[derive(Debug, Args)]
pub struct Resolve {
    /// The migration's id
    pub id: String,
    /// The container runs on this host from now on; the other one is gone for good
    #[arg(long, conflicts_with = "there")]
    pub here: bool,
    /// The container runs on the other host; this one lets go of it
    #[arg(long)]
    pub there: bool,
}

/// `spothop history`.
#[derive(Debug, Args)]
pub struct History {
    /// How many to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// `spothop cert`.
#[derive(Debug, Subcommand)]
pub enum Cert {
    /// Make the authority; once, on one machine, where its key stays
    Init {
        /// Where to put ca.pem and ca.key [default: [tls] dir of the configuration]
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Replace an authority that is there: every certificate it signed becomes worthless
        #[arg(long)]
        force: bool,
    },
    /// Make a host's certificate; on the machine where `cert init` ran
    Issue {
        /// The host's name, as in its [host] name and in the others' [[peers]]
        name: String,
        /// An IP address to name in it; may be repeated
        #[arg(long, value_name = "IP")]
        address: Vec<IpAddr>,
        /// Where ca.pem and ca.key are [default: [tls] dir of the configuration]
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Where to put ca.pem, host.pem and host.key [default: ./NAME, or the tls directory for this host's own name]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Replace a certificate that is there
        #[arg(long)]
        force: bool,
    },
}

/// `spothop setup`.
#[derive(Debug, Subcommand)]
pub enum Setup {
    /// Register the restoring runtime in Docker's daemon.json; says what to reload
    Docker {
        /// Take it out again; refused while containers need it
        #[arg(long)]
        undo: bool,
        /// Docker's configuration file
        #[arg(long, value_name = "FILE", default_value = DAEMON_JSON)]
        daemon_json: PathBuf,
    },
}

/// `spothop policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Plan examples with the configuration's policy, and say which do not come out as they say
    Test {
        /// Files of examples, TOML or JSON
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Play that many hosts are taken away at once, and count what is saved
    Simulate(Simulate),
}

/// `spothop policy simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// How many hosts there are
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub hosts: usize,
    /// How many of them are taken away
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub reclaimed: usize,
    /// How many containers each of these has
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub containers: usize,
    /// Time until they are taken away
    #[arg(long = "in", value_name = "TIME", value_parser = units::parse_duration, default_value = "120s")]
    pub within: Duration,
    /// Every host's link in Mbit/s
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub link_mbit: u64,
    /// What sizes and zones are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Draw how many are safe, over time, into an SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli =
            Cli::try_parse_from(["spothop", "migrate", "redis", "--to", "b", "--json", "--socket", "/s"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.socket, PathBuf::from("/s"));
        assert!(matches!(cli.command, Command::Action(Action::Migrate(Migrate { dry_run: false, .. }))));
    }

    #[test]
    fn a_time_without_a_unit_is_wrong_usage() {
        let error = Cli::try_parse_from(["spothop", "evacuate", "--in", "120"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("with its unit"), "{error}");
    }

    #[test]
    fn a_log_is_that_of_one_migration() {
        assert!(Cli::try_parse_from(["spothop", "status", "--log"]).is_err());
        assert!(Cli::try_parse_from(["spothop", "status", "7", "--log", "-f"]).is_err());
        assert!(Cli::try_parse_from(["spothop", "status", "7", "--log"]).is_ok());
    }

    #[test]
    fn the_exit_codes_are_documented() {
        let help = Cli::command().render_help().to_string();
        for exit in crate::cli::Exit::ALL {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?} is missing in:\n{help}");
        }
    }
}
