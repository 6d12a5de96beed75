//! The machine: programs, kernel, the container engine and its runtime.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use spothop_criu::features::{self, Features, Missing};

use super::Check;
use crate::config::Config;
use crate::setup::docker::{self, CRIU_RUNC_CONF, RUNTIME, RUNTIME_PATH};

pub(super) async fn check(config: &Config) -> Vec<Check> {
    let (criu, runc) = (config.criu.criu.clone(), config.criu.runc.clone());
    let mut checks = match tokio::task::spawn_blocking(move || features::probe(&criu, &runc)).await {
        Ok(features) => programs(&features),
        Err(_) => vec![Check::failed("programs", "the probe crashed", "run `criu check` and `runc --version`")],
    };
    checks.push(runtime_program(Path::new(RUNTIME_PATH)));
    if config.docker.enabled {
        checks.push(engine(&config.docker.socket).await);
        checks.push(if Path::new(CRIU_RUNC_CONF).exists() {
            Check::ok("criu options", format!("{CRIU_RUNC_CONF} is there to bind over"))
        } else {
            Check::failed("criu options", format!("{CRIU_RUNC_CONF} is missing"), "run: spothop setup docker")
        });
    } else {
        checks.push(Check::info("docker", "switched off in the configuration"));
    }
    checks
}

/// Root, CRIU, runc, kernel, nft and ip, each as found or as missing.
fn programs(found: &Features) -> Vec<Check> {
    let missing = found.missing();
    let subject = |missing: &Missing| match missing {
        Missing::Root => "root",
        Missing::Criu { .. } | Missing::CriuVersion { .. } | Missing::CriuCheck { .. } => "criu",
        Missing::Runc { .. } | Missing::RuncVersion { .. } => "runc",
        Missing::Kernel { .. } => "kernel",
        Missing::Nft => "nft",
        Missing::Ip => "ip",
    };
    let version = |version: Option<spothop_criu::Version>| version.map_or_else(String::new, |v| v.to_string());
    [
        ("root", "yes".to_owned()),
        ("kernel", found.kernel.to_string()),
        ("criu", version(found.criu)),
        ("runc", version(found.runc)),
        ("nft", "there".to_owned()),
        ("ip", "there".to_owned()),
    ]
    .into_iter()
    .map(|(name, good)| match missing.iter().find(|missing| subject(missing) == name) {
        None => Check::ok(name, good),
        // The message has what was found before the semicolon, and what to do after it.
        Some(missing) => {
            let text = missing.to_string();
            let (finding, advice) = text.split_once("; ").unwrap_or((&text, "see the README for what a host needs"));
            Check::failed(name, finding, advice)
        }
    })
    .collect()
}

fn runtime_program(path: &Path) -> Check {
    match path.metadata() {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {
            Check::ok("spothop-oci", path.display().to_string())
        }
        Ok(_) => Check::failed(
            "spothop-oci",
            format!("{} is not an executable file", path.display()),
            "install it again, or: chmod 0755 it",
        ),
        Err(e) => Check::failed(
            "spothop-oci",
            format!("{}: {e}", path.display()),
            "install it; no container can move here without it",
        ),
    }
}

async fn engine(socket: &Path) -> Check {
    let runtimes = match docker::known_runtimes(socket).await {
        Ok(runtimes) => runtimes,
        Err(_) => {
            return Check::failed(
                "docker",
                format!("does not answer at {}", socket.display()),
                "start it (systemctl start docker), or set [docker] socket or enabled in the configuration",
            );
        }
    };
    match runtimes.get(RUNTIME) {
        Some(path) if path == RUNTIME_PATH => Check::ok("docker", format!("knows the runtime `{RUNTIME}`")),
        Some(path) => Check::failed(
            "docker",
            format!("its runtime `{RUNTIME}` is {path}, not {RUNTIME_PATH}"),
            "run: spothop setup docker && systemctl reload docker",
        ),
        None => Check::failed(
            "docker",
            format!("does not know the runtime `{RUNTIME}`: no container can move here"),
            "run: spothop setup docker && systemctl reload docker",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use spothop_criu::Version;

    use super::*;
    use crate::doctor::Verdict;

    fn good() -> Features {
        Features {
            criu_path: "criu".into(),
            criu: Some(Version::new(4, 2, 1)),
            criu_complaint: None,
            runc_path: "runc".into(),
            runc: Some(Version::new(1, 3, 6)),
            kernel: Version::new(6, 18, 0),
            nft: true,
            ip: true,
            lazy_pages: false,
            root: true,
        }
    }

    #[test]
    fn a_good_machine_is_all_green_with_its_versions() {
        let checks = programs(&good());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok), "{checks:?}");
        assert!(checks.contains(&Check::ok("criu", "4.2.1")));
    }

    #[test]
    fn an_old_criu_is_a_failure_that_says_what_to_install() {
        let checks = programs(&Features { criu: Some(Version::new(3, 17, 1)), nft: false, ..good() });
        let failed: Vec<_> = checks.iter().filter(|check| check.verdict == Verdict::Failed).collect();
        assert_eq!(failed.len(), 2);
        assert_eq!((failed[0].subject.as_str(), failed[0].finding.as_str()), ("criu", "CRIU 3.17.1 is too old"));
        assert!(failed[0].advice.as_ref().unwrap().starts_with("install 4.2.0 or later"));
    }

    #[test]
    fn the_runtime_must_be_an_executable_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spothop-oci");
        assert_eq!(runtime_program(&path).verdict, Verdict::Failed);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(runtime_program(&path).verdict, Verdict::Failed);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(runtime_program(&path).verdict, Verdict::Ok);
    }
}
