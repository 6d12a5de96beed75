//! EC2's answers and refusals as the API Reference shows them, from a server that says nothing else.

use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::error::CredentialsError;
use wiremock::matchers::{body_string_contains, method};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;

const ID: &str = "i-1234567890abcdef0";
const REGION: &str = "eu-central-1";

/// Long enough for a busy machine, so that only the test about time runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

async fn service(answer: ResponseTemplate) -> (MockServer, Ec2) {
    let server = MockServer::start().await;
    let asked = Mock::given(method("POST")).and(body_string_contains("Action=DescribeInstances"));
    asked.and(body_string_contains(ID)).respond_with(answer).mount(&server).await;
    let ec2 = at(&server.uri(), PATIENCE).await;
    (server, ec2)
}

async fn at(endpoint: &str, limit: Duration) -> Ec2 {
    let keys = ("key".to_owned(), "secret".to_owned());
    Ec2::with_limit(Access::Imitation { endpoint: endpoint.to_owned(), keys }, limit).await
}

fn xml(status: u16, text: String) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_raw(text, "text/xml;charset=UTF-8")
}

fn instance(id: &str, code: u16, name: &str) -> ResponseTemplate {
    let set = format!(
        "<item><reservationId>r-1</reservationId><ownerId>123456789012</ownerId><instancesSet><item><instanceId>{id}</instanceId>\
         <instanceState><code>{code}</code><name>{name}</name></instanceState></item></instancesSet></item>"
    );
    reservations(&set)
}

fn reservations(set: &str) -> ResponseTemplate {
    xml(
        200,
        format!(
            "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>8f7724cf</requestId>\
             <reservationSet>{set}</reservationSet></DescribeInstancesResponse>"
        ),
    )
}

fn refusal(status: u16, code: &str, message: &str) -> ResponseTemplate {
    xml(
        status,
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message>\
             </Error></Errors><RequestID>ea966190</RequestID></Response>"
        ),
    )
}

async fn failure(answer: ResponseTemplate) -> (Error, usize) {
    let (server, ec2) = service(answer).await;
    let error = ec2.instance_state(REGION, ID).await.expect_err("an error");
    (error, server.received_requests().await.unwrap().len())
}

#[tokio::test]
async fn every_state_is_told_by_its_name() {
    for (code, name, state) in [
        (0, "pending", InstanceState::Pending),
        (16, "running", InstanceState::Running),
        (32, "shutting-down", InstanceState::ShuttingDown),
        (48, "terminated", InstanceState::Terminated),
        (64, "stopping", InstanceState::Stopping),
        (80, "stopped", InstanceState::Stopped),
        (96, "levitating", InstanceState::Other("levitating".to_owned())),
    ] {
        let (_server, ec2) = service(instance(ID, code, name)).await;
        assert_eq!(ec2.instance_state(REGION, ID).await.unwrap(), Some(state));
    }
}

#[tokio::test]
async fn an_unknown_id_is_no_instance_but_a_malformed_one_is_a_refusal() {
    let message = format!("The instance ID '{ID}' does not exist");
    let (_server, ec2) = service(refusal(400, "InvalidInstanceID.NotFound", &message)).await;
    assert_eq!(ec2.instance_state(REGION, ID).await.unwrap(), None);
    let (error, _) = failure(refusal(400, "InvalidInstanceID.Malformed", "Invalid id")).await;
    assert!(matches!(&error, Error::Refused { code, .. } if code == "InvalidInstanceID.Malformed"), "{error:?}");
}

#[tokio::test]
async fn an_answer_without_the_instance_says_nothing_of_it() {
    for answer in [reservations(""), instance("i-0000000000000000f", 48, "terminated")] {
        let (error, _) = failure(answer).await;
        assert!(matches!(error, Error::LeftOut), "{error:?}");
    }
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let message = format!("You are not authorized to perform this operation. Encoded message: {}", "x".repeat(2_000));
    let (error, asked) = failure(refusal(403, "UnauthorizedOperation", &message)).await;
    let text = error.to_string();
    assert!(text.contains("do not allow ec2:DescribeInstances"), "{text}");
    assert!(text.len() < 500, "{text}");
    assert_eq!(asked, 1, "a refusal is final");
}

#[tokio::test]
async fn credentials_that_are_refused_are_told_from_a_missing_permission() {
    let (error, _) = failure(refusal(401, "AuthFailure", "AWS was not able to validate the access credentials")).await;
    assert!(matches!(&error, Error::BadCredentials { code, .. } if code == "AuthFailure"), "{error:?}");
}

#[tokio::test]
async fn a_machine_without_credentials_is_told_what_to_give_it() {
    let none = provide_credentials_fn(|| async {
        Err(CredentialsError::not_loaded("no providers in chain provided credentials"))
    });
    let loader = aws_config::defaults(BehaviorVersion::latest()).endpoint_url("http://127.0.0.1:9");
    let config = load(loader.credentials_provider(none), PATIENCE).await;
    let ec2 = Ec2 { config, limit: PATIENCE };
    let error = ec2.instance_state(REGION, ID).await.expect_err("an error");
    assert!(matches!(error, Error::NoCredentials { .. }), "{error:?}");
    assert!(error.to_string().contains("give this instance a role that allows ec2:DescribeInstances"), "{error}");
}

#[tokio::test]
async fn throttling_is_tried_once_more_and_then_told() {
    let (error, asked) = failure(refusal(503, "RequestLimitExceeded", "Request limit exceeded.")).await;
    assert!(matches!(error, Error::Throttled { .. }), "{error:?}");
    assert_eq!(asked, ATTEMPTS as usize);
}

#[tokio::test]
async fn what_is_not_xml_is_not_an_answer() {
    for body in ["<html><body>proxy login</body></html>", "<DescribeInstancesResponse><reservationSet>", ""] {
        let (error, _) = failure(xml(200, body.to_owned())).await;
        assert!(matches!(error, Error::Nonsense { .. } | Error::LeftOut), "{body:?}: {error:?}");
    }
    let (error, _) = failure(xml(500, "<!doctype html><title>500</title>".to_owned())).await;
    assert!(matches!(error, Error::Nonsense { .. }), "{error:?}");
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    let server = MockServer::start().await;
    let answer = instance(ID, 48, "terminated").set_delay(PATIENCE * 10);
    Mock::given(method("POST")).respond_with(answer).mount(&server).await;
    let ec2 = at(&server.uri(), Duration::from_millis(200)).await;
    let error = ec2.instance_state(REGION, ID).await.expect_err("an error");
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_systems_own_words() {
    // Port 9 of the loopback interface: nothing listens there.
    let ec2 = at("http://127.0.0.1:9", PATIENCE).await;
    let error = ec2.instance_state(REGION, ID).await.expect_err("an error");
    assert!(matches!(&error, Error::NoAnswer { detail } if detail.contains("refused")), "{error:?}");
}

#[tokio::test]
async fn the_account_is_that_of_the_credentials() {
    let server = MockServer::start().await;
    let identity = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
        <Arn>arn:aws:iam::123456789012:user/Alice</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>123456789012</Account>\
        </GetCallerIdentityResult></GetCallerIdentityResponse>";
    let asked = Mock::given(method("POST")).and(body_string_contains("Action=GetCallerIdentity"));
    asked.respond_with(xml(200, identity.to_owned())).mount(&server).await;
    assert_eq!(at(&server.uri(), PATIENCE).await.account(REGION).await.unwrap(), "123456789012");
}

/// An instance in an answer: id, code and name of its state, tags.
type Shown<'a> = (&'a str, u16, &'a str, &'a [(&'a str, &'a str)]);

fn page(instances: &[Shown<'_>], next: &str) -> ResponseTemplate {
    let one = |(id, code, name, tags): &Shown<'_>| {
        let tag = |(key, value): &(&str, &str)| format!("<item><key>{key}</key><value>{value}</value></item>");
        let tags: String = tags.iter().map(tag).collect();
        format!(
            "<item><instanceId>{id}</instanceId><instanceState><code>{code}</code><name>{name}</name></instanceState>\
             <privateIpAddress>10.0.0.7</privateIpAddress><tagSet>{tags}</tagSet></item>"
        )
    };
    let all: String = instances.iter().map(one).collect();
    let set = format!("<item><reservationId>r-1</reservationId><instancesSet>{all}</instancesSet></item>");
    let next = if next.is_empty() { String::new() } else { format!("<nextToken>{next}</nextToken>") };
    xml(
        200,
        format!(
            "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><reservationSet>{set}</reservationSet>\
             {next}</DescribeInstancesResponse>"
        ),
    )
}

#[tokio::test]
async fn tagged_instances_come_in_pages_and_filters_that_lie_are_checked() {
    let server = MockServer::start().await;
    let tag: &[_] = &[("cluster", "prod"), ("Name", "x")];
    let first = page(&[("i-2", 16, "running", tag), ("i-3", 16, "running", &[("cluster", "prod2")])], "more");
    let second = page(&[("i-1", 48, "terminated", tag), ("i-4", 16, "running", &[])], "");
    let asked = || Mock::given(method("POST")).and(body_string_contains("Filter.1.Name=tag%3Acluster"));
    asked().and(body_string_contains("NextToken=more")).respond_with(second).mount(&server).await;
    asked().respond_with(first).mount(&server).await;
    let tagged = at(&server.uri(), PATIENCE).await.tagged(REGION, "cluster", "prod").await.unwrap();
    let ids: Vec<_> = tagged.iter().map(|one| (one.id.as_str(), one.state.clone())).collect();
    assert_eq!(ids, [("i-1", InstanceState::Terminated), ("i-2", InstanceState::Running)]);
    assert_eq!(tagged[1].tags["Name"], "x");
    assert_eq!(tagged[1].private_address, Some(std::net::Ipv4Addr::new(10, 0, 0, 7)));
}

#[tokio::test]
async fn half_a_list_is_none() {
    let server = MockServer::start().await;
    let refused = refusal(400, "InvalidParameterValue", "bad token");
    let next = Mock::given(method("POST")).and(body_string_contains("NextToken=more"));
    next.respond_with(refused).mount(&server).await;
    Mock::given(method("POST")).respond_with(page(&[], "more")).mount(&server).await;
    let error = at(&server.uri(), PATIENCE).await.tagged(REGION, "cluster", "prod").await.expect_err("an error");
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

fn order() -> Order {
    Order {
        region: REGION.to_owned(),
        template: "spothop".to_owned(),
        version: "$Default".to_owned(),
        types: vec!["m7i.large".to_owned(), "m7a.large".to_owned()],
        zones: vec!["eu-central-1a".to_owned(), "eu-central-1b".to_owned()],
        market: Market::Spot,
        count: 2,
        max_price_micros: 1_050_000,
        token: "t".to_owned(),
        tags: [("spothop:launched-by".to_owned(), "a".to_owned())].into(),
    }
}

async fn launch(answer: ResponseTemplate) -> Result<Launched, FleetError> {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(answer).mount(&server).await;
    let launched = at(&server.uri(), PATIENCE).await.launch(&order()).await;
    let asked = server.received_requests().await.unwrap();
    let body = String::from_utf8_lossy(&asked[0].body).into_owned();
    for words in [
        "Action=CreateFleet",
        "Type=instant",
        "ClientToken=t",
        "LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateName=spothop",
        "LaunchTemplateConfigs.1.Overrides.4.InstanceType=m7a.large",
        "TargetCapacitySpecification.TotalTargetCapacity=2",
        "TargetCapacitySpecification.DefaultTargetCapacityType=spot",
        "SpotOptions.MaxTotalPrice=1.050000",
        "TagSpecification.1.ResourceType=instance",
    ] {
        assert!(body.contains(words), "{words} is not in {body}");
    }
    launched
}

fn fleet(instances: &[&str], errors: &[(&str, &str)]) -> ResponseTemplate {
    let ids: String = instances.iter().map(|id| format!("<item>{id}</item>")).collect();
    let launched =
        if ids.is_empty() { String::new() } else { format!("<item><instanceIds>{ids}</instanceIds></item>") };
    let error = |(code, message): &(&str, &str)| {
        format!(
            "<item><errorCode>{code}</errorCode><errorMessage>{message}</errorMessage><lifecycle>spot</lifecycle>\
             <launchTemplateAndOverrides><overrides><instanceType>m7i.large</instanceType></overrides>\
             </launchTemplateAndOverrides></item>"
        )
    };
    let errors: String = errors.iter().map(error).collect();
    xml(
        200,
        format!(
            "<CreateFleetResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><fleetId>fleet-1</fleetId>\
             <errorSet>{errors}</errorSet><fleetInstanceSet>{launched}</fleetInstanceSet></CreateFleetResponse>"
        ),
    )
}

#[tokio::test]
async fn what_a_fleet_launched_and_what_it_lacks_is_told() {
    let whole = launch(fleet(&["i-1", "i-2"], &[])).await.unwrap();
    assert_eq!(whole, Launched { instances: vec!["i-1".to_owned(), "i-2".to_owned()], lacking: vec![] });
    let part = launch(fleet(&["i-1"], &[("InsufficientInstanceCapacity", "no more")])).await.unwrap();
    assert_eq!(part.lacking, ["m7i.large: InsufficientInstanceCapacity: no more"]);
}

#[tokio::test]
async fn each_refusal_of_a_fleet_says_what_to_do() {
    let none = ("InsufficientInstanceCapacity", "no capacity");
    let many = ("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded");
    let mine = ("UnauthorizedOperation", "not authorized");
    let error = launch(fleet(&[], &[mine, many, none])).await.expect_err("nothing");
    assert!(matches!(error, FleetError::NoCapacity { .. }) && error.other_market_may_do(), "{error}");
    assert!(error.to_string().contains("allow more types and zones") && error.to_string().contains("not authorized"));
    let error = launch(fleet(&[], &[many])).await.expect_err("nothing");
    assert!(matches!(error, FleetError::Limit { .. }) && error.to_string().contains("Service Quotas"), "{error}");
    let error = launch(fleet(&[], &[mine])).await.expect_err("nothing");
    assert!(matches!(error, FleetError::Forbidden { .. }) && error.to_string().contains("iam:PassRole"), "{error}");
    assert!(!error.other_market_may_do());
    let error = launch(fleet(&[], &[])).await.expect_err("nothing");
    assert!(matches!(error, FleetError::Refused { .. }), "{error}");
    let error = launch(refusal(400, "MaxSpotInstanceCountExceeded", "as a call")).await.expect_err("nothing");
    assert!(matches!(error, FleetError::Limit { .. }), "{error}");
    let error = launch(refusal(403, "UnauthorizedOperation", "no")).await.expect_err("nothing");
    assert!(error.to_string().contains("ec2:CreateFleet"), "{error}");
    let error = launch(refusal(503, "RequestLimitExceeded", "slow down")).await.expect_err("nothing");
    assert!(matches!(error, FleetError::Call(Error::Throttled { .. })), "{error}");
}

#[tokio::test]
async fn a_missing_permission_to_move_addresses_is_named() {
    let answer = || refusal(403, "UnauthorizedOperation", "You are not authorized to perform this operation.");
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(answer()).mount(&server).await;
    let ec2 = at(&server.uri(), PATIENCE).await;
    let addresses = ["10.0.0.9".parse().unwrap()];
    for (asked, action) in [
        (ec2.interface(REGION, "eni-1").await.map(drop), "ec2:DescribeNetworkInterfaces"),
        (ec2.assign(REGION, "eni-1", &addresses).await, "ec2:AssignPrivateIpAddresses"),
        (ec2.unassign(REGION, "eni-1", &addresses).await, "ec2:UnassignPrivateIpAddresses"),
    ] {
        let text = asked.expect_err("not allowed").to_string();
        assert!(text.contains(&format!("do not allow {action}:")), "{text}");
    }
}

#[tokio::test]
async fn an_address_is_asked_for_with_leave_to_take_it_from_another() {
    let server = MockServer::start().await;
    let asked = Mock::given(method("POST")).and(body_string_contains("Action=AssignPrivateIpAddresses"));
    let asked = asked.and(body_string_contains("AllowReassignment=true")).and(body_string_contains("10.0.0.9"));
    let done = "<AssignPrivateIpAddressesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><return>true</return>\
                </AssignPrivateIpAddressesResponse>";
    asked.respond_with(xml(200, done.to_owned())).expect(1).mount(&server).await;
    at(&server.uri(), PATIENCE).await.assign(REGION, "eni-1", &["10.0.0.9".parse().unwrap()]).await.unwrap();
}

/// A server that answers this action.
async fn answers(action: &str, answer: ResponseTemplate) -> (MockServer, Ec2) {
    let server = MockServer::start().await;
    let asked = Mock::given(method("POST")).and(body_string_contains(format!("Action={action}&")));
    asked.respond_with(answer).mount(&server).await;
    let ec2 = at(&server.uri(), PATIENCE).await;
    (server, ec2)
}

fn prices(items: &[(&str, &str, &str, &str)]) -> ResponseTemplate {
    let item = |(kind, zone, price, at): &(&str, &str, &str, &str)| {
        format!(
            "<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription><spotPrice>{price}</spotPrice>\
             <timestamp>{at}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
        )
    };
    let items: String = items.iter().map(item).collect();
    let text = format!(
        "<DescribeSpotPriceHistoryResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>59dbff89</requestId>\
         <spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/></DescribeSpotPriceHistoryResponse>"
    );
    xml(200, text)
}

#[tokio::test]
async fn the_price_in_force_is_the_newest_of_this_type_in_this_zone() {
    let (zone, action) = ("eu-central-1a", "DescribeSpotPriceHistory");
    let price = async |items: &[(&str, &str, &str, &str)]| {
        let (_server, ec2) = answers(action, prices(items)).await;
        ec2.spot_price(REGION, "c7i.large", zone).await
    };
    let old = ("c7i.large", zone, "0.040000", "2026-01-01T00:00:00.000Z");
    let new = ("c7i.large", zone, "0.031200", "2026-01-02T00:00:00.000Z");
    let elsewhere = ("c7i.large", "eu-central-1b", "0.010000", "2026-01-03T00:00:00.000Z");
    let another = ("c7i.xlarge", zone, "0.020000", "2026-01-03T00:00:00.000Z");
    assert_eq!(price(&[old, new, elsewhere, another]).await.unwrap(), Some(31_200));
    assert_eq!(price(&[elsewhere, another]).await.unwrap(), None);
    let nonsense = price(&[("c7i.large", zone, "cheap", "2026-01-02T00:00:00.000Z")]).await.unwrap_err();
    assert!(matches!(nonsense, Error::Nonsense { .. }), "{nonsense:?}");
    let (_server, ec2) = answers(action, refusal(403, "UnauthorizedOperation", "You are not authorized")).await;
    let forbidden = ec2.spot_price(REGION, "c7i.large", zone).await.unwrap_err().to_string();
    assert!(forbidden.contains("do not allow ec2:DescribeSpotPriceHistory"), "{forbidden}");
}

#[tokio::test]
async fn a_placement_score_is_that_of_the_zone_whatever_its_name_in_the_account() {
    let scored = |score: i32| {
        let item = |zone: &str, score: i32| {
            format!(
                "<item><region>{REGION}</region><availabilityZoneId>{zone}</availabilityZoneId><score>{score}</score></item>"
            )
        };
        let text = format!(
            "<GetSpotPlacementScoresResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>ac3ba4a8</requestId>\
             <spotPlacementScoreSet>{}{}</spotPlacementScoreSet></GetSpotPlacementScoresResponse>",
            item("euc1-az1", 3),
            item("euc1-az2", score)
        );
        xml(200, text)
    };
    let kinds = ["c7i.large", "c7a.large", "m7i.large"].map(str::to_owned);
    let (server, ec2) = answers("GetSpotPlacementScores", scored(8)).await;
    assert_eq!(ec2.placement_score(REGION, &kinds, "euc1-az2").await.unwrap(), Some(8));
    assert_eq!(ec2.placement_score(REGION, &kinds, "euc1-az3").await.unwrap(), None);
    let asked = String::from_utf8(server.received_requests().await.unwrap()[0].body.clone()).unwrap();
    for part in
        ["InstanceType.3=m7i.large", "TargetCapacity=1", "SingleAvailabilityZone=true", "RegionName.1=eu-central-1"]
    {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    let (_server, ec2) = answers("GetSpotPlacementScores", scored(11)).await;
    let nonsense = ec2.placement_score(REGION, &kinds, "euc1-az2").await.unwrap_err();
    assert!(matches!(nonsense, Error::Nonsense { .. }), "{nonsense:?}");
    let limit =
        refusal(400, "MaxConfigLimitExceeded", "You have exceeded your maximum allowed Spot placement configurations");
    let (_server, ec2) = answers("GetSpotPlacementScores", limit).await;
    let refused = ec2.placement_score(REGION, &kinds, "euc1-az2").await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { code, .. } if code == "MaxConfigLimitExceeded"), "{refused:?}");
}
