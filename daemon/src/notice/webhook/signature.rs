//! Whether a request comes from whom it says.
//!
//! | `signature` | what is compared |
//! |---|---|
//! | `standard` | Standard Webhooks 1.0: `webhook-signature` has one or more `v1,BASE64`, HMAC-SHA-256 of `id.timestamp.body`; `webhook-timestamp` is within five minutes |
//! | `github` | `sha256=HEX`, HMAC-SHA-256 of the body ("Validating webhook deliveries" in GitHub's documentation) |
//! | `header`, `path` | the secret itself |
//!
//! Only the first says when a request was signed: what was sent by the others can be sent again by whoever has seen it, for as long as the
//! secret holds.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};

use crate::config::webhook::{Sender, Signature};
use crate::hex;
use crate::standard_webhooks::{ID, SIGNATURE, Secrets, TIME, signed};

/// "Within the tolerance of five minutes", as all libraries of Standard Webhooks have it.
pub(super) const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Forged {
    /// What should show who it comes from is not there.
    #[error("there is no {what}")]
    Missing {
        /// A header, or a part of the URL.
        what: String,
    },
    /// It is no signature at all, or no time.
    #[error("{what} is malformed")]
    Malformed {
        /// A header.
        what: String,
    },
    /// It was signed long ago, or the clocks differ.
    #[error("webhook-timestamp is {seconds} s away from this host's clock; five minutes are allowed")]
    Time {
        /// So far; negative before it.
        seconds: i64,
    },
    /// It does not fit any secret.
    #[error("it fits none of the secrets of this sender")]
    Mismatch,
}

/// A request, as far as it is signed.
pub(super) struct Signed<'a> {
    pub(super) headers: &'a HeaderMap,
    /// What follows the sender's name in the URL.
    pub(super) token: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl Signed<'_> {
    /// Says who it comes from.
    pub(super) fn check(&self, sender: &Sender, secrets: &Secrets, now: Timestamp) -> Result<(), Forged> {
        let header = |default| sender.header.as_deref().unwrap_or(default);
        let fits = match sender.signature {
            Signature::Standard => return self.standard(secrets, now),
            Signature::Github => {
                let name = header("x-hub-signature-256");
                let digits = self.header(name)?.strip_prefix("sha256=");
                let tag = digits.and_then(hex::decode).ok_or_else(|| Forged::Malformed { what: name.to_owned() })?;
                secrets.verify(self.body, &tag)
            }
            Signature::Header => secrets.holds(self.header(header("authorization"))?),
            Signature::Path => {
                secrets.holds(self.token.ok_or_else(|| Forged::Missing { what: "secret in the URL".to_owned() })?)
            }
        };
        if fits { Ok(()) } else { Err(Forged::Mismatch) }
    }

    fn standard(&self, secrets: &Secrets, now: Timestamp) -> Result<(), Forged> {
        let (id, time) = (self.header(ID)?, self.header(TIME)?);
        let seconds: i64 = time.parse().map_err(|_| Forged::Malformed { what: TIME.to_owned() })?;
        let off = seconds.saturating_sub(now.as_second());
        if off.unsigned_abs() > TOLERANCE.as_secs().unsigned_abs() {
            return Err(Forged::Time { seconds: off });
        }
        let message = signed(id, time, self.body);
        // Others than v1 are those of public keys, and of what is yet to come.
        let tags = self.header(SIGNATURE)?.split(' ').filter_map(|one| one.strip_prefix("v1,"));
        let fits = |tag: &str| BASE64_STANDARD.decode(tag).is_ok_and(|tag| secrets.verify(&message, &tag));
        if tags.into_iter().any(fits) { Ok(()) } else { Err(Forged::Mismatch) }
    }

    fn header(&self, name: &str) -> Result<&str, Forged> {
        let value = self.headers.get(name).ok_or_else(|| Forged::Missing { what: format!("header {name}") })?;
        value.to_str().map_err(|_| Forged::Malformed { what: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const RIGHT: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const SENT: i64 = 1_614_265_330;

    fn sender(signature: Signature, header: Option<&str>) -> Sender {
        let text = "[[senders]]\nname = 's'\nsecret_file = '/s'";
        let mut sender = crate::config::webhook::tests::read(text).unwrap().senders.remove(0);
        sender.signature = signature;
        sender.header = header.map(str::to_owned);
        sender
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn check(
        sender: &Sender,
        secrets: &str,
        pairs: &[(&'static str, &str)],
        body: &[u8],
        now: i64,
    ) -> Result<(), Forged> {
        let secrets = Secrets::parse(secrets, sender.signature == Signature::Standard).unwrap();
        let signed = Signed { headers: &headers(pairs), token: None, body };
        signed.check(sender, &secrets, Timestamp::from_second(now).unwrap())
    }

    /// The vector of the reference libraries of Standard Webhooks.
    #[test]
    fn a_standard_signature_is_of_id_time_and_body() {
        let standard = sender(Signature::Standard, None);
        let ask = |secrets: &str, id: &str, time: &str, signatures: &str, body: &[u8], now| {
            check(&standard, secrets, &[(ID, id), (TIME, time), (SIGNATURE, signatures)], body, now)
        };
        let (id, time) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330");
        assert_eq!(ask(SECRET, id, time, RIGHT, BODY, SENT), Ok(()));
        // Any secret, any signature, up to five minutes before and after.
        let two = format!("# new\nwhsec_AAAA\n\n{SECRET}\n");
        assert_eq!(ask(&two, id, time, &format!("v1a,x v1,AAAA {RIGHT}"), BODY, SENT + 300), Ok(()));
        assert_eq!(ask(SECRET, id, time, RIGHT, BODY, SENT - 300), Ok(()));
        assert_eq!(ask(SECRET, id, time, RIGHT, BODY, SENT + 301), Err(Forged::Time { seconds: -301 }));
        assert_eq!(ask(SECRET, id, time, RIGHT, BODY, SENT - 301), Err(Forged::Time { seconds: 301 }));
        let forged = Err(Forged::Mismatch);
        assert_eq!(ask("whsec_AAAA", id, time, RIGHT, BODY, SENT), forged);
        assert_eq!(ask(SECRET, "msg_other", time, RIGHT, BODY, SENT), forged);
        assert_eq!(ask(SECRET, id, "1614265331", RIGHT, BODY, SENT), forged);
        assert_eq!(ask(SECRET, id, time, RIGHT, b"{}", SENT), forged);
        assert_eq!(ask(SECRET, id, time, &RIGHT.replace("v1,", "v2,"), BODY, SENT), forged);
        assert_eq!(ask(SECRET, id, time, "", BODY, SENT), forged);
        assert!(matches!(ask(SECRET, id, "soon", RIGHT, BODY, SENT), Err(Forged::Malformed { .. })));
        let missing = check(&standard, SECRET, &[(ID, id), (TIME, time)], BODY, SENT);
        assert_eq!(missing, Err(Forged::Missing { what: "header webhook-signature".to_owned() }));
    }

    /// The vector of GitHub's documentation.
    #[test]
    fn github_signs_the_body() {
        let (secret, body) = ("It's a Secret to Everybody", b"Hello, World!");
        let right = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let github = sender(Signature::Github, None);
        let ask = |value: &str, body: &[u8]| check(&github, secret, &[("x-hub-signature-256", value)], body, SENT);
        assert_eq!(ask(right, body), Ok(()));
        assert_eq!(ask(right, b"Hello, World?"), Err(Forged::Mismatch));
        assert_eq!(ask("sha256=00", body), Err(Forged::Mismatch));
        for malformed in ["", "757107", "sha1=757107", "sha256=7", "sha256=zz"] {
            assert!(matches!(ask(malformed, body), Err(Forged::Malformed { .. })), "{malformed}");
        }
        let elsewhere = sender(Signature::Github, Some("x-signature"));
        assert_eq!(check(&elsewhere, secret, &[("x-signature", right)], body, SENT), Ok(()));
    }

    #[test]
    fn a_secret_itself_may_be_in_a_header_or_in_the_url() {
        let header = sender(Signature::Header, None);
        let ask = |value: &str| check(&header, "Bearer one\nBearer two", &[("authorization", value)], b"", SENT);
        assert_eq!((ask("Bearer one"), ask("Bearer two")), (Ok(()), Ok(())));
        assert_eq!((ask("Bearer"), ask("")), (Err(Forged::Mismatch), Err(Forged::Mismatch)));
        let path = sender(Signature::Path, None);
        let secrets = Secrets::parse("one", false).unwrap();
        let ask = |token| {
            let signed = Signed { headers: &HeaderMap::new(), token, body: b"" };
            signed.check(&path, &secrets, Timestamp::UNIX_EPOCH)
        };
        assert_eq!((ask(Some("one")), ask(Some("on"))), (Ok(()), Err(Forged::Mismatch)));
        assert!(matches!(ask(None), Err(Forged::Missing { .. })));
    }
}
