//! This host's certificates.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use spothop_transfer::certs::{self, CertificateInfo};
use spothop_transfer::tls::Identity;

use super::Check;
use crate::config::Config;

/// A certificate that ends within this time is worth a warning: a month leaves time for a new one.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn check(config: &Config, now: SystemTime) -> Vec<Check> {
    let (dir, name) = (&config.tls.dir, config.host.name.as_str());
    let issue = || format!("where the authority is: spothop cert issue {name}; put the files into {}", dir.display());
    let paths = [certs::CA_CERTIFICATE, certs::HOST_CERTIFICATE, certs::HOST_KEY].map(|file| dir.join(file));
    let missing: Vec<String> =
        paths.iter().filter(|path| !path.exists()).map(|path| path.display().to_string()).collect();
    if !missing.is_empty() {
        return vec![Check::failed("certificates", format!("missing: {}", missing.join(", ")), issue())];
    }
    let [authority, own, key] = paths;
    let mut checks = Vec::new();
    for (subject, path) in [("authority", &authority), ("certificate", &own)] {
        checks.push(match certs::describe(path) {
            Ok(info) => described(subject, &info, (subject == "certificate").then_some(name), now, issue()),
            Err(error) => Check::failed(subject, error.to_string(), issue()),
        });
    }
    checks.push(key_mode(&key));
    // Last, since its error is the least precise: do the three belong together?
    if let Err(error) = Identity::load(dir) {
        checks.push(Check::failed("tls", error.to_string(), issue()));
    }
    checks
}

/// The certificate's period, and its name if it must have one.
fn described(subject: &str, info: &CertificateInfo, name: Option<&str>, now: SystemTime, issue: String) -> Check {
    if let Some(name) = name
        && info.names.first().map(String::as_str) != Some(name)
    {
        let names = info.names.join(", ");
        return Check::failed(subject, format!("is for `{names}`, but this host is `{name}`"), issue);
    }
    let (from, until) = (date(info.not_before), date(info.not_after));
    if now < info.not_before {
        return Check::failed(subject, format!("is not valid before {from}"), "set this host's clock");
    }
    match info.not_after.duration_since(now) {
        Err(_) => Check::failed(subject, format!("expired on {until}"), issue),
        Ok(left) if left < SOON => Check::warning(subject, format!("expires on {until}"), issue),
        Ok(_) => Check::ok(subject, format!("{}, valid until {until}", info.subject)),
    }
}

fn key_mode(key: &Path) -> Check {
    match key.metadata().map(|file| file.permissions().mode() & 0o777) {
        Ok(mode) if mode & 0o077 == 0 => Check::ok("key", format!("readable for its owner only ({mode:04o})")),
        Ok(mode) => Check::failed(
            "key",
            format!("{} can be read by others ({mode:04o})", key.display()),
            format!("run: chmod 0600 {}; issue a new one if others may have read it", key.display()),
        ),
        Err(e) => Check::failed("key", format!("{}: {e}", key.display()), "run this as root"),
    }
}

fn date(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "an unknown date".to_owned(), |at| at.strftime("%F").to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use certs::Existing;

    use super::*;
    use crate::doctor::Verdict;

    fn host(name: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        certs::init(dir.path(), Existing::Keep).unwrap();
        certs::issue(dir.path(), "a", &[], dir.path(), Existing::Keep).unwrap();
        let mut config = Config::parse("", Path::new("config.toml"), name).unwrap();
        config.tls.dir = dir.path().to_owned();
        (dir, config)
    }

    fn failures(config: &Config, now: SystemTime) -> Vec<String> {
        let failed = check(config, now).into_iter().filter(|check| check.verdict == Verdict::Failed);
        failed.map(|check| format!("{}: {}", check.subject, check.finding)).collect()
    }

    #[test]
    fn good_certificates_pass() {
        let (_dir, config) = host("a");
        let checks = check(&config, SystemTime::now());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok), "{checks:?}");
        assert_eq!(checks.len(), 3);
    }

    #[test]
    fn a_certificate_for_another_host_fails() {
        let (_dir, config) = host("b");
        assert_eq!(failures(&config, SystemTime::now()), ["certificate: is for `a`, but this host is `b`"]);
    }

    #[test]
    fn the_end_of_a_certificate_is_announced_a_month_ahead() {
        let (dir, config) = host("a");
        let end = certs::describe(&dir.path().join(certs::HOST_CERTIFICATE)).unwrap().not_after;
        let soon = check(&config, end - Duration::from_secs(24 * 3600));
        assert!(soon.iter().any(|check| check.subject == "certificate" && check.verdict == Verdict::Warning));
        let late = failures(&config, end + Duration::from_secs(1));
        assert!(late.iter().any(|failure| failure.starts_with("certificate: expired on ")), "{late:?}");
    }

    #[test]
    fn a_key_that_others_can_read_fails() {
        let (dir, config) = host("a");
        let key = dir.path().join(certs::HOST_KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(failures(&config, SystemTime::now()).iter().any(|failure| failure.contains("(0640)")));
    }

    #[test]
    fn missing_files_are_named() {
        let (dir, config) = host("a");
        fs::remove_file(dir.path().join(certs::HOST_KEY)).unwrap();
        let found = failures(&config, SystemTime::now());
        assert!(found.len() == 1 && found[0].ends_with("host.key"), "{found:?}");
    }
}
