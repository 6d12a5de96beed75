//! Hosts that find each other through a real etcd: one server, and a source for each host as its daemon has it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spothop::config::Config;
use spothop::inventory::{Etcd, Inventory, Registration, Source as _, Teller};
use spothop_tests::etcd::Etcd as Server;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing here takes this long; what does hangs.
const LIMIT: Duration = Duration::from_secs(120);

fn server() -> Server {
    Server::start(Ipv4Addr::LOCALHOST, None, &|line| eprintln!("{line}")).expect("etcd")
}

/// A daemon's part in it. Aborted, it is as dead as one that lost its power: it renews nothing and takes nothing back.
struct Host {
    inventory: Arc<Inventory>,
    task: JoinHandle<()>,
}

impl Host {
    fn up(server: &Server, name: &str, more: &str) -> Self {
        let text = format!(
            "[host]\nname = {name:?}\nlisten = \"0.0.0.0:7099\"\n{more}\n[inventory.etcd]\nendpoints = [\"http://127.0.0.1:9\", {:?}]\nttl = \"5s\"\n",
            server.endpoint()
        );
        let config = Config::parse(&text, Path::new("config.toml"), name).expect("a configuration");
        let inventory = Arc::new(Inventory::open(&config, None));
        let etcd =
            Etcd::new(config.inventory.etcd.as_ref().expect("etcd"), Registration::of(&config)).expect("a source");
        let teller = Teller::new(Arc::clone(&inventory), "etcd");
        Self { inventory, task: tokio::spawn(Box::new(etcd).run(teller)) }
    }

    fn sees(&self) -> Vec<String> {
        self.inventory.entries().into_iter().map(|entry| format!("{} {}", entry.name, entry.address)).collect()
    }

    async fn will_see(&self, hosts: &[&str]) {
        let mut changes = self.inventory.admitted();
        let seen = timeout(LIMIT, async {
            while self.sees() != hosts {
                // An address that changes is no change of names: looked at again soon.
                let _ = timeout(Duration::from_millis(100), changes.changed()).await;
            }
        });
        seen.await.unwrap_or_else(|_| panic!("{:?} and not {hosts:?}", self.sees()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_find_each_other_and_one_that_dies_goes_with_its_lease() {
    let server = server();
    let (a, b) = (Host::up(&server, "a", ""), Host::up(&server, "b", "advertise = \"b.example:7000\"\nzone = \"z1\""));
    a.will_see(&["b b.example:7000"]).await;
    b.will_see(&["a 127.0.0.1:7099"]).await;
    let c = Host::up(&server, "c", "");
    a.will_see(&["b b.example:7000", "c 127.0.0.1:7099"]).await;
    c.task.abort();
    a.will_see(&["b b.example:7000"]).await;
    b.will_see(&["a 127.0.0.1:7099"]).await;
    // It comes back under the same name, from elsewhere.
    let _c = Host::up(&server, "c", "advertise = \"10.0.0.33\"");
    a.will_see(&["b b.example:7000", "c 10.0.0.33:7077"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_the_last_list_stands_and_afterwards_all_enter_again() {
    let mut server = server();
    let (a, b) = (Host::up(&server, "a", ""), Host::up(&server, "b", ""));
    a.will_see(&["b 127.0.0.1:7099"]).await;
    b.will_see(&["a 127.0.0.1:7099"]).await;
    let told = a.inventory.entries()[0].told;
    server.stop();
    // Longer than the lease: in etcd's own time both would be gone.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!((a.sees(), b.sees()), (vec!["b 127.0.0.1:7099".to_owned()], vec!["a 127.0.0.1:7099".to_owned()]));
    server.again().expect("etcd once more");
    let c = Host::up(&server, "c", "");
    c.will_see(&["a 127.0.0.1:7099", "b 127.0.0.1:7099"]).await;
    a.will_see(&["b 127.0.0.1:7099", "c 127.0.0.1:7099"]).await;
    assert!(a.inventory.entries()[0].told > told, "its word is new");
    b.task.abort();
    a.will_see(&["c 127.0.0.1:7099"]).await;
}
