//! What the daemons on the hosts are told about memory while it is measured; put back in the end.

use std::cell::RefCell;

use crate::error::Result;
use crate::testbed::Testbed;

use super::{HOSTS, SOURCE};

/// Puts the hosts' own configuration back, where it is not there.
const PUT_BACK: &str = "if test -e /etc/spothop/config.kept; then \
                        mv /etc/spothop/config.kept /etc/spothop/config.toml; systemctl restart spothop; fi";
/// Gives the daemon another `[memory]`, `$0`.
const CHANGE: &str = "cp --no-clobber /etc/spothop/config.toml /etc/spothop/config.kept; \
                      { cat /etc/spothop/config.kept; printf '\\n[memory]\\n%s\\n' \"$0\"; } > /etc/spothop/config.toml; \
                      systemctl reset-failed spothop; systemctl restart spothop";
/// Returns when the daemons know each other again.
const MEET: &str = "until spothop hosts --json | grep -q reachable; do sleep 0.05; done";

/// The daemons' configuration.
#[derive(Debug)]
pub(super) struct Configuration<'a> {
    bed: &'a Testbed,
    /// `[memory]` as it is now; none: as the hosts came.
    memory: RefCell<Option<String>>,
}

impl<'a> Configuration<'a> {
    /// That of the hosts as they came, even if another benchmark was ended in the middle.
    pub(super) fn new(bed: &'a Testbed) -> Result<Self> {
        let configuration = Self { bed, memory: RefCell::default() };
        configuration.everywhere(&[PUT_BACK])?;
        configuration.meet()?;
        Ok(configuration)
    }

    /// Makes this table `[memory]` of both daemons. They start anew, unless they have it.
    pub(super) fn set_memory(&self, table: &str) -> Result<()> {
        if self.memory.borrow().as_deref() == Some(table) {
            return Ok(());
        }
        // Known again only if all of it is done.
        self.memory.take();
        self.everywhere(&[CHANGE, table])?;
        self.meet()?;
        self.memory.replace(Some(table.to_owned()));
        Ok(())
    }

    /// Starts both daemons anew.
    pub(super) fn restart(&self) -> Result<()> {
        self.everywhere(&["systemctl reset-failed spothop; systemctl restart spothop"])?;
        self.meet()
    }

    /// The hosts' own.
    pub(super) fn put_back(&self) -> Result<()> {
        self.memory.take();
        self.everywhere(&[PUT_BACK])?;
        self.meet()
    }

    fn meet(&self) -> Result<()> {
        self.bed.output(SOURCE, ["timeout", "60", "sh", "-c", MEET]).map(drop)
    }

    fn everywhere(&self, script: &[&str]) -> Result<()> {
        for host in HOSTS {
            self.bed.output(host, ["timeout", "60", "sh", "-ec"].iter().chain(script))?;
        }
        Ok(())
    }
}

impl Drop for Configuration<'_> {
    fn drop(&mut self) {
        // Where this fails, a host is gone, or the next benchmark does it.
        let _ = self.everywhere(&[PUT_BACK]);
    }
}
