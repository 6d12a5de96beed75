//! What senders of webhooks need of this host.

use std::time::SystemTime;

use spothop_transfer::certs;

use super::{Check, certificates};
use crate::config::Webhook;
use crate::migration::chain;
use crate::notice::webhook::{check_identity, check_sender};

/// The certificate that they are shown, and their secrets. Nothing where nobody is listened to.
pub(super) fn check(webhook: &Webhook, now: SystemTime) -> Vec<Check> {
    let Some(listen) = webhook.listen else { return Vec::new() };
    let mut checks = Vec::new();
    if let Some((cert, key)) = &webhook.identity {
        let advice = format!("renew {} and {}; no restart is needed", cert.display(), key.display());
        checks.push(match (check_identity(cert, key), certs::describe(cert)) {
            (Err(error), _) => Check::failed("webhook", chain(&error), advice),
            (_, Err(error)) => Check::failed("webhook", error.to_string(), advice),
            (Ok(()), Ok(info)) => certificates::described("webhook", &info, None, now, advice),
        });
    }
    if webhook.senders.is_empty() {
        let finding = format!("{listen} is listened to, and nobody may send");
        checks.push(Check::warning("webhook", finding, "add [[webhook.senders]], or take [webhook] out"));
    }
    checks.extend(webhook.senders.iter().map(|sender| {
        let subject = format!("sender {}", sender.name);
        match check_sender(sender) {
            Ok(()) => Check::ok(subject, format!("may send to /v1/webhooks/{}", sender.name)),
            Err(reason) => Check::failed(subject, reason, "see docs/webhooks.md; no restart is needed"),
        }
    }));
    checks
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use spothop_transfer::certs::Existing;

    use super::*;
    use crate::config::webhook::tests::read;
    use crate::doctor::Verdict;

    #[test]
    fn certificate_and_secrets_are_looked_at_before_they_are_needed() {
        assert_eq!(check(&Webhook::default(), SystemTime::now()), []);
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        certs::init(dir, Existing::Keep).unwrap();
        certs::issue(dir, "hooks.example", &[], dir, Existing::Keep).unwrap();
        let here = dir.display();
        let webhook = read(&format!(
            "listen = '0.0.0.0:1'\ncert = '{here}/host.pem'\nkey = '{here}/host.key'\n\
             [[senders]]\nname = 's'\nsecret_file = '{here}/secret'"
        ));
        let verdicts = || -> Vec<Verdict> {
            check(webhook.as_ref().unwrap(), SystemTime::now()).iter().map(|check| check.verdict).collect()
        };
        assert_eq!(verdicts(), [Verdict::Ok, Verdict::Failed], "no secret");
        fs::write(dir.join("secret"), "whsec_AAAA").unwrap();
        fs::set_permissions(dir.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(verdicts(), [Verdict::Ok, Verdict::Ok]);
        fs::copy(dir.join("ca.key"), dir.join("host.key")).unwrap();
        assert_eq!(verdicts(), [Verdict::Failed, Verdict::Ok], "another certificate's key");
        let nobody = read("listen = '127.0.0.1:1'").unwrap();
        assert_eq!(check(&nobody, SystemTime::now())[0].verdict, Verdict::Warning);
    }
}
