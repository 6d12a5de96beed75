//! The command line: every command but `daemon`.
//!
//! [`args`] is the grammar, [`run`] carries a command out. Commands that concern the daemon's business ask it through
//! [`crate::api::Client`]; they decide nothing themselves.

pub mod args;
mod cert;
mod exit;
mod follow;
mod output;
mod policy;
mod show;
mod table;
mod watch;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use spothop_policy::Plan;

pub use self::exit::{CliError, Exit, render_error};
use self::output::Output;
use crate::api::{
    Accepted, Begun, Client, ClientError, EvacuateRequest, MigrateRequest, MigrationView, Outcome, ParkRequest,
    PlanRequest, RestoreRequest, Runs,
};
use crate::config::Config;
use crate::doctor;
use crate::setup::docker;

/// What `migrate` and `evacuate` print with `--json`.
#[derive(Debug, Serialize)]
struct Moved {
    /// The plan that was followed.
    plan: Plan,
    /// The migrations as they ended.
    migrations: Vec<MigrationView>,
}

/// What `park` and `restore` print with `--json`.
#[derive(Debug, Serialize)]
struct Parked {
    /// The checkpoint's URL.
    checkpoint: String,
    /// The migration as it ended.
    migration: MigrationView,
}

/// Carries out a command, prints its result, and says how it ended.
///
/// # Errors
/// [`CliError`]; nothing has been printed about it yet.
pub async fn run(action: args::Action, global: &args::Global) -> Result<Exit, CliError> {
    let client = Client::new(&global.socket);
    let mut output = Output::new(global.json);
    let result = match action {
        args::Action::Migrate(args) => migrate(&client, args, &mut output).await,
        args::Action::Evacuate(args) => evacuate(&client, args, &mut output).await,
        args::Action::Park(args) => park(&client, args, &mut output).await,
        args::Action::Restore(args) => restore(&client, args, &mut output).await,
        args::Action::Parked(args) => {
            let parked = client.parked(args.url.as_deref()).await?;
            output.result(&parked, || show::parked(&parked, &TimeZone::system())).map(|()| Exit::Ok)
        }
        args::Action::Plan(args) => {
            let request = PlanRequest { container: args.container, to: args.to, budget: args.within };
            let plan = client.plan(&request).await?;
            output.result(&plan, || show::plan(&plan)).map(|()| Exit::Ok)
        }
        args::Action::Ps => {
            let containers = client.containers().await?;
            output.result(&containers, || show::containers(&containers)).map(|()| Exit::Ok)
        }
        args::Action::Hosts => {
            let hosts = client.hosts().await?;
            output.result(&hosts, || show::hosts(&hosts, Timestamp::now())).map(|()| Exit::Ok)
        }
        args::Action::Status(args) => status(&client, args, &mut output).await,
        args::Action::History(args) => {
            let history = client.history(args.limit).await?;
            output.result(&history, || show::history(&history, &TimeZone::system())).map(|()| Exit::Ok)
        }
        args::Action::Resolve(args) => resolve(&client, args, &mut output).await,
        args::Action::Doctor => {
            let report = doctor::examine(global.config.as_deref(), &client).await;
            output.result(&report, || report.to_string())?;
            Ok(if report.healthy() { Exit::Ok } else { Exit::Failed })
        }
        args::Action::Cert(command) => cert::run(command, global.config.as_deref(), &mut output),
        args::Action::Policy(command) => policy::run(command, global.config.as_deref(), &mut output),
        args::Action::Setup(args::Setup::Docker { undo, daemon_json }) => {
            let report = if undo {
                let socket = Config::load(global.config.as_deref())?.docker.socket;
                docker::remove(&daemon_json, async || docker::users(&socket).await).await?
            } else {
                docker::install(&daemon_json, docker::CRIU_RUNC_CONF.as_ref())?
            };
            output.result(&report, || report.to_string()).map(|()| Exit::Ok)
        }
    };
    match result {
        // The reader has seen enough (`spothop ps | head -1`).
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Ok),
        result => result,
    }
}

async fn migrate(client: &Client, args: args::Migrate, output: &mut Output) -> Result<Exit, CliError> {
    if args.dry_run {
        let request = PlanRequest { container: Some(args.container), to: args.to, budget: None };
        return dry_run(client, &request, output).await;
    }
    let request = MigrateRequest { container: args.container, to: args.to };
    let accepted = client.migrate(&request).await.map_err(perhaps_begun)?;
    see_through(client, accepted, output).await
}

async fn evacuate(client: &Client, args: args::Evacuate, output: &mut Output) -> Result<Exit, CliError> {
    if args.dry_run {
        return dry_run(client, &PlanRequest { budget: args.within, ..PlanRequest::default() }, output).await;
    }
    let accepted = client.evacuate(&EvacuateRequest { budget: args.within }).await.map_err(perhaps_begun)?;
    see_through(client, accepted, output).await
}

async fn park(client: &Client, args: args::Park, output: &mut Output) -> Result<Exit, CliError> {
    let request = ParkRequest { container: args.container, to: args.to };
    let begun = client.park(&request).await.map_err(perhaps_begun)?;
    let parked = watch_begun(client, begun, output).await?;
    output.result(&parked, || show::parking(&parked.checkpoint, &parked.migration))?;
    Ok(end(&parked.migration))
}

async fn restore(client: &Client, args: args::Restore, output: &mut Output) -> Result<Exit, CliError> {
    let args::Restore { checkpoint, name, copy, source_gone } = args;
    let request = RestoreRequest { checkpoint, name, copy, source_gone };
    let begun = client.restore(&request).await.map_err(perhaps_begun)?;
    let restored = watch_begun(client, begun, output).await?;
    output.result(&restored, || show::migration(&restored.migration))?;
    Ok(match restored.migration.outcome {
        Some(Outcome::Moved) => Exit::Ok,
        // Nothing goes on on this host, unlike after a migration that was aborted.
        Some(Outcome::Aborted) | None => Exit::Failed,
    })
}

/// Follows a parking or a restore to its end.
async fn watch_begun(client: &Client, begun: Begun, output: &mut Output) -> Result<Parked, CliError> {
    follow::follow(client, std::slice::from_ref(&begun.migration), false, output).await?;
    Ok(Parked { checkpoint: begun.checkpoint, migration: client.migration(&begun.migration).await? })
}

/// A request to begin something that broke after it was sent.
fn perhaps_begun(error: ClientError) -> CliError {
    match error {
        ClientError::Interrupted { .. } => CliError::Unanswered(error),
        other => other.into(),
    }
}

/// Shows the plan; the exit code is the one that carrying it out would have at best.
async fn dry_run(client: &Client, request: &PlanRequest, output: &mut Output) -> Result<Exit, CliError> {
    let plan = client.plan(request).await?;
    output.result(&plan, || show::plan(&plan))?;
    Ok(if plan.stays.is_empty() { Exit::Ok } else { Exit::Refused })
}

/// Waits for what was begun, and shows how it ended: the timeline of each migration, then what stays and why.
async fn see_through(client: &Client, accepted: Accepted, output: &mut Output) -> Result<Exit, CliError> {
    let Accepted { migrations: ids, plan } = accepted;
    let exit = if ids.is_empty() { Exit::Ok } else { follow::follow(client, &ids, false, output).await?.exit() };
    let mut migrations = Vec::with_capacity(ids.len());
    for id in &ids {
        migrations.push(client.migration(id).await?);
    }
    let moved = Moved { plan, migrations };
    output.result(&moved, || {
        let mut text: String = moved.migrations.iter().map(show::migration).collect();
        show::stays(&mut text, &moved.plan.stays);
        if text.is_empty() { show::plan(&moved.plan) } else { text }
    })?;
    Ok(match exit {
        Exit::Ok if !moved.plan.stays.is_empty() => Exit::Refused,
        exit => exit,
    })
}

async fn status(client: &Client, args: args::StatusArgs, output: &mut Output) -> Result<Exit, CliError> {
    let Some(id) = args.id else {
        if args.follow {
            follow::follow(client, &[], true, output).await?;
            return Ok(Exit::Ok);
        }
        let status = client.status().await?;
        output.result(&status, || show::status(&status, Timestamp::now(), &TimeZone::system()))?;
        return Ok(Exit::Ok);
    };
    if args.log {
        let log = client.log(&id).await?;
        output.result(&log, || log.text.clone())?;
        return Ok(Exit::Ok);
    }
    let mut view = client.migration(&id).await?;
    if args.follow {
        // The full id: the user may have given a part of it.
        follow::follow(client, std::slice::from_ref(&view.id), true, output).await?;
        view = client.migration(&view.id).await?;
        if output.json() {
            return Ok(end(&view));
        }
    }
    output.result(&view, || show::migration(&view))?;
    Ok(end(&view))
}

/// Without an answer it only shows what is known, and what either answer would do.
async fn resolve(client: &Client, args: args::Resolve, output: &mut Output) -> Result<Exit, CliError> {
    let runs = match (args.here, args.there) {
        (true, _) => Runs::Here,
        (_, true) => Runs::There,
        (false, false) => {
            let open = client.resolution(&args.id).await?;
            output.result(&open, || show::open(&open))?;
            return Ok(Exit::Ok);
        }
    };
    let view = client.resolve(&args.id, runs).await?;
    follow::follow(client, std::slice::from_ref(&view.id), false, output).await?;
    let view = client.migration(&view.id).await?;
    output.result(&view, || show::migration(&view))?;
    Ok(Exit::Ok)
}

/// The exit code that says how a migration ended; success for one that has not.
fn end(view: &MigrationView) -> Exit {
    match view.outcome {
        Some(Outcome::Aborted) => Exit::Aborted,
        Some(Outcome::Moved) | None => Exit::Ok,
    }
}
