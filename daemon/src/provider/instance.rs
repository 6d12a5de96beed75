//! Which machine of a cloud a host is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::notice::Cloud;

/// An instance, as its cloud's API finds it again. Its parts become parts of host names and requests, and they come from
/// another host or a metadata service: what does not look as the cloud's own is no instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Instance {
    cloud: Cloud,
    account: String,
    region: String,
    id: String,
}

#[derive(Deserialize)]
struct Unchecked {
    cloud: Cloud,
    account: String,
    region: String,
    id: String,
}

/// What does not look like an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInstance {
    /// One of its parts.
    #[error("{value:?} is not {what} of {cloud}")]
    Part {
        /// Whose it should be.
        cloud: Cloud,
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// A cloud whose instances have no form here yet.
    #[error("instances of {cloud} cannot be told yet")]
    Cloud {
        /// Which.
        cloud: Cloud,
    },
}

impl Instance {
    /// An instance of EC2: the account's twelve digits, a region such as `eu-central-1`, and `i-` with 17 (before 2016: 8)
    /// hexadecimal digits (Amazon EC2 User Guide, "Resource IDs").
    ///
    /// # Errors
    /// A part that is not of this form.
    pub fn aws(account: &str, region: &str, id: &str) -> Result<Self, BadInstance> {
        let bad = |what, value: &str| {
            Err(BadInstance::Part { cloud: Cloud::Aws, what, value: value.chars().take(64).collect() })
        };
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return bad("an account", account);
        }
        if !is_aws_region(region) {
            return bad("a region", region);
        }
        let digits = id.strip_prefix("i-").unwrap_or_default();
        if ![8, 17].contains(&digits.len()) || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return bad("an instance id", id);
        }
        let (account, region, id) = (account.to_owned(), region.to_owned(), id.to_owned());
        Ok(Self { cloud: Cloud::Aws, account, region, id })
    }

    /// Whose machine it is.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        self.cloud
    }

    /// The customer's account: AWS's twelve digits.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The region, such as `eu-central-1`.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The cloud's id of it, such as `i-1234567890abcdef0`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl TryFrom<Unchecked> for Instance {
    type Error = BadInstance;

    fn try_from(Unchecked { cloud, account, region, id }: Unchecked) -> Result<Self, BadInstance> {
        match cloud {
            Cloud::Aws => Self::aws(&account, &region, &id),
            _ => Err(BadInstance::Cloud { cloud }),
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} in {}", self.cloud, self.id, self.region)
    }
}

/// Letters, one or more names, a number: `us-gov-west-1`.
fn is_aws_region(region: &str) -> bool {
    let parts: Vec<&str> = region.split('-').collect();
    let Some((number, names)) = parts.split_last() else { return false };
    let is = |text: &str, kind: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|byte| kind(&byte));
    region.len() <= 32
        && names.len() >= 2
        && is(number, u8::is_ascii_digit)
        && names.iter().all(|name| is(name, u8::is_ascii_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "i-1234567890abcdef0";

    #[test]
    fn an_instance_survives_the_wire_and_reads_as_a_phrase() {
        let instance = Instance::aws("123456789012", "us-gov-west-1", ID).unwrap();
        let text = serde_json::to_string(&instance).unwrap();
        assert_eq!(serde_json::from_str::<Instance>(&text).unwrap(), instance);
        assert_eq!(instance.to_string(), "aws i-1234567890abcdef0 in us-gov-west-1");
        assert!(Instance::aws("123456789012", "eu-central-1", "i-1234abcd").is_ok());
    }

    #[test]
    fn what_would_go_into_a_host_name_or_a_request_is_no_instance() {
        for region in
            ["", "eu", "eu-1", "eu-central", "eu-central-1.evil.example", "eu-central-1/", "x@y-z-1", "EU-CENTRAL-1"]
        {
            assert!(Instance::aws("123456789012", region, ID).is_err(), "{region:?}");
        }
        for id in ["", "i-", "i-1234", "1234567890abcdef0", "i-1234567890ABCDEF0", "i-1234567890abcdef0&x=1", "unknown"]
        {
            assert!(Instance::aws("123456789012", "eu-central-1", id).is_err(), "{id:?}");
        }
        for account in ["", "12345678901", "1234567890123", "12345678901x"] {
            assert!(Instance::aws(account, "eu-central-1", ID).is_err(), "{account:?}");
        }
    }

    #[test]
    fn a_peer_cannot_send_what_could_not_be_made_here() {
        let sent = |cloud: &str, region: &str| {
            let text = format!(r#"{{"cloud":"{cloud}","account":"123456789012","region":"{region}","id":"{ID}"}}"#);
            serde_json::from_str::<Instance>(&text).map_err(|error| error.to_string())
        };
        assert!(sent("aws", "eu-central-1").is_ok());
        assert!(sent("aws", "x.evil.example/-1").unwrap_err().contains("is not a region of aws"));
        assert!(sent("gcp", "eu-central-1").unwrap_err().contains("cannot be told yet"));
    }
}
