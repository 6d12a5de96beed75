//! `[[notifications]]`: whom this host tells what becomes of its containers.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

/// One `[[notifications]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notification {
    /// Where to send it: `https://`, or `http://` for what is on this machine.
    #[serde(deserialize_with = "url")]
    pub url: String,
    /// How it is sent. Default: `standard`.
    #[serde(default)]
    pub format: Format,
    /// With `standard`: the secrets to sign with, one on each line; several while one is replaced. With `spotio`: the token. Readable for root alone.
    pub secret_file: PathBuf,
    /// PEM file with the authorities that the receiver's certificate is from. Default: those that this machine believes.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What to tell, with `standard`. Default: everything.
    #[serde(default)]
    pub events: Option<Vec<Kind>>,
}

/// How something is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// As docs/webhooks.md describes, signed as Standard Webhooks has it.
    #[default]
    Standard,
    /// Spot.io's signal that an instance may be shut down, and nothing else.
    Spotio,
}

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Kind {
    /// Somebody says that this host will, or may, be taken away.
    #[serde(rename = "notice.received")]
    NoticeReceived,
    /// That was taken back.
    #[serde(rename = "notice.withdrawn")]
    NoticeWithdrawn,
    /// Containers begin to leave.
    #[serde(rename = "evacuation.started")]
    EvacuationStarted,
    /// No container is left.
    #[serde(rename = "evacuation.finished")]
    EvacuationFinished,
    /// The time is over, and some are.
    #[serde(rename = "evacuation.failed")]
    EvacuationFailed,
    /// A container runs elsewhere, or is parked.
    #[serde(rename = "container.moved")]
    ContainerMoved,
    /// A container goes on here.
    #[serde(rename = "container.stayed")]
    ContainerStayed,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoticeReceived => "notice.received",
            Self::NoticeWithdrawn => "notice.withdrawn",
            Self::EvacuationStarted => "evacuation.started",
            Self::EvacuationFinished => "evacuation.finished",
            Self::EvacuationFailed => "evacuation.failed",
            Self::ContainerMoved => "container.moved",
            Self::ContainerStayed => "container.stayed",
        }
    }
}

impl Notification {
    /// Whether this receiver is told of that.
    #[must_use]
    pub fn wants(&self, kind: Kind) -> bool {
        match self.format {
            Format::Standard => self.events.as_ref().is_none_or(|events| events.contains(&kind)),
            Format::Spotio => kind == Kind::EvacuationFinished,
        }
    }
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let url = String::deserialize(deserializer)?;
    let good = url.parse::<http::Uri>().ok().filter(|uri| {
        let is_local = uri.host().is_some_and(|host| {
            host == "localhost"
                || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        uri.scheme_str() == Some("https") && uri.host().is_some() || uri.scheme_str() == Some("http") && is_local
    });
    match good {
        Some(_) => Ok(url),
        None => Err(de::Error::custom(format_args!(
            "`{url}` is no URL to tell something; it is https:// and a host, or http:// and this machine"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str, more: &str) -> Result<Notification, toml::de::Error> {
        toml::from_str(&format!("url = '{url}'\nsecret_file = '/s'\n{more}"))
    }

    #[test]
    fn nothing_is_told_in_the_open() {
        for good in ["https://x.example/hook?a=b", "http://127.0.0.1:80/", "http://[::1]:1/x", "http://localhost/"] {
            read(good, "").unwrap();
        }
        for wrong in ["http://x.example/", "x.example", "ftp://x/", "https://", ""] {
            assert!(read(wrong, "").unwrap_err().to_string().contains("https://"), "{wrong}");
        }
    }

    #[test]
    fn receivers_get_what_they_want_to_hear() {
        let all = read("https://x/", "").unwrap();
        assert!(all.wants(Kind::NoticeReceived) && all.wants(Kind::ContainerStayed));
        let some = read("https://x/", "events = ['container.moved']").unwrap();
        assert!(some.wants(Kind::ContainerMoved) && !some.wants(Kind::NoticeReceived));
        let spotio = read("https://x/", "format = 'spotio'").unwrap();
        assert!(spotio.wants(Kind::EvacuationFinished) && !spotio.wants(Kind::ContainerMoved));
        assert!(read("https://x/", "events = ['lunch']").is_err());
    }
}
