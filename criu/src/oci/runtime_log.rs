//! Errors in the way engines read them: runc's `--log` file, one JSON object per line with `--log-format json`.

use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args::Invocation;

/// Reports `message` as runc reports its last error. containerd shows the last line of level `error`.
pub(super) fn report(invocation: &Invocation, message: &str) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let line = line(message, seconds, invocation.log_is_json);
    let log = invocation.log.as_ref().map(|path| File::options().append(true).create(true).open(path));
    let written = match log {
        Some(Ok(mut file)) => file.write_all(line.as_bytes()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    if written.is_err() {
        eprintln!("spothop-oci: {message}");
    }
}

/// What the runtime has written as its last error, if its log is JSON: the engine reads the same.
pub(super) fn last_error(invocation: &Invocation) -> Option<String> {
    let text = std::fs::read_to_string(invocation.log.as_ref()?).ok()?;
    last_error_in(&text)
}

pub(super) fn last_error_in(text: &str) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
    })
}

fn line(message: &str, seconds: u64, json: bool) -> String {
    let time = rfc3339(seconds);
    if json {
        format!("{}\n", serde_json::json!({ "level": "error", "msg": message, "time": time }))
    } else {
        format!("time=\"{time}\" level=error msg={}\n", serde_json::Value::from(message))
    }
}

/// Seconds since 1970 as `2026-11-23T02:00:00Z`; Go's JSON decoder accepts nothing less.
///
/// Days to date by Howard Hinnant's `civil_from_days`.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_reads_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_649_367_553, "2022-04-07T21:39:13Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn the_runtimes_last_error_is_found() {
        let text = [line("first", 0, true), "{\"level\":\"warning\",\"msg\":\"w\"}\nnot json\n".into()].concat();
        assert_eq!(last_error_in(&text).as_deref(), Some("first"));
        assert_eq!(last_error_in(""), None);
    }

    #[test]
    fn an_error_is_one_line_in_either_format() {
        let json = line("a \"b\"\nc", 0, true);
        assert_eq!(json, "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\\nc\",\"time\":\"1970-01-01T00:00:00Z\"}\n");
        let text = line("a \"b\"", 0, false);
        assert_eq!(text, "time=\"1970-01-01T00:00:00Z\" level=error msg=\"a \\\"b\\\"\"\n");
    }
}
