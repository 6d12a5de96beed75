//! `[parking]`: where containers are parked, and with which key.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::units;

/// `[parking]`. Credentials of a bucket are those of the daemon's environment (`AWS_ACCESS_KEY_ID` and so on), else of a web identity,
/// of the container or of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parking {
    /// Where checkpoints are kept unless `--to` says otherwise: `s3://bucket/prefix` or `file:///directory`, without a slash at the end.
    /// Default: none, and nothing is parked or swept.
    #[serde(deserialize_with = "url")]
    pub url: Option<String>,
    /// The file with the key by which checkpoints are sealed before they leave this host: 64 hexadecimal digits (`openssl rand -hex 32`),
    /// readable for root alone, the same on every host that shall restore them. Default: `/etc/spothop/parking.key`.
    pub key_file: PathBuf,
    /// PEM file with authorities that a bucket's certificate is believed by, besides the system's. Default: none.
    pub ca_file: Option<PathBuf>,
    /// Checkpoints at [`Parking::url`] are removed so long after they were given away and restored; those that are a container's only copy
    /// are not. In units of time, such as `7d` or `36h`. Default: none, they are kept.
    #[serde(deserialize_with = "age")]
    pub retention: Option<Duration>,
    /// Parts of an object that are on their way at once, 1 to 64. Default: 4. Each takes 16 MiB of memory.
    #[serde(deserialize_with = "super::from_one_to_64")]
    pub concurrency: usize,
}

impl Default for Parking {
    fn default() -> Self {
        let key_file = PathBuf::from("/etc/spothop/parking.key");
        Self { url: None, key_file, ca_file: None, retention: None, concurrency: 4 }
    }
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    crate::parking::check_url(&text).map_err(de::Error::custom)?;
    Ok(Some(text))
}

/// A duration as everywhere, or whole days.
fn age<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    const DAY: u64 = 24 * 3600;
    let text = String::deserialize(from)?;
    let days = text.trim().strip_suffix('d').and_then(|days| days.trim().parse::<u64>().ok()?.checked_mul(DAY));
    let age = match days {
        Some(seconds) => Duration::from_secs(seconds),
        None => units::parse_duration(&text).map_err(de::Error::custom)?,
    };
    if age.is_zero() {
        return Err(de::Error::custom("must be longer than zero"));
    }
    Ok(Some(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Parking, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn days_and_all_other_durations_are_understood() {
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        assert_eq!(read("retention = '7d'").unwrap().retention, hours(7 * 24));
        assert_eq!(read("retention = '36h'").unwrap().retention, hours(36));
        assert_eq!(read("").unwrap(), Parking::default());
        for wrong in ["'0d'", "'7'", "'-1d'", "'d'", "7", "'99999999999999999999d'"] {
            read(&format!("retention = {wrong}")).unwrap_err();
        }
    }

    #[test]
    fn only_buckets_and_directories_are_places_to_park() {
        for good in ["s3://bucket", "s3://bucket/a/b", "file:///var/parked"] {
            assert_eq!(read(&format!("url = '{good}'")).unwrap().url.as_deref(), Some(good));
        }
        for wrong in ["", "bucket", "/var/parked", "http://x/y", "file://host/x", "s3:///x", "s3://bucket/", "file:///"]
        {
            assert!(read(&format!("url = '{wrong}'")).unwrap_err().to_string().contains("s3://"), "{wrong}");
        }
    }
}
