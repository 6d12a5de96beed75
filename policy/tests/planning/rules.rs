//! The operator's word: labels, weights, rules, and what becomes of those that are left.

use std::collections::BTreeMap;
use std::time::Duration;

use insta::assert_snapshot;
use spothop_policy::rules::{Then, Written};
use spothop_policy::{Container, Facts, NextBest, Plan, Policy, Request, Rules, Source, Weights, labels, plan};

use crate::support::{GIB, container, host, request, source};

fn labelled(name: &str, labels: &[(&str, &str)]) -> Container {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Container { labels, ..container(name, GIB) }
}

fn with_rules(rules: &[(&str, &str, Then)]) -> Policy {
    let written = rules.iter().map(|(name, when, then)| Written {
        name: (*name).to_owned(),
        when: (*when).to_owned(),
        then: *then,
    });
    Policy { rules: Rules::compile(&written.collect::<Vec<_>>()).expect("rules"), ..Policy::default() }
}

fn target<'p>(plan: &'p Plan, name: &str) -> Option<&'p str> {
    plan.moves.iter().find(|step| step.name == name).map(|step| step.target.as_str())
}

fn says(facts: &mut Facts, labels: &[(&str, &str)]) {
    facts.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
}

#[test]
fn labels_of_containers_and_hosts_are_hard_limits_with_reasons() {
    let hosts = vec![
        host("b-hdd", |f| says(f, &[("disk", "hdd"), ("team", "a")])),
        host("c-gpu", |f| says(f, &[("disk", "ssd"), ("team", "a"), ("gpu", "1")])),
        host("d-taken", |f| {
            says(f, &[("disk", "ssd"), ("team", "a")]);
            f.groups = vec!["db".to_owned()];
        }),
        host("e-beside", |f| {
            says(f, &[("disk", "ssd"), ("team", "a")]);
            f.runs = vec!["cache".to_owned()];
        }),
        host("f-no-mount", |f| {
            says(f, &[("disk", "ssd"), ("team", "a")]);
            f.mounts = Some(vec!["/srv/other".to_owned()]);
        }),
        host("g", |f| says(f, &[("disk", "ssd"), ("team", "a")])),
    ];
    let labels = [
        (labels::REQUIRE, "disk=ssd, team"),
        (labels::AVOID, "gpu"),
        (labels::GROUP, "db"),
        (labels::AVOID_WITH, "cache"),
    ];
    let one = Container { mounts: vec!["/srv/data".to_owned()], ..labelled("one", &labels) };
    let plan = plan(&request(vec![one], hosts));
    assert_eq!(target(&plan, "one"), Some("g"));
    let refusals: Vec<String> = plan.moves[0].refusals.iter().map(ToString::to_string).collect();
    assert_snapshot!(refusals.join("\n"), @r"
    b-hdd: lacks the label disk=ssd (io.spothop.require)
    c-gpu: has the label gpu (io.spothop.avoid)
    d-taken: another container of group db is there (io.spothop.group)
    e-beside: container cache is there (io.spothop.avoid-with)
    f-no-mount: shared mount /srv/data is missing
    ");
}

#[test]
fn two_of_a_group_and_those_that_avoid_each_other_go_to_different_hosts_or_not_at_all() {
    let group = |name| labelled(name, &[(labels::GROUP, "db")]);
    let hosts = || vec![host("b", |_| {}), host("c", |_| {})];
    let three = plan(&request(vec![group("one"), group("two"), group("three")], hosts()));
    let mut targets: Vec<_> = three.moves.iter().map(|step| step.target.as_str()).collect();
    targets.sort_unstable();
    assert_eq!((targets, three.stays.len()), (vec!["b", "c"], 1));
    assert!(three.stays[0].reasons()[0].contains("another container of group db"), "{:?}", three.stays[0].reasons());
    let apart = plan(&request(vec![labelled("one", &[(labels::AVOID_WITH, "two")]), container("two", GIB)], hosts()));
    assert_ne!(target(&apart, "one"), target(&apart, "two"));
    assert!(apart.stays.is_empty());
}

#[test]
fn weights_decide_between_a_cheap_host_and_a_safe_one() {
    let hosts = vec![
        host("cheap", |f| (f.price_micros, f.spot) = (Some(30_000), Some(true))),
        host("safe", |f| (f.price_micros, f.spot) = (Some(300_000), Some(false))),
    ];
    let request = request(vec![container("one", GIB)], hosts);
    let target_by = |weights| {
        let plan = Policy { weights, ..Policy::default() }.plan(&request);
        plan.moves[0].target.clone()
    };
    assert_eq!(target_by(Weights::default()), "safe");
    assert_eq!(target_by(Weights { price: 100.0, ..Weights::default() }), "cheap");
}

#[test]
fn who_leaves_a_zone_that_is_reclaimed_does_not_stay_in_it() {
    let zoned = |name: &str, zone: &str| host(name, |f| (f.zone, f.spot) = (Some(zone.to_owned()), Some(true)));
    let request = Request {
        source: Source { zone: Some("z1".to_owned()), ..source() },
        ..request(vec![container("one", GIB)], vec![zoned("near", "z1"), zoned("far", "z2")])
    };
    assert_eq!(plan(&request).moves[0].target, "far");
    assert!(
        plan(&request).moves[0].candidates[0].reason.contains("transfer 2.00"),
        "{:?}",
        plan(&request).moves[0].candidates
    );
}

#[test]
fn rules_forbid_prefer_and_charge() {
    let policy = with_rules(&[
        ("no spot", "host.spot && has(container.labels.tier) && container.labels.tier == 'gold'", Then::Forbid),
        ("own rack", "host.name.startsWith('d')", Then::Costs(-50.0)),
    ]);
    let hosts = vec![host("b", |f| f.spot = Some(true)), host("c", |_| {}), host("d", |_| {})];
    let plan = policy.plan(&request(vec![labelled("gold", &[("tier", "gold")])], hosts));
    assert_eq!(target(&plan, "gold"), Some("d"));
    assert!(plan.moves[0].candidates[0].reason.contains("rules -50.00"), "{:?}", plan.moves[0].candidates);
    let refused: Vec<_> = plan.moves[0].refusals.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["b: forbidden by rule no spot"]);
}

#[test]
fn a_rule_that_cannot_be_evaluated_refuses_where_it_would_forbid_and_is_noted_elsewhere() {
    let policy = with_rules(&[
        ("team", "container.labels.team != host.labels.team", Then::Forbid),
        ("rack", "host.labels.rack == 'r1'", Then::Costs(-1.0)),
    ]);
    let hosts = vec![host("b", |f| says(f, &[("team", "a")])), host("c", |_| {})];
    let plan = policy.plan(&request(vec![labelled("one", &[("team", "a")])], hosts));
    assert_eq!(target(&plan, "one"), Some("b"));
    let refused: Vec<_> = plan.moves[0].refusals.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["c: rule team could not be evaluated: there is no `team`; ask with has() first"]);
    assert_eq!(plan.notes, ["rule rack counts nothing for one: there is no `rack`; ask with has() first"]);
}

#[test]
fn a_rule_drops_before_any_host_is_asked() {
    let policy = with_rules(&[(
        "worthless",
        "container.priority < 0 && notice.seconds_left < 200",
        Then::Instead(NextBest::Drop),
    )]);
    let scratch = Container { priority: -1, ..container("scratch", GIB) };
    let request = Request {
        budget: Some(Duration::from_secs(120)),
        ..request(vec![scratch, container("kept", GIB)], vec![host("b", |_| {})])
    };
    let plan = policy.plan(&request);
    assert_eq!((target(&plan, "kept"), target(&plan, "scratch")), (Some("b"), None));
    let next = plan.stays[0].next_best.as_ref().expect("what becomes of it");
    assert_eq!((next.then, next.by.as_str()), (NextBest::Drop, "rule worthless"));
    assert_eq!(plan.stays[0].reasons(), ["rule worthless: drop, and do not move it"]);
}

#[test]
fn what_is_not_moved_in_time_gets_the_first_possible_of_what_its_label_says() {
    let huge = |name: &str, fallback: &str| Container {
        memory_bytes: 100 * GIB,
        labels: BTreeMap::from([(labels::FALLBACK.to_owned(), fallback.to_owned())]),
        ..container(name, 0)
    };
    let hosts = vec![host("b", |f| {
        // Nothing can be restored here, but started anew.
        f.kernel = spothop_policy::Version::new(5, 4, 0);
        f.free_memory_bytes = 150 * GIB;
    })];
    let containers = vec![huge("first", "park, cold, drop"), huge("second", "cold"), huge("third", "keep, drop")];
    let request = Request { budget: Some(Duration::from_secs(60)), ..request(containers, hosts) };
    let answer = |request: &Request| {
        let plan = plan(request);
        let next = |name: &str| {
            let stay = plan.stays.iter().find(|stay| stay.name == name).expect("it stays");
            let next = stay.next_best.as_ref().expect("what becomes of it");
            format!("{name}: {} {:?} by {}; not {:?}", next.then, next.target, next.by, next.instead_of)
        };
        (["first", "second", "third"].map(next).join("\n"), plan.notes)
    };
    let (text, notes) = answer(&request);
    assert_snapshot!(text, @r#"
    first: cold Some("b") by label io.spothop.fallback; not ["park: no parking place is configured"]
    second: drop None by nothing else can be done; not ["cold: no host has room for it in time"]
    third: drop None by label io.spothop.fallback; not []
    "#);
    assert_eq!(
        notes,
        ["third: label io.spothop.fallback: `keep` is nothing that can be done; write park, cold or drop"]
    );
    // With a parking place it is still a matter of time: 100 GiB do not go over in a minute.
    let with_parking = Request { can_park: true, ..request };
    let (text, _) = answer(&with_parking);
    assert!(text.starts_with("first: cold Some(\"b\") by label io.spothop.fallback; not [\"park: takes 1"), "{text}");
    // Nobody is relied on who does not do it.
    let (text, _) = answer(&Request { never_cold: true, ..with_parking });
    assert!(text.starts_with("first: drop None by label"), "{text}");
    assert!(text.contains("cold: spothop does not start containers elsewhere yet"), "{text}");
}
