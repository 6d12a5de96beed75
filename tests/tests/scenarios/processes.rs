//! Several processes in one container.

use crate::scene::Scene;

/// A child writes numbers into a pipe in batches, its parent reads and checks them one by one, so that the pipe is full most of
/// the time and is full when it moves. USR1 ends it; the exit code says whether all is well.
const PIPE: &str = include_str!("programs/pipe.py");

pub(crate) fn a_pipe_between_two_processes_loses_and_doubles_nothing(scene: &Scene) {
    scene.run("a", "p1", "--network=lan --ip=172.30.0.55 python", &["python3", "-c", PIPE]);
    scene.follow("a", "docker logs --follow p1").until(|line| line.starts_with("read"));

    scene.migrate("a", "p1", "b");

    let mut logs = scene.follow("b", "docker logs --follow p1");
    let first = logs.until(|line| line.starts_with("read"));
    logs.until(|line| line.starts_with("read") && *line != *first);
    scene.sh("b", "docker kill --signal=USR1 p1");
    assert_eq!(scene.sh("b", "docker wait p1"), "0", "{}", scene.sh("b", "docker logs p1 2>&1"));
    logs.until(|line| line.starts_with("end"));
}
