//! The daemon: everything that runs while `spothop.service` is up.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use sd_notify::NotifyState;
use spothop_transfer::{Credentials, Listener, Options};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::api;
use crate::capacity::Capacity;
#[cfg(feature = "aws")]
use crate::capacity::{launch::Launcher, market};
use crate::config::Config;
use crate::inventory::{self, HttpError, Inventory};
use crate::journal::{self, Journal, JournalError};
use crate::migration::{self, Context, Events, RUNTIME_DIRECTORY, Ways, chain, heeding, peers, unpanicked};
use crate::notice::detect::{CloudSource, Identity};
#[cfg(feature = "aws")]
use crate::notice::sqs::{self, SqsOptions, SqsSource};
use crate::notice::webhook::{self, Desk};
#[cfg(feature = "aws")]
use crate::notice::{Acknowledge, lifecycle::LifecycleHook};
use crate::notice::{NoticeEvent, NoticeSource as _, SourceError};
use crate::notification::{DeliveryError, Notifier};
use crate::orchestrator::{self, Docker, Orchestrator as _};
use crate::parking;
use crate::provider::Providers;

/// systemd makes it (`StateDirectory=`).
const STATE_DIRECTORY: &str = "/var/lib/spothop";

/// Notices that wait to be heeded: one an instance and action, so never more than a few.
const NOTICES: usize = 16;

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A directory of ours.
    #[error("cannot make {path}; the daemon must run as root", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// This host's certificate.
    #[error("this host's certificate in {path} cannot be used; make it with `spothop cert issue`", path = path.display())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: spothop_transfer::certs::Error,
    },
    /// The port for peers.
    #[error(transparent)]
    Listen(spothop_transfer::Error),
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] orchestrator::Error),
    /// The container engine is switched off in the configuration.
    #[error("no container engine is enabled; set [docker] enabled = true in /etc/spothop/config.toml")]
    NoEngine,
    /// The source of notices.
    #[error(transparent)]
    Notice(#[from] SourceError),
    /// The queue's URL does not tell in which region it is.
    #[cfg(feature = "aws")]
    #[error(
        "the region of the queue {url} is neither in its URL nor in AWS_REGION; write the URL as AWS shows it in [notice.sqs] queue_url"
    )]
    QueueRegion {
        /// The URL.
        url: String,
    },
    /// A queue is configured that this program cannot read.
    #[cfg(not(feature = "aws"))]
    #[error("[notice.sqs] needs a spothop that is built with its feature `aws`; this one is built without it")]
    NoQueues,
    /// The port for webhooks.
    #[error(transparent)]
    Webhook(#[from] webhook::ListenError),
    /// A receiver of notifications.
    #[error(transparent)]
    Notification(#[from] DeliveryError),
    /// A lifecycle hook is configured that this program cannot speak with.
    #[cfg(not(feature = "aws"))]
    #[error(
        "[notice.aws] lifecycle_hook needs a spothop that is built with its feature `aws`; this one is built without it"
    )]
    NoLifecycleHooks,
    /// A source of hosts.
    #[error("a source of hosts cannot be used")]
    Inventory(#[from] HttpError),
    /// What was left unfinished.
    #[error("cannot take up unfinished migrations")]
    Recover(#[source] migration::Error),
    /// The control socket.
    #[error("the control API at {path} failed", path = path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// It cannot start, or its control socket failed.
pub async fn run(config: Config, socket: &Path) -> Result<(), DaemonError> {
    let context = Arc::new(prepare(config).await?);
    let mut stop =
        signal(SignalKind::terminate()).map_err(|source| DaemonError::System { action: "wait for SIGTERM", source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| DaemonError::System { action: "wait for SIGINT", source })?;
    let hangup =
        signal(SignalKind::hangup()).map_err(|source| DaemonError::System { action: "wait for SIGHUP", source })?;
    let options = Options { peers: Some(context.inventory.admitted()), ..Options::default() };
    let listener = Listener::bind_with(&context.config.host.listen.to_string(), &context.credentials, options)
        .await
        .map_err(DaemonError::Listen)?;
    inventory::watch(&context.config, &context.inventory).await?;
    let (host, events) = (context.config.host.name.clone(), context.events.watch());
    tokio::spawn(context.notifier.clone().follow(host, Arc::clone(&context.journal), events));
    migration::recover(&context).await.map_err(DaemonError::Recover)?;
    tokio::spawn(peers::listen(Arc::clone(&context), listener));
    watch_notices(&context).await?;
    watch_market(&context).await;
    tokio::spawn(parking::keep_swept(Arc::clone(&context)));
    let control = api::serve(Arc::clone(&context), socket);
    tell_systemd(&[NotifyState::Ready]);
    tokio::spawn(feed_watchdog());
    tokio::spawn(renew(context.credentials.clone(), hangup));
    info!(host = context.config.host.name, peers = context.inventory.entries().len(), "ready");
    tokio::select! {
        ended = control => ended.map_err(|source| DaemonError::Control { path: socket.to_owned(), source })?,
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
    }
    tell_systemd(&[NotifyState::Stopping]);
    info!("stopping; unfinished migrations are taken up by the next start");
    Ok(())
}

async fn prepare(config: Config) -> Result<Context, DaemonError> {
    if !config.docker.enabled {
        return Err(DaemonError::NoEngine);
    }
    let (runtime, state) = (PathBuf::from(RUNTIME_DIRECTORY), PathBuf::from(STATE_DIRECTORY));
    for directory in [&runtime, &state] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| DaemonError::Directory { path: directory.clone(), source })?;
    }
    let credentials = Credentials::open(&config.tls.dir)
        .map_err(|source| DaemonError::Identity { path: config.tls.dir.clone(), source })?;
    let identity = credentials.current();
    if identity.name() != config.host.name {
        warn!(
            certificate = identity.name(),
            host = config.host.name,
            "the certificate is for another name than [host] name; peers will refuse it"
        );
    }
    if let Err(error) = identity.check_period(SystemTime::now()) {
        warn!(%error, "peers will refuse this host");
    }
    let journal_path = PathBuf::from(journal::DEFAULT_PATH);
    let journal = Arc::new(Journal::open(&journal_path)?);
    let engine = Arc::new(Docker::connect(&config.docker.socket).await?);
    let (settings, scratch, data) = (config.clone(), runtime.clone(), engine.describe().await?.data_directory);
    let probe = spawn_blocking(move || Capacity::probe(&settings, &scratch, data));
    let capacity = unpanicked(probe.await);
    let inventory = Arc::new(Inventory::open(&config, Some(state.join("inventory.json"))));
    let (memory, features, scratch) = (config.memory, capacity.features().clone(), runtime.clone());
    let ways = unpanicked(spawn_blocking(move || Ways::probe(&memory, &features, &scratch)).await);
    for missing in capacity.features().missing() {
        warn!(%missing, "containers cannot be moved from or to this host");
    }
    let program =
        std::env::current_exe().map_err(|source| DaemonError::System { action: "find this very program", source })?;
    let notifier = Notifier::start(&config)?;
    let providers = Providers::new(&config.provider).await;
    #[cfg(feature = "aws")]
    let launcher = match &config.capacity.ec2 {
        Some(ec2) => {
            let api = spothop_aws::Ec2::new(spothop_aws::Access::Environment).await;
            Some(Arc::new(Launcher::new(api, ec2.clone(), &config.host.name)))
        }
        None => None,
    };
    let instance = Arc::default();
    #[cfg(feature = "aws")]
    let lifecycle_hook = match &config.notice.aws.lifecycle_hook {
        Some(name) => {
            let api = spothop_aws::AutoScaling::new(spothop_aws::Access::Environment).await;
            Some(Arc::new(LifecycleHook::new(api, name, Arc::clone(&instance))))
        }
        None => None,
    };
    #[cfg(not(feature = "aws"))]
    if config.notice.aws.lifecycle_hook.is_some() {
        return Err(DaemonError::NoLifecycleHooks);
    }
    #[cfg(not(feature = "aws"))]
    if config.capacity.ec2.is_some() {
        warn!(
            "[capacity.ec2] is without effect: this program was built without Amazon EC2's API (cargo feature `aws`)"
        );
    }
    Ok(Context {
        config,
        journal,
        journal_path,
        engine,
        credentials,
        events: Events::default(),
        notifier,
        capacity,
        #[cfg(feature = "aws")]
        launcher,
        #[cfg(feature = "aws")]
        lifecycle_hook,
        inventory,
        ways,
        runtime,
        state,
        program,
        since: Timestamp::now(),
        notices: Mutex::new(BTreeMap::new()),
        departure: watch::Sender::new(None),
        moving: Mutex::new(HashSet::new()),
        released: Notify::new(),
        instance,
        providers,
    })
}

/// Starts every source of notices, and what heeds them.
async fn watch_notices(context: &Arc<Context>) -> Result<(), DaemonError> {
    let (sender, events) = mpsc::channel(NOTICES);
    let config = &context.config;
    let identity = Identity { instance: Arc::clone(&context.instance), machine: context.capacity.machine.clone() };
    let source = CloudSource::new(&config.notice, &identity, &config.host.name)?;
    let acknowledgers = source.acknowledgers();
    #[cfg(feature = "aws")]
    let acknowledgers = with_lifecycle_hook(context, acknowledgers);
    tokio::spawn(Box::new(source).run(sender.clone()));
    if config.notice.sqs.queue_url.is_some() {
        watch_queue(context, sender.clone()).await?;
    }
    let desk = Desk::new(&config.webhook, &config.host.name, Arc::clone(&context.instance), sender);
    if let Some(server) = webhook::Server::bind(&config.webhook, desk).await? {
        tokio::spawn(server.serve());
    }
    tokio::spawn(heeding::heed(Arc::clone(context), events, acknowledgers));
    Ok(())
}

/// With the way to this host's Auto Scaling group. It is not a source's: a notice of the group comes out of a queue too.
#[cfg(feature = "aws")]
fn with_lifecycle_hook(context: &Context, mut ways: heeding::Acknowledgers) -> heeding::Acknowledgers {
    if let Some(hook) = &context.lifecycle_hook {
        let hook: Arc<dyn Acknowledge> = Arc::clone(hook) as _;
        ways.insert("aws", hook);
    }
    ways
}

/// Asks what this machine costs and how likely it is to stay, where that is configured.
#[cfg(feature = "aws")]
async fn watch_market(context: &Arc<Context>) {
    let config = &context.config.provider.aws;
    if config.spot_price || !config.placement_types.is_empty() {
        let api = spothop_aws::Ec2::new(spothop_aws::Access::Environment).await;
        tokio::spawn(market::watch(api, Arc::clone(context)));
    }
}

#[cfg(not(feature = "aws"))]
async fn watch_market(context: &Arc<Context>) {
    let config = &context.config.provider.aws;
    if config.spot_price || !config.placement_types.is_empty() {
        warn!(
            "spot_price and placement_types of [provider.aws] are without effect: this program was built without Amazon EC2's API (cargo feature `aws`)"
        );
    }
}

#[cfg(feature = "aws")]
async fn watch_queue(context: &Arc<Context>, events: mpsc::Sender<NoticeEvent>) -> Result<(), DaemonError> {
    let config = &context.config.notice;
    let Some(url) = &config.sqs.queue_url else { return Ok(()) };
    let region = sqs::region(url).ok_or_else(|| DaemonError::QueueRegion { url: url.clone() })?;
    let queue = spothop_aws::Queue::new(spothop_aws::Access::Environment, url, &region).await;
    let options = SqsOptions {
        others: config.sqs.others,
        maintenance_lead: config.aws.maintenance_lead,
        ..SqsOptions::default()
    };
    let source = SqsSource::new(queue, Arc::clone(&context.instance), options);
    tokio::spawn(Box::new(source).run(events));
    Ok(())
}

#[cfg(not(feature = "aws"))]
async fn watch_queue(_: &Arc<Context>, _: mpsc::Sender<NoticeEvent>) -> Result<(), DaemonError> {
    Err(DaemonError::NoQueues)
}

/// Reads the certificates again whenever somebody asks for it (`systemctl reload spothop`). New connections notice changed files by
/// themselves; asked for, the reason why they are not taken is told at once.
async fn renew(credentials: Credentials, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let credentials = credentials.clone();
        // Whether they are taken, and why not, is in the log.
        let _ = unpanicked(spawn_blocking(move || credentials.reload()).await);
    }
}

/// Not under systemd there is nobody to tell, which is no failure.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(error = chain(&error), "systemd was not told");
    }
}

/// Says twice per `WatchdogSec=` that the daemon lives. A daemon whose reactor hangs does not say it.
async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        tell_systemd(&[NotifyState::Watchdog]);
    }
}
