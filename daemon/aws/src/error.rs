//! Why AWS did not say what it was asked.

use std::error::Error as StdError;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

/// Characters of somebody else's words that an error repeats. A refusal of EC2 may carry a kilobyte of encoded policy.
const LONGEST_QUOTE: usize = 300;

/// Codes of "your credentials are good, but may not do this" (Amazon EC2 API Reference, "Error codes"; IAM's for STS).
const FORBIDDEN: [&str; 3] = ["UnauthorizedOperation", "AccessDenied", "AccessDeniedException"];

/// Codes of "not with these credentials", from the same place.
const BAD_CREDENTIALS: [&str; 12] = [
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "Blocked",
];

/// Codes of "not so often".
const THROTTLED: [&str; 5] =
    ["RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequestsException"];

/// Why AWS did not say what it was asked. Nothing of this says anything about the instance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to sign with.
    #[error(
        "there are no AWS credentials: give this instance a role that allows {action}, or the daemon's environment an access key ({detail})"
    )]
    NoCredentials {
        /// The permission that is needed, such as `ec2:DescribeInstances`.
        action: &'static str,
        /// The SDK's words.
        detail: String,
    },
    /// The credentials do not allow it.
    #[error("the AWS credentials do not allow {action}: allow it in the policy of this instance's role ({message})")]
    Forbidden {
        /// The permission that is missing, such as `ec2:DescribeInstances`.
        action: &'static str,
        /// AWS's words.
        message: String,
    },
    /// The credentials are wrong, too old, or of an account that may not use the region.
    #[error("AWS refuses the credentials ({code}: {message}); check them, the region, and this machine's clock")]
    BadCredentials {
        /// AWS's code.
        code: String,
        /// AWS's words.
        message: String,
    },
    /// Asked too often, by anybody in the account.
    #[error("AWS is asked too often by this account ({code}); will ask again")]
    Throttled {
        /// AWS's code.
        code: String,
    },
    /// Any other refusal.
    #[error("AWS answers {code}: {message}")]
    Refused {
        /// AWS's code.
        code: String,
        /// AWS's words.
        message: String,
    },
    /// No connection, or it broke.
    #[error("AWS cannot be reached: {detail}; check route and name resolution of this machine (proxies are not used)")]
    NoAnswer {
        /// What went wrong below HTTP.
        detail: String,
    },
    /// No answer in time.
    #[error("AWS did not answer within {:.0} s; check this machine's route to it (proxies are not used)", limit.as_secs_f64())]
    TimedOut {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The instance was not in the answer.
    #[error("EC2 left the instance out of its answer, as it does with instances of another account")]
    LeftOut,
    /// An answer that AWS would not give.
    #[error("the answer is not one of AWS: {detail}; check AWS_ENDPOINT_URL and what stands between")]
    Nonsense {
        /// What is wrong with it.
        detail: String,
    },
}

impl Error {
    /// What an error of the SDK means. `action` is the permission that the call needs.
    pub(crate) fn of<E, R>(action: &'static str, limit: Duration, error: SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        if let Some(code) = error.code().map(str::to_owned) {
            let message = quote(error.message().unwrap_or("no message"));
            let is_in = |codes: &[&str]| codes.contains(&code.as_str());
            return if is_in(&FORBIDDEN) {
                Self::Forbidden { action, message }
            } else if is_in(&BAD_CREDENTIALS) {
                Self::BadCredentials { code, message }
            } else if is_in(&THROTTLED) {
                Self::Throttled { code }
            } else {
                Self::Refused { code, message }
            };
        }
        let timed_out = matches!(&error, SdkError::TimeoutError(_))
            || matches!(&error, SdkError::DispatchFailure(failure) if failure.is_timeout());
        let detail = quote(&DisplayErrorContext(&error).to_string());
        match credentials(&error) {
            Some(CredentialsError::ProviderTimedOut(_)) => Self::TimedOut { limit },
            Some(failure) => Self::NoCredentials { action, detail: quote(&chain(failure)) },
            None if timed_out => Self::TimedOut { limit },
            None if matches!(&error, SdkError::ResponseError(_) | SdkError::ServiceError(_)) => {
                Self::Nonsense { detail }
            }
            None => Self::NoAnswer { detail: quote(&innermost(&error)) },
        }
    }
}

/// The error itself and all of its causes, the first cause last.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// What the SDK says about credentials, wherever in the error that stands.
fn credentials<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a CredentialsError> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// The first cause, which is the system's own word ("Connection refused").
fn innermost(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn quote(text: &str) -> String {
    if text.chars().count() <= LONGEST_QUOTE {
        return text.to_owned();
    }
    text.chars().take(LONGEST_QUOTE).chain("…".chars()).collect()
}
