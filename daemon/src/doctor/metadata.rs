//! The metadata service that notices come from.

use super::Check;
use crate::config::{CloudChoice, Notice};
use crate::notice::detect;

/// Which cloud answers. Only for information: a machine of one's own, or a rehearsal, is in none.
pub(super) async fn check(notice: &Notice) -> Check {
    if notice.cloud == CloudChoice::None {
        return Check::info("notices", "switched off in the configuration");
    }
    match detect::look(notice).await {
        Ok(Some(cloud)) => Check::ok("notices", format!("the metadata service of {cloud} answers")),
        Ok(None) => match notice.cloud.named() {
            Some(cloud) => Check::info("notices", format!("the metadata service of {cloud} does not answer")),
            None => Check::info("notices", "no cloud's metadata service answers: in no cloud?"),
        },
        Err(error) => Check::failed("notices", error.to_string(), "correct [notice], then run this again"),
    }
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::doctor::Verdict;

    #[tokio::test]
    async fn a_service_that_answers_is_ok_and_anything_else_is_only_information() {
        let server = MockServer::start().await;
        let get = Mock::given(method("GET")).and(path("/computeMetadata/v1/instance/id"));
        let id = ResponseTemplate::new(200).insert_header("Metadata-Flavor", "Google").set_body_string("42");
        get.and(header("Metadata-Flavor", "Google")).respond_with(id).mount(&server).await;
        let mut notice = Notice { cloud: CloudChoice::Gcp, ..Notice::default() };
        notice.gcp.endpoints = vec![server.uri()];
        let found = check(&notice).await;
        assert_eq!((found.verdict, found.finding.as_str()), (Verdict::Ok, "the metadata service of gcp answers"));
        // Port 9 of the loopback interface: nothing listens there.
        notice.gcp.endpoints = vec!["http://127.0.0.1:9".to_owned()];
        assert_eq!(check(&notice).await.verdict, Verdict::Info);
        let none = Notice { cloud: CloudChoice::None, ..Notice::default() };
        assert_eq!(check(&none).await.verdict, Verdict::Info);
        notice.gcp.endpoints.clear();
        assert_eq!(check(&notice).await.verdict, Verdict::Failed);
    }
}
