//! What only the daemon can say: itself, the other hosts, the containers.

use std::fs;

use spothop_policy::{Bytes, CpuVerdict, HostState};

use super::Check;
use crate::api::{Client, ContainerView, HostView, LifecycleHookView, ProviderView};
use crate::config::Config;
use crate::notice::lifecycle::Outlook;
use crate::provider::Word;

pub(super) async fn check(config: &Config, client: &Client) -> Vec<Check> {
    let mut checks = match client.status().await {
        Ok(status) if status.host != config.host.name => vec![Check::warning(
            "daemon",
            format!("runs as `{}`, the configuration says `{}`", status.host, config.host.name),
            "let it read the configuration: systemctl restart spothop",
        )],
        Ok(status) => vec![Check::ok("daemon", format!("version {}, running", status.version))],
        Err(error) => {
            let text = error.to_string();
            let advice = "peers and containers were not looked at: run this again when it runs";
            return vec![Check::failed("daemon", text, advice)];
        }
    };
    checks.push(match client.provider().await {
        Ok(view) => provider(config, &view),
        Err(error) => Check::failed("provider", error.to_string(), "see: journalctl -u spothop"),
    });
    if config.notice.aws.lifecycle_hook.is_some() {
        checks.push(match client.lifecycle_hook().await {
            Ok(view) => lifecycle_hook(view),
            Err(error) => Check::failed("lifecycle hook", error.to_string(), "see: journalctl -u spothop"),
        });
    }
    match client.hosts().await {
        Ok(hosts) => checks.extend(peers(&hosts, &config.host.name)),
        Err(error) => checks.push(Check::failed("peers", error.to_string(), "see: journalctl -u spothop")),
    }
    match client.containers().await {
        Ok(all) => {
            checks.extend(containers(&all));
            checks.extend(staging_room(&all, memory_available()));
        }
        Err(error) => checks.push(Check::failed("containers", error.to_string(), "see: journalctl -u spothop")),
    }
    checks
}

/// Whether hosts like this one can ask the cloud about each other, tried on this host itself. They must be able to only when a source
/// is lost whose end has no deadline, so that nothing of this is a failure.
fn provider(config: &Config, view: &ProviderView) -> Check {
    let subject = "provider";
    let Some(instance) = &view.instance else {
        return Check::info(subject, "this host is no instance of a cloud that could be asked about it");
    };
    if !config.provider.aws.enabled {
        return Check::info(subject, "switched off in the configuration");
    }
    match &view.word {
        Word::MayRun { state } => Check::ok(subject, format!("says of this host ({instance}): {state}")),
        Word::Unknown { reason } => Check::warning(subject, reason, ASK_ADVICE),
        odd => Check::warning(
            subject,
            format!("says of this very host ({instance}), {odd}"),
            "is AWS_ENDPOINT_URL set, or the metadata service an imitation? A wrong answer may let a container run twice",
        ),
    }
}

/// Whether the Auto Scaling group would wait for this host, tried on this host itself. Completing the hook cannot be tried.
fn lifecycle_hook(view: Option<LifecycleHookView>) -> Check {
    let subject = "lifecycle hook";
    let Some(LifecycleHookView { hook, outlook }) = view else {
        let advice = "let the daemon read the configuration: systemctl restart spothop";
        return Check::warning(subject, "the running daemon knows of none", advice);
    };
    match outlook {
        Outlook::Ready { group, timeout_seconds } => {
            let waits = timeout_seconds.map(|seconds| format!(" waits {seconds} s and"));
            Check::ok(subject, format!("{hook} of the group {group}{} can be held", waits.unwrap_or_default()))
        }
        Outlook::Alone { reason } => Check::info(subject, format!("nobody waits for this host: {reason}")),
        Outlook::Broken { reason } => Check::warning(subject, reason, HOOK_ADVICE),
    }
}

/// `Describe…` know no permission for single groups ("Actions, resources, and condition keys for Amazon EC2 Auto Scaling").
const HOOK_ADVICE: &str = concat!(
    "the group does not wait for containers that leave, or waits in vain; its hook must be one for instances that terminate, and the role of ",
    r#"every host needs {"Effect": "Allow", "Action": ["autoscaling:DescribeAutoScalingInstances", "#,
    r#""autoscaling:DescribeLifecycleHooks", "autoscaling:RecordLifecycleActionHeartbeat", "#,
    r#""autoscaling:CompleteLifecycleAction"], "Resource": "*"}"#
);

/// `DescribeInstances` knows no permission for single instances ("Actions, resources, and condition keys for Amazon EC2").
const ASK_ADVICE: &str = concat!(
    "until EC2 answers, a container whose source is lost in a migration by hand waits for `spothop resolve`; the role of ",
    r#"every host needs {"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"}"#
);

/// Each peer. One that is away is a warning, all away is a failure: then there is nowhere to go.
fn peers(hosts: &[HostView], own_name: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut ready = 0;
    for host in hosts.iter().filter(|host| host.name != own_name) {
        let subject = format!("peer {}", host.name);
        let trouble = match &host.state {
            HostState::Unreachable { reason } => Some((
                format!("{} cannot be reached: {reason}", host.address),
                "check its address, its firewall (port 7077), its daemon, and that both have the same authority"
                    .to_owned(),
            )),
            HostState::Reachable(facts) => match (&facts.under_notice, &facts.declines, &facts.cpu) {
                (Some(notice), _, _) => {
                    Some((format!("is to be taken away itself: {notice}"), "add another host".to_owned()))
                }
                (None, Some(reason), _) => {
                    Some((format!("takes no containers: {reason}"), format!("run `spothop doctor` on {}", host.name)))
                }
                (None, None, CpuVerdict::Incompatible { reason }) => {
                    Some((format!("its CPU lacks what this one has: {reason}"), "use machines of one type".to_owned()))
                }
                (None, None, _) => None,
            },
        };
        checks.push(match (trouble, &host.state) {
            (Some((finding, advice)), _) => Check::warning(subject, finding, advice),
            (None, HostState::Reachable(facts)) => {
                ready += 1;
                Check::ok(subject, format!("{} is ready, has room for {}", host.address, Bytes(facts.room_bytes())))
            }
            (None, HostState::Unreachable { .. }) => continue,
        });
    }
    if checks.is_empty() {
        let advice = "add [[peers]] to the configuration of every host";
        checks.push(Check::failed("peers", "there are none: nothing can be moved anywhere", advice));
    } else if ready == 0 {
        checks.push(Check::failed("peers", "none of them can take a container", "see the lines above"));
    }
    checks
}

/// Each container that cannot be moved, with every reason; one line for all that can.
fn containers(all: &[ContainerView]) -> Vec<Check> {
    let (movable, stuck): (Vec<_>, Vec<_>) = all.iter().partition(|container| container.obstacles.is_empty());
    let mut checks = Vec::new();
    if !movable.is_empty() {
        let names: Vec<&str> = movable.iter().map(|container| container.name.as_str()).collect();
        checks.push(Check::ok("containers", format!("can be moved: {}", names.join(", "))));
    }
    checks.extend(stuck.into_iter().map(|container| {
        Check::warning(
            format!("container {}", container.name),
            format!("cannot be moved: {}", container.obstacles.join("; ")),
            "it will be lost with this host, unless what stands in the way is changed",
        )
    }));
    checks
}

/// While a container is moved, its memory lies in a tmpfs here once more.
fn staging_room(all: &[ContainerView], available: Option<u64>) -> Option<Check> {
    let available = available?;
    let largest =
        all.iter().filter(|container| container.obstacles.is_empty()).max_by_key(|container| container.memory_bytes)?;
    let needed = largest.memory_bytes;
    let (needs, has) = (Bytes(needed), Bytes(available));
    Some(if needed <= available {
        Check::ok("memory", format!("{has} free; moving {} needs {needs}", largest.name))
    } else {
        Check::warning(
            "memory",
            format!("{has} free, but moving {} needs {needs} besides its own", largest.name),
            "free memory, or use a larger machine: a migration needs room for a copy of the container's memory",
        )
    })
}

/// `MemAvailable` in bytes (proc(5): in kB).
fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::doctor::Verdict;
    use crate::provider::Instance;

    fn unreachable(name: &str) -> HostView {
        HostView {
            name: name.to_owned(),
            address: "10.0.0.2:7077".to_owned(),
            source: "static".to_owned(),
            told: "2026-01-01T00:00:00Z".parse().unwrap(),
            state: HostState::Unreachable { reason: "connection refused".to_owned() },
        }
    }

    fn container(name: &str, memory_bytes: u64, obstacles: &[&str]) -> ContainerView {
        ContainerView {
            id: name.to_owned(),
            name: name.to_owned(),
            image: "redis:7".to_owned(),
            memory_bytes,
            priority: 0,
            network: "new-ip".to_owned(),
            obstacles: obstacles.iter().map(|&obstacle| obstacle.to_owned()).collect(),
        }
    }

    #[test]
    fn a_cloud_that_does_not_answer_is_a_warning_with_the_permission_to_add() {
        let instance = Instance::aws("123456789012", "eu-central-1", "i-1234567890abcdef0").unwrap();
        let config = Config::parse("", Path::new("config.toml"), "a").unwrap();
        let says =
            |instance: Option<&Instance>, word| provider(&config, &ProviderView { instance: instance.cloned(), word });
        let unknown = || Word::Unknown { reason: "the AWS credentials do not allow ec2:DescribeInstances".to_owned() };
        assert_eq!(says(None, unknown()).verdict, Verdict::Info);
        let warned = says(Some(&instance), unknown());
        assert_eq!(warned.verdict, Verdict::Warning);
        assert!(warned.advice.unwrap().contains(r#""Action": "ec2:DescribeInstances""#));
        let running = says(Some(&instance), Word::MayRun { state: "running".to_owned() });
        assert_eq!(running.finding, "says of this host (aws i-1234567890abcdef0 in eu-central-1): running");
        let dead = says(Some(&instance), Word::Gone { reason: "terminated".to_owned() });
        assert_eq!(dead.verdict, Verdict::Warning, "a host that asks is not gone: the answer is wrong");
    }

    #[test]
    fn a_hook_that_cannot_be_held_is_a_warning_with_the_permissions_to_add() {
        let says = |outlook| lifecycle_hook(Some(LifecycleHookView { hook: "drain".to_owned(), outlook }));
        let ready = says(Outlook::Ready { group: "spot".to_owned(), timeout_seconds: Some(300) });
        assert_eq!(
            (ready.verdict, ready.finding.as_str()),
            (Verdict::Ok, "drain of the group spot waits 300 s and can be held")
        );
        let reason = || "because".to_owned();
        assert_eq!(says(Outlook::Alone { reason: reason() }).verdict, Verdict::Info);
        let broken = says(Outlook::Broken { reason: reason() });
        assert_eq!(broken.verdict, Verdict::Warning);
        assert!(broken.advice.unwrap().contains("autoscaling:CompleteLifecycleAction"));
        assert_eq!(lifecycle_hook(None).verdict, Verdict::Warning);
    }

    #[test]
    fn a_host_that_nobody_would_take_over_from_fails() {
        assert_eq!(peers(&[], "a")[0].verdict, Verdict::Failed);
        assert_eq!(peers(&[unreachable("a")], "a")[0].subject, "peers");
        let verdicts: Vec<_> = peers(&[unreachable("b"), unreachable("c")], "a").iter().map(|c| c.verdict).collect();
        assert_eq!(verdicts, [Verdict::Warning, Verdict::Warning, Verdict::Failed]);
    }

    #[test]
    fn a_container_that_cannot_move_is_named_with_every_reason_before_any_notice() {
        let checks = containers(&[container("redis", 1, &[]), container("dev", 1, &["io_uring (pid 7)", "/dev/kvm"])]);
        assert_eq!(checks[0].finding, "can be moved: redis");
        assert_eq!(checks[1].subject, "container dev");
        assert_eq!(checks[1].finding, "cannot be moved: io_uring (pid 7); /dev/kvm");
        assert_eq!(checks[1].verdict, Verdict::Warning);
    }

    #[test]
    fn room_is_measured_by_the_largest_container_that_can_move() {
        let all = [container("redis", 1 << 30, &[]), container("huge", 1 << 40, &["io_uring"])];
        assert_eq!(staging_room(&all, Some(2 << 30)).unwrap().verdict, Verdict::Ok);
        assert_eq!(staging_room(&all, Some(1 << 20)).unwrap().verdict, Verdict::Warning);
        assert_eq!(staging_room(&[], Some(0)), None);
    }

    #[test]
    fn this_machine_says_how_much_memory_it_has() {
        assert!(memory_available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
