//! Budgets and orders, against a server that answers as EC2 does.

use std::sync::{Arc, Mutex};

use spothop_aws::Access;
use spothop_policy::HostRefusal;
use wiremock::matchers::{body_string_contains, method};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::*;
use crate::config::Config;

const GIB: u64 = 1 << 30;

fn config(more: &str) -> Ec2 {
    let text = format!(
        "[capacity.ec2]\nregion = \"eu-central-1\"\ntemplate = \"spothop\"\nroom = \"4GiB\"\nmax_instances = 3\nmax_price = \"0.9\"\n{more}"
    );
    Config::parse(&text, std::path::Path::new("config.toml"), "a").unwrap().capacity.ec2.unwrap()
}

/// EC2 with these instances, which answers orders in turn.
async fn ec2(living: &[(&str, &str, &str, u64)], orders: Vec<ResponseTemplate>) -> MockServer {
    let server = MockServer::start().await;
    let one = |(id, state, cause, price): &(&str, &str, &str, u64)| {
        let tags = [(TAG_HOST, "a".to_owned()), (TAG_CAUSE, (*cause).to_owned()), (TAG_PRICE, price.to_string())];
        let tags: String =
            tags.iter().map(|(key, value)| format!("<item><key>{key}</key><value>{value}</value></item>")).collect();
        format!(
            "<item><instanceId>{id}</instanceId><instanceState><code>0</code><name>{state}</name></instanceState><tagSet>{tags}</tagSet></item>"
        )
    };
    let all: String = living.iter().map(one).collect();
    let answer = format!(
        "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><reservationSet><item><instancesSet>{all}\
         </instancesSet></item></reservationSet></DescribeInstancesResponse>"
    );
    let describe = Mock::given(method("POST")).and(body_string_contains("Action=DescribeInstances"));
    describe.respond_with(ResponseTemplate::new(200).set_body_raw(answer, "text/xml")).mount(&server).await;
    for order in orders {
        let create = Mock::given(method("POST")).and(body_string_contains("Action=CreateFleet"));
        create.respond_with(order).up_to_n_times(1).mount(&server).await;
    }
    server
}

fn fleet(ids: &[&str], error: Option<&str>) -> ResponseTemplate {
    let ids: String = ids.iter().map(|id| format!("<item>{id}</item>")).collect();
    let instances = if ids.is_empty() { ids } else { format!("<item><instanceIds>{ids}</instanceIds></item>") };
    let errors: String = error.into_iter().map(|code| format!("<item><errorCode>{code}</errorCode></item>")).collect();
    let answer = format!(
        "<CreateFleetResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><errorSet>{errors}</errorSet>\
         <fleetInstanceSet>{instances}</fleetInstanceSet></CreateFleetResponse>"
    );
    ResponseTemplate::new(200).set_body_raw(answer, "text/xml")
}

async fn launcher(server: &MockServer, config: Ec2) -> Launcher {
    let keys = ("key".to_owned(), "secret".to_owned());
    let api = spothop_aws::Ec2::new(Access::Imitation { endpoint: server.uri(), keys }).await;
    Launcher::new(api, config, "a")
}

/// The orders that were given.
async fn orders(server: &MockServer) -> Vec<String> {
    let all = server.received_requests().await.unwrap();
    let bodies = all.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned());
    bodies.filter(|body| body.contains("Action=CreateFleet")).collect()
}

#[tokio::test]
async fn as_many_are_launched_as_what_is_left_needs_and_the_budget_allows() {
    let server =
        ec2(&[("i-0", "terminated", "n0", 900_000)], vec![fleet(&["i-1", "i-2"], None), fleet(&["i-3"], None)]).await;
    let launcher = launcher(&server, config("")).await;
    let launched = launcher.launch("aws:i-9:terminate", &[3 * GIB, GIB, 2 * GIB, 9 * GIB]).await.unwrap();
    assert_eq!(launched.instances, ["i-1", "i-2"]);
    // EC2 does not show those two yet: they count all the same.
    launcher.launch("another", &[4 * GIB; 5]).await.unwrap();
    let refused = launcher.launch("a third", &[GIB]).await.expect_err("no budget");
    assert!(matches!(refused, NotLaunched::Budget { whose: "host", instances: 3, price_micros: 900_000 }), "{refused}");
    let orders = orders(&server).await;
    let has = |order: &str, words: &str| assert!(order.contains(words), "{words} is not in {order}");
    has(&orders[0], "TotalTargetCapacity=2");
    has(&orders[0], "MaxTotalPrice=0.600000");
    has(&orders[0], "ClientToken=a-aws-i-9-terminate-spot");
    has(&orders[1], "TotalTargetCapacity=1");
    has(&orders[1], "MaxTotalPrice=0.300000");
    assert_eq!(orders.len(), 2);
}

#[tokio::test]
async fn a_daemon_that_comes_back_counts_what_lives_and_orders_nothing_twice() {
    let living =
        [("i-1", "running", "n1", 300_000), ("i-2", "stopped", "n2", 300_000), ("i-3", "pending", "n1", 300_000)];
    let server = ec2(&living, vec![]).await;
    let launcher = launcher(&server, config("")).await;
    assert_eq!(launcher.launch("n1", &[GIB]).await.unwrap().instances, ["i-1", "i-3"]);
    let refused = launcher.launch("n3", &[GIB]).await.expect_err("no budget");
    assert!(refused.to_string().contains("3 instances of this host live, for up to $0.90 an hour"), "{refused}");
    assert!(orders(&server).await.is_empty());
}

#[tokio::test]
async fn nothing_is_launched_where_what_lives_cannot_be_counted() {
    let server = MockServer::start().await;
    let answer =
        "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors></Response>";
    let all = Mock::given(method("POST"));
    all.respond_with(ResponseTemplate::new(403).set_body_raw(answer, "text/xml")).mount(&server).await;
    let refused = launcher(&server, config("")).await.launch("n", &[GIB]).await.expect_err("uncounted");
    assert!(matches!(refused, NotLaunched::Uncounted(_)), "{refused}");
    assert!(orders(&server).await.is_empty());
}

#[tokio::test]
async fn where_there_are_no_spot_instances_others_are_launched_if_that_is_allowed() {
    let none = || fleet(&[], Some("InsufficientInstanceCapacity"));
    let server = ec2(&[], vec![none(), fleet(&["i-1"], None)]).await;
    let launched = launcher(&server, config("")).await.launch("n", &[GIB]).await.unwrap();
    assert_eq!(launched.instances, ["i-1"]);
    let given = orders(&server).await;
    assert!(
        given[0].contains("DefaultTargetCapacityType=spot") && given[1].contains("DefaultTargetCapacityType=on-demand")
    );
    assert!(given[0].contains("ClientToken=a-n-spot") && given[1].contains("ClientToken=a-n-on-demand"), "{given:?}");

    let server = ec2(&[], vec![none()]).await;
    let refused = launcher(&server, config("market = \"spot\"")).await.launch("n", &[GIB]).await.expect_err("nothing");
    assert!(matches!(refused, NotLaunched::Fleet(FleetError::NoCapacity { .. })), "{refused}");
    let refused = launcher(&server, config("")).await.launch("n", &[5 * GIB]).await.expect_err("nothing");
    assert!(matches!(refused, NotLaunched::TooLarge { .. }), "{refused}");
}

#[tokio::test]
async fn an_order_without_an_answer_is_given_again_as_the_same_one() {
    let busy = "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow down</Message></Error></Errors></Response>";
    let busy = || ResponseTemplate::new(503).set_body_raw(busy, "text/xml");
    // Two attempts of the SDK make one of ours.
    let server = ec2(&[], vec![busy(), busy(), fleet(&["i-1"], None)]).await;
    assert_eq!(launcher(&server, config("")).await.launch("n", &[GIB]).await.unwrap().instances, ["i-1"]);
    assert!(orders(&server).await.iter().all(|order| order.contains("ClientToken=a-n-spot")));
}

/// An order that EC2 has had.
struct Given {
    token: String,
    body: String,
    /// The instances that it has launched.
    ids: Vec<String>,
    /// How often those have been asked for since.
    asked: usize,
}

/// EC2 with its rule of tokens, which shows what it has launched only when it has been asked again so many times.
struct Tokens {
    launches: bool,
    shown_after: usize,
    orders: Mutex<Vec<Given>>,
}

impl Tokens {
    fn new(launches: bool, shown_after: usize) -> Arc<Self> {
        Arc::new(Self { launches, shown_after, orders: Mutex::default() })
    }

    async fn serve(self: &Arc<Self>) -> MockServer {
        let (server, tokens) = (MockServer::start().await, Arc::clone(self));
        let answer = move |request: &Request| tokens.answer(&String::from_utf8_lossy(&request.body));
        Mock::given(method("POST")).respond_with(answer).mount(&server).await;
        server
    }

    fn answer(&self, body: &str) -> ResponseTemplate {
        let field = |body: &str, name: &str| {
            let mut fields = body.split('&').filter_map(|field| field.split_once('='));
            fields.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let mut orders = self.orders.lock().unwrap();
        if field(body, "Action") == "DescribeInstances" {
            let mut all = String::new();
            for Given { body: order, ids, asked, .. } in orders.iter_mut() {
                *asked += 1;
                if *asked > self.shown_after {
                    let tag = |number: usize| {
                        let of = |what: &str| field(order, &format!("TagSpecification.1.Tag.{number}.{what}"));
                        format!(
                            "<item><key>{}</key><value>{}</value></item>",
                            of("Key").replace("%3A", ":"),
                            of("Value")
                        )
                    };
                    let tags: String = (1..=4).map(tag).collect();
                    all.extend(ids.iter().map(|id| {
                        format!(
                            "<item><instanceId>{id}</instanceId><instanceState><name>running</name></instanceState><tagSet>{tags}</tagSet></item>"
                        )
                    }));
                }
            }
            let answer = format!(
                "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><reservationSet><item><instancesSet>{all}\
                 </instancesSet></item></reservationSet></DescribeInstancesResponse>"
            );
            return ResponseTemplate::new(200).set_body_raw(answer, "text/xml");
        }
        let token = field(body, "ClientToken");
        if let Some(Given { ids, .. }) = orders.iter().find(|known| known.token == token && known.body == body) {
            return fleet(&ids.iter().map(String::as_str).collect::<Vec<_>>(), None);
        }
        if orders.iter().any(|known| known.token == token) {
            let answer = "<Response><Errors><Error><Code>IdempotentParameterMismatch</Code><Message>no</Message></Error></Errors></Response>";
            return ResponseTemplate::new(400).set_body_raw(answer, "text/xml");
        }
        let count: usize = field(body, "TargetCapacitySpecification.TotalTargetCapacity").parse().unwrap();
        let before: usize = orders.iter().map(|order| order.ids.len()).sum();
        let ids: Vec<String> =
            (before..before + count).filter(|_| self.launches).map(|number| format!("i-{number}")).collect();
        let answer = fleet(
            &ids.iter().map(String::as_str).collect::<Vec<_>>(),
            (!self.launches).then_some("InsufficientInstanceCapacity"),
        );
        orders.push(Given { token, body: body.to_owned(), ids, asked: 0 });
        answer
    }

    fn launched(&self) -> usize {
        self.orders.lock().unwrap().iter().map(|order| order.ids.len()).sum()
    }
}

/// A host of the fleet `prod`, in whose time EC2 is quick.
async fn member(server: &MockServer, host: &str, more: &str) -> Launcher {
    let mut launcher = launcher(server, config(&format!("fleet = \"prod\"\n{more}"))).await;
    host.clone_into(&mut launcher.host);
    launcher.pace = turn::Pace { shown: Duration::from_millis(300), look: Duration::from_millis(10) };
    launcher
}

#[tokio::test]
async fn hosts_of_a_fleet_that_ask_at_once_launch_no_more_than_its_budget_together() {
    for shown_after in 0..6 {
        let ec2 = Tokens::new(true, shown_after);
        let server = ec2.serve().await;
        let (a, b, c) =
            (member(&server, "a", "").await, member(&server, "b", "").await, member(&server, "c", "").await);
        let wants = [4 * GIB, 4 * GIB];
        let (one, two, three) = tokio::join!(a.launch("n-a", &wants), b.launch("n-b", &wants), c.launch("n-c", &wants));
        // Three is what they may have: two for who is first, one for the next.
        let mut got: Vec<usize> = [one, two, three]
            .into_iter()
            .map(|outcome| outcome.map_or(0, |launched| launched.instances.len()))
            .collect();
        got.sort_unstable();
        assert_eq!((got, ec2.launched()), (vec![0, 1, 2], 3), "shown after {shown_after}");
        let refused = a.launch("another", &wants).await.expect_err("no budget");
        assert!(matches!(refused, NotLaunched::Budget { whose: "fleet", instances: 3, .. }), "{refused}");
    }
}

#[tokio::test]
async fn an_order_of_another_host_that_launched_nothing_stops_nobody_for_good() {
    let ec2 = Tokens::new(false, 0);
    let server = ec2.serve().await;
    let (a, b) = (member(&server, "a", "").await, member(&server, "b", "").await);
    let wants = [4 * GIB];
    let refused = a.launch("n-a", &wants).await.expect_err("there are none");
    assert!(matches!(refused, NotLaunched::Fleet(FleetError::NoCapacity { .. })), "{refused}");
    // Spot and on-demand: each has its token.
    assert_eq!(ec2.orders.lock().unwrap().len(), 2);
    let refused = b.launch("n-b", &wants).await.expect_err("there are none");
    assert!(matches!(refused, NotLaunched::Fleet(FleetError::NoCapacity { .. })), "{refused}");
    assert_eq!(ec2.orders.lock().unwrap().len(), 4);
    // What it knows of is not waited for again.
    assert!(matches!(b.launch("another", &wants).await, Err(NotLaunched::Fleet(FleetError::NoCapacity { .. }))));
    let orders = orders(&server).await;
    assert_eq!((ec2.orders.lock().unwrap().len(), orders.len()), (6, 8), "two were told of another's token");
}

#[tokio::test]
async fn a_host_that_comes_back_finds_what_it_launched_for_a_notice_in_the_fleet() {
    let ec2 = Tokens::new(true, 0);
    let server = ec2.serve().await;
    let first = member(&server, "a", "").await.launch("n", &[GIB]).await.unwrap();
    assert_eq!(member(&server, "a", "").await.launch("n", &[GIB]).await.unwrap(), first);
    // Another host's notice of that name is another one.
    assert_ne!(member(&server, "b", "").await.launch("n", &[GIB]).await.unwrap(), first);
    assert_eq!(ec2.launched(), 2);
}

#[test]
fn only_want_of_room_is_a_reason_to_launch() {
    let stay = |obstacles: &[&str], refusals: Vec<Vec<Refusal>>| Stay {
        container: "c".to_owned(),
        name: "c".to_owned(),
        priority: 0,
        next_best: None,
        obstacles: obstacles.iter().map(ToString::to_string).collect(),
        refusals: refusals.into_iter().map(|refusals| HostRefusal { host: "h".to_owned(), refusals }).collect(),
    };
    let room = || Refusal::NoMemory { needs_bytes: 2, has_bytes: 1 };
    let gone = || Refusal::Unreachable { reason: "refused".to_owned() };
    let net = || Refusal::NetworkMissing { network: "lan".to_owned() };
    assert!(lacks_room(&stay(&[], vec![])), "nobody is there");
    assert!(lacks_room(&stay(&[], vec![vec![room()], vec![gone(), net()], vec![Refusal::IsSource]])));
    assert!(!lacks_room(&stay(&[], vec![vec![room()], vec![room(), net()]])), "the network would be missing there too");
    assert!(!lacks_room(&stay(&["uses io_uring"], vec![])));
}

#[test]
fn a_token_fits_and_tells_notices_apart() {
    let long = "h".repeat(200);
    let one = token(&long, "aws:i-0123456789abcdef0:terminate", Market::OnDemand);
    assert_eq!(one.len(), 64);
    assert!(one.ends_with("-aws-i-0123456789abcdef0-terminate-on-demand"), "{one}");
}
