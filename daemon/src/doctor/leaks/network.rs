//! Rules and network namespaces.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use spothop_criu::netns;

use super::{Owner, Places, Thing};
use crate::orchestrator::Trace;

/// How the names of our namespaces begin; the end of the migration's id follows.
const NETNS: &str = "spothop-";

/// How the names of CRIU's tables begin.
const CRIU_TABLE: &str = "CRIU-";

pub(super) fn things(places: &Places, traces: &[Trace]) -> Vec<Thing> {
    let mut things = namespaces(places);
    let own = std::process::id().cast_signed();
    things.extend(of_host(&netns::tables(own).unwrap_or_default()));
    for trace in traces.iter().filter(|trace| trace.pid > 0) {
        // The host's network has been looked at; a container that has ended meanwhile has none.
        if matches!(netns::is_host(trace.pid), Ok(false)) {
            things.extend(of_container(&netns::tables(trace.pid).unwrap_or_default(), trace));
        }
    }
    things
}

/// None is ever made there; CRIU's may be somebody else's.
fn of_host(tables: &[String]) -> Vec<Thing> {
    let ours = tables.iter().filter(|table| is_ours(table));
    let thing = |table: &String| Thing {
        what: format!("the nftables table `{table}` in the host's network"),
        owner: Owner::Nobody,
        since: None,
        remove: format!("nft delete table {table}"),
        harms: true,
    };
    ours.map(thing).collect()
}

fn of_container(tables: &[String], container: &Trace) -> Vec<Thing> {
    let locks = tables.iter().filter(|table| is_ours(table) || name(table).starts_with(CRIU_TABLE));
    let thing = |table: &String| Thing {
        what: format!("the nftables table `{table}` in the network of container {}, which cuts it off", container.name),
        owner: Owner::Container { id: container.id.clone(), name: container.name.clone() },
        since: None,
        remove: format!("nsenter --net=/proc/{}/ns/net nft delete table {table}", container.pid),
        harms: true,
    };
    locks.map(thing).collect()
}

/// `netdev spothop` or `inet spothop`.
fn is_ours(table: &str) -> bool {
    name(table) == "spothop"
}

fn name(table: &str) -> &str {
    table.split_once(' ').map_or(table, |(_, name)| name)
}

/// Named ones without a process in them. A restored container keeps the one that was made for it.
fn namespaces(places: &Places) -> Vec<Thing> {
    let named: Vec<_> = fs::read_dir(&places.netns).into_iter().flatten().flatten().collect();
    let named: Vec<_> = named
        .into_iter()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let end = name.strip_prefix(NETNS)?.to_owned();
            Some((name, end, entry.path().metadata().ok()?))
        })
        .collect();
    if named.is_empty() {
        return Vec::new();
    }
    let used = used(&places.proc);
    let empty = named.into_iter().filter(|(_, _, about)| !used.contains(&(about.dev(), about.ino())));
    let thing = |(name, end, about): (String, String, fs::Metadata)| Thing {
        what: format!("the network namespace {name}, in which no process is"),
        owner: Owner::IdEnd(end),
        since: about.modified().ok(),
        remove: format!("ip netns delete {name}"),
        harms: false,
    };
    empty.map(thing).collect()
}

/// The network namespaces of all processes, as device and inode.
fn used(proc: &Path) -> HashSet<(u64, u64)> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let files = processes.filter_map(|process| process.path().join("ns/net").metadata().ok());
    files.map(|about| (about.dev(), about.ino())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_ours_are_never_right_in_the_hosts_network_and_crius_may_be_somebody_elses() {
        let tables = ["inet spothop", "inet CRIU-22", "ip nat"].map(str::to_owned);
        let found = of_host(&tables);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].remove, "nft delete table inet spothop");
    }

    #[test]
    fn a_table_in_a_containers_network_is_removed_from_there() {
        let trace = Trace { id: "c1".into(), name: "redis".into(), pid: 77, ..Trace::default() };
        let found = of_container(&["netdev spothop", "inet CRIU-22", "inet mine"].map(str::to_owned), &trace);
        let removes: Vec<_> = found.iter().map(|thing| thing.remove.as_str()).collect();
        assert_eq!(
            removes,
            [
                "nsenter --net=/proc/77/ns/net nft delete table netdev spothop",
                "nsenter --net=/proc/77/ns/net nft delete table inet CRIU-22"
            ]
        );
    }
}
