//! Hosts that nobody has listed.

use std::path::PathBuf;

use spothop_tests::etcd::Etcd;
use spothop_tests::layout::CLIENT_ADDRESS;

use crate::redis::{assert_faithful, under_load};
use crate::scene::{HOSTS, Scene};
use crate::targets::PutBack;

pub(crate) fn hosts_that_find_each_other_by_etcd_move_containers_also_when_it_is_gone(scene: &Scene) {
    let _later = HOSTS.map(|host| PutBack::later(scene, host, "/etc/spothop/config.toml"));
    let network = PathBuf::from(format!("/proc/{}/ns/net", scene.state().client.pid));
    let mut etcd = Etcd::start(CLIENT_ADDRESS, Some(&network), &|line| eprintln!("{line}")).expect("etcd");
    let endpoint = etcd.endpoint();
    for host in HOSTS {
        scene.sh(
            host,
            &format!(
                "rm -f /var/lib/spothop/inventory.json; printf '[host]\\nname = \"{host}\"\\n[inventory.etcd]\\nendpoints = [\"{endpoint}\"]\\nttl = \"5s\"\\n' \
                 > /etc/spothop/config.toml"
            ),
        );
        scene.restart_daemon(host);
    }
    let sees = |host, other| scene.eventually(host, &format!("spothop hosts | grep -q '^{other} .*etcd.* ready'"));
    sees("a", "b");
    sees("b", "a");
    let (redis, client) = under_load(scene, 1);
    scene.migrate("a", "r1", "b");

    // Without etcd, and without what the daemons have in memory: they know what they knew.
    etcd.stop();
    for host in HOSTS {
        scene.restart_daemon(host);
    }
    sees("a", "b");
    sees("b", "a");
    scene.migrate("b", "r1", "a");

    // A host that goes, with its daemon, goes with its lease.
    etcd.again().expect("etcd once more");
    scene.sh("b", "systemctl stop spothop");
    scene.eventually("a", "test \"$(spothop hosts --json | tr -d ' \\n')\" = '[]'");
    scene.sh("b", "systemctl start spothop");
    sees("a", "b");
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");
}
