//! Which ways there are on this host.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use super::{Method, TrackError, Tracker};
use crate::memory::{PAGE, pagemap};

/// What this host can do, best first. Tried on a process made for it: takes some milliseconds. Comparing content works everywhere.
pub fn supported() -> Vec<Method> {
    Method::ALL.into_iter().filter(|method| is_supported(*method)).collect()
}

fn is_supported(method: Method) -> bool {
    match method {
        Method::WriteProtect => pagemap::can_scan() && works(method),
        Method::SoftDirty => pagemap::has_soft_dirty() && works(method),
        Method::Content => true,
    }
}

/// Follows a process that sleeps in a system call: it must get what it waits for, and be seen to write.
fn works(method: Method) -> bool {
    let Some(mut echo) = Echo::start() else { return false };
    let unusable = |error: &TrackError| tracing::debug!(%method, %error, "memory cannot be followed in this way here");
    let mut works = || -> Option<bool> {
        let attached = Tracker::attach(echo.child.id().cast_signed(), method);
        let mut tracker = attached.inspect_err(unusable).ok()?;
        let all = tracker.changed().inspect_err(unusable).ok()?;
        let answered = echo.answers()?;
        let changed = tracker.changed().inspect_err(unusable).ok()?;
        Some(!all.is_empty() && answered && !changed.is_empty())
    };
    works().unwrap_or(false)
}

/// `cat`: it sends back what it gets, and ends when that ends.
struct Echo {
    child: Child,
}

impl Echo {
    fn start() -> Option<Self> {
        let child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut echo = Self { child };
        // Before it has answered once it may still be the program that starts it.
        echo.answers()?.then_some(echo)
    }

    fn answers(&mut self) -> Option<bool> {
        let sent = [7; PAGE as usize];
        let mut received = [0; PAGE as usize];
        self.child.stdin.as_mut()?.write_all(&sent).ok()?;
        self.child.stdout.as_mut()?.read_exact(&mut received).ok()?;
        Some(received == sent)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has nothing more to read; but if it was harmed, it must not be waited for for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
