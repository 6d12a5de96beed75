//! `[capacity]`: what is launched when no host has room.

use serde::{Deserialize, Deserializer, de};

/// `[capacity]`: one table per cloud. Default: none; nothing is ever launched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// Amazon EC2.
    pub ec2: Option<Ec2>,
}

/// `[capacity.ec2]`. Credentials, profiles and endpoints are those of AWS's own SDK.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ec2 {
    /// The region, such as `eu-central-1`. No default.
    pub region: String,
    /// The launch template, by its id (`lt-…`) or its name: an image on which this daemon starts by itself and enters the inventory.
    /// No default.
    pub template: String,
    /// The template's version: a number, `$Default` or `$Latest`. Default: `$Default`.
    #[serde(default = "version")]
    pub version: String,
    /// Instance types that will do. Default: the template's.
    #[serde(default)]
    pub types: Vec<String>,
    /// Zones that will do. Default: that of the template.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Whether they may be taken back. Default: `spot-then-on-demand`.
    #[serde(default)]
    pub market: Market,
    /// Memory for containers on the smallest of them, in bytes, while they arrive: some less than half of what it has. No default.
    #[serde(deserialize_with = "room")]
    pub room: u64,
    /// A name, 1 to 256 characters: all hosts that give the same one have one budget, that of `max_instances` and `max_price`. Default:
    /// none; each host has its own.
    #[serde(default, deserialize_with = "fleet")]
    pub fleet: Option<String>,
    /// Instances that this host, or this fleet, may have launched and that still live, 1 to 100. No default.
    #[serde(deserialize_with = "one_to_100")]
    pub max_instances: u32,
    /// What all of them together may cost, in dollars an hour, such as `"1.25"`. No default.
    #[serde(deserialize_with = "dollars")]
    pub max_price: u64,
}

/// How instances are paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// By the spot price, or not at all.
    Spot,
    /// By the list.
    OnDemand,
    /// By the spot price; by the list where there are none.
    #[default]
    SpotThenOnDemand,
}

fn version() -> String {
    "$Default".to_owned()
}

fn room<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match super::units::bytes(deserializer)? {
        0 => Err(de::Error::custom("must be more than nothing")),
        bytes => Ok(bytes),
    }
}

/// A value of a tag (at most 256 characters: "Tag your Amazon EC2 resources" in the EC2 User Guide).
fn fleet<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    match name.chars().count() {
        1..=256 => Ok(Some(name)),
        _ => Err(de::Error::custom("must have 1 to 256 characters")),
    }
}

fn one_to_100<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let fits = u32::try_from(number).ok().filter(|number| (1..=100).contains(number));
    fits.ok_or_else(|| de::Error::custom(format_args!("{number} is not between 1 and 100")))
}

/// Dollars with up to six decimals, as millionths: money is not counted in floating point.
pub(super) fn dollars<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let micros = (digits(whole) && digits(part) && !whole.is_empty() && part.len() <= 6)
        .then(|| format!("{whole}{part:0<6}").parse::<u64>().ok())
        .flatten();
    micros.filter(|micros| *micros > 0).ok_or_else(|| {
        de::Error::custom(format_args!("`{text}` is not a price; write dollars an hour, such as \"1.25\""))
    })
}
