//! The OCI runtime `spothop-oci`: runc, except that `create` of a container which carries our annotation restores it.
//!
//! ```text
//! engine ── create ──► wrapper ──► keeper ──► runc restore, which asks CRIU, which waits
//!                      wrapper ── Waiting ──► daemon            (images still on their way)
//!                      wrapper ◄─ Restore ─── daemon
//!                      wrapper ──► CRIU: "go"; hook at post-restore: "held", waits
//!                      wrapper ── Restored ─► daemon
//! engine ◄─ pid file ─ wrapper
//! engine attaches its network to the tasks' namespace
//! engine ── start ───► wrapper ── Attached ─► daemon
//!                      wrapper ◄─ Run ─────── daemon            (the source has committed)
//!                      wrapper ──► hook: "go"; CRIU lets the tasks run; keeper notes how it ended
//! engine ◄─ 0 ──────── wrapper
//! ```
//! - Every other call is an exec of runc; `create` reads the bundle's `config.json` first, `start` and `delete` ask for one
//!   file. Nothing here may make an ordinary container fail.
//! - The standard streams are the container's: they are passed on untouched, except with `--console-socket`, where the
//!   engine waits for the end of our stdout.
//! - The *keeper* is a process of its own because `runc restore` goes on after `create` has returned; the engine's shim
//!   becomes its parent, and that of the restored tasks, as it is for an ordinary container.
//! - The *pager* fills the memory of a container that is restored lazily, while it runs already; the *guard* beside it sees to it that no
//!   task outlives a pager that it still needs.
//! - The *hook* is this same program, called by CRIU through a symbolic link in the migration's directory; and so are the
//!   [stand-ins](crate::stand_in).

mod args;
mod bundle;
mod create;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod keeper;
mod marker;
mod pager;
mod remains;
mod runtime;
mod runtime_log;
mod start;
pub(crate) mod swrk;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use self::args::{Invocation, Verb};
use self::error::OciError;
use crate::handoff::{Directory, RestoreRequest, is_migration_id, pending_marker};
use crate::netns::OwnNetns;
use crate::stand_in;

/// The program `spothop-oci`: does what `arguments` (the first is the program's own name) ask for.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if let Some(code) = gate::called_by_criu(&arguments).or_else(|| stand_in::called(&arguments)) {
        return code;
    }
    if let Some(code) = keeper::called_by_create(&arguments).or_else(|| pager::called_by_create(&arguments)) {
        return code;
    }
    let arguments = &arguments[arguments.len().min(1)..];
    let Some(invocation) = Invocation::parse(arguments) else { return runtime::exec(arguments) };
    let done = match invocation.verb {
        Verb::Create => create(&invocation),
        Verb::Start => start::start(&invocation),
        Verb::Delete => start::delete(&invocation, arguments),
    };
    match done {
        Ok(Handled::Ordinary) => runtime::exec(arguments),
        Ok(Handled::Done(code)) => code,
        Err(error) => {
            runtime_log::report(&invocation, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// What became of a call that might have been ours.
#[derive(Debug, PartialEq)]
enum Handled {
    /// It is runc's.
    Ordinary,
    /// It was ours, and this is its exit status.
    Done(ExitCode),
}

fn create(invocation: &Invocation) -> Result<Handled, OciError> {
    let Some(migration) = bundle::migration(&invocation.bundle) else { return Ok(Handled::Ordinary) };
    let directory = Directory::of(&migration);
    match decide(&migration, &directory, &pending_marker(&migration))? {
        Decision::Ordinary => {
            if is_migration_id(&migration) {
                // Of a restore whose tasks died together with what would have called `delete`: an interface in it has the very
                // addresses that this start is going to have.
                OwnNetns::of(&migration).delete();
            }
            Ok(Handled::Ordinary)
        }
        Decision::Restore(request) => {
            create::restore(invocation, &directory, &request).map(|()| Handled::Done(ExitCode::SUCCESS))
        }
    }
}

/// What `create` of an annotated container shall be.
#[derive(Debug, PartialEq)]
enum Decision {
    /// The first start of a container that was never migrated, or a later start of one that was.
    Ordinary,
    /// The target side of a migration.
    Restore(RestoreRequest),
}

fn decide(migration: &str, directory: &Directory, pending: &Path) -> Result<Decision, OciError> {
    if !is_migration_id(migration) {
        // Not written by the daemon: somebody else's use of the name.
        return Ok(Decision::Ordinary);
    }
    if directory.used().exists() {
        return Ok(Decision::Ordinary);
    }
    if let Some(request) = RestoreRequest::read(directory)? {
        return Ok(Decision::Restore(request));
    }
    if pending.exists() {
        return Err(OciError::Pending { migration: migration.to_owned(), marker: pending.to_owned() });
    }
    Ok(Decision::Ordinary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TcpMode;
    use crate::handoff::Network;

    const ID: &str = "0191e0a0-0000-7000-8000-000000000001";

    #[test]
    fn create_restores_once_and_never_starts_a_half_made_target_cold() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        let pending = scratch.path().join("pending");
        assert_eq!(decide(ID, &directory, &pending).unwrap(), Decision::Ordinary);

        std::fs::write(&pending, "").unwrap();
        assert!(matches!(decide(ID, &directory, &pending), Err(OciError::Pending { .. })));

        let request = RestoreRequest {
            migration: ID.into(),
            images: directory.images(),
            tcp: TcpMode::Close,
            network: Network::Given,
            runtime: "runc".into(),
            lazy: None,
            descriptors: Vec::new(),
        };
        std::fs::write(directory.request(), serde_json::to_vec(&request).unwrap()).unwrap();
        assert_eq!(decide(ID, &directory, &pending).unwrap(), Decision::Restore(request));

        std::fs::write(directory.used(), "").unwrap();
        assert_eq!(decide(ID, &directory, &pending).unwrap(), Decision::Ordinary);
    }

    #[test]
    fn an_annotation_that_is_no_id_is_not_ours() {
        let directory = Directory::at("/nonexistent");
        assert_eq!(decide("../../etc", &directory, Path::new("/")).unwrap(), Decision::Ordinary);
    }
}
