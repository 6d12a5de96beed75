//! What `fuzz/` needs of the inside: everything that the runtime reads, as functions of bytes. Behind the feature `fuzzing`.

use std::ffi::OsString;
use std::path::Path;

use super::args::Invocation;
use super::bundle::{self, Bundle};
use super::{gate, runtime_log};
use crate::hook::Event;

/// A command line; whether it may be ours.
pub fn command_line(arguments: &[OsString]) -> bool {
    Invocation::parse(arguments).is_some()
}

/// The bundle in `directory`, with all the changes of a restore.
pub fn bundle(directory: &Path) {
    let _ = bundle::migration(directory);
    let Ok(mut bundle) = Bundle::read(directory) else { return };
    let _ = (bundle.criu_config(), bundle.netns(), bundle.network_sysctls());
    let named = bundle.set_criu_config(Path::new("/run/x/criu.conf"));
    let placed = bundle.set_netns(Path::new("/run/netns/x"));
    bundle.resolve_bind_sources();
    if named.is_ok() && placed.is_ok() && bundle.write().is_ok() {
        // What was written is a bundle, and the changes are in it.
        let again = Bundle::read(directory).unwrap();
        assert_eq!((again.criu_config(), again.netns()), (Some("/run/x/criu.conf"), Some("/run/netns/x")));
    }
}

/// CRIU's environment.
pub fn environment(action: &str, init_pid: &str, image_dir: &str) {
    let lookup = |name: &str| match name {
        "CRTOOLS_SCRIPT_ACTION" => Some(action.to_owned()),
        "CRTOOLS_INIT_PID" => Some(init_pid.to_owned()),
        "CRTOOLS_IMAGE_DIR" => Some(image_dir.to_owned()),
        _ => None,
    };
    let _ = Event::from_lookup(lookup);
}

/// What a hook says when it holds.
pub fn held(word: &[u8]) {
    let _ = gate::held_pid_in(word);
}

/// The runtime's log.
pub fn runtime_log(text: &str) {
    let _ = runtime_log::last_error_in(text);
}
