//! Which of CRIU's messages means which [`FailureKind`].
//!
//! Taken from CRIU 4.2's source (github.com/checkpoint-restore/criu), the file of each message beside it: CRIU prints it
//! in the line, and so two messages with the same words are told apart. The wording has been stable since 3.x; a message
//! that is not here is shown as it is.

use super::failure::FailureKind as Kind;

/// One message.
struct Row {
    /// The end of the source file's path; empty: any file.
    file: &'static str,
    /// What the message contains, in this order.
    pieces: &'static [&'static str],
    kind: Kind,
}

const fn row(file: &'static str, pieces: &'static [&'static str], kind: Kind) -> Row {
    Row { file, pieces, kind }
}

/// The first row that fits a line explains it.
#[rustfmt::skip] // A table is read by its columns.
const TABLE: &[Row] = &[
    // errno, at the end of any message of `pr_perror`.
    row("", &[": No space left on device"], Kind::Storage),
    row("", &[": Disk quota exceeded"], Kind::Storage),
    row("", &[": Cannot allocate memory"], Kind::Memory),

    // Files. SCM_RIGHTS of an io_uring is EINVAL since Linux 6.7: the parasite fails before CRIU sees what it is.
    row("pie/parasite.c", &["send_fds failed (-22)"], Kind::IoUring),
    row("files-ext.c", &["Can't dump file", "[io_uring]"], Kind::IoUring),
    row("files-ext.c", &["Can't dump file", "[userfaultfd]"], Kind::Userfaultfd),
    row("files-ext.c", &["Can't dump file", "(anon "], Kind::KernelObject),
    row("files-ext.c", &["Can't dump file", "(chr "], Kind::Device),
    row("files-ext.c", &["Can't dump file", "(blk "], Kind::Device),
    row("files-ext.c", &["Can't dump file"], Kind::KernelObject),
    row("aio.c", &["AIO"], Kind::KernelObject),
    row("files-reg.c", &["Can't lookup mount=", "path=/memfd:"], Kind::KernelObject),
    row("files-reg.c", &["Can't lookup mount=", "path=/secretmem"], Kind::KernelObject),
    row("files-reg.c", &["Can't lookup mount="], Kind::ForeignMount),
    row("files-reg.c", &["Open files on overmounted mounts"], Kind::ForeignMount),
    row("files-reg.c", &["Unaccessible path opened"], Kind::ForeignMount),
    row("mount.c", &["The root task has another root than mntns"], Kind::ForeignMount),
    row("files-reg.c", &["Can't dump ghost file"], Kind::DeletedFile),
    row("files-reg.c", &["Can't create link remap"], Kind::DeletedFile),
    row("files-reg.c", &["Can't link remap to"], Kind::DeletedFile),
    row("files-reg.c", &["ghost"], Kind::DeletedFile),
    row("files-reg.c", &["has bad size"], Kind::ChangedFile),
    row("files-reg.c", &["has bad mode"], Kind::ChangedFile),
    row("files-reg.c", &["bad build-ID"], Kind::ChangedFile),
    row("files-reg.c", &["Can't open file"], Kind::MissingFile),
    row("files.c", &["Can't open cwd"], Kind::MissingFile),
    row("files.c", &["Can't open root"], Kind::MissingFile),
    row("file-lock.c", &["Some file locks are hold"], Kind::FileLock),
    row("fsnotify.c", &["Can't dump that handle"], Kind::FileWatch),
    row("fsnotify.c", &["Can't find suitable path for handle"], Kind::FileWatch),
    row("fsnotify.c", &["Unable to lookup a mount by dev"], Kind::FileWatch),
    row("fsnotify.c", &["Can't add watch"], Kind::FileWatch),

    // Sockets.
    row("sk-inet.c", &["Unsupported proto 262"], Kind::MultipathTcp),
    row("sk-inet.c", &["multipathtcp"], Kind::MultipathTcp),
    row("sk-inet.c", &["Unsupported"], Kind::Socket),
    row("sk-inet.c", &["Can't dump"], Kind::Socket),
    row("sk-inet.c", &["Unknown inet socket"], Kind::Socket),
    row("sk-inet.c", &["In-flight connection"], Kind::TcpInFlight),
    row("sk-inet.c", &["Connected TCP socket"], Kind::TcpMode),
    row("image.c", &["Need to set the --tcp-close"], Kind::TcpMode),
    row("sk-inet.c", &["Can't bind inet socket", "Address already in use"], Kind::PortTaken),
    row("sk-inet.c", &["Can't listen on a socket", "Address already in use"], Kind::PortTaken),
    row("", &["inet socket", "Cannot assign requested address"], Kind::AddressMissing),
    row("sk-inet.c", &["couldn't find ifindex for"], Kind::AddressMissing),
    row("", &["Can't connect inet socket back", "unreachable"], Kind::Unreachable), // also soccr/soccr.c
    row("", &["Can't connect inet socket back", "No route to host"], Kind::Unreachable),
    row("sk-unix.c", &["in-flight socket"], Kind::UnixInFlight),
    row("sk-unix.c", &["In-flight connection on"], Kind::UnixInFlight),
    row("sk-unix.c", &["External socket"], Kind::ExternalSocket),
    row("sk-unix.c", &["Can't dump half of stream unix connection"], Kind::ExternalSocket),
    row("sk-unix.c", &["Can't dump name-less external socket"], Kind::ExternalSocket),
    row("sk-unix.c", &["with unreachable peer"], Kind::ExternalSocket),
    row("sk-unix.c", &["Dangling connection"], Kind::ExternalSocket),
    row("sk-unix.c", &["Can't bind"], Kind::UnixName),
    row("sk-unix.c", &["Can't change working dir"], Kind::UnixName),
    row("sk-unix.c", &["Unsupported type"], Kind::Socket),
    row("sk-netlink.c", &["The socket has data to read"], Kind::NetlinkData),
    row("sk-netlink.c", &["netlink socket"], Kind::Socket),
    row("sockets.c", &["Unknown socket collected"], Kind::Socket),
    row("sockets.c", &["Diag module missing"], Kind::Kernel),
    row("sk-packet.c", &["packet"], Kind::Socket),

    // Tasks.
    row("", &["suspending seccomp failed"], Kind::CallerSeccomp), // compel/src/lib/ptrace.c
    row("cr-restore.c", &["failed to suspend seccomp"], Kind::CallerSeccomp),
    row("seccomp.c", &[""], Kind::SeccompFilter),
    row("pie/restorer.c", &["seccomp: "], Kind::SeccompFilter),
    row("infect.c", &["Unseizable non-zombie"], Kind::NotStopped),
    row("seize.c", &["Unable to freeze cgroup"], Kind::NotStopped),
    row("seize.c", &["Unexpected error for pid"], Kind::NotStopped),
    row("cr-dump.c", &["A root task is dead"], Kind::TaskGone),
    row("cr-dump.c", &["session leader", "outside of its pid namespace"], Kind::Terminal),
    row("cr-dump.c", &["Can't get rlimit", "Operation not permitted"], Kind::Capability),
    row("pie/restorer.c", &["Unable to restore capabilities"], Kind::Capability),
    row("", &["Effective capability", "missing"], Kind::Capability),
    row("util.c", &["You need to be root"], Kind::Capability),
    row("cr-restore.c", &["loginuid", "CAP_AUDIT_CONTROL"], Kind::Capability),
    row("namespaces.c", &["Can't dump nested"], Kind::NestedNamespace),
    row("mount.c", &["Nested mount namespaces"], Kind::NestedNamespace),
    row("tty.c", &["Found dangling tty"], Kind::Terminal),
    row("tty.c", &["Found slave peer index"], Kind::Terminal),
    row("tty.c", &["ctty inheritance detected"], Kind::Terminal),
    row("tty.c", &["Don't have tty to inherit session from"], Kind::Terminal),
    row("tty.c", &["No task found with sid"], Kind::Terminal),
    row("cr-restore.c", &["Can't fork for", "File exists"], Kind::PidTaken),
    row("cr-restore.c", &["do not match expected"], Kind::PidTaken),
    row("pie/restorer.c", &["Thread pid mismatch"], Kind::PidTaken),
    row("pie/restorer.c", &["Unable to create a thread: -17"], Kind::PidTaken),
    row("cr-restore.c", &["Can't fork for", "Resource temporarily unavailable"], Kind::Memory), // a limit of processes
    row("cr-restore.c", &["rseq: can't restore as kernel"], Kind::Kernel),
    row("timens.c", &[""], Kind::Kernel),

    // Memory.
    row("pie/restorer.c", &["Unable to reserve memory"], Kind::Memory),
    row("pie/restorer.c", &["mapping with fffffffffffffff4"], Kind::Memory), // -ENOMEM in hexadecimal
    row("mem.c", &["Can't restore high memory region"], Kind::Kernel),
    row("", &["vDSO"], Kind::Vdso),
    row("", &["vdso"], Kind::Vdso),
    row("arch/x86/cpu.c", &[""], Kind::Cpu),
    row("arch/x86/crtools.c", &["xsave"], Kind::Cpu),
    row("", &["CPU ", "do not match"], Kind::Cpu), // arch/ppc64, arch/s390
    row("cr-restore.c", &["Core march mismatch"], Kind::Cpu),

    // Mounts, networks, cgroups, security modules.
    row("mount.c", &["No mapping for"], Kind::Mount),
    row("mount.c", &["ount"], Kind::Mount),
    row("mount-v2.c", &[""], Kind::Mount),
    row("filesystems.c", &[""], Kind::Mount),
    row("netfilter.c", &["Locking"], Kind::NetworkLock),
    row("netfilter.c", &["ptables"], Kind::NetworkLock),
    row("netfilter.c", &["libnftables"], Kind::NetworkLock),
    row("net.c", &["Locking network failed"], Kind::NetworkLock),
    row("net.c", &["libnftables"], Kind::NetworkLock),
    row("net.c", &["nftables"], Kind::NetworkLock),
    row("sk-tcp.c", &["Failed to lock TCP connection"], Kind::NetworkLock),
    row("net.c", &["link"], Kind::NetworkDevice),
    row("net.c", &["netns"], Kind::NetworkDevice),
    row("net.c", &["IP tool failed"], Kind::NetworkDevice),
    row("cgroup.c", &[""], Kind::Cgroup),
    row("lsm.c", &[""], Kind::SecurityModule),
    row("apparmor.c", &[""], Kind::SecurityModule),
    row("pie/restorer.c", &["lsm profile"], Kind::SecurityModule),
    row("net.c", &["SELinux"], Kind::SecurityModule),

    // Images.
    row("image.c", &["agic doesn't match"], Kind::DamagedImage),
    row("image.c", &["Img trimmed"], Kind::DamagedImage),
    row("image.c", &["Unexpected EOF"], Kind::DamagedImage),
    row("protobuf.c", &["Unexpected EOF"], Kind::DamagedImage),
    row("protobuf.c", &["Read ", "bytes while"], Kind::DamagedImage),
    row("protobuf.c", &["Failed unpacking object"], Kind::DamagedImage),
    row("pagemap.c", &[""], Kind::DamagedImage),
    row("cr-restore.c", &["Image corrupted"], Kind::DamagedImage),
    row("pie/restorer.c", &["Can't read pages data"], Kind::DamagedImage),
    row("image.c", &["Not supported images version"], Kind::ImageVersion),
    row("image.c", &["Too old image"], Kind::ImageVersion),
    row("image.c", &["Missing required plugin"], Kind::ImageVersion),
    row("cr-restore.c", &["Unknown image format"], Kind::ImageVersion),
];

/// Messages that explain a failure only when nothing better does: CRIU also prints them in passing.
#[rustfmt::skip]
const WEAK: &[Row] = &[
    // A task under another tracer is no zombie, but CRIU takes it for one (criu/seize.c, `freeze_processes`).
    row("seize.c", &["found while seizing"], Kind::NotStopped),
    row("cr-dump.c", &["Timeout reached"], Kind::NotStopped),
    row("infect.c", &["Unable to detach from", "No such process"], Kind::TaskGone),
    row("action-scripts.c", &["Script ", "exited with"], Kind::Script),
    row("cr-restore.c", &["killed by signal 9"], Kind::Memory), // the OOM killer; CRIU kills the others itself after an error
];

/// What the message of an error line from the source file `file` means.
pub(super) fn kind(file: &str, message: &str) -> Option<Kind> {
    find(TABLE, file, message)
}

/// The same for messages that are worth something only if no other is.
pub(super) fn weak_kind(file: &str, message: &str) -> Option<Kind> {
    find(WEAK, file, message)
}

fn find(table: &[Row], file: &str, message: &str) -> Option<Kind> {
    table.iter().find(|row| is_from(file, row.file) && contains(message, row.pieces)).map(|row| row.kind)
}

/// `criu/mount.c` is `mount.c` and `criu/mount.c`, but not `ount.c`.
fn is_from(file: &str, end: &str) -> bool {
    let before = file.strip_suffix(end);
    end.is_empty() || before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

fn contains(mut message: &str, pieces: &[&str]) -> bool {
    pieces.iter().all(|piece| match message.split_once(piece) {
        Some((_, after)) => {
            message = after;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_file_tells_messages_apart() {
        assert_eq!(kind("criu/sk-inet.c", "inet: In-flight connection (l) for 7"), Some(Kind::TcpInFlight));
        assert_eq!(kind("criu/sk-unix.c", "unix: In-flight connection on non-listening"), Some(Kind::UnixInFlight));
        assert_eq!(kind("criu/surprise.c", "In-flight connection"), None);
    }

    #[test]
    fn pieces_stand_in_their_order_and_files_end_at_a_slash() {
        assert!(contains("Can't fork for 7: File exists", &["Can't fork", "File exists"]));
        assert!(!contains("File exists: Can't fork", &["Can't fork", "File exists"]));
        assert!(is_from("criu/net.c", "net.c") && is_from("net.c", "net.c") && !is_from("criu/subnet.c", "net.c"));
    }

    #[test]
    fn no_row_hides_a_later_one() {
        for (n, row) in TABLE.iter().enumerate() {
            let message = row.pieces.join(" … ");
            let file = if row.file.is_empty() { "x.c" } else { row.file };
            let first = TABLE.iter().position(|r| is_from(file, r.file) && contains(&message, r.pieces));
            assert_eq!(first, Some(n), "{}: {message}", row.file);
        }
    }

    #[test]
    fn every_kind_can_be_found() {
        for kind in Kind::ALL {
            assert!(TABLE.iter().chain(WEAK).any(|row| row.kind == *kind), "{kind:?}");
        }
    }
}
