//! One queue of Amazon SQS: messages are waited for, and deleted or given back one by one.
//!
//! Needs the permissions `sqs:ReceiveMessage`, `sqs:DeleteMessage` and `sqs:ChangeMessageVisibility`. `AWS_ENDPOINT_URL_SQS` is the SDK's.

use std::time::Duration;

use aws_config::Region;
use aws_config::timeout::TimeoutConfig;

use crate::{Access, Error, LIMIT, sdk};

/// How long SQS holds a question for messages open, in seconds: the most that it offers, and the fewest questions.
const WAIT: i32 = 20;

/// The most that SQS gives at once.
const MOST: i32 = 10;

/// A message that nobody else gets for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub body: String,
    /// By which it is deleted or given back.
    pub receipt: String,
}

/// A queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// For questions that are held open.
    patient: aws_sdk_sqs::Client,
    client: aws_sdk_sqs::Client,
    url: String,
}

impl Queue {
    /// The queue at this URL. Asks nothing yet. `region` is that of the queue.
    pub async fn new(access: Access, url: &str, region: &str) -> Self {
        let config = sdk(access, LIMIT).await;
        let region = Region::new(region.to_owned());
        let builder = aws_sdk_sqs::config::Builder::from(&config).region(region);
        let held = LIMIT + Duration::from_secs(WAIT.unsigned_abs().into());
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(LIMIT * 2 / 5)
            .operation_attempt_timeout(held)
            .operation_timeout(held * 2)
            .build();
        Self {
            patient: aws_sdk_sqs::Client::from_conf(builder.clone().timeout_config(timeouts).build()),
            client: aws_sdk_sqs::Client::from_conf(builder.build()),
            url: url.to_owned(),
        }
    }

    /// Up to ten messages; waits up to 20 s for the first.
    ///
    /// # Errors
    /// Everything that keeps SQS from giving them.
    pub async fn receive(&self) -> Result<Vec<Message>, Error> {
        let ask = self.patient.receive_message().queue_url(&self.url).max_number_of_messages(MOST);
        let answer = ask.wait_time_seconds(WAIT).send().await;
        let answer = answer.map_err(|error| Error::of("sqs:ReceiveMessage", LIMIT, error))?;
        let whole = |message: aws_sdk_sqs::types::Message| {
            Some(Message { receipt: message.receipt_handle?, body: message.body.unwrap_or_default() })
        };
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(whole).collect())
    }

    /// Takes a message out for good.
    ///
    /// # Errors
    /// Everything that keeps SQS from doing it.
    pub async fn delete(&self, receipt: &str) -> Result<(), Error> {
        let deleted = self.client.delete_message().queue_url(&self.url).receipt_handle(receipt).send().await;
        deleted.map(drop).map_err(|error| Error::of("sqs:DeleteMessage", LIMIT, error))
    }

    /// Nobody gets the message before `after` is over, 12 h at most; zero gives it back at once.
    ///
    /// # Errors
    /// Everything that keeps SQS from doing it.
    pub async fn set_visibility(&self, receipt: &str, after: Duration) -> Result<(), Error> {
        let seconds = i32::try_from(after.as_secs()).unwrap_or(i32::MAX);
        let change = self.client.change_message_visibility().queue_url(&self.url).receipt_handle(receipt);
        let changed = change.visibility_timeout(seconds).send().await;
        changed.map(drop).map_err(|error| Error::of("sqs:ChangeMessageVisibility", LIMIT, error))
    }
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::{header, method};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    async fn failure(status: u16, kind: &str) -> Error {
        let server = MockServer::start().await;
        // The AWS JSON protocol, as SQS speaks it.
        let body = format!(r#"{{"__type":"com.amazonaws.sqs#{kind}","message":"because"}}"#);
        let answer = ResponseTemplate::new(status).set_body_raw(body, "application/x-amz-json-1.0");
        let ask = Mock::given(method("POST")).and(header("x-amz-target", "AmazonSQS.ReceiveMessage"));
        ask.respond_with(answer).mount(&server).await;
        let keys = ("key".to_owned(), "secret".to_owned());
        let access = Access::Imitation { endpoint: server.uri(), keys };
        let queue = Queue::new(access, &format!("{}/123456789012/notices", server.uri()), "eu-central-1").await;
        queue.receive().await.expect_err("an error")
    }

    #[tokio::test]
    async fn refusals_say_what_to_do() {
        let forbidden = failure(403, "AccessDeniedException").await;
        assert!(matches!(forbidden, Error::Forbidden { action: "sqs:ReceiveMessage", .. }), "{forbidden:?}");
        let gone = failure(400, "QueueDoesNotExist").await;
        assert!(matches!(&gone, Error::Refused { message, .. } if message == "because"), "{gone:?}");
        let throttled = failure(400, "RequestThrottled").await;
        assert!(matches!(throttled, Error::Throttled { .. }), "{throttled:?}");
    }
}
