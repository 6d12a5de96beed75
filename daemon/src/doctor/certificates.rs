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
    checks.extend(match certs::describe_all(&authority) {
        Ok(all) => authorities(&all, &authority, now),
        Err(error) => vec![Check::failed("authority", error.to_string(), issue())],
    });
    checks.push(match certs::describe(&own) {
        Ok(info) => described("certificate", &info, Some(name), now, issue()),
        Err(error) => Check::failed("certificate", error.to_string(), issue()),
    });
    checks.push(key_mode(&key));
    // Last, since its error is the least precise: do the three belong together?
    if let Err(error) = Identity::load(dir) {
        checks.push(Check::failed("tls", error.to_string(), issue()));
    }
    checks
}

/// Each authority that this host trusts. One whose time is over does no harm as long as there is another.
fn authorities(all: &[CertificateInfo], path: &Path, now: SystemTime) -> Vec<Check> {
    let advice = "make a new authority elsewhere (spothop cert init --dir NEW), append its ca.pem to every host's, issue every \
                  host's certificate with it, and only then take the old one out";
    let another = all.iter().any(|info| info.not_after >= now);
    let one = |info: &CertificateInfo| match described("authority", info, None, now, advice.to_owned()) {
        check if another && info.not_after < now => Check::warning(
            "authority",
            format!("{} {}", info.subject, check.finding),
            format!("take it out of {}", path.display()),
        ),
        check => check,
    };
    all.iter().map(one).collect()
}

/// The certificate's period, and its name if it must have one.
pub(super) fn described(
    subject: &str,
    info: &CertificateInfo,
    name: Option<&str>,
    now: SystemTime,
    issue: String,
) -> Check {
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
    fn each_authority_is_looked_at_and_one_that_is_over_may_go() {
        let (dir, config) = host("a");
        let other = tempfile::tempdir().unwrap();
        let old = certs::init(other.path(), Existing::Keep).unwrap();
        let [ours, theirs] =
            [&dir, &other].map(|dir| fs::read_to_string(dir.path().join(certs::CA_CERTIFICATE)).unwrap());
        fs::write(dir.path().join(certs::CA_CERTIFICATE), ours + &theirs).unwrap();
        assert!(failures(&config, SystemTime::now()).is_empty());
        assert_eq!(check(&config, SystemTime::now()).len(), 4);

        let new = CertificateInfo { not_after: old.not_after + Duration::from_secs(1000), ..old.clone() };
        let (path, late) = (Path::new("ca.pem"), old.not_after + Duration::from_secs(1));
        let verdicts =
            |all: &[CertificateInfo]| authorities(all, path, late).iter().map(|c| c.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&[old.clone(), new]), [Verdict::Warning, Verdict::Warning]);
        assert_eq!(verdicts(&[old]), [Verdict::Failed]);
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
