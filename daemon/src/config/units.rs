//! Durations and sizes as people write them: `120s`, `1m 30s`, `512MiB`, `1.5 GB`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A string that is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Neither number and unit nor a sum of such.
    #[error("`{0}` is not a duration; write a number with its unit, such as \"120s\", \"500ms\" or \"1m 30s\"")]
    Duration(String),
    /// Not a number, or a number with an unknown unit.
    #[error("`{0}` is not a size; write a number with its unit, such as \"512MiB\", \"1.5GiB\" or \"2GB\"")]
    Size(String),
}

/// Units of size: name in lower case, bytes.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

/// Reads a duration such as `120s`, `500ms`, `1m 30s`, `1.5h`. The number needs its unit; negative ones are refused.
///
/// # Errors
/// [`UnitError::Duration`] with the text as it was.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    text.trim()
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|signed| Duration::try_from(signed).ok())
        .ok_or_else(|| UnitError::Duration(text.to_owned()))
}

/// Reads a size in bytes such as `0`, `4096B`, `512MiB`, `1.5GiB`, `2 GB`. Units are binary (KiB…) or decimal (kB…),
/// whatever their case; only zero may go without.
///
/// # Errors
/// [`UnitError::Size`] with the text as it was.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let error = || UnitError::Size(text.to_owned());
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(0);
    }
    let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(error)?;
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.to_ascii_lowercase();
    let factor = SIZE_UNITS.iter().find_map(|(name, factor)| (*name == unit).then_some(*factor)).ok_or_else(error)?;
    let number = number.trim();
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(error);
    }
    // Digits and one point only: f64's parser would also take "inf", "nan", "1e3" and signs.
    if !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(error());
    }
    let fraction: f64 = number.parse().map_err(|_| error())?;
    let bytes = fraction * factor as f64;
    // Above 2^53 a fraction of a byte no longer exists; nobody configures 9 PB of anything.
    if bytes >= 9e15 {
        return Err(error());
    }
    Ok(bytes as u64)
}

/// `35 ms`, `1.25 s`, `2m 05s`, `1h 02m`: what a reader of a timeline wants.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs();
    if millis < 1_000 {
        format!("{millis} ms")
    } else if seconds < 60 {
        format!("{:.2} s", duration.as_secs_f64())
    } else if seconds < 3_600 {
        format!("{}m {:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60)
    }
}

/// For `#[serde(deserialize_with = …)]`: a duration written as a string.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// For `#[serde(deserialize_with = …)]`: a size written as a string.
pub(super) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in
            [("120s", 120_000), ("500ms", 500), ("1m 30s", 90_000), ("2m", 120_000), ("0s", 0), (" 1.5s ", 1_500)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_duration_needs_a_unit_and_no_sign() {
        for text in ["120", "", "-3s", "s", "3 parsecs"] {
            assert_eq!(parse_duration(text), Err(UnitError::Duration(text.to_owned())));
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096B", 4_096),
            ("512MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2 GB", 2_000_000_000),
            ("1kib", 1_024),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_size_needs_a_known_unit_and_must_fit() {
        for text in ["512", "", "GiB", "-1GiB", "1e3MiB", "infGiB", "1.2.3MiB", "99999999999TiB", "3 cm"] {
            assert_eq!(parse_bytes(text), Err(UnitError::Size(text.to_owned())));
        }
    }

    #[test]
    fn durations_are_shown_briefly() {
        assert_eq!(show_duration(Duration::from_millis(35)), "35 ms");
        assert_eq!(show_duration(Duration::from_millis(1_250)), "1.25 s");
        assert_eq!(show_duration(Duration::from_secs(125)), "2m 05s");
        assert_eq!(show_duration(Duration::from_secs(3_720)), "1h 02m");
    }
}
