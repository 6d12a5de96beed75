//! This end of the control API.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path as InPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use spothop_criu::log::Triage;
use tokio::net::UnixListener;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::mpsc;

use super::{
    Accepted, Begun, ContainerView, EvacuateRequest, Event, EventKind, HostView, LifecycleHookView, LogSummary,
    LogView, MigrateRequest, MigrationView, Open, Outcome, ParkRequest, ParkedView, PlanRequest, Problem, ProblemCode,
    ProviderView, ResolveRequest, RestoreRequest, Status,
};
use crate::inventory::{self, Candidate};
use crate::journal::{Journal, JournalError};
use crate::migration::evacuation::{self, Question};
use crate::migration::resolve;
use crate::migration::{Context, CriuLog, Error, Logs, MANUAL, Side, chain, unpanicked};
use crate::orchestrator;
use crate::parking;

/// Lines of events that wait for a slow reader before it is left behind.
const LINES: usize = 256;

/// For an earlier migration of the same container to be tidied up, which takes some tens of milliseconds.
const TIDY: Duration = Duration::from_secs(5);

/// Migrations that `history` shows unless told otherwise.
const HISTORY: u32 = 50;

/// And the most that it shows at once: each has about a kilobyte.
const LONGEST_HISTORY: u32 = 10_000;

/// The longest body of a request, in bytes. The longest that makes sense names a container and a host.
const LONGEST_BODY: usize = 16 << 10;

/// Serves the control API on a unix socket that only root can open, until the process ends.
///
/// # Errors
/// The socket cannot be made.
pub async fn serve(context: Arc<Context>, socket: &Path) -> io::Result<()> {
    axum::serve(bind(socket)?, router(context)).await
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Until the next line only the umask keeps others out, and the directory's mode (0700).
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn router(context: Arc<Context>) -> Router {
    let paths = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/containers", get(containers))
        .route("/v1/hosts", get(hosts))
        .route("/v1/provider", get(provider))
        .route("/v1/lifecycle-hook", get(lifecycle_hook))
        .route("/v1/plan", post(plan))
        .route("/v1/migrations", post(migrate))
        .route("/v1/migrations/{id}", get(migration))
        .route("/v1/migrations/{id}/resolution", get(resolution).post(resolve))
        .route("/v1/migrations/{id}/log", get(log))
        .route("/v1/evacuations", post(evacuate))
        .route("/v1/parkings", get(parked).post(park))
        .route("/v1/restores", post(restore))
        .route("/v1/events", get(events))
        .route("/v1/history", get(history))
        .fallback(|| async { Failure(StatusCode::NOT_FOUND, problem(ProblemCode::NotFound, "no such path; see /v1/")) })
        .with_state(context);
    limited(paths)
}

/// No request makes the daemon hold more than it needs to say.
fn limited(paths: Router) -> Router {
    paths.layer(DefaultBodyLimit::max(LONGEST_BODY))
}

/// An answer that is not 2xx.
struct Failure(StatusCode, Problem);

type Answer<T> = Result<Json<T>, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Engine(orchestrator::Error::NoContainer { .. }) | Error::UnknownPeer { .. } => {
                (StatusCode::NOT_FOUND, ProblemCode::NotFound)
            }
            Error::Engine(orchestrator::Error::NotRunning { .. })
            | Error::NotOpen { .. }
            | Error::PeerAnswers { .. }
            | Error::RunsHere { .. }
            | Error::UnderNotice { .. } => (StatusCode::CONFLICT, ProblemCode::Refused),
            Error::Parking(parking::Error::NoCheckpoint { .. }) => (StatusCode::NOT_FOUND, ProblemCode::NotFound),
            Error::Parking(parking::Error::BadUrl(_)) => (StatusCode::BAD_REQUEST, ProblemCode::BadRequest),
            Error::Parking(
                parking::Error::Store { .. } | parking::Error::Slow { .. } | parking::Error::Stopped { .. },
            ) => (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
            // Nothing was begun.
            Error::Parking(_) => (StatusCode::CONFLICT, ProblemCode::Refused),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
        };
        Self(status, problem(code, chain(&error)))
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Error::from(error).into()
    }
}

fn problem(code: ProblemCode, message: impl Into<String>) -> Problem {
    Problem { code, message: message.into(), advice: None }
}

/// A request's body; a malformed one is told in the API's own form.
fn body<T: for<'de> Deserialize<'de>>(bytes: &Bytes) -> Result<T, Failure> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(text).map_err(|error| {
        Failure(StatusCode::BAD_REQUEST, problem(ProblemCode::BadRequest, format!("the request is malformed: {error}")))
    })
}

async fn status(State(context): State<Arc<Context>>) -> Answer<Status> {
    let notices = context.notices.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
    Ok(Json(Status {
        host: context.config.host.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        since: context.since,
        machine: context.capacity.machine(),
        notices,
        migrations: read(&context, Journal::unfinished).await?,
    }))
}

async fn provider(State(context): State<Arc<Context>>) -> Answer<ProviderView> {
    let instance = context.instance.get().cloned();
    let word = context.providers.inquire(instance.clone()).word().await;
    Ok(Json(ProviderView { instance, word }))
}

async fn lifecycle_hook(State(context): State<Arc<Context>>) -> Answer<Option<LifecycleHookView>> {
    Ok(Json(context.examine_lifecycle_hook().await))
}

async fn containers(State(context): State<Arc<Context>>) -> Answer<Vec<ContainerView>> {
    let view = |candidate: Candidate| ContainerView {
        priority: candidate.container.priority(),
        network: candidate.container.network.mode.to_string(),
        id: candidate.container.id,
        name: candidate.container.name,
        image: candidate.container.image.reference,
        memory_bytes: candidate.memory_bytes,
        obstacles: candidate.obstacles,
    };
    Ok(Json(inventory::containers(&context).await?.into_iter().map(view).collect()))
}

async fn hosts(State(context): State<Arc<Context>>) -> Answer<Vec<HostView>> {
    let hosts = inventory::hosts(&context, Vec::new()).await;
    let entries = context.inventory.entries();
    // One that has left the inventory while it was asked is none of it any more.
    let views = hosts.into_iter().filter_map(|host| {
        let entry = entries.iter().find(|entry| entry.name == host.name)?;
        let (address, source, told) = (entry.address.to_string(), entry.source.to_owned(), entry.told);
        Some(HostView { name: host.name, address, source, told, state: host.state })
    });
    Ok(Json(views.collect()))
}

async fn plan(State(context): State<Arc<Context>>, bytes: Bytes) -> Answer<spothop_policy::Plan> {
    let PlanRequest { container, to, budget } = body(&bytes)?;
    Ok(Json(evacuation::plan(&context, &Question { container, to, budget, ..Question::default() }).await?.plan))
}

async fn migrate(State(context): State<Arc<Context>>, bytes: Bytes) -> Answer<Accepted> {
    let MigrateRequest { container, to } = body(&bytes)?;
    let question = Question { container: Some(container), to, ..Question::default() };
    let planned = evacuation::plan(&context, &question).await?;
    if let Some(stay) = planned.plan.stays.first() {
        let message = format!("container {} cannot be moved: {}", stay.name, stay.reasons().join("; "));
        return Err(Failure(StatusCode::CONFLICT, problem(ProblemCode::Refused, message)));
    }
    for step in &planned.plan.moves {
        // It may just have arrived here.
        evacuation::until_free(&context, &step.container, TIDY).await;
    }
    let accepted = evacuation::begin(&context, planned, MANUAL);
    if accepted.migrations.is_empty() {
        let message = "the container is already moving; `spothop status` shows how far it is";
        return Err(Failure(StatusCode::CONFLICT, problem(ProblemCode::Refused, message)));
    }
    Ok(Json(accepted))
}

async fn evacuate(State(context): State<Arc<Context>>, bytes: Bytes) -> Answer<Accepted> {
    let EvacuateRequest { budget } = body(&bytes)?;
    let planned = evacuation::plan(&context, &Question { budget, ..Question::default() }).await?;
    Ok(Json(evacuation::begin(&context, planned, MANUAL)))
}

#[derive(Deserialize)]
struct PlaceQuery {
    at: Option<String>,
}

async fn parked(
    State(context): State<Arc<Context>>,
    Query(PlaceQuery { at }): Query<PlaceQuery>,
) -> Answer<Vec<ParkedView>> {
    Ok(Json(parking::parked(&context, at.as_deref()).await.map_err(Error::from)?))
}

async fn park(State(context): State<Arc<Context>>, bytes: Bytes) -> Answer<Begun> {
    let ParkRequest { container, to } = body(&bytes)?;
    let (migration, checkpoint) = parking::begin(&context, &container, to.as_deref()).await?;
    Ok(Json(Begun { migration, checkpoint }))
}

async fn restore(State(context): State<Arc<Context>>, bytes: Bytes) -> Answer<Begun> {
    let RestoreRequest { checkpoint, name, copy, source_gone } = body(&bytes)?;
    let order = parking::Order { checkpoint, name, copy, source_gone };
    let (migration, checkpoint) = parking::restore(&context, &order).await?;
    Ok(Json(Begun { migration, checkpoint }))
}

async fn migration(State(context): State<Arc<Context>>, InPath(id): InPath<String>) -> Answer<MigrationView> {
    let mut view = known(&context, &id).await?;
    // The record is worth showing without it.
    view.log = criu_log(&context, &view).await.ok().flatten().map(|log| summary(&log));
    Ok(Json(view))
}

async fn log(State(context): State<Arc<Context>>, InPath(id): InPath<String>) -> Answer<LogView> {
    let view = known(&context, &id).await?;
    let Some(log) = criu_log(&context, &view).await? else {
        let message = format!(
            "no log of CRIU is kept for migration {id}: it ended before CRIU was called here, or newer logs have taken its place"
        );
        return Err(Failure(StatusCode::NOT_FOUND, problem(ProblemCode::NotFound, message)));
    };
    Ok(Json(LogView { migration: view.id, side: view.side, summary: summary(&log), text: log.text }))
}

async fn known(context: &Context, id: &str) -> Result<MigrationView, Failure> {
    find(context, id).await?.ok_or_else(|| {
        let message = format!("no migration {id} is known here; `spothop history` lists them");
        Failure(StatusCode::NOT_FOUND, problem(ProblemCode::NotFound, message))
    })
}

async fn resolution(State(context): State<Arc<Context>>, InPath(id): InPath<String>) -> Answer<Open> {
    let migration = known(&context, &id).await?;
    Ok(Json(resolve::look(&context, migration).await?))
}

async fn resolve(
    State(context): State<Arc<Context>>,
    InPath(id): InPath<String>,
    bytes: Bytes,
) -> Answer<MigrationView> {
    let ResolveRequest { runs } = body(&bytes)?;
    let migration = known(&context, &id).await?;
    resolve::resolve(&context, migration, runs).await?;
    known(&context, &id).await.map(Json)
}

async fn criu_log(context: &Context, view: &MigrationView) -> Result<Option<CriuLog>, Failure> {
    let (logs, workspace) = (Logs::of(&context.state), context.workspace(view.side, &view.id));
    let (id, side) = (view.id.clone(), view.side);
    unpanicked(tokio::task::spawn_blocking(move || logs.read(&workspace, &id, side)).await).map_err(|error| {
        let message = format!("CRIU's log of migration {} cannot be read: {error}", view.id);
        Failure(StatusCode::INTERNAL_SERVER_ERROR, problem(ProblemCode::Internal, message))
    })
}

fn summary(log: &CriuLog) -> LogSummary {
    LogSummary { path: log.path.clone(), triage: Triage::of_text(&log.text) }
}

#[derive(Deserialize)]
struct HistoryQuery {
    limit: Option<u32>,
}

async fn history(
    State(context): State<Arc<Context>>,
    Query(HistoryQuery { limit }): Query<HistoryQuery>,
) -> Answer<Vec<MigrationView>> {
    Ok(Json(read(&context, move |journal| journal.history(limit.unwrap_or(HISTORY).min(LONGEST_HISTORY))).await?))
}

/// The record of a migration, seen from the source if this host is both ends.
async fn find(context: &Context, id: &str) -> Result<Option<MigrationView>, JournalError> {
    let id = id.to_owned();
    read(context, move |journal| match journal.migration(&id, Side::Source)? {
        Some(view) => Ok(Some(view)),
        None => journal.migration(&id, Side::Target),
    })
    .await
}

async fn read<T: Send + 'static>(
    context: &Context,
    call: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    let journal = Arc::clone(&context.journal);
    unpanicked(tokio::task::spawn_blocking(move || call(&journal)).await)
}

/// `migration=ID`, repeated: axum's own `Query` does not take a key twice.
fn named_migrations(query: Option<&str>) -> BTreeSet<String> {
    query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.strip_prefix("migration="))
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect()
}

async fn events(State(context): State<Arc<Context>>, request: axum::http::Request<Body>) -> Response {
    let named = named_migrations(request.uri().query());
    let watched = context.events.watch();
    let (sender, lines) = mpsc::channel(LINES);
    tokio::spawn(follow(context, named, watched, sender));
    let body = stream::unfold(lines, |mut lines| async move {
        lines.recv().await.map(|line: Bytes| (Ok::<_, Infallible>(line), lines))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}

/// Replays what the named migrations have been through, and goes on until all of them are finished; without names, for as
/// long as anybody reads.
async fn follow(
    context: Arc<Context>,
    named: BTreeSet<String>,
    mut watched: Receiver<Event>,
    lines: mpsc::Sender<Bytes>,
) {
    let mut waiting = named.clone();
    for id in &named {
        // Not there yet: it waits for its turn. An unreadable journal is told by the other requests.
        let Ok(Some(view)) = find(&context, id).await else { continue };
        for event in replay(&view) {
            if matches!(event.what, EventKind::Finished { .. }) {
                waiting.remove(id);
            }
            if lines.send(line(&event)).await.is_err() {
                return;
            }
        }
    }
    while named.is_empty() || !waiting.is_empty() {
        let event = match watched.recv().await {
            Ok(event) => event,
            // The reader is slow; what it missed of the phases is in `GET /v1/migrations/{id}`.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        if !named.is_empty() && !waiting.contains(&event.migration) {
            continue;
        }
        if matches!(event.what, EventKind::Finished { .. }) {
            waiting.remove(&event.migration);
        }
        if lines.send(line(&event)).await.is_err() {
            return;
        }
    }
}

/// The events that led to a record, as far as the journal keeps them.
fn replay(view: &MigrationView) -> Vec<Event> {
    let event =
        |at, what| Event { migration: view.id.clone(), side: view.side, container: view.container.clone(), at, what };
    let mut events: Vec<_> =
        view.phases.iter().map(|entry| event(entry.at, EventKind::Phase { phase: entry.phase })).collect();
    if let (true, Some(last)) = (view.phase.is_final(), view.phases.last()) {
        let outcome = view.outcome.unwrap_or(Outcome::Aborted);
        events.push(event(last.at, EventKind::Finished { outcome, reason: view.reason.clone() }));
    }
    events
}

fn line(event: &Event) -> Bytes {
    // An event has no map with keys that are no strings, the only thing that JSON cannot say.
    let value = serde_json::to_value(event).unwrap_or_else(|_| json!({}));
    let Value::Object(_) = value else { return Bytes::new() };
    Bytes::from(format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_control_socket_is_roots_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("control.sock");
        // Whatever a former daemon has left there.
        std::fs::write(&socket, "").unwrap();
        let _listener = bind(&socket).unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_request_has_a_longest_body() {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let paths = Router::new().route("/", post(|bytes: Bytes| async move { bytes.len().to_string() }));
        let server = tokio::spawn(async move { axum::serve(listener, limited(paths)).await });
        for (length, status) in [(LONGEST_BODY, "200"), (LONGEST_BODY + 1, "413")] {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            let head = format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            // The server may answer and close before it has read everything.
            let _ = stream.write_all(&vec![b' '; length]).await;
            let mut answer = vec![0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, format!("HTTP/1.1 {status}").into_bytes());
        }
        server.abort();
    }
}
