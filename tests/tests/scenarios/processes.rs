//! Several processes in one container.

use crate::scene::Scene;

/// A child writes numbers into a pipe in batches, its parent reads and checks them one by one, so that the pipe is full most of
/// the time and is full when it moves. USR1 ends it; the exit code says whether all is well.
const PIPE: &str = include_str!("programs/pipe.py");

/// Has one of almost everything that the kernel keeps for processes. USR1 lets it look at all of it; the exit code says whether
/// everything is as it was.
const ZOO: &str = include_str!("programs/zoo.py");

/// A parent of twenty children, who share its memory.
const FAMILY: &str = include_str!("programs/family.py");

pub(crate) fn children_that_share_their_parents_memory_all_have_it_after_the_move(scene: &Scene) {
    scene.run("a", "f1", "--network=lan --ip=172.30.0.62 python", &["python3", "-c", FAMILY]);
    scene.follow("a", "docker logs --follow f1").until(|line| line == "ready");

    scene.migrate("a", "f1", "b");
    scene.migrate("b", "f1", "a");

    scene.sh("a", "docker kill --signal=USR1 f1");
    let code = scene.sh("a", "docker wait f1");
    assert_eq!(code, "0", "{}", scene.sh("a", "docker logs f1 2>&1"));
}

pub(crate) fn kernel_objects_of_all_kinds_are_the_same_after_the_move(scene: &Scene) {
    scene.run("a", "z1", "--network=lan --ip=172.30.0.60 --tmpfs=/scratch python", &["python3", "-c", ZOO]);
    scene.follow("a", "docker logs --follow z1").until(|line| line == "ready");

    scene.migrate("a", "z1", "b");
    scene.migrate("b", "z1", "a");

    scene.sh("a", "docker kill --signal=USR1 z1");
    let code = scene.sh("a", "docker wait z1");
    assert_eq!(code, "0", "{}", scene.sh("a", "docker logs z1 2>&1"));
}

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
