//! Tencent Cloud CVM: the end of a spot instance, from the metadata service.
//!
//! From the CVM documentation, "Querying Spot Instance Repossession Status": `spot/termination-time` is absent (404) until the
//! instance is repossessed and then reads `2018-08-18 12:05:33`, "the OS time of the spot instance in UTC+8", two minutes ahead.
//! The service has no tokens. From "Instance Metadata": it is `metadata.tencentyun.com`, which is 169.254.0.23; instances are
//! called `ins-` and eight characters.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::offset;

use super::Cloud;
use super::detect::Probe;
use super::metadata::Dialect;
use super::termination::Place;

/// Tencent's metadata service.
const DIALECT: Dialect = Dialect { service: "Tencent Cloud", request: None, answer: None, tokens: None };
const INSTANCE_ID: &str = "latest/meta-data/instance-id";

/// By its address and its id.
pub(super) static PROBE: Probe =
    Probe { dialect: &DIALECT, path: INSTANCE_ID, query: &[], is_it: |body| body.trim().starts_with("ins-") };

/// Where the time is, and how it is written.
pub(super) static PLACE: Place = Place {
    cloud: Cloud::Tencent,
    name: "tencent",
    dialect: &DIALECT,
    instance_id: INSTANCE_ID,
    termination_time: "latest/meta-data/spot/termination-time",
    parse,
};

/// A time without a zone is one of UTC+8, wherever the instance is and whatever its own zone. One that has a zone means it.
fn parse(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let time: DateTime = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    offset(8).to_timestamp(time).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_zone_is_eight_hours_ahead_of_utc() {
        let utc = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(parse("2018-08-18 12:05:33"), Ok(utc("2018-08-18T04:05:33Z")));
        assert_eq!(parse("2018-08-18 02:05:33"), Ok(utc("2018-08-17T18:05:33Z")));
        assert_eq!(parse("2018-08-18T04:05:33Z"), Ok(utc("2018-08-18T04:05:33Z")));
        assert_eq!(parse("2018-08-18T12:05:33+08:00"), Ok(utc("2018-08-18T04:05:33Z")));
        for wrong in ["", "soon", "12:05:33", "2018-13-18 12:05:33", "1534565133"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
