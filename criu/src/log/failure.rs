//! The kinds of CRIU's failures: the cause of each, what to do about it, and what could help.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why CRIU could not dump or restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureKind {
    /// An io_uring.
    IoUring,
    /// A userfaultfd of the task's own.
    Userfaultfd,
    /// Another kernel object without CRIU support: perf event, BPF, landlock, huge-page memfd, secret memory, message queue.
    KernelObject,
    /// A device with state in its driver.
    Device,
    /// A socket of multipath TCP.
    MultipathTcp,
    /// A socket of a family or protocol that CRIU does not know.
    Socket,
    /// A netlink socket with unread messages.
    NetlinkData,
    /// A unix connection that waits to be accepted.
    UnixInFlight,
    /// A unix socket whose other end is outside of the container.
    ExternalSocket,
    /// A TCP connection that was being opened.
    TcpInFlight,
    /// Dump and restore disagree about TCP connections.
    TcpMode,
    /// File locks that the dump does not take.
    FileLock,
    /// An unlinked open file that cannot be carried in the images or made again.
    DeletedFile,
    /// A watched file that CRIU does not find by its handle.
    FileWatch,
    /// A file or root in a mount that the container does not see.
    ForeignMount,
    /// A namespace inside the container.
    NestedNamespace,
    /// A terminal whose other end or session is outside of the container.
    Terminal,
    /// A task that cannot be stopped: a tracer is attached, or it hangs in the kernel.
    NotStopped,
    /// The container, or its first process, is gone.
    TaskGone,
    /// CRIU itself runs under a seccomp filter.
    CallerSeccomp,
    /// A task's seccomp filter cannot be read or set.
    SeccompFilter,
    /// CRIU lacks a capability.
    Capability,
    /// The network cannot be locked.
    NetworkLock,
    /// A process id is taken at the target.
    PidTaken,
    /// A file that is open or mapped is missing at the target.
    MissingFile,
    /// A file that is open or mapped is another one at the target.
    ChangedFile,
    /// A port is taken at the target.
    PortTaken,
    /// An address that is not there at the target.
    AddressMissing,
    /// No route to a connection's peer at the target.
    Unreachable,
    /// A unix socket's name cannot be bound at the target.
    UnixName,
    /// A mount that cannot be dumped or made.
    Mount,
    /// A network device or namespace that cannot be dumped or made.
    NetworkDevice,
    /// The CPU lacks something.
    Cpu,
    /// The kernel's vDSO is too different, or unknown to CRIU.
    Vdso,
    /// The kernel lacks something that the task uses.
    Kernel,
    /// A cgroup that cannot be read or set.
    Cgroup,
    /// AppArmor or SELinux.
    SecurityModule,
    /// No memory.
    Memory,
    /// No room where images or files go.
    Storage,
    /// An image that is damaged or missing.
    DamagedImage,
    /// An image of another CRIU.
    ImageVersion,
    /// Our own action script gave up.
    Script,
}

/// What could turn a failure into a success without a change to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// The same again: the cause passes by itself.
    Again,
    /// Another target host.
    Elsewhere,
    /// Nothing but a change to the container or this host.
    Change,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::IoUring,
        Self::Userfaultfd,
        Self::KernelObject,
        Self::Device,
        Self::MultipathTcp,
        Self::Socket,
        Self::NetlinkData,
        Self::UnixInFlight,
        Self::ExternalSocket,
        Self::TcpInFlight,
        Self::TcpMode,
        Self::FileLock,
        Self::DeletedFile,
        Self::FileWatch,
        Self::ForeignMount,
        Self::NestedNamespace,
        Self::Terminal,
        Self::NotStopped,
        Self::TaskGone,
        Self::CallerSeccomp,
        Self::SeccompFilter,
        Self::Capability,
        Self::NetworkLock,
        Self::PidTaken,
        Self::MissingFile,
        Self::ChangedFile,
        Self::PortTaken,
        Self::AddressMissing,
        Self::Unreachable,
        Self::UnixName,
        Self::Mount,
        Self::NetworkDevice,
        Self::Cpu,
        Self::Vdso,
        Self::Kernel,
        Self::Cgroup,
        Self::SecurityModule,
        Self::Memory,
        Self::Storage,
        Self::DamagedImage,
        Self::ImageVersion,
        Self::Script,
    ];

    /// What happened, as half a sentence.
    #[must_use]
    pub fn cause(self) -> &'static str {
        self.row().0
    }

    /// What to do, as half a sentence.
    #[must_use]
    pub fn advice(self) -> &'static str {
        self.row().1
    }

    /// What could help without a change.
    #[must_use]
    pub fn remedy(self) -> Remedy {
        self.row().2
    }

    #[rustfmt::skip] // A table is read by its columns.
    fn row(self) -> (&'static str, &'static str, Remedy) {
        use Remedy::{Again, Change, Elsewhere};
        match self {
            Self::IoUring => ("a task uses io_uring, which CRIU cannot move",
                "turn io_uring off in the application", Change),
            Self::Userfaultfd => ("a task uses userfaultfd itself, which CRIU cannot move",
                "turn that off in the application", Change),
            Self::KernelObject => ("a task has a kernel object open that CRIU cannot move",
                "close it, or do not migrate this container; `spothop ps` names it", Change),
            Self::Device => ("a task has a device open, whose state cannot be moved",
                "close it, or do not migrate this container; `spothop ps` names it", Change),
            Self::MultipathTcp => ("a task uses multipath TCP, which CRIU cannot move",
                "for Go programs set GODEBUG=multipathtcp=0", Change),
            Self::Socket => ("a task has a socket of a kind that CRIU cannot move",
                "close it, or do not migrate this container", Change),
            Self::NetlinkData => ("a netlink socket had messages that its task had not read",
                "try again; let the task read what it asked the kernel for", Again),
            Self::UnixInFlight => ("a connection to a unix socket waited to be accepted, with data in it or closed already",
                "try again; the listening task does not accept for a long time if it stays so", Again),
            Self::ExternalSocket => ("a task is connected to a unix socket of a process outside of the container",
                "do not mount that socket into containers that shall move", Change),
            Self::TcpInFlight => ("a connection was being opened at the freeze",
                "try again", Again),
            Self::TcpMode => ("established connections were not expected",
                "dump and restore must use the same TCP mode; look for TCP options in /etc/criu/runc.conf on both hosts", Change),
            Self::FileLock => ("a task holds a file lock that the dump was not told to take",
                "look for options in /etc/criu/runc.conf that forbid it", Change),
            Self::DeletedFile => ("a deleted file that is still open cannot be carried or made again",
                "restart the container if the file is larger than 256 MiB, and see that its directory is there and writable at the target", Change),
            Self::FileWatch => ("a file that a task watches (inotify, fanotify) is not found by its handle",
                "end the watch; paths that are watched on an overlay must still have their name", Change),
            Self::ForeignMount => ("a file is open in a mount that the container does not see",
                "restart the container after changing its mounts, and end programs that were put into it from outside", Change),
            Self::NestedNamespace => ("a task inside the container has made a namespace of its own",
                "a container in which containers or sandboxes run cannot be moved", Change),
            Self::Terminal => ("a terminal's other end or its session is outside of the container",
                "end the program that was attached from outside", Change),
            Self::NotStopped => ("a task cannot be stopped: a debugger or tracer is attached, or it hangs in the kernel",
                "detach the tracer; a task in state D waits for a disk, a network file system or the child of a vfork", Again),
            Self::TaskGone => ("the container's first process ended",
                "look at the container's own log", Again),
            Self::CallerSeccomp => ("the daemon runs under a seccomp filter of its own",
                "use spothop.service as it is shipped, without SystemCallFilter, RestrictRealtime, LockPersonality and the like", Change),
            Self::SeccompFilter => ("a task's seccomp filter cannot be read or set",
                "the kernels need CONFIG_CHECKPOINT_RESTORE, and the target's kernel must know the filter's calls", Elsewhere),
            Self::Capability => ("CRIU lacks a capability on this host, such as CAP_SYS_RESOURCE to read the limits of other users' tasks",
                "run the daemon as a root with all capabilities", Change),
            Self::NetworkLock => ("the container's network cannot be locked",
                "install nftables and see that the kernel has nf_tables (`nft list tables` must work)", Change),
            Self::PidTaken => ("a process id of the container is taken at the target",
                "try again; a container needs a pid namespace of its own (no --pid=host)", Again),
            Self::MissingFile => ("a file that a task uses is missing at the target",
                "were all volumes and the writable layer moved, and is the image the same?", Elsewhere),
            Self::ChangedFile => ("a file that a task uses is another one at the target",
                "the image, a volume or the writable layer is not the same; is something else writing to it?", Elsewhere),
            Self::PortTaken => ("a port of the container is taken at the target",
                "free it there or choose another target", Elsewhere),
            Self::AddressMissing => ("a socket is bound to an address that the target does not have",
                "use a network that keeps the address", Elsewhere),
            Self::Unreachable => ("the restore's network namespace has no route to the peer of a connection",
                "use a network that keeps the address", Elsewhere),
            Self::UnixName => ("the name of a unix socket cannot be bound at the target",
                "its directory is missing there, or the name is taken", Elsewhere),
            Self::Mount => ("a mount of the container cannot be dumped or made again",
                "mounts made inside the container by hand cannot be moved; volumes must be the same on both hosts", Change),
            Self::NetworkDevice => ("a network device or namespace of the container cannot be dumped or made again",
                "devices made inside the container by hand cannot be moved", Change),
            Self::Cpu => ("the target's CPU lacks something that the container's tasks may use",
                "choose a target with the same or a newer CPU", Elsewhere),
            Self::Vdso => ("the kernels of source and target differ too much, or CRIU is too old for one of them",
                "choose a target with the same kernel; install a newer CRIU", Elsewhere),
            Self::Kernel => ("the target's kernel lacks something that a task uses",
                "choose a target with the same kernel", Elsewhere),
            Self::Cgroup => ("a cgroup of the container cannot be read or set",
                "both hosts must use the same cgroup version", Elsewhere),
            Self::SecurityModule => ("AppArmor or SELinux stands in the way, or the target lacks the container's profile",
                "load the container's profile at the target", Elsewhere),
            Self::Memory => ("there was not enough memory",
                "choose a target with more room, or raise the container's limit", Elsewhere),
            Self::Storage => ("there was no room left where the images or the container's files go",
                "the container grew meanwhile, or the host is short of memory or disk", Again),
            Self::DamagedImage => ("an image is damaged, cut off or missing",
                "try again, and look for a full tmpfs or broken memory", Again),
            Self::ImageVersion => ("the images come from a CRIU that this one does not understand",
                "install the same CRIU on both hosts", Elsewhere),
            Self::Script => ("our own action script gave the migration up",
                "the daemon's log says why", Again),
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause(), self.advice())
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Again => "trying again may help",
            Self::Elsewhere => "another target may help",
            Self::Change => "neither trying again nor another target helps",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_cause_and_advice_of_its_own() {
        let causes: HashSet<_> = FailureKind::ALL.iter().map(|kind| kind.cause()).collect();
        assert_eq!(causes.len(), FailureKind::ALL.len());
        for kind in FailureKind::ALL {
            let text = kind.to_string();
            assert!(!text.ends_with('.') && !kind.advice().is_empty(), "{text}");
        }
    }

    #[test]
    fn kinds_are_words_with_hyphens_in_json() {
        assert_eq!(serde_json::to_string(&FailureKind::UnixInFlight).unwrap(), "\"unix-in-flight\"");
    }
}
