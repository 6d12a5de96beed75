//! `spothop cert`: the small authority by which hosts know each other.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;
use spothop_transfer::certs::{self, CertificateInfo, Existing};

use super::args::Cert;
use super::exit::{CliError, Exit};
use super::output::Output;
use crate::config::Config;

/// What was made, and what to do next.
#[derive(Debug, Serialize)]
struct Made {
    files: Vec<PathBuf>,
    subject: String,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    not_after: Option<Timestamp>,
    next: Vec<String>,
}

pub(super) fn run(command: Cert, config: Option<&Path>, output: &mut Output) -> Result<Exit, CliError> {
    let made = match command {
        Cert::Init { dir, force } => init(&tls_dir(dir, config)?, force)?,
        Cert::Issue { name, address, dir, out, force } => {
            let ca_dir = tls_dir(dir, config)?;
            // Its own certificate is used where it is made; any other has to be carried to its host.
            let own =
                || Config::load(config).ok().filter(|config| config.host.name == name).map(|config| config.tls.dir);
            let out = out.or_else(own).unwrap_or_else(|| PathBuf::from(&name));
            issue(&ca_dir, &name, &address, &out, force)?
        }
    };
    output.result(&made, || render(&made))?;
    Ok(Exit::Ok)
}

fn tls_dir(given: Option<PathBuf>, config: Option<&Path>) -> Result<PathBuf, CliError> {
    match given {
        Some(dir) => Ok(dir),
        None => Ok(Config::load(config)?.tls.dir),
    }
}

fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Keep }
}

fn init(dir: &Path, force: bool) -> Result<Made, CliError> {
    let info = certs::init(dir, existing(force))?;
    let files = [certs::CA_CERTIFICATE, certs::CA_KEY].map(|name| dir.join(name)).to_vec();
    let next = vec![
        format!("keep {} secret: whoever has it can join", dir.join(certs::CA_KEY).display()),
        "make each host's certificate here: spothop cert issue NAME".to_owned(),
    ];
    Ok(made(files, info, next))
}

fn issue(ca_dir: &Path, name: &str, addresses: &[IpAddr], out: &Path, force: bool) -> Result<Made, CliError> {
    if !ca_dir.join(certs::CA_KEY).exists() {
        return Err(CliError::NoAuthority { dir: ca_dir.to_owned() });
    }
    let info = certs::issue(ca_dir, name, addresses, out, existing(force))?;
    let files = [certs::CA_CERTIFICATE, certs::HOST_CERTIFICATE, certs::HOST_KEY].map(|name| out.join(name)).to_vec();
    let next = vec![
        format!("on {name}, these files belong into its [tls] dir; the key must stay readable for root only"),
        format!("then let its daemon read them: systemctl restart spothop (its [host] name must be \"{name}\")"),
    ];
    Ok(made(files, info, next))
}

fn made(files: Vec<PathBuf>, info: CertificateInfo, next: Vec<String>) -> Made {
    let CertificateInfo { names, addresses, subject, not_after, .. } = info;
    Made { files, subject, names, addresses, not_after: timestamp(not_after), next }
}

/// None for a moment outside of years 1 to 9999, which our certificates never name.
fn timestamp(at: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(at).ok()
}

fn render(made: &Made) -> String {
    let until = made.not_after.map_or_else(|| "an unknown date".to_owned(), |at| at.strftime("%F").to_string());
    let mut out = format!("Made the certificate of {}, valid until {until}:\n", made.subject);
    for file in &made.files {
        out.push_str(&format!("  {}\n", file.display()));
    }
    for next in &made.next {
        out.push_str(&format!("Next: {next}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_and_a_host_are_made_and_described() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, b) = (dir.path().join("ca"), dir.path().join("b"));
        init(&ca, false).unwrap();
        let made = issue(&ca, "b", &["10.0.0.2".parse().unwrap()], &b, false).unwrap();
        assert_eq!((made.names.as_slice(), made.addresses.len()), (&["b".to_owned()][..], 1));
        assert!(made.files.iter().all(|file| file.exists()));
        let text = render(&made);
        assert!(text.contains("host.key") && text.contains("systemctl restart spothop"), "{text}");
    }

    #[test]
    fn nothing_is_replaced_unless_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), false).unwrap();
        assert!(matches!(init(dir.path(), false), Err(CliError::Cert(certs::Error::Exists { .. }))));
        init(dir.path(), true).unwrap();
    }

    #[test]
    fn without_an_authority_it_says_where_to_look() {
        let error = issue(Path::new("/nonexistent"), "b", &[], Path::new("/nonexistent/b"), false).unwrap_err();
        insta::assert_snapshot!(error, @"there is no authority in /nonexistent; make one with `spothop cert init`, or run this on the machine that has it");
    }
}
