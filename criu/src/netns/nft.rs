//! nftables by `nft`, in the network namespace of the calling thread.

use std::process::Command;

use crate::command::{CommandError, Started};

/// What `nft --echo` says of itself once the kernel has taken all of its commands (nftables, `src/monitor.c`, `netlink_events_newgen_cb`).
/// A version that does not say it is waited for.
const TAKEN: &str = "# new generation";

/// An `nft` that waits for its commands. It is killed if this is dropped.
#[derive(Debug)]
pub(super) struct Nft(Started);

impl Nft {
    pub(super) fn prepare() -> Result<Self, CommandError> {
        Started::new(Command::new("nft").args(["--echo", "--file", "-"])).map(Self)
    }

    /// Has the kernel take the commands, all or none. Before it ends `nft` waits for the kernel to forget former rules, 10 to 20 ms
    /// (`nft_rcv_nl_event` in net/netfilter/nf_tables_api.c), for which nobody has to wait.
    pub(super) fn apply(self, commands: &str) -> Result<(), CommandError> {
        self.0.finish_at(commands, |line| line.starts_with(TAKEN))
    }
}

/// Both at once.
pub(super) fn apply(commands: &str) -> Result<(), CommandError> {
    Nft::prepare()?.apply(commands)
}
