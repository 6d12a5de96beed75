//! What is left on the hosts when all is over: nothing, but the one container as it was.

use std::fs;
use std::path::Path;

use super::arena::{Arena, CONTAINER, HOSTS, POLICY};
use super::inside::{Inside, frozen, inode, stopped};
use crate::command::{command, output};
use crate::error::Result;

/// Digits of a container's id.
const ID: usize = 64;

/// Everything that should not be there, in words. Looks at the hosts' kernels and files; asks the engines for their containers and
/// nobody else for anything.
///
/// # Errors
/// [`crate::Error::Command`] when an engine does not answer.
pub fn leftovers(arena: &Arena) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for host in HOSTS {
        let inside = Inside::of(&arena.bed, host)?;
        let mut wrong = |what: String| found.push(format!("{host}: {what}"));
        for mount in inside.mounts().lines().filter(|line| line.contains(" /run/spothop/")) {
            wrong(format!("mount {mount}"));
        }
        for directory in ["/var/lib/spothop/pending", "/run/spothop/dump", "/run/spothop/restore"] {
            for name in names(&inside.path(directory)) {
                wrong(format!("{directory}/{name}"));
            }
        }
        let servers = inside.running();
        namespaces(&inside, servers.first().map(|server| server.pid), &mut wrong);
        for cgroup in inside.containers() {
            if frozen(&cgroup) || said(&cgroup.join("cgroup.freeze"), "1") {
                wrong(format!("frozen: {}", cgroup.display()));
            }
        }
        processes(&inside, &mut wrong);
        containers(arena, host, servers.len(), &mut wrong)?;
    }
    Ok(found)
}

/// Named network namespaces and nft tables of ours. A restored container keeps the namespace that was made for it.
fn namespaces(inside: &Inside, server: Option<i32>, wrong: &mut impl FnMut(String)) {
    let used = server.map(|pid| format!("/proc/{pid}/ns/net"));
    let in_use = used.as_ref().and_then(|path| inode(Path::new(path)).ok());
    for name in names(&inside.path("/run/netns")).iter().filter(|name| name.starts_with("spothop")) {
        let own = inode(&inside.path(&format!("/run/netns/{name}"))).ok();
        if own.is_none() || own != in_use {
            wrong(format!("network namespace {name}"));
        }
    }
    let of_host = inside.network().display().to_string();
    for network in used.iter().chain([&of_host]) {
        let mut list = command("nsenter", [&format!("--net={network}"), "nft", "list", "tables"]);
        let tables = output(&mut list).map(|output| output.stdout).unwrap_or_default();
        for table in String::from_utf8_lossy(&tables).lines().filter(|line| line.contains("spothop")) {
            wrong(format!("nft {table} in {network}"));
        }
    }
}

/// Programs that only run while something is moved, and what stands still.
fn processes(inside: &Inside, wrong: &mut impl FnMut(String)) {
    let containers: Vec<String> = inside.containers().iter().map(|cgroup| cgroup.display().to_string()).collect();
    for process in inside.processes() {
        let helper = match process.name() {
            "criu" | "runc" | "spothop-oci" => true,
            "spothop" => !process.arguments.iter().any(|word| word == "daemon"),
            // Its container's id is among its arguments, and in the name of the container's cgroup.
            "containerd-shim-runc-v2" => !process
                .arguments
                .iter()
                .any(|word| containers.iter().any(|cgroup| word.len() == ID && cgroup.contains(word))),
            _ => false,
        };
        if helper {
            wrong(format!("process {} {}", process.pid, process.arguments.join(" ")));
        }
        if stopped(process.pid) {
            wrong(format!("stopped: process {} {}", process.pid, process.arguments.join(" ")));
        }
    }
}

/// The engine's containers: where the server runs there is one, as it was; elsewhere there is none.
fn containers(arena: &Arena, host: &str, servers: usize, wrong: &mut impl FnMut(String)) -> Result<()> {
    let list = arena.sh(host, "docker ps --all --format='{{.Names}} {{.State}}'")?;
    let expected = if servers == 1 { format!("{CONTAINER} running") } else { String::new() };
    if list != expected {
        wrong(format!("containers {list:?} instead of {expected:?}"));
    }
    if servers == 1 {
        let policy = "docker inspect --format='{{.HostConfig.RestartPolicy.Name}}'";
        let policy = arena.sh(host, &format!("{policy} {CONTAINER}"))?;
        if policy != POLICY {
            wrong(format!("restart policy {policy}"));
        }
    }
    Ok(())
}

/// Names in a directory; none when it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn said(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == word)
}
