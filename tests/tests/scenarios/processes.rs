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
    is_well_there_and_back(scene, "f1", "--ip=172.30.0.62", FAMILY);
}

pub(crate) fn kernel_objects_of_all_kinds_are_the_same_after_the_move(scene: &Scene) {
    is_well_there_and_back(scene, "z1", "--ip=172.30.0.60 --tmpfs=/scratch", ZOO);
}

pub(crate) fn a_pipe_between_two_processes_loses_and_doubles_nothing(scene: &Scene) {
    scene.run("a", "p1", "--network=lan --ip=172.30.0.55 python", &["python3", "-c", PIPE]);
    scene.follow("a", "docker logs --follow p1").until(|line| line.starts_with("read"));

    scene.migrate("a", "p1", "b");

    let mut logs = scene.follow("b", "docker logs --follow p1");
    let first = logs.until(|line| line.starts_with("read"));
    logs.until(|line| line.starts_with("read") && *line != *first);
    scene.assert_ends_well("b", "p1");
    logs.until(|line| line.starts_with("end"));
}

/// Moves a container with this program of Python, which says `ready`, to the other host and back, and lets it look at itself.
fn is_well_there_and_back(scene: &Scene, name: &str, options: &str, program: &str) {
    scene.run("a", name, &format!("--network=lan {options} python"), &["python3", "-c", program]);
    scene.follow("a", &format!("docker logs --follow {name}")).until(|line| line == "ready");

    scene.migrate("a", name, "b");
    scene.migrate("b", name, "a");

    scene.assert_ends_well("a", name);
}
