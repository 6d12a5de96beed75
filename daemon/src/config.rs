//! `/etc/spothop/config.toml`: what an operator may say about this host.
//!
//! Everything has a default, so an empty or absent file is a valid configuration of a host without peers. The file is
//! read in two steps: *parsed* (TOML, known keys, units; every error has its line and column) and then *validated*
//! (what only makes sense across keys: two peers of one name, this host among its own peers).

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

mod address;
pub mod capacity;
mod host;
pub mod inventory;
pub mod memory;
mod notice;
pub mod notification;
mod parking;
mod policy;
pub mod units;
pub mod webhook;

pub use address::Address;
pub(crate) use address::is_host_name;
pub use capacity::Capacity;
pub use host::Host;
pub use inventory::Inventory;
pub use memory::Memory;
pub use notice::{
    AwsNotice, AzureNotice, CloudChoice, GcpNotice, Likely, Notice, Others, Reclaim, Shutdown, SpotNotice, SqsNotice,
};
pub use notification::Notification;
pub use parking::Parking;
pub use policy::Policy;
pub use webhook::Webhook;

/// Where the configuration is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/spothop/config.toml";
/// The daemon's control socket unless `--socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/spothop/control.sock";
/// The one port on which spothop hosts listen for each other.
pub const DEFAULT_PORT: u16 = 7077;

/// A host's configuration, complete and validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Who this host is, and where it listens.
    pub host: Host,
    /// The hosts that containers may move to whatever [`Config::inventory`] says besides, in the file's order; names are unique and none is this host's.
    pub peers: Vec<Peer>,
    /// Where other hosts are known from.
    pub inventory: Inventory,
    /// What is launched when no host has room.
    pub capacity: Capacity,
    /// Certificates.
    pub tls: Tls,
    /// Where interruption notices come from.
    pub notice: Notice,
    /// Who else may tell of interruptions, by HTTPS.
    pub webhook: Webhook,
    /// Whom to tell what becomes of containers.
    pub notifications: Vec<Notification>,
    /// Clouds that may be asked about other hosts.
    pub provider: Provider,
    /// What this host allows itself.
    pub limits: Limits,
    /// The Docker engine.
    pub docker: Docker,
    /// How memory goes over.
    pub memory: Memory,
    /// How plans are made.
    pub policy: Policy,
    /// Where containers are parked.
    pub parking: Parking,
    /// Connections between hosts.
    pub transfer: Transfer,
    /// The programs that checkpoint and restore.
    pub criu: Criu,
}

/// One `[[peers]]` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its `host.name`; its certificate must say the same.
    pub name: String,
    /// Where it listens.
    pub address: Address,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Directory of `ca.pem`, `host.pem` and `host.key`. Default: `/etc/spothop/tls`.
    pub dir: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        Self { dir: PathBuf::from("/etc/spothop/tls") }
    }
}

/// `[provider]`: one table per cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// Amazon EC2's API.
    pub aws: AwsProvider,
}

/// `[provider.aws]`. Credentials, profiles and endpoints are those of AWS's own SDK.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AwsProvider {
    /// Whether to ask at all. Default: yes; EC2 is asked only about a source that is an instance of EC2 and silent.
    pub enabled: bool,
    /// Whether to ask what a machine of this host's type costs in its zone on the spot market, where [`Host::price`] does not say. Needs
    /// the permission `ec2:DescribeSpotPriceHistory`. Default: no.
    pub spot_price: bool,
    /// The instance types that are to be scored, this host's among them: how likely EC2 is to have one of them in this host's zone. Scores
    /// of fewer than three types are always low. Needs the permission `ec2:GetSpotPlacementScores`. Default: none; it is not asked.
    pub placement_types: Vec<String>,
}

impl Default for AwsProvider {
    fn default() -> Self {
        Self { enabled: true, spot_price: false, placement_types: Vec::new() }
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory that stay free on this host when it accepts containers. Default: 256 MiB.
    #[serde(deserialize_with = "units::bytes")]
    pub memory_reserve: u64,
    /// Migrations that run at the same time during an evacuation. Default: 2, so that one container can be prepared
    /// (image, files) while another one's memory has the link; more only make every transfer slower, and a half-sent
    /// container is worth nothing at the deadline.
    #[serde(deserialize_with = "from_one_to_64")]
    pub max_concurrent: usize,
    /// A migration without a notice is given up, and its container goes on here, when it has not committed after this
    /// long. Default: 15 minutes.
    #[serde(deserialize_with = "positive_duration")]
    pub manual_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_reserve: 256 << 20, max_concurrent: 2, manual_timeout: Duration::from_secs(15 * 60) }
    }
}

/// `[docker]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// Whether this host's Docker containers are spothop's business. Default: yes.
    pub enabled: bool,
    /// The engine's API socket. Default: `/var/run/docker.sock`.
    pub socket: PathBuf,
}

impl Default for Docker {
    fn default() -> Self {
        Self { enabled: true, socket: PathBuf::from("/var/run/docker.sock") }
    }
}

/// `[transfer]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transfer {
    /// Data connections per migration, 1 to 64. Default: 4; clouds limit one flow to a part of a machine's bandwidth.
    #[serde(deserialize_with = "from_one_to_64")]
    pub connections: usize,
}

impl Default for Transfer {
    fn default() -> Self {
        Self { connections: 4 }
    }
}

/// `[criu]`: programs, as paths or as names to look up in PATH.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Criu {
    /// CRIU itself. Default: `criu`.
    pub criu: PathBuf,
    /// runc, for checkpoints. Default: `runc`.
    pub runc: PathBuf,
}

impl Default for Criu {
    fn default() -> Self {
        Self { criu: PathBuf::from("criu"), runc: PathBuf::from("runc") }
    }
}

/// What can be wrong with a value that is good TOML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML, or a value of the wrong kind; the parser's own words.
    #[error("{0}")]
    Parse(String),
    /// A key, or a word where only certain words may stand, that does not exist.
    #[error("there is no {name} here; {advice}")]
    Unknown {
        /// What was written, and as what: "key `x`".
        name: String,
        /// What was meant, perhaps; else all that there are.
        advice: String,
    },
    /// A rule that does not do.
    #[error(transparent)]
    Rule(Box<spothop_policy::rules::RuleError>),
    /// A rule that does not say how much.
    #[error("say how much: seconds = 30, as many seconds of moving as it is worth")]
    RuleWithoutSeconds,
    /// A rule that says how much of what is no matter of more or less.
    #[error("`seconds` belongs to \"prefer\" and \"penalty\" only")]
    RuleWithSeconds,
    /// A negative amount, or one beyond sense.
    #[error("`seconds` is between 0 and 1000000000; \"prefer\" takes them off, \"penalty\" adds them")]
    RuleSeconds,
    /// A name that no certificate can carry.
    #[error(
        "`{0}` is not a host name; use letters, digits, `-` and `.`, 253 characters at most, as in its certificate"
    )]
    BadName(String),
    /// Not `HOST:PORT`.
    #[error(
        "`{0}` is not an address; write HOST:PORT, such as \"10.0.0.2:7077\", \"[fd00::2]:7077\" or \"b.example:7077\""
    )]
    BadAddress(String),
    /// Two peers of the same name.
    #[error("peer `{name}` is already defined on line {first_line}; give each host one [[peers]] entry")]
    DuplicatePeer {
        /// The name.
        name: String,
        /// Where it stands first.
        first_line: usize,
    },
    /// One sender's name twice.
    #[error("sender `{0}` is already defined; give each one [[webhook.senders]] entry")]
    DuplicateSender(String),
    /// A sender's name that cannot stand in a URL.
    #[error("`{0}` is not a sender's name; use letters, digits, `-` and `.`: it is the last part of its URL")]
    BadSender(String),
    /// `[webhook]` with a certificate and no key, or the other way round.
    #[error("cert and key in [webhook] go together: set both or none")]
    WebhookHalfIdentity,
    /// Notices by plain HTTP.
    #[error(
        "{0} can be reached from outside: set cert and key in [webhook], or listen on 127.0.0.1 behind a proxy that has them"
    )]
    WebhookInTheOpen(std::net::SocketAddr),
    /// A peer with this host's own name.
    #[error(
        "peer `{0}` has this host's own name; remove the entry, or set [host] name to what the others call this host"
    )]
    SelfAsPeer(String),
}

impl Problem {
    /// From the parser's words.
    fn of(message: &str) -> Self {
        let Some((what, name, known)) = unknown(message) else { return Self::Parse(message.to_owned()) };
        let advice = match spothop_policy::rules::nearest(name, known.iter().copied()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None if known.is_empty() => "there is none at all".to_owned(),
            None => format!("there are `{}`", known.join("`, `")),
        };
        Self::Unknown { name: format!("{what} `{name}`"), advice }
    }
}

/// What serde says of names that it does not know is "unknown field `x`, expected one of `a`, `b`": key or value, the name, and all
/// that there are.
fn unknown(message: &str) -> Option<(&'static str, &str, Vec<&str>)> {
    let what = match message {
        _ if message.starts_with("unknown field `") => "key",
        _ if message.starts_with("unknown variant `") => "value",
        _ => return None,
    };
    let mut names = message.split('`').skip(1).step_by(2);
    Some((what, names.next()?, names.collect()))
}

/// Where in the file a problem is: line and column count from 1, the column in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
    /// The text of that line, and below it a mark under the place.
    excerpt: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}; create it, or name another with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file's content is wrong at a place.
    #[error("{}:{}:{}: {problem}\n{}", path.display(), place.line, place.column, place.excerpt)]
    At {
        /// The file.
        path: PathBuf,
        /// Where.
        place: Place,
        /// What.
        problem: Problem,
    },
    /// The default taken from the system does not do.
    #[error("this machine's host name will not do: {problem}; set [host] name in {}", path.display())]
    HostName {
        /// What is wrong with it.
        problem: Problem,
        /// The file to say it in.
        path: PathBuf,
    },
}

/// The file as written; [`File::validate`] makes it a [`Config`].
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    host: host::Table,
    peers: Vec<PeerTable>,
    inventory: Inventory,
    capacity: Capacity,
    tls: Tls,
    notice: Notice,
    webhook: webhook::Table,
    notifications: Vec<Notification>,
    provider: Provider,
    limits: Limits,
    docker: Docker,
    memory: Memory,
    policy: policy::Table,
    parking: Parking,
    transfer: Transfer,
    criu: Criu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerTable {
    name: Spanned<String>,
    address: Address,
}

fn positive_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = units::duration(deserializer)?;
    if duration.is_zero() {
        return Err(de::Error::custom("must be longer than zero"));
    }
    Ok(duration)
}

fn from_one_to_64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = i64::deserialize(deserializer)?;
    usize::try_from(number)
        .ok()
        .filter(|n| (1..=64).contains(n))
        .ok_or_else(|| de::Error::custom(format_args!("{number} is not between 1 and 64")))
}

impl Config {
    /// Reads and checks a configuration file. `None` means [`DEFAULT_PATH`], which may be absent: then every value is its
    /// default. A path that somebody named must exist.
    ///
    /// # Errors
    /// [`ConfigError`]; its message has file, line, column and what to do.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound && !must_exist => String::new(),
            Err(source) => {
                return Err(ConfigError::Read { path: path.to_owned(), source });
            }
        };
        Self::parse(&text, path, &host::kernel_host_name())
    }

    /// Checks a configuration's text. `path` is only for messages; `host_name` is the name if the text gives none.
    ///
    /// # Errors
    /// [`ConfigError::At`] or [`ConfigError::HostName`].
    pub fn parse(text: &str, path: &Path, host_name: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::At {
            path: path.to_owned(),
            place: Place::of(text, &error.span().unwrap_or(0..0)),
            problem: Problem::of(error.message()),
        })?;
        file.validate(text, path, host_name)
    }

    /// The peer of that name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

impl File {
    fn validate(self, text: &str, path: &Path, host_name: &str) -> Result<Config, ConfigError> {
        let at = |name: &Spanned<String>, problem| ConfigError::At {
            path: path.to_owned(),
            place: Place::of(text, &name.span()),
            problem,
        };
        let policy = self.policy.validate(text).map_err(|(span, problem)| ConfigError::At {
            path: path.to_owned(),
            place: Place::of(text, &span),
            problem,
        })?;
        let webhook = self.webhook.validate().map_err(|(span, problem)| ConfigError::At {
            path: path.to_owned(),
            place: Place::of(text, &span),
            problem,
        })?;
        let host = self.host.validate(text, path, host_name)?;
        let mut lines = BTreeMap::new();
        for PeerTable { name, .. } in &self.peers {
            let problem = if !is_host_name(name.get_ref()) {
                Problem::BadName(name.get_ref().clone())
            } else if *name.get_ref() == host.name {
                Problem::SelfAsPeer(host.name)
            } else if let Some(&first_line) = lines.get(name.get_ref()) {
                Problem::DuplicatePeer { name: name.get_ref().clone(), first_line }
            } else {
                lines.insert(name.get_ref(), Place::of(text, &name.span()).line);
                continue;
            };
            return Err(at(name, problem));
        }
        Ok(Config {
            host,
            peers: self
                .peers
                .into_iter()
                .map(|peer| Peer { name: peer.name.into_inner(), address: peer.address })
                .collect(),
            inventory: self.inventory,
            capacity: self.capacity,
            tls: self.tls,
            notice: self.notice,
            webhook,
            notifications: self.notifications,
            provider: self.provider,
            limits: self.limits,
            docker: self.docker,
            memory: self.memory,
            policy,
            parking: self.parking,
            transfer: self.transfer,
            criu: self.criu,
        })
    }
}

impl Place {
    fn of(text: &str, span: &Range<usize>) -> Self {
        let start = text.floor_char_boundary(span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[..start].matches('\n').count() + 1;
        let content = text[line_start..].lines().next().unwrap_or_default();
        let column = text[line_start..start].chars().count() + 1;
        // The mark stays on its line even where the span goes on (a whole table).
        let end = text.floor_char_boundary(span.end).clamp(start, (line_start + content.len()).max(start));
        let width = text[start..end].chars().count().max(1);
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(column - 1);
        let mark = "^".repeat(width);
        Self { line, column, excerpt: format!("{gutter} |\n{number} | {content}\n{gutter} | {indent}{mark}") }
    }
}

#[cfg(test)]
mod tests;
