//! The events that CRIU reports to its action script.
//!
//! CRIU runs the script without arguments and says by environment what happens; see criu(8), `--action-script`. Under runc
//! the runtime is told first, then the script.

/// An event of a dump or a restore, as far as spothop cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dump: the tasks are about to be frozen.
    PreDump,
    /// Dump: tasks are frozen; connections are about to be locked.
    NetworkLock,
    /// Dump: every image is written and every task still frozen. Exit status 0 kills the tasks, any other resumes them.
    PostDump,
    /// Dump, when the tasks resume; and restore, after [`Action::PostRestore`].
    NetworkUnlock,
    /// Restore: begins.
    PreRestore,
    /// Restore: every task is there and stopped. Exit status other than 0 kills them and fails the restore.
    PostRestore,
    /// Restore: the tasks go on right after this.
    PreResume,
    /// Restore: the tasks run.
    PostResume,
    /// Another event; to be answered with exit status 0.
    Other,
}

/// One call of the action script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happens.
    pub action: Action,
    /// Process id of the container's init, where CRIU knows it.
    pub init_pid: Option<i32>,
    /// Process id of the CRIU that calls.
    pub criu_pid: Option<i32>,
}

impl Event {
    /// The event that this process was started for, from CRIU's environment (`CRTOOLS_SCRIPT_ACTION`, `CRTOOLS_INIT_PID`,
    /// `CRTOOLS_IMAGE_DIR`); `None` when CRIU did not start it.
    pub fn from_env() -> Option<Self> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let action = match lookup("CRTOOLS_SCRIPT_ACTION")?.as_str() {
            "pre-dump" => Action::PreDump,
            "network-lock" => Action::NetworkLock,
            "post-dump" => Action::PostDump,
            "network-unlock" => Action::NetworkUnlock,
            "pre-restore" => Action::PreRestore,
            "post-restore" => Action::PostRestore,
            "pre-resume" => Action::PreResume,
            "post-resume" => Action::PostResume,
            _ => Action::Other,
        };
        Some(Self {
            action,
            init_pid: lookup("CRTOOLS_INIT_PID").and_then(|pid| pid.parse().ok()),
            criu_pid: lookup("CRTOOLS_IMAGE_DIR").and_then(|directory| criu_pid(&directory)),
        })
    }
}

/// CRIU names the images by its own descriptor: `/proc/<pid>/fd/<number>` (criu, `criu/action-scripts.c`, `run_shell_scripts`).
fn criu_pid(image_dir: &str) -> Option<i32> {
    image_dir.strip_prefix("/proc/")?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_from_crius_environment() {
        let lookup = |name: &str| match name {
            "CRTOOLS_SCRIPT_ACTION" => Some("post-dump".to_owned()),
            "CRTOOLS_INIT_PID" => Some("77".to_owned()),
            "CRTOOLS_IMAGE_DIR" => Some("/proc/99/fd/1021".to_owned()),
            _ => None,
        };
        let event = Event { action: Action::PostDump, init_pid: Some(77), criu_pid: Some(99) };
        assert_eq!(Event::from_lookup(lookup), Some(event));
        assert_eq!(Event::from_lookup(|_| None), None);
    }
}
