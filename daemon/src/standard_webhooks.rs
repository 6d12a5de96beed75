//! Standard Webhooks 1.0: how what is sent by a webhook is signed, in both directions.
//!
//! HMAC-SHA-256 of `id.timestamp.body`, in Base64, after `v1,`; several in one header while a secret is replaced. The timestamp is in seconds
//! since 1970.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::hmac::{HMAC_SHA256, Key, sign, verify};

/// The header with the id of an event, the same each time that it is sent.
pub(crate) const ID: &str = "webhook-id";
/// The header with the time at which it was signed.
pub(crate) const TIME: &str = "webhook-timestamp";
/// The header with the signatures.
pub(crate) const SIGNATURE: &str = "webhook-signature";

/// Of secrets.
const PREFIX: &str = "whsec_";

/// A secret that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSecret {
    /// There is none.
    #[error("there is no secret in it")]
    None,
    /// Not as Standard Webhooks has them.
    #[error("the secret on line {line} is not {PREFIX} and Base64, as Standard Webhooks has it")]
    NotStandard {
        /// Counted from 1.
        line: usize,
    },
}

/// What is signed with: any of several.
pub(crate) struct Secrets(Vec<Key>);

/// What a signature is of.
pub(crate) fn signed(id: &str, time: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", time.as_bytes(), b".", body].concat()
}

impl Secrets {
    /// From a file's text: one on each line; empty lines and those that begin with `#` are none. Those that are not `standard` are taken as
    /// they are.
    pub(crate) fn parse(text: &str, standard: bool) -> Result<Self, BadSecret> {
        let lines = text.lines().map(str::trim).enumerate();
        let secrets = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(n, line)| {
            if !standard {
                return Ok(Key::new(HMAC_SHA256, line.as_bytes()));
            }
            let key = line.strip_prefix(PREFIX).and_then(|key| BASE64_STANDARD.decode(key).ok());
            let key = key.filter(|key| !key.is_empty()).ok_or(BadSecret::NotStandard { line: n + 1 })?;
            Ok(Key::new(HMAC_SHA256, &key))
        });
        let secrets: Vec<Key> = secrets.collect::<Result<_, _>>()?;
        if secrets.is_empty() { Err(BadSecret::None) } else { Ok(Self(secrets)) }
    }

    /// Whether one of them has made `tag` of `message`; in constant time for each.
    pub(crate) fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.0.iter().any(|key| verify(key, message, tag).is_ok())
    }

    /// Whether `word` is one of them, in constant time: a key signs the same as another one only if it is the same.
    pub(crate) fn holds(&self, word: &str) -> bool {
        const PROBE: &[u8] = b"spothop webhook";
        let tag = sign(&Key::new(HMAC_SHA256, word.as_bytes()), PROBE);
        self.verify(PROBE, tag.as_ref())
    }

    /// The value of [`SIGNATURE`]: one signature with each.
    pub(crate) fn sign(&self, id: &str, time: &str, body: &[u8]) -> String {
        let message = signed(id, time, body);
        let one = |key: &Key| format!("v1,{}", BASE64_STANDARD.encode(sign(key, &message).as_ref()));
        self.0.iter().map(one).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the reference libraries.
    #[test]
    fn a_signature_is_as_others_make_it() {
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", true).unwrap();
        let signature = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let two = Secrets::parse("whsec_AAAA\nwhsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", true).unwrap();
        let both = two.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(both.split(' ').count(), 2);
        assert!(both.ends_with(&signature));
    }

    #[test]
    fn a_file_without_a_usable_secret_says_so() {
        let bad = |text, standard| Secrets::parse(text, standard).err();
        assert_eq!(bad("", false), Some(BadSecret::None));
        assert_eq!(bad("# nothing\n", true), Some(BadSecret::None));
        for wrong in ["plain", "whsec_", "whsec_!!"] {
            assert_eq!(bad(wrong, true), Some(BadSecret::NotStandard { line: 1 }), "{wrong}");
        }
    }
}
