//! `[webhook]`: who may tell this host by HTTPS that it will be taken away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{Problem, is_host_name, units};

/// `[webhook]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where to listen. Default: nowhere.
    pub listen: Option<SocketAddr>,
    /// PEM files with the certificate that senders are shown (its chain too) and its key. Only a loopback address goes without, for
    /// a proxy on this machine that has them.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Requests a minute from one address, whatever they are. Default: 60; more are answered 429.
    pub rate: NonZeroU32,
    /// Who may send; names are unique.
    pub senders: Vec<Sender>,
}

/// One `[[webhook.senders]]` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The last part of its URL, `/v1/webhooks/NAME`.
    pub name: String,
    /// How it shows that it is who it is.
    pub signature: Signature,
    /// Its secrets, one on each line; any of them will do, so that they can be replaced. Readable for root alone.
    pub secret_file: PathBuf,
    /// In which header the signature or the secret is, where that is to be said.
    pub header: Option<String>,
    /// Where in its body what stands.
    pub fields: Fields,
    /// What its words for events mean; those that are not in here mean nothing.
    pub events: BTreeMap<String, Meaning>,
    /// From an event to the end of the host, where the body does not say when that is. Default: none, it may be at once.
    pub lead: Option<Duration>,
}

/// How a sender shows that it is who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signature {
    /// Standard Webhooks: a signature of id, time and body in headers of their own.
    #[default]
    Standard,
    /// As GitHub's: `sha256=` and HMAC-SHA-256 of the body, in hexadecimal digits, in a header.
    Github,
    /// The secret itself in a header.
    Header,
    /// The secret itself as one more part of the URL.
    Path,
}

/// What an event means for the host that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Meaning {
    /// It will be deleted.
    Terminate,
    /// It will be switched off.
    Stop,
    /// Its memory will be saved and it will be switched off.
    Hibernate,
    /// It will be started anew.
    Reboot,
    /// It is likelier than usual that it is taken away.
    Likely,
    /// Nothing of all that any more.
    Withdrawn,
}

/// Where in a body what stands, as JSON pointers (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// The word for the event.
    pub event: String,
    /// The host that it is about.
    pub instance: String,
    /// The event's id. Without one, events of the same body are the same; Standard Webhooks have it in a header.
    pub id: Option<String>,
    /// When the host is taken away, in RFC 3339.
    pub deadline: Option<String>,
    /// When the event was made, in RFC 3339. One that is too old is refused.
    pub time: Option<String>,
}

/// Whose events a body carries, before what `fields` and `events` say otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    /// As docs/webhooks.md describes.
    #[default]
    Spothop,
    /// Spot.io's, in the form that its documentation gives for subscriptions.
    Spotio,
}

impl Format {
    fn fields(self) -> Fields {
        let pointer = |text: &str| Some(text.to_owned());
        match self {
            Self::Spothop => Fields {
                event: "/type".to_owned(),
                instance: "/data/instance".to_owned(),
                id: None,
                deadline: pointer("/data/deadline"),
                time: pointer("/timestamp"),
            },
            Self::Spotio => Fields {
                event: "/event".to_owned(),
                instance: "/instance_id".to_owned(),
                id: None,
                deadline: None,
                time: None,
            },
        }
    }

    fn events(self) -> BTreeMap<String, Meaning> {
        let words: &[(&str, Meaning)] = match self {
            Self::Spothop => &[
                ("instance.terminate", Meaning::Terminate),
                ("instance.stop", Meaning::Stop),
                ("instance.hibernate", Meaning::Hibernate),
                ("instance.reboot", Meaning::Reboot),
                ("instance.likely", Meaning::Likely),
                ("instance.withdrawn", Meaning::Withdrawn),
            ],
            Self::Spotio => &[("AWS_EC2_INSTANCE_TERMINATE", Meaning::Terminate)],
        };
        words.iter().map(|&(word, meaning)| (word.to_owned(), meaning)).collect()
    }
}

/// `[webhook]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Table {
    listen: Option<Spanned<SocketAddr>>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    rate: Option<NonZeroU32>,
    senders: Vec<SenderTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SenderTable {
    name: Spanned<String>,
    #[serde(default)]
    signature: Signature,
    secret_file: PathBuf,
    #[serde(default, deserialize_with = "header_name")]
    header: Option<String>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    fields: FieldTable,
    #[serde(default)]
    events: BTreeMap<String, Meaning>,
    #[serde(default, deserialize_with = "some_duration")]
    lead: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FieldTable {
    #[serde(deserialize_with = "pointer")]
    event: Option<String>,
    #[serde(deserialize_with = "pointer")]
    instance: Option<String>,
    #[serde(deserialize_with = "pointer")]
    id: Option<String>,
    #[serde(deserialize_with = "pointer")]
    deadline: Option<String>,
    #[serde(deserialize_with = "pointer")]
    time: Option<String>,
}

impl FieldTable {
    fn over(self, preset: Fields) -> Fields {
        Fields {
            event: self.event.unwrap_or(preset.event),
            instance: self.instance.unwrap_or(preset.instance),
            id: self.id.or(preset.id),
            deadline: self.deadline.or(preset.deadline),
            time: self.time.or(preset.time),
        }
    }
}

impl Table {
    /// The table, or what is wrong and where.
    pub(super) fn validate(self) -> Result<Webhook, (std::ops::Range<usize>, Problem)> {
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err((at(self.listen.as_ref()), Problem::WebhookHalfIdentity)),
        };
        if let Some(listen) = &self.listen
            && identity.is_none()
            && !listen.get_ref().ip().is_loopback()
        {
            return Err((listen.span(), Problem::WebhookInTheOpen(*listen.get_ref())));
        }
        let mut senders: Vec<Sender> = Vec::with_capacity(self.senders.len());
        for table in self.senders {
            let sender = table.validate()?;
            if senders.iter().any(|other| other.name == sender.1.name) {
                return Err((sender.0, Problem::DuplicateSender(sender.1.name)));
            }
            senders.push(sender.1);
        }
        let listen = self.listen.map(Spanned::into_inner);
        Ok(Webhook { listen, identity, rate: self.rate.unwrap_or(Webhook::RATE), senders })
    }
}

fn at<T>(place: Option<&Spanned<T>>) -> std::ops::Range<usize> {
    place.map_or(0..0, Spanned::span)
}

impl Webhook {
    const RATE: NonZeroU32 = NonZeroU32::new(60).expect("not zero");
}

impl Default for Webhook {
    fn default() -> Self {
        Self { listen: None, identity: None, rate: Self::RATE, senders: Vec::new() }
    }
}

impl SenderTable {
    fn validate(self) -> Result<(std::ops::Range<usize>, Sender), (std::ops::Range<usize>, Problem)> {
        let span = self.name.span();
        let name = self.name.into_inner();
        // It is a part of a URL and of the ids of notices.
        if !is_host_name(&name) {
            return Err((span, Problem::BadSender(name)));
        }
        let mut events = self.format.events();
        events.extend(self.events);
        let sender = Sender {
            name,
            signature: self.signature,
            secret_file: self.secret_file,
            header: self.header,
            fields: self.fields.over(self.format.fields()),
            events,
            lead: self.lead,
        };
        Ok((span, sender))
    }
}

fn header_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    match axum::http::HeaderName::try_from(&name) {
        Ok(name) => Ok(Some(name.as_str().to_owned())),
        Err(_) => Err(de::Error::custom(format_args!("`{name}` is not the name of a header"))),
    }
}

fn pointer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.starts_with('/') {
        true => Ok(Some(text)),
        false => {
            Err(de::Error::custom(format_args!("`{text}` is not a JSON pointer, such as \"/detail/instance-id\"")))
        }
    }
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    units::duration(deserializer).map(Some)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn read(text: &str) -> Result<Webhook, String> {
        let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        table.validate().map_err(|(_, problem)| problem.to_string())
    }

    #[test]
    fn a_sender_needs_a_name_and_a_secret_and_the_rest_has_defaults() {
        assert_eq!(read("").unwrap(), Webhook::default());
        let text = "[[senders]]\nname = 'saas'\nsecret_file = '/s'";
        let sender = read(text).unwrap().senders.remove(0);
        assert_eq!((sender.signature, sender.fields), (Signature::Standard, Format::Spothop.fields()));
        assert_eq!(sender.events, Format::Spothop.events());
        for wrong in ["name = 'a b'\nsecret_file = '/s'", "name = 'x/y'\nsecret_file = '/s'", "name = 'saas'"] {
            read(&format!("[[senders]]\n{wrong}")).unwrap_err();
        }
        assert!(read(&format!("{text}\n{text}")).unwrap_err().contains("`saas`"));
    }

    #[test]
    fn what_is_written_goes_over_the_format_s_own() {
        let text = "[[senders]]\nname = 's'\nsecret_file = '/s'\nformat = 'spotio'\nlead = '2m'\n\
                    [senders.fields]\ndeadline = '/at'\n[senders.events]\nGONE = 'stop'";
        let sender = read(text).unwrap().senders.remove(0);
        assert_eq!((sender.fields.event.as_str(), sender.fields.deadline.as_deref()), ("/event", Some("/at")));
        assert_eq!(sender.events.len(), 2);
        assert_eq!((sender.events["GONE"], sender.lead), (Meaning::Stop, Some(Duration::from_secs(120))));
        assert!(read(&text.replace("'/at'", "'at'")).unwrap_err().contains("JSON pointer"));
    }

    #[test]
    fn only_a_loopback_address_goes_without_a_certificate() {
        read("listen = '127.0.0.1:8080'").unwrap();
        assert!(read("listen = '0.0.0.0:8443'").unwrap_err().contains("cert"));
        assert!(read("listen = '0.0.0.0:8443'\ncert = '/c'").unwrap_err().contains("key"));
        read("listen = '0.0.0.0:8443'\ncert = '/c'\nkey = '/k'").unwrap();
    }
}
