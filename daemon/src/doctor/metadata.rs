//! The metadata service that notices come from.

use std::time::Duration;

use super::Check;
use crate::config::AwsNotice;

/// A metadata service is on the same machine; one that takes longer is not there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether one of the endpoints answers. Only for information: a machine of one's own, or a rehearsal, has none.
pub(super) async fn check(aws: &AwsNotice) -> Option<Check> {
    if !aws.enabled {
        return Some(Check::info("aws notices", "switched off in the configuration"));
    }
    // Never through a proxy: the address means this machine.
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().ok()?;
    for endpoint in &aws.endpoints {
        // IMDSv2's first request; any answer at all shows that something is there.
        let request = client.put(format!("{}/latest/api/token", endpoint.trim_end_matches('/')));
        let Ok(answer) = request.header("X-aws-ec2-metadata-token-ttl-seconds", "60").send().await else { continue };
        return Some(if answer.status().is_success() {
            Check::ok("aws notices", format!("{endpoint} gives tokens"))
        } else {
            Check::info("aws notices", format!("{endpoint} answers {}: not EC2's metadata service?", answer.status()))
        });
    }
    Some(Check::info("aws notices", format!("no metadata service at {}: not EC2?", aws.endpoints.join(", "))))
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::{header_exists, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    async fn service(status: u16) -> (MockServer, AwsNotice) {
        let server = MockServer::start().await;
        Mock::given(method("PUT"))
            .and(path("/latest/api/token"))
            .and(header_exists("x-aws-ec2-metadata-token-ttl-seconds"))
            .respond_with(ResponseTemplate::new(status))
            .mount(&server)
            .await;
        let aws = AwsNotice { endpoints: vec![server.uri()], ..AwsNotice::default() };
        (server, aws)
    }

    #[tokio::test]
    async fn a_service_that_gives_tokens_is_ok() {
        let (_server, aws) = service(200).await;
        assert!(check(&aws).await.unwrap().finding.ends_with("gives tokens"));
    }

    #[tokio::test]
    async fn anything_else_is_only_information() {
        let (_server, aws) = service(404).await;
        assert_eq!(check(&aws).await.unwrap().verdict, crate::doctor::Verdict::Info);
        // Port 9 of the loopback interface: nothing listens there.
        let absent = AwsNotice { endpoints: vec!["http://127.0.0.1:9".to_owned()], ..AwsNotice::default() };
        assert_eq!(check(&absent).await.unwrap().verdict, crate::doctor::Verdict::Info);
    }
}
