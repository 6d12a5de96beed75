//! Tests of parsing and validation.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/spothop/config.toml"), "here")
}

fn message(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_empty_file_is_a_host_without_peers() {
    let config = parse("").unwrap();
    assert_eq!(config.host.name, "here");
    assert_eq!(config.host.listen, "0.0.0.0:7077".parse().unwrap());
    assert!(config.peers.is_empty());
    assert!(config.notice.aws.enabled && config.docker.enabled);
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        [host]
        name = "a"
        listen = "[::]:7078"
        advertise = "a.example"
        zone = "eu-central-1b"
        labels = { rack = "7", disk = "ssd" }
        [[peers]]
        name = "b"
        address = "10.0.0.2"
        [[peers]]
        name = "c"
        address = "[fd00::3]:7079"
        [inventory.etcd]
        endpoints = ["https://e1:2379", "http://e2:2379"]
        prefix = "/prod/"
        ttl = "30s"
        ca = "/ca.pem"
        cert = "/cert.pem"
        key = "/key.pem"
        [inventory.ec2]
        tag = "spothop:cluster=prod"
        region = "eu-central-1"
        name_tag = "Name"
        port = 7079
        refresh = "1m"
        [inventory.kubernetes]
        api = "https://k:6443"
        token = "/token"
        ca = "/kube.pem"
        selector = "spothop=yes"
        port = 7080
        [tls]
        dir = "/tls"
        [notice]
        likely = "evacuate"
        likely_cooldown = "1h"
        [notice.aws]
        enabled = false
        endpoints = ["http://127.0.0.1:1338"]
        poll_interval = "500ms"
        maintenance_lead = "1h"
        [notice.sqs]
        queue_url = "https://sqs.eu-central-1.amazonaws.com/123456789012/notices"
        others = "delete"
        [provider.aws]
        enabled = false
        [limits]
        memory_reserve = "1GiB"
        max_concurrent = 3
        manual_timeout = "2m"
        [docker]
        enabled = false
        socket = "/run/d.sock"
        [transfer]
        connections = 8
        [criu]
        criu = "/opt/criu"
        runc = "/opt/runc"
        "#,
    )
    .unwrap();
    assert_eq!(config.peer("b").unwrap().address.to_string(), "10.0.0.2:7077");
    assert_eq!(config.peer("c").unwrap().address.to_string(), "[fd00::3]:7079");
    assert_eq!((config.host.zone.as_deref(), config.host.labels["rack"].as_str()), (Some("eu-central-1b"), "7"));
    let etcd = config.inventory.etcd.unwrap();
    assert_eq!((etcd.endpoints.len(), etcd.prefix.as_str(), etcd.ttl.as_secs()), (2, "/prod/", 30));
    assert_eq!(etcd.ca.into_iter().chain(etcd.cert).chain(etcd.key).count(), 3);
    let ec2 = config.inventory.ec2.unwrap();
    assert_eq!((ec2.tag.key.as_str(), ec2.tag.value.as_str()), ("spothop:cluster", "prod"));
    assert_eq!((ec2.name_tag.as_str(), ec2.region.as_str(), ec2.port), ("Name", "eu-central-1", 7079));
    assert_eq!(ec2.refresh.as_secs(), 60);
    let kubernetes = config.inventory.kubernetes.unwrap();
    assert_eq!((kubernetes.api.as_deref(), kubernetes.port), (Some("https://k:6443"), 7080));
    assert_eq!((kubernetes.selector.as_str(), kubernetes.token.to_str()), ("spothop=yes", Some("/token")));
    assert_eq!(config.host.advertise.as_ref().map(ToString::to_string), Some("a.example:7077".to_owned()));
    assert_eq!(config.limits.memory_reserve, 1 << 30);
    assert_eq!(config.notice.aws.poll_interval, Duration::from_millis(500));
    assert_eq!((config.notice.likely, config.notice.sqs.others), (Likely::Evacuate, Others::Delete));
    assert_eq!(config.transfer.connections, 8);
    assert_eq!(config.criu.runc, Path::new("/opt/runc"));
}

#[test]
fn the_packaged_file_says_exactly_the_defaults() {
    let packaged = include_str!("../../../packaging/config.toml");
    assert_eq!(parse(packaged).unwrap(), parse("").unwrap());
    // Every commented key is a real one: with the comment marks off, the file still parses.
    let active: String = packaged
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    let config = parse(&active).unwrap();
    assert_eq!(config.peers.len(), 1);
    assert_eq!(
        (config.limits, config.transfer, config.notice),
        (Limits::default(), Transfer::default(), Notice::default())
    );
}

#[test]
fn a_named_file_must_exist_and_the_default_one_need_not() {
    let error = Config::load(Some(Path::new("/nonexistent/spothop.toml"))).unwrap_err();
    insta::assert_snapshot!(error, @r#"cannot read the configuration /nonexistent/spothop.toml; create it, or name another with --config"#);
}

#[test]
fn an_unknown_key_is_refused_with_its_place() {
    insta::assert_snapshot!(message("[host]\nname = \"a\"\nlisten_on = \"0.0.0.0:7077\"\n"), @r#"
        /etc/spothop/config.toml:3:1: there is no key `listen_on` here; did you mean `listen`?
          |
        3 | listen_on = "0.0.0.0:7077"
          | ^^^^^^^^^
    "#);
}

#[test]
fn broken_toml_is_refused_with_its_place() {
    insta::assert_snapshot!(message("[host\nname = \"a\"\n"), @r#"
        /etc/spothop/config.toml:1:6: unclosed table, expected `]`
          |
        1 | [host
          |      ^
    "#);
}

#[test]
fn a_bad_unit_is_refused_with_its_place() {
    insta::assert_snapshot!(message("[limits]\nmemory_reserve = \"1 gig\"\n"), @r#"
        /etc/spothop/config.toml:2:18: `1 gig` is not a size; write a number with its unit, such as "512MiB", "1.5GiB" or "2GB"
          |
        2 | memory_reserve = "1 gig"
          |                  ^^^^^^^
    "#);
    insta::assert_snapshot!(message("[notice.aws]\npoll_interval = \"0s\"\n"), @r#"
        /etc/spothop/config.toml:2:17: must be longer than zero
          |
        2 | poll_interval = "0s"
          |                 ^^^^
    "#);
}

#[test]
fn what_is_no_queue_is_refused_with_its_place() {
    insta::assert_snapshot!(message("[notice.sqs]\nqueue_url = \"notices\"\n"), @r#"
    /etc/spothop/config.toml:2:13: `notices` is not the URL of a queue, such as "https://sqs.eu-central-1.amazonaws.com/123456789012/notices"
      |
    2 | queue_url = "notices"
      |             ^^^^^^^^^
    "#);
}

#[test]
fn a_number_outside_its_range_is_refused() {
    insta::assert_snapshot!(message("[transfer]\nconnections = 0\n"), @r#"
        /etc/spothop/config.toml:2:15: 0 is not between 1 and 64
          |
        2 | connections = 0
          |               ^
    "#);
}

#[test]
fn a_bad_address_is_refused() {
    insta::assert_snapshot!(message("[[peers]]\nname = \"b\"\naddress = \"10.0.0.2:http\"\n"), @r#"
        /etc/spothop/config.toml:3:11: `10.0.0.2:http` is not an address; write HOST:PORT, such as "10.0.0.2:7077", "[fd00::2]:7077" or "b.example:7077"
          |
        3 | address = "10.0.0.2:http"
          |           ^^^^^^^^^^^^^^^
    "#);
    for text in ["", ":7077", "10.0.0:7077", "b:0", "b:70777", "-b:1", "[fd00::2", "b c:7077"] {
        assert_eq!(text.parse::<Address>(), Err(Problem::BadAddress(text.to_owned())));
    }
}

#[test]
fn two_peers_of_one_name_are_refused() {
    insta::assert_snapshot!(
        message("[[peers]]\nname = \"b\"\naddress = \"10.0.0.2\"\n\n[[peers]]\nname = \"b\"\naddress = \"10.0.0.3\"\n"),
        @r#"
            /etc/spothop/config.toml:6:8: peer `b` is already defined on line 2; give each host one [[peers]] entry
              |
            6 | name = "b"
              |        ^^^
        "#
    );
}

#[test]
fn a_host_is_not_its_own_peer() {
    insta::assert_snapshot!(message("[[peers]]\nname = \"here\"\naddress = \"10.0.0.2\"\n"), @r#"
        /etc/spothop/config.toml:2:8: peer `here` has this host's own name; remove the entry, or set [host] name to what the others call this host
          |
        2 | name = "here"
          |        ^^^^^^
    "#);
}

#[test]
fn a_peer_without_an_address_is_refused() {
    insta::assert_snapshot!(message("[[peers]]\nname = \"b\"\n"), @r#"
        /etc/spothop/config.toml:1:1: missing field `address`
          |
        1 | [[peers]]
          | ^^^^^^^^^
    "#);
}

#[test]
fn an_unusable_host_name_asks_for_one() {
    let error = Config::parse("", Path::new("/etc/spothop/config.toml"), "my host").unwrap_err();
    insta::assert_snapshot!(error, @r#"this machine's host name will not do: `my host` is not a host name; use letters, digits, `-` and `.`, 253 characters at most, as in its certificate; set [host] name in /etc/spothop/config.toml"#);
}

#[test]
fn memory_follows_only_where_somebody_says_so() {
    use super::memory::Mode;
    assert_eq!(parse("").unwrap().memory.mode, Mode::PreCopy);
    assert_eq!(parse("[memory]\nmode = 'post-copy'").unwrap().memory.mode, Mode::PostCopy);
    // Whoever cannot do the one does the next.
    assert!(Mode::PostCopy < Mode::PreCopy && Mode::PreCopy < Mode::StopAndCopy);
    let refused = message("[memory]\nmode = 'postcopy'");
    assert!(refused.contains("post-copy"), "{refused}");
}

#[test]
fn clouds_have_tables_of_their_own_and_what_is_left_out_is_as_documented() {
    let config = parse(
        "[notice]\ncloud = \"gcp\"\nshutdown = \"ignore\"\n[notice.gcp]\nnotice_period = \"120s\"\nreclaim = \"delete\"\n\
         [notice.tencent]\npoll_interval = \"2s\"\n",
    )
    .unwrap()
    .notice;
    assert_eq!((config.cloud, config.cloud.named()), (CloudChoice::Gcp, Some(crate::notice::Cloud::Gcp)));
    assert_eq!((config.shutdown, config.gcp.reclaim), (Shutdown::Ignore, Reclaim::Delete));
    assert_eq!(config.gcp.notice_period, Duration::from_secs(120));
    assert_eq!(config.tencent.poll_interval, Duration::from_secs(2));
    assert_eq!(config.tencent.endpoints, Notice::default().tencent.endpoints);
    assert_eq!(config.alibaba, Notice::default().alibaba);
    for wrong in [
        "[notice]\ncloud = \"ibm\"\n",
        "[notice.gcp]\nnotice_period = \"121s\"\n",
        "[notice.alibaba]\nreclaim = \"hibernate\"\n",
        "[notice.tencent]\nendpoints = [\"https://169.254.0.23\"]\n",
        "[notice.azure]\npoll_interval = \"0s\"\n",
    ] {
        assert!(matches!(parse(wrong), Err(ConfigError::At { .. })), "{wrong}");
    }
}

#[test]
fn an_unknown_key_anywhere_suggests_the_nearest() {
    for (text, line) in [
        ("[limit]\n", "1:2: there is no key `limit` here; did you mean `limits`?"),
        ("[limits]\nmax_concurent = 2\n", "2:1: there is no key `max_concurent` here; did you mean `max_concurrent`?"),
        ("[policy.weights]\nbalanse = 2\n", "2:1: there is no key `balanse` here; did you mean `balance`?"),
        ("[notice.awz]\n", "1:9: there is no key `awz` here; did you mean `aws`?"),
        ("[[peers]]\nname = 'b'\nadress = '10.0.0.2'\n", "3:1: there is no key `adress` here; did you mean `address`?"),
        ("[memory]\nmode = 'precopy'\n", "2:8: there is no value `precopy` here; did you mean `pre-copy`?"),
        ("[transfer]\nstreams = 2\n", "2:1: there is no key `streams` here; there are `connections`"),
        (
            "[[policy.rules]]\nname = 'r'\nwhen = 'true'\nthen = 'forbit'\n",
            "4:8: there is no value `forbit` here; did you mean `forbid`?",
        ),
    ] {
        let said = message(text);
        assert!(said.starts_with(&format!("/etc/spothop/config.toml:{line}")), "{said}");
    }
}

#[test]
fn a_rule_that_is_wrong_is_shown_in_its_place() {
    insta::assert_snapshot!(message("[[policy.rules]]\nname = \"zone\"\nwhen = \"true && host.zoen == 'a'\"\nthen = \"forbid\"\n"), @r#"
        /etc/spothop/config.toml:3:22: rule `zone`: there is no `host.zoen`; did you mean `host.zone`?
          |
        3 | when = "true && host.zoen == 'a'"
          |                      ^
    "#);
    insta::assert_snapshot!(message("[[policy.rules]]\nname = \"how much\"\nwhen = \"host.spot\"\nthen = \"penalty\"\n"), @r#"
        /etc/spothop/config.toml:4:8: say how much: seconds = 30, as many seconds of moving as it is worth
          |
        4 | then = "penalty"
          |        ^^^^^^^^^
    "#);
    // On a later line of an expression of many.
    let many =
        "[[policy.rules]]\nname = 'r'\nwhen = \"\"\"\nhost.spot\n  && container.nane == 'a'\"\"\"\nthen = 'forbid'\n";
    assert!(
        message(many).starts_with("/etc/spothop/config.toml:5:16: rule `r`: there is no `container.nane`"),
        "{}",
        message(many)
    );
    assert!(message("[policy.weights]\ntime = -1\n").contains("the weight `time` is not between"));
}

#[test]
fn rules_and_weights_reach_the_planner() {
    let config = parse(
        "[policy]\nfallback = ['cold', 'drop']\n[policy.weights]\nprice = 0\n[[policy.rules]]\nname = 'r'\nwhen = 'host.spot'\nthen = 'prefer'\nseconds = 3\n",
    )
    .unwrap();
    let policy = config.policy.compiled();
    assert_eq!((policy.weights.price, policy.weights.time), (0.0, 1.0));
    assert_eq!(policy.fallback, [spothop_policy::NextBest::Cold, spothop_policy::NextBest::Drop]);
    assert!(!policy.rules.is_empty());
}

/// The keys of a table that the parser knows, by asking it for one that no table has.
fn keys(table: &str, entry: &str) -> Option<Vec<String>> {
    let error = toml::from_str::<File>(&format!("{table}\n{entry}no-such-key = 0\n")).err()?;
    let (what, name, known) = unknown(error.message())?;
    (what == "key" && name == "no-such-key").then(|| known.into_iter().map(str::to_owned).collect())
}

/// Every key of the whole file, tables left out: `limits.max_concurrent`, `peers.name`.
fn all_keys() -> std::collections::BTreeSet<String> {
    let mut all = std::collections::BTreeSet::new();
    let mut tables: Vec<String> = vec![String::new()];
    while let Some(table) = tables.pop() {
        let header = match table.strip_suffix("[]") {
            _ if table.is_empty() => String::new(),
            Some(list) => format!("[[{list}]]"),
            None => format!("[{table}]"),
        };
        for key in keys(&header, "").unwrap_or_else(|| panic!("{table} is no table")) {
            let inside = table.trim_end_matches("[]");
            let path = if table.is_empty() { key } else { format!("{inside}.{key}") };
            if keys(&format!("[{path}]"), "").is_some() {
                tables.push(path);
            } else if keys(&format!("[[{path}]]"), "").is_some() {
                tables.push(format!("{path}[]"));
            } else {
                all.insert(path);
            }
        }
    }
    all
}

#[test]
fn every_key_is_documented_with_its_default() {
    let page = include_str!("../../../docs/configuration.md");
    let mut documented = std::collections::BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let [key, default, unit, what] = cells[..] else { panic!("four columns: {row}") };
        assert!(!unit.is_empty() && !what.is_empty(), "{row}");
        let key = key.trim_matches('`');
        assert!(documented.insert(key.to_owned()), "{key} is there twice");
        // A default that is a value is the one that is taken where nothing is written.
        if let Some(value) = default.strip_prefix('`').and_then(|value| value.strip_suffix('`')) {
            let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
            let header = if table.is_empty() { String::new() } else { format!("[{table}]") };
            let said = format!("{header}\n{name} = {value}\n");
            let config = parse(&said).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(config, parse("").unwrap(), "{key} = {value} is not the default");
        }
    }
    assert_eq!(documented, all_keys(), "docs/configuration.md, and the keys that there are");
}

#[test]
fn sources_of_hosts_have_defaults_and_limits() {
    let sources = "[inventory.etcd]\nendpoints = [\"http://e:2379\"]\n[inventory.kubernetes]\n[inventory.ec2]\ntag = \"c=\"\nregion = \"r\"\n";
    let inventory = parse(sources).unwrap().inventory;
    let etcd = inventory.etcd.unwrap();
    assert_eq!((etcd.prefix.as_str(), etcd.ttl.as_secs(), etcd.ca), ("/spothop/hosts/", 15, None));
    let ec2 = inventory.ec2.unwrap();
    assert_eq!((ec2.name_tag.as_str(), ec2.port, ec2.refresh.as_secs()), ("spothop:name", 7077, 30));
    assert_eq!(inventory.kubernetes.unwrap(), inventory::Kubernetes::default());
    let etcd = |more: &str| message(&format!("[inventory.etcd]\nendpoints = [\"http://e\"]\n{more}\n"));
    assert!(etcd("ttl = \"4s\"").contains("must be from 5s to 10m"));
    assert!(etcd("prefix = \"\"").contains("must not be empty"));
    assert!(message("[inventory.etcd]\nendpoints = []\n").contains("one member"));
    assert!(message("[inventory.etcd]\nendpoints = [\"e:2379\"]\n").contains("is not a URL of etcd"));
    for tag in ["prod", "=prod", "aws:x=y"] {
        let text = message(&format!("[inventory.ec2]\ntag = {tag:?}\nregion = \"r\"\n"));
        assert!(text.contains("is not a tag; write KEY=VALUE"), "{text}");
    }
}

#[test]
fn a_budget_is_needed_to_launch_anything_and_money_is_exact() {
    let table = |more: &str| {
        format!("[capacity.ec2]\nregion = \"r\"\ntemplate = \"t\"\nroom = \"4GiB\"\nmax_instances = 2\n{more}\n")
    };
    assert_eq!(parse("").unwrap().capacity.ec2, None);
    let ec2 = parse(&table("max_price = \"1.25\"")).unwrap().capacity.ec2.unwrap();
    assert_eq!((ec2.max_price, ec2.max_instances, ec2.room), (1_250_000, 2, 4 << 30));
    assert_eq!((ec2.version.as_str(), ec2.market), ("$Default", capacity::Market::SpotThenOnDemand));
    assert!(ec2.types.is_empty() && ec2.zones.is_empty());
    assert!(message(&table("")).contains("missing field `max_price`"));
    for price in ["", "0", "0.0", "-1", "1,25", "1.2345678", "1.25 USD", "99999999999999999999"] {
        let text = message(&table(&format!("max_price = {price:?}")));
        assert!(text.contains("is not a price; write dollars an hour"), "{text}");
    }
}
