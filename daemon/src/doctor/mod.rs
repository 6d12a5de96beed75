//! `spothop doctor`: everything that must be right before the first notice comes, with advice where it is not.
//!
//! What can be seen from here is looked at directly, so that it works before the daemon does; hosts and containers are
//! asked for through the daemon, with the daemon's own rights and reach.

mod certificates;
mod host;
mod leaks;
mod metadata;
mod through_daemon;
mod webhook;

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use crate::api::Client;
use crate::config::Config;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know; neither right nor wrong.
    Info,
    /// Works, but not in every case; a container that cannot be moved is one.
    Warning,
    /// Must be mended before a migration can succeed.
    Failed,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, such as `criu`, `certificate`, `peer b`, `container redis`.
    pub subject: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do about it; none when it is as it should be.
    pub advice: Option<String>,
}

impl Check {
    fn ok(subject: impl Into<String>, finding: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict: Verdict::Ok, finding: finding.into(), advice: None }
    }

    fn info(subject: impl Into<String>, finding: impl Into<String>) -> Self {
        Self { verdict: Verdict::Info, ..Self::ok(subject, finding) }
    }

    fn warning(subject: impl Into<String>, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, advice: Some(advice.into()), ..Self::ok(subject, finding) }
    }

    fn failed(subject: impl Into<String>, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, ..Self::warning(subject, finding, advice) }
    }
}

/// Everything that was looked at, in the order in which to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether nothing failed. Warnings are no failures.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.count(Verdict::Failed) == 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.subject.chars().count()).max().unwrap_or(0);
        for Check { subject, verdict, finding, advice } in &self.checks {
            let mark = match verdict {
                Verdict::Ok => "ok  ",
                Verdict::Info => "info",
                Verdict::Warning => "WARN",
                Verdict::Failed => "FAIL",
            };
            writeln!(f, "{mark}  {subject:<width$}  {finding}")?;
            if let Some(advice) = advice {
                writeln!(f, "      {:<width$}  -> {advice}", "")?;
            }
        }
        let (failed, warnings) = (self.count(Verdict::Failed), self.count(Verdict::Warning));
        match (failed, warnings) {
            (0, 0) => writeln!(f, "\nThis host is ready."),
            (0, _) => writeln!(f, "\nThis host is ready; warnings: {warnings}."),
            _ => writeln!(f, "\nThis host is NOT ready; failed: {failed}, warnings: {warnings}."),
        }
    }
}

/// Looks at everything. Takes a second or two; nothing is changed.
pub async fn examine(config_path: Option<&Path>, client: &Client) -> Report {
    let config = match Config::load(config_path) {
        Ok(config) => config,
        Err(error) => {
            // Without it there is no name, no directory and no peer to look at.
            let check = Check::failed("configuration", error.to_string(), "correct it, then run this again");
            return Report { checks: vec![check] };
        }
    };
    let found = format!("host {}, peers: {}", config.host.name, config.peers.len());
    let mut checks = vec![Check::ok("configuration", found)];
    checks.extend(host::check(&config).await);
    checks.extend(certificates::check(&config, SystemTime::now()));
    checks.push(metadata::check(&config.notice).await);
    checks.extend(webhook::check(&config.webhook, SystemTime::now()));
    checks.extend(through_daemon::check(&config, client).await);
    checks.extend(leaks::check(&config).await);
    Report { checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broken_configuration_is_the_only_finding() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "[hots]\n").unwrap();
        let report = examine(Some(&path), &Client::new(dir.path().join("no.sock"))).await;
        assert!(!report.healthy());
        assert_eq!(report.checks.len(), 1);
        assert!(report.checks[0].finding.contains("config.toml:1:2: there is no key `hots`"), "{report}");
    }

    #[tokio::test]
    async fn a_bare_host_gets_advice_for_every_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text = format!(
            "[host]\nname = \"a\"\n[tls]\ndir = \"{0}/tls\"\n[docker]\nsocket = \"{0}/docker.sock\"\n[notice]\ncloud = \"none\"\n[criu]\ncriu = \"{0}/criu\"\nrunc = \"{0}/runc\"\n",
            dir.path().display()
        );
        std::fs::write(&path, text).unwrap();
        let report = examine(Some(&path), &Client::new(dir.path().join("no.sock"))).await;
        assert!(!report.healthy());
        for subject in ["criu", "runc", "docker", "certificates", "daemon"] {
            let check = report.checks.iter().find(|check| check.subject == subject).expect(subject);
            assert_eq!(check.verdict, Verdict::Failed, "{check:?}");
            assert!(check.advice.is_some(), "{check:?}");
        }
    }

    #[test]
    fn the_text_is_aligned_and_ends_with_the_sum() {
        let report = Report {
            checks: vec![
                Check::ok("criu", "4.2.1"),
                Check::warning("container web", "uses io_uring", "it stays here"),
                Check::failed("certificates", "expired", "issue a new one"),
            ],
        };
        insta::assert_snapshot!(report, @r"
        ok    criu           4.2.1
        WARN  container web  uses io_uring
                             -> it stays here
        FAIL  certificates   expired
                             -> issue a new one

        This host is NOT ready; failed: 1, warnings: 1.
        ");
    }
}
