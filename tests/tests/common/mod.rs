//! A testbed that lives as long as a test.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};
use spothop_tests::layout::Layout;
use spothop_tests::testbed::{Options, Testbed, down};

/// Held from the first testbed to the end of the process: another run of the same tests, which have the same names, waits.
static ALONE: OnceLock<Flock<File>> = OnceLock::new();

fn wait_until_alone() {
    ALONE.get_or_init(|| {
        let file = File::create("/run/lock/spothop-e2e").expect("a file to lock");
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("a lock")
    });
}

/// A testbed of its own name, taken down when the test ends, however it ends.
pub(crate) struct Bed {
    bed: Testbed,
    layout: Layout,
}

impl Bed {
    /// Brings one up. `name` must differ from those of other tests.
    pub(crate) fn up(name: &str, options: &Options) -> Self {
        wait_until_alone();
        let layout = Layout::new(name).expect("a name that fits");
        let program = Path::new(env!("CARGO_BIN_EXE_testbed"));
        down(&layout).expect("what an earlier run has left goes away");
        let bed = Testbed::up(program, layout.clone(), options, &|line| eprintln!("{line}")).expect("a testbed");
        Self { bed, layout }
    }
}

impl Deref for Bed {
    type Target = Testbed;

    fn deref(&self) -> &Testbed {
        &self.bed
    }
}

impl DerefMut for Bed {
    fn deref_mut(&mut self) -> &mut Testbed {
        &mut self.bed
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = down(&self.layout) {
            eprintln!("the testbed {} does not go away: {error}", self.layout.name());
        }
    }
}
