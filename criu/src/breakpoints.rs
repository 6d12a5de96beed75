//! Hardware breakpoints, which CRIU sets in the tasks to stop them where it wants them (criu, `compel/src/lib/infect.c`).
//!
//! To the kernel each is a perf event. With the first of any task it switches the scheduler's hooks on, and waits for a grace period of RCU
//! (kernel/events/core.c, `account_event`): 6 to 19 ms in which nobody computes, in the middle of the freeze. While there is another one,
//! nobody waits.

use perf_event::events::Software;
use perf_event::{Builder, Counter};

/// An event that counts nothing, of the thread that made it.
#[derive(Debug)]
pub(crate) struct Quick {
    _event: Option<Counter>,
}

impl Quick {
    /// Waits for the grace period now, so that no breakpoint has to until this is dropped. Where the kernel knows no perf events, or does
    /// not let us have one, breakpoints are as slow as they were.
    pub(crate) fn keep() -> Self {
        Self { _event: Builder::new(Software::DUMMY).build().ok() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn there_is_an_event_where_everybody_may_have_one() {
        // Documentation/admin-guide/sysctl/kernel.rst: up to 2 everybody may look at his own threads' time outside the kernel.
        let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok();
        let allowed = paranoid.and_then(|level| level.trim().parse().ok()).is_some_and(|level: i32| level <= 2);
        match Quick::keep()._event {
            Some(event) => {
                let descriptor = fs::read_link(format!("/proc/self/fd/{}", event.as_raw_fd())).unwrap();
                assert_eq!(descriptor.as_os_str(), "anon_inode:[perf_event]");
            }
            None => assert!(!allowed),
        }
    }
}
