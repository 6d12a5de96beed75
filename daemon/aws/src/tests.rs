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
