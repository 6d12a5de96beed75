//! The files of a container: its writable layer, named and anonymous volumes.

use serde_json::Value;

use crate::scene::Scene;

/// Makes every kind of file in `argv[1:]`, and changes what came with the image.
pub(crate) const MAKE: &str = include_str!("programs/make.py");

/// Prints a manifest of everything below `argv[1:]` as JSON. Times of directories are told where nobody but us touches them.
const MANIFEST: &str = include_str!("programs/manifest.py");

/// Changes files all the time, and knows what must be there. USR1 ends it; the exit code says whether all is well.
const CHURN: &str = include_str!("programs/churn.py");

pub(crate) fn the_writable_layer_and_all_volumes_are_the_same_after_the_move(scene: &Scene) {
    let options = "--network=lan --ip=172.30.0.57 --volume=named:/named --volume=/anonymous python";
    scene.run("a", "f1", options, &["sleep", "1000"]);
    python(scene, "a", MAKE, "/static /named/static /anonymous/static");
    let tops = "/static /named /anonymous /etc /usr /var /root /tmp /bin /lib";
    let before = manifest(scene, "a", tops);

    scene.migrate("a", "f1", "b");

    let after = manifest(scene, "b", tops);
    assert!(before["links"].as_array().is_some_and(|links| links.len() >= 3), "{}", before["links"]);
    assert_same(&before, &after);
    // Nothing but what moved: the image's own files are still the image's.
    scene.migrate("b", "f1", "a");
    assert_same(&before, &manifest(scene, "a", tops));
}

pub(crate) fn changes_up_to_the_freeze_are_not_lost(scene: &Scene) {
    let options = "--network=lan --ip=172.30.0.58 --volume=named:/named --volume=/anonymous python";
    scene.run("a", "f1", options, &["python3", "-c", CHURN, "/churn", "/named/churn", "/anonymous/churn"]);
    scene.follow("a", "docker logs --follow f1").until(|line| line.starts_with("step 2000"));

    for (from, to) in [("a", "b"), ("b", "a")] {
        scene.migrate(from, "f1", to);
        // It goes on with them there.
        let mut logs = scene.follow(to, "docker logs --follow f1");
        logs.until(|line| line.starts_with("step"));
        logs.until(|line| line.starts_with("step"));
    }

    scene.assert_ends_well("a", "f1");
}

pub(crate) fn python(scene: &Scene, host: &str, program: &str, arguments: &str) -> String {
    let script = format!("exec docker exec f1 python3 -c \"$0\" {arguments}");
    let output = scene.output(host, ["timeout", "60", "sh", "-ec", &script, program]);
    output.unwrap_or_else(|error| panic!("{host}: {error}"))
}

pub(crate) fn manifest(scene: &Scene, host: &str, tops: &str) -> Value {
    serde_json::from_str(&python(scene, host, MANIFEST, tops)).expect("JSON")
}

pub(crate) fn assert_same(before: &Value, after: &Value) {
    let (old, new) = (before.as_object().expect("an object"), after.as_object().expect("an object"));
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let different: Vec<String> = names
        .iter()
        .filter(|name| old.get(name.as_str()) != new.get(name.as_str()))
        .map(|name| format!("{name}: {:?} is now {:?}", old.get(name.as_str()), new.get(name.as_str())))
        .collect();
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}
