use serde_json::{Value, json};

use super::super::inspect::tests::{around, found, judge};
use super::*;

fn here() -> BTreeMap<String, Network> {
    let network = |name: &str, driver: &str, subnet: &str| Network {
        name: name.to_owned(),
        driver: driver.to_owned(),
        scope: "local".to_owned(),
        subnets: vec![subnet.to_owned()],
        keeps_addresses: driver == "macvlan",
    };
    by_name(vec![network("lan", "macvlan", "172.30.0.0/24"), network("bridge", "bridge", "172.17.0.0/16")])
}

fn request(changes: &[(&str, Value)]) -> ContainerCreateBody {
    let recipe = judge(changes, &around()).recipe;
    let EngineRecipe::Docker(docker) = &recipe.engine;
    body(&recipe, docker, "python".to_owned(), "m-1", &here())
}

#[test]
fn the_request_says_all_that_inspect_said() {
    let source = found(&[]);
    let request = request(&[]);
    // Config.
    let mut said = serde_json::to_value(&request).expect("json");
    let said = said.as_object_mut().expect("an object");
    said.retain(|key, _| key != "HostConfig" && key != "NetworkingConfig");
    assert_eq!(serde_json::to_value(source.config.expect("a config")).expect("json").as_object(), Some(&*said));
    // HostConfig, but for what must differ.
    let mut host = request.host_config.expect("a host config");
    let mut expected = source.host_config.expect("a host config");
    assert_eq!(host.runtime.take().as_deref(), Some("spothop"));
    assert_eq!(host.restart_policy.take().and_then(|policy| policy.name), Some(RestartPolicyNameEnum::NO));
    assert_eq!(host.annotations.as_mut().and_then(|annotations| annotations.remove(MIGRATION)).as_deref(), Some("m-1"));
    (expected.runtime, expected.restart_policy, expected.container_id_file) = (None, None, None);
    expected.binds = host.binds.clone();
    expected.mounts = host.mounts.clone();
    assert_eq!(host, HostConfig { links: None, volumes_from: None, ..expected });
}

fn endpoint(request: &ContainerCreateBody, network: &str) -> EndpointSettings {
    let endpoints = request.networking_config.as_ref().and_then(|config| config.endpoints_config.as_ref());
    endpoints.and_then(|endpoints| endpoints.get(network)).expect("an endpoint").clone()
}

#[test]
fn address_and_mac_go_along_where_they_are_kept() {
    // Even when the user did not ask for them.
    let endpoint = endpoint(&request(&[("/NetworkSettings/Networks/lan/IPAMConfig", Value::Null)]), "lan");
    assert_eq!(endpoint.ipam_config.and_then(|config| config.ipv4_address).as_deref(), Some("172.30.0.60"));
    assert_eq!(endpoint.mac_address.as_deref(), Some("02:00:00:00:00:60"));
    assert_eq!(endpoint.aliases, Some(vec!["al1".to_owned()]));
}

#[test]
fn nothing_of_a_default_bridge_goes_along() {
    let settings = json!({ "bridge": {
        "IPAddress": "172.17.0.2", "MacAddress": "02:42:ac:11:00:02", "Aliases": ["x"], "IPAMConfig": { "IPv4Address": "172.17.0.2" }
    } });
    let changes = [("/HostConfig/NetworkMode", json!("default")), ("/NetworkSettings/Networks", settings)];
    assert_eq!(endpoint(&request(&changes), "bridge"), EndpointSettings::default());
}

#[test]
fn an_address_the_user_asked_for_stays_where_it_fits() {
    let attachment = Attachment {
        network: "n".to_owned(),
        driver: "bridge".to_owned(),
        ipv4: "10.1.0.9".parse().ok(),
        ipv6: None,
        mac: Some("02:42:00:00:00:09".to_owned()),
        keeps_address: false,
    };
    let endpoint = DockerEndpoint {
        network: "n".to_owned(),
        aliases: Vec::new(),
        driver_opts: BTreeMap::new(),
        gateway_priority: Some(5),
        requested_ipv4: Some("10.1.0.9".to_owned()),
        requested_ipv6: None,
        link_local: Vec::new(),
    };
    for (subnet, address) in [("10.1.0.0/24", Some("10.1.0.9".to_owned())), ("10.2.0.0/24", None)] {
        let here = Network {
            name: "n".to_owned(),
            driver: "bridge".to_owned(),
            scope: "local".to_owned(),
            subnets: vec![subnet.to_owned()],
            keeps_addresses: false,
        };
        let settings = settings(&endpoint, Some(&attachment), Some(&here));
        assert_eq!(settings.ipam_config.and_then(|config| config.ipv4_address), address, "{subnet}");
        assert_eq!((settings.mac_address, settings.gw_priority), (None, Some(5)));
    }
}

#[test]
fn a_host_name_is_told_except_where_it_is_the_hosts() {
    assert_eq!(request(&[]).hostname.as_deref(), Some("51325d03e9cb"));
    assert_eq!(request(&[("/HostConfig/UTSMode", json!("host"))]).hostname, None);
}

#[test]
fn a_host_without_the_network_or_the_subnet_is_refused() {
    let recipe = judge(&[], &around()).recipe;
    assert!(check_networks(&recipe, &here()).is_ok());
    let mut networks = here();
    networks.get_mut("lan").expect("there").subnets = vec!["10.0.0.0/8".to_owned()];
    assert!(matches!(check_networks(&recipe, &networks), Err(Error::AddressOutside { .. })));
    networks.get_mut("lan").expect("there").driver = "bridge".to_owned();
    assert!(matches!(check_networks(&recipe, &networks), Err(Error::NoNetwork { .. })));
    networks.clear();
    assert!(matches!(check_networks(&recipe, &networks), Err(Error::NoNetwork { .. })));
}
