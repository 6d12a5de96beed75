//! EC2 and STS as moto imitates them: a server of somebody else's, with states that change as instances are stopped and
//! terminated.

use std::net::Ipv4Addr;
use std::time::Duration;

use spothop_aws::{Access, Ec2, FleetError, InstanceState, Market, Order, Queue};
use spothop_tests::moto::{ACCOUNT, Moto, REGION};

fn moto() -> Moto {
    Moto::start("127.0.0.1", None, &|line| eprintln!("{line}")).expect("moto")
}

fn access(moto: &Moto) -> Access {
    Access::Imitation { endpoint: moto.endpoint().to_owned(), keys: ("key".to_owned(), "secret".to_owned()) }
}

async fn ec2(moto: &Moto) -> Ec2 {
    Ec2::new(access(moto)).await
}

#[tokio::test]
async fn an_instance_is_seen_running_stopped_and_terminated() {
    let moto = moto();
    let (ec2, id) = (ec2(&moto).await, moto.run_instance().unwrap());
    let other = moto.run_instance().unwrap();
    assert_eq!(ec2.instance_state(REGION, &id).await.unwrap(), Some(InstanceState::Running));
    moto.stop(&id).unwrap();
    assert_eq!(ec2.instance_state(REGION, &id).await.unwrap(), Some(InstanceState::Stopped));
    moto.terminate(&id).unwrap();
    assert_eq!(ec2.instance_state(REGION, &id).await.unwrap(), Some(InstanceState::Terminated));
    assert_eq!(ec2.instance_state(REGION, &other).await.unwrap(), Some(InstanceState::Running));
}

#[tokio::test]
async fn an_id_is_known_only_in_its_region() {
    let moto = moto();
    let (ec2, id) = (ec2(&moto).await, moto.run_instance().unwrap());
    assert_eq!(ec2.instance_state(REGION, "i-00000000000000000").await.unwrap(), None);
    assert_eq!(ec2.instance_state("us-east-1", &id).await.unwrap(), None);
    assert_eq!(ec2.account(REGION).await.unwrap(), ACCOUNT);
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_and_no_answer() {
    let moto = moto();
    let (ec2, id) = (ec2(&moto).await, moto.run_instance().unwrap());
    assert!(ec2.instance_state(REGION, &id).await.is_ok());
    drop(moto);
    let error = ec2.instance_state(REGION, &id).await.expect_err("nobody is there");
    assert!(matches!(error, spothop_aws::Error::NoAnswer { .. }), "{error:?}");
}

#[tokio::test]
async fn messages_are_received_given_back_and_deleted() {
    let moto = moto();
    let url = moto.make_queue("notices").unwrap();
    let queue = Queue::new(access(&moto), &url, REGION).await;
    moto.send(&url, "ours").unwrap();
    let first = queue.receive().await.unwrap();
    assert_eq!(first.iter().map(|message| message.body.as_str()).collect::<Vec<_>>(), ["ours"]);
    assert_eq!(moto.count(&url).unwrap(), "0 1", "nobody else gets it for now");
    queue.set_visibility(&first[0].receipt, Duration::ZERO).await.unwrap();
    let again = queue.receive().await.unwrap();
    assert_eq!(again[0].body, "ours");
    queue.delete(&again[0].receipt).await.unwrap();
    assert_eq!(moto.count(&url).unwrap(), "0 0");
    let nowhere = Queue::new(access(&moto), &url.replace("notices", "nowhere"), REGION).await;
    let error = nowhere.receive().await.expect_err("no such queue");
    assert!(matches!(error, spothop_aws::Error::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn instances_are_found_by_a_tag_with_their_address_and_state() {
    let moto = moto();
    let ec2 = ec2(&moto).await;
    let ids: Vec<String> = (0..4).map(|_| moto.run_instance().unwrap()).collect();
    for (id, tags) in ids.iter().zip([["c=prod", "n=x"], ["c=prod", "n=y"], ["c=prod2", "n=z"], ["d=prod", "n=v"]]) {
        moto.tag(id, &tags).unwrap();
    }
    moto.stop(&ids[1]).unwrap();
    let found = ec2.tagged(REGION, "c", "prod").await.unwrap();
    let mut expected = vec![(ids[0].clone(), InstanceState::Running), (ids[1].clone(), InstanceState::Stopped)];
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(found.iter().map(|one| (one.id.clone(), one.state.clone())).collect::<Vec<_>>(), expected);
    let first = found.iter().find(|one| one.id == ids[0]).unwrap();
    assert!(first.private_address.is_some() && first.tags["n"] == "x", "{first:?}");
    assert!(ec2.tagged("us-east-1", "c", "prod").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_fleet_is_launched_from_a_template_and_found_by_its_tags() {
    let moto = moto();
    let ec2 = ec2(&moto).await;
    moto.make_template("spothop").unwrap();
    for market in [Market::OnDemand, Market::Spot] {
        let order = Order {
            region: REGION.to_owned(),
            template: "spothop".to_owned(),
            version: "$Default".to_owned(),
            types: vec!["t3.micro".to_owned()],
            zones: Vec::new(),
            market,
            count: 2,
            max_price_micros: 1_000_000,
            token: format!("{market:?}"),
            tags: [("spothop:launched-by".to_owned(), format!("{market:?}"))].into(),
        };
        let launched = ec2.launch(&order).await.unwrap();
        assert_eq!(launched.instances.len(), 2, "{launched:?}");
        let mut ids = launched.instances;
        ids.sort();
        let found = ec2.tagged(REGION, "spothop:launched-by", &format!("{market:?}")).await.unwrap();
        assert_eq!(found.iter().map(|one| one.id.clone()).collect::<Vec<_>>(), ids);
        // By its token it is one order; another one may not have that token.
        let mut again = ec2.launch(&order).await.unwrap().instances;
        again.sort();
        assert_eq!(again, ids);
        let refused = ec2.launch(&Order { count: 1, ..order }).await.expect_err("a token that is taken");
        assert!(matches!(refused, FleetError::TokenTaken), "{refused:?}");
    }
}

/// Two instances' interfaces in one subnet, and an address of it that the first has beside its own.
fn two_interfaces(moto: &Moto) -> (String, String, Ipv4Addr) {
    let [one, other] = [(), ()].map(|()| moto.interface(&moto.run_instance().unwrap()).unwrap());
    let taken = [&one, &other].map(|interface| moto.addresses(interface).unwrap()[0].parse::<Ipv4Addr>().unwrap());
    let [a, b, c, _] = taken[0].octets();
    let free = (10..20).map(|last| Ipv4Addr::new(a, b, c, last)).find(|address| !taken.contains(address)).unwrap();
    moto.assign(&one, &free.to_string()).unwrap();
    (one, other, free)
}

#[tokio::test]
async fn an_address_goes_to_another_interface_and_back_and_twice_is_as_once() {
    let moto = moto();
    let ec2 = ec2(&moto).await;
    let (one, other, address) = two_interfaces(&moto);
    let before = ec2.interface(REGION, &one).await.unwrap().unwrap();
    assert_eq!(before.secondary, [address]);
    assert_eq!(before.subnet, ec2.interface(REGION, &other).await.unwrap().unwrap().subnet);
    for (to, from) in [(&other, &one), (&one, &other)] {
        for _ in 0..2 {
            ec2.assign(REGION, to, &[address]).await.unwrap();
            assert_eq!(ec2.interface(REGION, to).await.unwrap().unwrap().secondary, [address]);
            assert!(ec2.interface(REGION, from).await.unwrap().unwrap().secondary.is_empty());
        }
    }
    assert_eq!(ec2.interface(REGION, &one).await.unwrap().unwrap(), before);
    ec2.unassign(REGION, &one, &[address]).await.unwrap();
    assert!(ec2.interface(REGION, &one).await.unwrap().unwrap().secondary.is_empty());
    let error = ec2.unassign(REGION, &one, &[address]).await.expect_err("it has it no more");
    assert!(matches!(error, spothop_aws::Error::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn an_interface_that_is_not_there_takes_no_address() {
    let moto = moto();
    let ec2 = ec2(&moto).await;
    let (one, _, address) = two_interfaces(&moto);
    assert_eq!(ec2.interface(REGION, "eni-00000000000000000").await.unwrap(), None);
    let error = ec2.assign(REGION, "eni-00000000000000000", &[address]).await.expect_err("no such interface");
    assert!(
        matches!(&error, spothop_aws::Error::Refused { code, .. } if code == "InvalidNetworkInterfaceID.NotFound"),
        "{error:?}"
    );
    assert_eq!(ec2.interface(REGION, &one).await.unwrap().unwrap().secondary, [address]);
}

#[tokio::test]
async fn a_primary_address_stays() {
    let moto = moto();
    let ec2 = ec2(&moto).await;
    let (one, other, _) = two_interfaces(&moto);
    let primary = ec2.interface(REGION, &one).await.unwrap().unwrap().primary.unwrap();
    for refused in [ec2.assign(REGION, &other, &[primary]).await, ec2.unassign(REGION, &one, &[primary]).await] {
        let error = refused.expect_err("it is the interface's own");
        assert!(matches!(error, spothop_aws::Error::Refused { .. }), "{error:?}");
    }
    assert_eq!(ec2.interface(REGION, &one).await.unwrap().unwrap().primary, Some(primary));
}

#[tokio::test]
async fn the_imitation_refuses_an_address_in_use_unless_it_may_be_reassigned() {
    let moto = moto();
    let (one, other, address) = two_interfaces(&moto);
    let error = moto.assign(&other, &address.to_string()).expect_err("it is another's");
    assert!(error.to_string().contains("InvalidIPAddress.InUse"), "{error}");
    assert!(moto.addresses(&one).unwrap().contains(&address.to_string()));
}

#[tokio::test]
async fn a_spot_price_is_told_for_a_type_that_the_zone_has() {
    let moto = moto();
    let ec2 = ec2(&moto).await;
    let zone = format!("{REGION}a");
    let price = ec2.spot_price(REGION, "t3.micro", &zone).await.unwrap();
    assert!(price.is_some_and(|micros| micros > 0), "{price:?}");
    assert_eq!(ec2.spot_price(REGION, "t3.micro", "mars-north-1a").await.unwrap(), None);
}
