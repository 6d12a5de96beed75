//! Sources that agree, contradict each other and fall silent.

use super::*;

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("config.toml"), "a").unwrap()
}

/// A host whose peers are `b`, by its configuration, and whatever etcd and Kubernetes say.
fn dynamic() -> Config {
    config(
        "[[peers]]\nname = \"b\"\naddress = \"10.0.0.2\"\n[inventory.etcd]\nendpoints = [\"http://e:2379\"]\n[inventory.kubernetes]\n",
    )
}

fn found(name: &str, address: &str) -> Found {
    Found { name: name.to_owned(), address: address.parse().unwrap() }
}

fn listed(inventory: &Inventory) -> Vec<(String, String, &'static str)> {
    inventory.entries().into_iter().map(|entry| (entry.name, entry.address.host().to_owned(), entry.source)).collect()
}

fn names(inventory: &Inventory) -> Vec<String> {
    inventory.admitted().borrow().iter().cloned().collect()
}

#[tokio::test]
async fn the_configuration_goes_before_all_and_names_are_unique() {
    let inventory = Inventory::open(&dynamic(), None);
    inventory.tell("kubernetes", vec![found("c", "10.9.9.9"), found("d", "10.0.0.4"), found("a", "10.0.0.1")]).await;
    inventory.tell("etcd", vec![found("c", "10.0.0.3"), found("b", "10.6.6.6"), found("no name", "10.0.0.7")]).await;
    let entry = |name: &str, address: &str, source| (name.to_owned(), address.to_owned(), source);
    assert_eq!(
        listed(&inventory),
        [entry("b", "10.0.0.2", "static"), entry("c", "10.0.0.3", "etcd"), entry("d", "10.0.0.4", "kubernetes")]
    );
    assert_eq!(names(&inventory), ["b", "c", "d"]);
    assert_eq!((inventory.count("etcd"), inventory.count("kubernetes")), (1, 1));
    inventory.tell("etcd", vec![]).await;
    assert_eq!(inventory.address("c").unwrap().host(), "10.9.9.9", "what the next source says then counts");
}

#[tokio::test]
async fn a_host_that_goes_is_no_target_but_may_end_what_it_began() {
    let inventory = Inventory::open(&dynamic(), None);
    let mut admitted = inventory.admitted();
    inventory.tell("etcd", vec![found("c", "10.0.0.3"), found("d", "10.0.0.4")]).await;
    assert!(admitted.has_changed().unwrap());
    admitted.mark_unchanged();
    inventory.tell("etcd", vec![found("d", "10.0.0.4")]).await;
    assert!(!inventory.has("c") && inventory.has("d"));
    assert_eq!(inventory.address("c").unwrap().host(), "10.0.0.3");
    assert!(names(&inventory).contains(&"c".to_owned()) && !admitted.has_changed().unwrap());
    inventory.tell("etcd", vec![found("c", "10.0.0.33")]).await;
    assert!(inventory.has("c"));
    assert_eq!(inventory.address("c").unwrap().host(), "10.0.0.33");
}

#[tokio::test]
async fn a_daemon_that_comes_back_knows_what_it_knew() {
    let directory = tempfile::tempdir().unwrap();
    let file = || Some(directory.path().join("inventory.json"));
    let before = Inventory::open(&dynamic(), file());
    before.tell("etcd", vec![found("c", "10.0.0.3"), found("d", "10.0.0.4")]).await;
    before.tell("etcd", vec![found("d", "10.0.0.4")]).await;
    let told = before.entries()[1].told;

    let after = Inventory::open(&dynamic(), file());
    assert_eq!(listed(&after), listed(&before));
    assert_eq!(after.entries()[1].told, told, "it is as old as it is");
    assert_eq!(after.address("c").unwrap().host(), "10.0.0.3");
    after.confirm("etcd");
    assert!(after.entries()[1].told > told);

    // What is no source any more has no say.
    let without = Inventory::open(&config("[inventory.kubernetes]\n"), file());
    assert!(without.entries().is_empty());
    let fixed = Inventory::open(&config(""), file());
    assert!(fixed.address("c").is_none() && names(&fixed).is_empty());
}

#[tokio::test]
async fn a_file_that_is_no_use_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("inventory.json");
    for text in ["", "{", "[]", "{\"sources\": {\"etcd\": 3}}"] {
        fs::write(&file, text).unwrap();
        assert_eq!(listed(&Inventory::open(&dynamic(), Some(file.clone()))).len(), 1, "{text}");
    }
}

#[tokio::test]
async fn the_departed_are_not_kept_without_limit() {
    let inventory = Inventory::open(&dynamic(), None);
    for round in 0..3 {
        let hosts = (0..200).map(|number| found(&format!("h{round}-{number}"), "10.0.0.9")).collect();
        inventory.tell("etcd", hosts).await;
    }
    inventory.tell("etcd", vec![]).await;
    assert_eq!(names(&inventory).len(), MOST_DEPARTED + 1);
    assert!(inventory.address("h2-199").is_some() && inventory.address("h0-0").is_none());
}
