//! What is predicted of a migration, and what then comes true.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::redis::{assert_faithful, under_load};
use crate::scene::{HOSTS, Scene};

/// Moves there and back. Two that agree change a prediction, so from the third on it is made of measurements.
const ROUND_TRIPS: usize = 5;

/// How many of the last predictions are compared with the first; the median of them, because one may meet a busy machine.
const LAST: usize = 3;

/// A predicted or measured time of a migration, in milliseconds.
fn millis(migration: &Value, which: &str, time: &str) -> f64 {
    migration[which][time].as_f64().unwrap_or_else(|| panic!("{which} {time}: {migration:#}"))
}

/// How many times too much or too little a time was predicted: 1 is exactly right, 2 twice as long or half as long.
fn factor(migration: &Value, time: &str) -> f64 {
    let [predicted, measured] = ["predicted", "measured"].map(|which| millis(migration, which, time).max(1.0));
    (predicted / measured).max(measured / predicted)
}

pub(crate) fn predictions_come_nearer_to_the_truth_with_every_move_and_outlive_the_daemon(scene: &Scene) {
    // Nothing of other scenarios: hosts that have moved nothing yet.
    let forget = "systemctl stop spothop; rm -f /var/lib/spothop/journal.*; systemctl start spothop";
    for host in HOSTS {
        scene.sh(host, forget);
    }
    scene.eventually("a", "spothop hosts --json | grep -q reachable");
    // Enough for the defaults, which are careful, to be wrong about it also on a slow machine.
    let (redis, client) = under_load(scene, 512);

    let mut from_a = Vec::new();
    for trip in 0..ROUND_TRIPS {
        // The plan says before what is recorded with the migration.
        let plan = scene.spothop("a", &["plan", "r1", "--to", "b"]).json;
        let there = scene.migrate("a", "r1", "b");
        scene.nothing_is_left("b", "r1", &HOSTS);
        let back = scene.migrate("b", "r1", "a");
        scene.nothing_is_left("a", "r1", &HOSTS);
        eprintln!(
            "trip {trip}: {} {}, back {} {}",
            there["predicted"], there["measured"], back["predicted"], back["measured"]
        );
        let planned = &plan["moves"][0];
        assert!(planned["predicted"]["total_ms"].is_u64(), "{plan:#}");
        // One that moves alone ends when it has taken what it takes, and says how it goes and what that costs.
        assert_eq!(planned["ends_after_ms"], planned["predicted"]["total_ms"], "{plan:#}");
        assert_eq!(planned["mode"], "pre-copy", "{plan:#}");
        assert!(planned["candidates"][0]["cost"]["time_us"].as_u64().is_some_and(|us| us > 0), "{plan:#}");
        eprintln!("trip {trip}: planned {planned}");
        from_a.push(there);
        if trip == ROUND_TRIPS / 2 {
            for host in HOSTS {
                scene.restart_daemon(host);
            }
            scene.eventually("a", "spothop hosts --json | grep -q reachable");
        }
    }
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");

    let factors: Vec<_> = from_a.iter().map(|migration| factor(migration, "total_ms")).collect();
    let mut last = factors[ROUND_TRIPS - LAST..].to_vec();
    last.sort_by(f64::total_cmp);
    let (first, later) = (factors[0], last[LAST / 2]);
    assert!(later < first, "the first prediction was wrong by a factor of {first:.2}, the last by {later:.2}");
    // The default for the freeze may happen to be right on a slow machine; what is learnt is what was seen, give or take a half.
    let frozen = |which: &'static str| from_a.iter().map(move |migration| millis(migration, which, "frozen_ms"));
    let (least, most) = frozen("measured").fold((f64::MAX, 0.0f64), |(least, most), ms| (least.min(ms), most.max(ms)));
    let learnt = frozen("predicted").next_back().expect("a prediction");
    assert!((least / 2.0..=most * 2.0).contains(&learnt), "{learnt} ms is not in line with {least} to {most} ms");

    // The record, at both ends: the source knows what was predicted, each knows what it saw.
    let history: BTreeMap<String, Value> = list(scene, "a");
    for migration in &from_a {
        let id = migration["id"].as_str().expect("an id");
        assert_eq!(history[id]["predicted"], migration["predicted"]);
        assert_eq!(history[id]["measured"], migration["measured"]);
    }
    let at_target = list(scene, "b");
    let id = from_a[0]["id"].as_str().expect("an id");
    assert!(at_target[id]["predicted"].is_null() && at_target[id]["measured"]["total_ms"].is_u64());
    let table = scene.sh("a", "spothop history");
    assert!(table.contains("TOOK (PREDICTED)  FROZEN (PREDICTED)"), "{table}");
}

/// `spothop history`, by the migrations' ids.
fn list(scene: &Scene, host: &str) -> BTreeMap<String, Value> {
    let history = scene.spothop(host, &["history"]).json;
    let all = history.as_array().expect("a list").iter();
    all.map(|migration| (migration["id"].as_str().expect("an id").to_owned(), migration.clone())).collect()
}
