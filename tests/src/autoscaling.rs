//! An imitation of Amazon EC2 Auto Scaling, as far as one group's lifecycle hook is concerned: moto has no `CompleteLifecycleAction`.
//!
//! It speaks the Query protocol of the API Reference, version 2011-01-01, errors included: `ValidationError` for what does not exist, and for
//! an instance that no hook holds; `MissingAuthenticationToken` for requests without a signature (which is not looked at further);
//! `InvalidAction` for all else. A hook that hears neither heartbeat nor completion in its time lets the instance go.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use crate::error::{Context, Result};

const NAMESPACE: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";

/// A group with one hook for instances that end.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The hook's name.
    pub hook: String,
    /// How long the hook waits for a heartbeat or its completion; AWS allows 30 s to 2 h.
    pub timeout: Duration,
}

/// What has happened to the instance.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// When the hook began to wait.
    pub waiting: Option<Timestamp>,
    /// When it was to wait anew.
    pub heartbeats: Vec<Timestamp>,
    /// When the waiting was ended by somebody, and with what result.
    pub completed: Option<(Timestamp, String)>,
}

#[derive(Debug)]
struct Service {
    group: Group,
    instance: String,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

/// The service, until this is dropped.
#[derive(Debug)]
pub struct Imitation {
    service: Arc<Service>,
    address: SocketAddr,
    /// Dropped, it ends the server.
    _end: oneshot::Sender<()>,
}

impl Imitation {
    /// Answers on a listener, in whichever network that was made, for a group with this one instance, which is in service.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn start(listener: TcpListener, group: Group, instance: &str) -> Result<Self> {
        let what = std::path::Path::new("the listener of Auto Scaling");
        let address = listener.local_addr().on("ask for the address of", what)?;
        listener.set_nonblocking(true).on("prepare", what)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().on("serve on", what)?;
        let changes = watch::Sender::new(());
        let service = Arc::new(Service { group, instance: instance.to_owned(), state: Mutex::default(), changes });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&service));
        let (end, ended) = oneshot::channel::<()>();
        thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self { service, address, _end: end })
    }

    /// What `AWS_ENDPOINT_URL_AUTO_SCALING` must say.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The group takes the instance out, and the hook begins to wait. (That its metadata service says so too is the caller's work.)
    pub fn terminate(&self) {
        self.service.locked().waiting = Some(Timestamp::now());
        self.service.changes.send_replace(());
    }

    /// What has happened so far.
    #[must_use]
    pub fn state(&self) -> State {
        self.service.locked().clone()
    }

    /// Waits until something is so, and returns how things stand then; the state at the end of `limit` if it never is.
    #[must_use]
    pub fn wait_for(&self, limit: Duration, is_so: impl Fn(&State) -> bool) -> State {
        let mut changes = self.service.changes.subscribe();
        let wait = async { while !is_so(&self.state()) && changes.changed().await.is_ok() {} };
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            // At the end of the time it is told as it is.
            let _ = runtime.block_on(async { tokio::time::timeout(limit, wait).await });
        }
        self.state()
    }
}

impl Service {
    /// The values behind this lock are whole at any time.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instance's lifecycle state, by the names of the user guide.
    fn lifecycle(&self, now: Timestamp) -> &'static str {
        let state = self.locked();
        let Some(waiting) = state.waiting else { return "InService" };
        let last = state.heartbeats.last().copied().unwrap_or(waiting);
        let over = now.duration_since(last).unsigned_abs() > self.group.timeout;
        if state.completed.is_some() || over { "Terminating:Proceed" } else { "Terminating:Wait" }
    }

    fn act(&self, asked: &BTreeMap<&str, &str>) -> Result<String, Refusal> {
        let of = |name: &str| asked.get(name).copied().unwrap_or_default();
        let now = Timestamp::now();
        let Group { name, hook, timeout } = &self.group;
        match of("Action") {
            "DescribeAutoScalingInstances" => {
                let instance = &self.instance;
                let is_asked =
                    asked.iter().all(|(key, value)| !key.starts_with("InstanceIds.member.") || value == instance);
                let member = format!(
                    "<member><InstanceId>{instance}</InstanceId><AutoScalingGroupName>{name}</AutoScalingGroupName>\
                     <AvailabilityZone>eu-central-1a</AvailabilityZone><HealthStatus>HEALTHY</HealthStatus>\
                     <LifecycleState>{}</LifecycleState><ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>",
                    self.lifecycle(now)
                );
                let members = if is_asked { member } else { String::new() };
                Ok(format!("<AutoScalingInstances>{members}</AutoScalingInstances>"))
            }
            "DescribeLifecycleHooks" => {
                self.check_group(of("AutoScalingGroupName"))?;
                let is_asked =
                    asked.iter().all(|(key, value)| !key.starts_with("LifecycleHookNames.member.") || value == hook);
                let seconds = timeout.as_secs();
                let member = format!(
                    "<member><LifecycleHookName>{hook}</LifecycleHookName><AutoScalingGroupName>{name}</AutoScalingGroupName>\
                     <LifecycleTransition>autoscaling:EC2_INSTANCE_TERMINATING</LifecycleTransition>\
                     <HeartbeatTimeout>{seconds}</HeartbeatTimeout><GlobalTimeout>{}</GlobalTimeout>\
                     <DefaultResult>ABANDON</DefaultResult></member>",
                    (seconds * 100).min(48 * 3600)
                );
                let members = if is_asked { member } else { String::new() };
                Ok(format!("<LifecycleHooks>{members}</LifecycleHooks>"))
            }
            "RecordLifecycleActionHeartbeat" => {
                self.check_waiting(asked, now)?;
                self.locked().heartbeats.push(now);
                Ok(String::new())
            }
            "CompleteLifecycleAction" => {
                let result = of("LifecycleActionResult");
                if !matches!(result, "CONTINUE" | "ABANDON") {
                    return Err(Refusal::validation(format!("Invalid lifecycle action result: {result}")));
                }
                self.check_waiting(asked, now)?;
                self.locked().completed = Some((now, result.to_owned()));
                Ok(String::new())
            }
            other => Err(Refusal {
                status: StatusCode::BAD_REQUEST,
                code: "InvalidAction",
                message: format!("The action {other} is not valid for this endpoint."),
            }),
        }
    }

    fn check_group(&self, group: &str) -> Result<(), Refusal> {
        match group == self.group.name {
            true => Ok(()),
            false => Err(Refusal::validation(format!("AutoScalingGroup name not found - {group}"))),
        }
    }

    fn check_waiting(&self, asked: &BTreeMap<&str, &str>, now: Timestamp) -> Result<(), Refusal> {
        let of = |name: &str| asked.get(name).copied().unwrap_or_default();
        self.check_group(of("AutoScalingGroupName"))?;
        let (hook, instance) = (of("LifecycleHookName"), of("InstanceId"));
        if hook != self.group.hook || instance != self.instance || self.lifecycle(now) != "Terminating:Wait" {
            return Err(Refusal::validation(format!("No active Lifecycle Action found with instance ID {instance}")));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn validation(message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "ValidationError", message }
    }
}

async fn answer(Shared(service): Shared<Arc<Service>>, headers: HeaderMap, body: String) -> Response {
    // None of ours has characters that would be escaped.
    let asked: BTreeMap<&str, &str> = body.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let answer = match headers.contains_key(header::AUTHORIZATION) {
        true => service.act(&asked),
        false => Err(Refusal {
            status: StatusCode::FORBIDDEN,
            code: "MissingAuthenticationToken",
            message: "Request is missing Authentication Token".to_owned(),
        }),
    };
    service.changes.send_replace(());
    let action = asked.get("Action").copied().unwrap_or_default();
    let (status, text) = match answer {
        Ok(result) => {
            let text = format!(
                "<{action}Response xmlns=\"{NAMESPACE}\"><{action}Result>{result}</{action}Result>\
                 <ResponseMetadata><RequestId>7c6e177f</RequestId></ResponseMetadata></{action}Response>"
            );
            (StatusCode::OK, text)
        }
        Err(Refusal { status, code, message }) => {
            let text = format!(
                "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>{message}</Message></Error><RequestId>7c6e177f</RequestId></ErrorResponse>"
            );
            (status, text)
        }
    };
    (status, [(header::CONTENT_TYPE, "text/xml")], text).into_response()
}
