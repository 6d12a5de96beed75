//! `tar` as CRIU calls it for what a file system in memory has (criu, `criu/filesystems.c`, `tmpfs_dump` and `tmpfs_restore`).
//!
//! A container has some three of them, nearly empty (`/dev`, `/dev/shm`, what covers parts of `/proc`), and for each the real one starts
//! a shell and a gzip on either side, while the container stands still. So a few entries without content are done here; whatever else
//! there is, is left to the real one. Either reads what the other has written.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use tar::{Archive, Builder, EntryType, Header};

use super::{are, become_real};

pub(super) const NAME: &str = "tar";

/// At the dump: from the directory that is the standard input, to the standard output.
const CREATE: &[&str] = &[
    "--create",
    "--gzip",
    "--no-unquote",
    "--no-wildcards",
    "--one-file-system",
    "--check-links",
    "--preserve-permissions",
    "--sparse",
    "--numeric-owner",
    "--directory",
    STDIN,
    ".",
];
const STDIN: &str = "/proc/self/fd/0";

/// At the restore: from the standard input, to the directory that follows.
const EXTRACT: &[&str] = &["--extract", "--gzip", "--no-unquote", "--no-wildcards", "--directory"];

/// The most entries that are done here.
const MOST: usize = 256;

/// The largest archive that is looked into, in bytes: compressed, and not.
const LONGEST: u64 = 256 << 10;
const LONGEST_UNPACKED: u64 = 1 << 20;

pub(super) fn run(arguments: &[OsString], directory: &Path) -> ExitCode {
    let done = match arguments {
        _ if are(arguments, CREATE) => pack(Path::new(STDIN), &io::stdout()),
        [words @ .., root] if are(words, EXTRACT) => extract(Path::new(root)),
        _ => Ok(Outcome::Other),
    };
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Other) => become_real(NAME, arguments, directory),
        Err(error) => {
            eprintln!("spothop-oci as tar: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// It is for the real one, and nothing has been done.
    Other,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// Below the file system's root, which is the empty path.
    path: PathBuf,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    /// When it was changed, in seconds since 1970.
    changed: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    Link(PathBuf),
    /// Its type, and its number as the kernel has it.
    Device(SFlag, u64),
    Fifo,
    EmptyFile,
}

/// Writes an archive of what is below `root`, on the same file system.
fn pack(root: &Path, to: impl Write) -> io::Result<Outcome> {
    let Some(members) = list(root)? else { return Ok(Outcome::Other) };
    let Some(headers) = members.iter().map(header).collect::<Option<Vec<_>>>() else { return Ok(Outcome::Other) };
    let mut archive = Builder::new(GzEncoder::new(to, Compression::fast()));
    for header in &headers {
        archive.append(header, io::empty())?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(Outcome::Done)
}

/// Every directory right before what is in it; `None` if there is anything that is not done here.
fn list(root: &Path) -> io::Result<Option<Vec<Member>>> {
    let top = fs::metadata(root)?;
    let mut members = vec![Member::of(PathBuf::new(), &top, Kind::Directory)];
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let metadata = entry.metadata()?;
            let here = metadata.dev() == top.dev();
            let kind = match Kind::of(&metadata, || fs::read_link(entry.path()))? {
                // What is mounted on it does not belong to it.
                Some(Kind::Directory) => Kind::Directory,
                Some(kind) if here && metadata.nlink() == 1 => kind,
                _ => return Ok(None),
            };
            if kind == Kind::Directory && here {
                directories.push(path.clone());
            }
            members.push(Member::of(path, &metadata, kind));
            if members.len() > MOST {
                return Ok(None);
            }
        }
    }
    members.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Some(members))
}

impl Kind {
    fn of(metadata: &Metadata, target: impl FnOnce() -> io::Result<PathBuf>) -> io::Result<Option<Self>> {
        let kind = metadata.file_type();
        Ok(match () {
            () if kind.is_dir() => Some(Self::Directory),
            () if kind.is_symlink() => Some(Self::Link(target()?)),
            () if kind.is_char_device() => Some(Self::Device(SFlag::S_IFCHR, metadata.rdev())),
            () if kind.is_block_device() => Some(Self::Device(SFlag::S_IFBLK, metadata.rdev())),
            () if kind.is_fifo() => Some(Self::Fifo),
            () if kind.is_file() && metadata.len() == 0 => Some(Self::EmptyFile),
            () => None,
        })
    }
}

impl Member {
    fn of(path: PathBuf, metadata: &Metadata, kind: Kind) -> Self {
        let owner = (metadata.uid(), metadata.gid());
        Self { path, kind, mode: metadata.mode() & 0o7777, owner, changed: metadata.mtime() }
    }
}

/// `None` if the member does not fit into one (a long name, a time before 1970).
fn header(member: &Member) -> Option<Header> {
    let mut header = Header::new_gnu();
    let name = Path::new(".").join(&member.path);
    header.set_path(if member.path.as_os_str().is_empty() { Path::new("./") } else { &name }).ok()?;
    header.set_mode(member.mode);
    header.set_uid(member.owner.0.into());
    header.set_gid(member.owner.1.into());
    header.set_mtime(member.changed.try_into().ok()?);
    header.set_size(0);
    let kind = match &member.kind {
        Kind::Directory => EntryType::Directory,
        Kind::Link(target) => {
            header.set_link_name_literal(target.as_os_str().as_encoded_bytes()).ok()?;
            EntryType::Symlink
        }
        Kind::Device(kind, device) => {
            header.set_device_major(libc::major(*device)).ok()?;
            header.set_device_minor(libc::minor(*device)).ok()?;
            if *kind == SFlag::S_IFBLK { EntryType::Block } else { EntryType::Char }
        }
        Kind::Fifo => EntryType::Fifo,
        Kind::EmptyFile => EntryType::Regular,
    };
    header.set_entry_type(kind);
    header.set_cksum();
    Some(header)
}

fn extract(root: &Path) -> io::Result<Outcome> {
    let archive = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let length = archive.metadata()?.len();
    if length > LONGEST {
        return Ok(Outcome::Other);
    }
    // Without moving on in it: it may be for the real one.
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    archive.read_exact_at(&mut bytes, 0)?;
    unpack(&bytes, root)
}

/// Makes what is in the archive in `root`, which is empty.
fn unpack(archive: &[u8], root: &Path) -> io::Result<Outcome> {
    let Some(members) = members(archive) else { return Ok(Outcome::Other) };
    if fs::read_dir(root)?.next().is_some() {
        return Ok(Outcome::Other);
    }
    for member in &members {
        member.make(root)?;
    }
    // What is made in a directory changes it.
    for member in members.iter().rev() {
        let changed = TimeSpec::new(member.changed, 0);
        utimensat(AT_FDCWD, &root.join(&member.path), &TimeSpec::UTIME_NOW, &changed, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(Outcome::Done)
}

/// `None` if there is anything that is not done here, damage included.
fn members(archive: &[u8]) -> Option<Vec<Member>> {
    let mut archive = Archive::new(GzDecoder::new(archive).take(LONGEST_UNPACKED));
    let mut members: Vec<Member> = Vec::new();
    let (mut seen, mut directories) = (HashSet::new(), HashSet::new());
    for entry in archive.entries().ok()? {
        let entry = entry.ok()?;
        let header = entry.header();
        let path = relative(&entry.path().ok()?)?;
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Link(entry.link_name().ok()??.into_owned()),
            EntryType::Char => Kind::Device(SFlag::S_IFCHR, device(header)?),
            EntryType::Block => Kind::Device(SFlag::S_IFBLK, device(header)?),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Regular if entry.size() == 0 => Kind::EmptyFile,
            _ => return None,
        };
        // Only in directories of its own: no way leads out of the root.
        let root = path.as_os_str().is_empty() && kind == Kind::Directory;
        let its_place = root || path.parent().is_some_and(|parent| directories.contains(parent));
        if !its_place || !seen.insert(path.clone()) || members.len() == MOST {
            return None;
        }
        if kind == Kind::Directory {
            directories.insert(path.clone());
        }
        members.push(Member {
            path,
            kind,
            mode: header.mode().ok()? & 0o7777,
            owner: (header.uid().ok()?.try_into().ok()?, header.gid().ok()?.try_into().ok()?),
            changed: header.mtime().ok()?.try_into().ok()?,
        });
    }
    Some(members)
}

/// The names in `path`; `None` if it leads anywhere else.
fn relative(path: &Path) -> Option<PathBuf> {
    path.components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

fn device(header: &Header) -> Option<u64> {
    Some(makedev(header.device_major().ok()??.into(), header.device_minor().ok()??.into()))
}

impl Member {
    fn make(&self, root: &Path) -> io::Result<()> {
        let path = root.join(&self.path);
        let node = |kind, device| mknod(&path, kind, Mode::empty(), device).map_err(io::Error::from);
        match &self.kind {
            Kind::Directory if self.path.as_os_str().is_empty() => {}
            Kind::Directory => fs::create_dir(&path)?,
            Kind::Link(target) => symlink(target, &path)?,
            Kind::Device(kind, device) => node(*kind, *device)?,
            Kind::Fifo => node(SFlag::S_IFIFO, 0)?,
            Kind::EmptyFile => drop(File::create_new(&path)?),
        }
        lchown(&path, Some(self.owner.0), Some(self.owner.1))?;
        match self.kind {
            Kind::Link(_) => Ok(()),
            _ => fs::set_permissions(&path, Permissions::from_mode(self.mode)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tempfile::TempDir;

    use super::*;

    /// What a container has in such a file system, as far as anybody may make it.
    fn tree() -> TempDir {
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        for directory in ["pts", "mqueue", "net", "net/dev"] {
            fs::create_dir(at(directory)).unwrap();
        }
        symlink("/proc/self/fd", at("fd")).unwrap();
        File::create(at("console")).unwrap();
        mknod(&at("fifo"), SFlag::S_IFIFO, Mode::empty(), 0).unwrap();
        for (name, mode) in
            [("pts", 0o755), ("mqueue", 0o1777), ("net/dev", 0o700), ("console", 0o620), ("fifo", 0o600), ("", 0o1777)]
        {
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        }
        for name in ["pts", "net/dev", "net", "fd", "console", ""] {
            let past = TimeSpec::new(1_500_000_000, 0);
            utimensat(AT_FDCWD, &at(name), &past, &past, UtimensatFlags::NoFollowSymlink).unwrap();
        }
        tree
    }

    fn listed(root: &Path) -> Vec<Member> {
        list(root).unwrap().unwrap()
    }

    fn packed(root: &Path) -> Vec<u8> {
        let mut archive = Vec::new();
        assert_eq!(pack(root, &mut archive).unwrap(), Outcome::Done);
        archive
    }

    fn real_create(root: &Path) -> Vec<u8> {
        let words = CREATE.iter().filter(|word| **word != STDIN);
        let words = words
            .flat_map(|word| if *word == "." { vec![root.as_os_str(), word.as_ref()] } else { vec![word.as_ref()] });
        let output = Command::new("tar").args(words).output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn what_is_packed_is_unpacked_the_same_by_either() {
        let tree = tree();
        let expected = listed(tree.path());
        assert_eq!(expected.len(), 8);
        for archive in [packed(tree.path()), real_create(tree.path())] {
            let ours = tempfile::tempdir().unwrap();
            assert_eq!(unpack(&archive, ours.path()).unwrap(), Outcome::Done);
            assert_eq!(listed(ours.path()), expected);

            let real = tempfile::tempdir().unwrap();
            let mut tar = Command::new("tar");
            tar.args(EXTRACT).arg(real.path()).arg("--preserve-permissions").stdin(Stdio::piped());
            let mut tar = tar.spawn().unwrap();
            tar.stdin.take().unwrap().write_all(&archive).unwrap();
            assert!(tar.wait().unwrap().success());
            assert_eq!(listed(real.path()), expected);
        }
    }

    #[test]
    fn devices_keep_their_numbers() {
        for (kind, number) in [(SFlag::S_IFCHR, makedev(1, 3)), (SFlag::S_IFBLK, makedev(259, 70_000))] {
            let device = Member {
                path: "null".into(),
                kind: Kind::Device(kind, number),
                mode: 0o666,
                owner: (0, 5),
                changed: 1_500_000_000,
            };
            let root = Member { path: PathBuf::new(), kind: Kind::Directory, ..device.clone() };
            let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
            for member in [&root, &device] {
                archive.append(&header(member).unwrap(), io::empty()).unwrap();
            }
            assert_eq!(members(&archive.into_inner().unwrap().finish().unwrap()), Some(vec![root, device]));
        }
    }

    #[test]
    fn content_is_for_the_real_one() {
        let full = tempfile::tempdir().unwrap();
        fs::write(full.path().join("file"), "x").unwrap();
        let twice = tempfile::tempdir().unwrap();
        File::create(twice.path().join("a")).unwrap();
        fs::hard_link(twice.path().join("a"), twice.path().join("b")).unwrap();
        let long = tempfile::tempdir().unwrap();
        File::create(long.path().join("n".repeat(101))).unwrap();
        let many = tempfile::tempdir().unwrap();
        (0..MOST).for_each(|n| drop(File::create(many.path().join(n.to_string())).unwrap()));
        for tree in [full, twice, long, many] {
            let mut archive = Vec::new();
            assert_eq!(pack(tree.path(), &mut archive).unwrap(), Outcome::Other);
            assert!(archive.is_empty());
            let root = tempfile::tempdir().unwrap();
            if !tree.path().join("n".repeat(101)).exists() {
                assert_eq!(unpack(&real_create(tree.path()), root.path()).unwrap(), Outcome::Other);
                assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
            }
        }
    }

    #[test]
    fn nothing_is_made_outside_of_the_root_or_over_what_is_there() {
        let archive = |names: &[(&str, EntryType)]| {
            let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
            for (name, kind) in names {
                let mut header = Header::new_gnu();
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_entry_type(*kind);
                header.set_mode(0o755);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                header.set_size(0);
                header.set_link_name("/tmp").unwrap();
                header.set_cksum();
                archive.append(&header, io::empty()).unwrap();
            }
            archive.into_inner().unwrap().finish().unwrap()
        };
        let (dir, link, file) = (EntryType::Directory, EntryType::Symlink, EntryType::Regular);
        for hostile in [
            &[(".", dir), ("../x", file)][..],
            &[(".", dir), ("/x", file)],
            &[(".", dir), ("a", link), ("a/x", file)],
            &[(".", dir), ("a", dir), ("a", link), ("a/x", file)],
            &[("a", dir)],
            &[(".", link)],
        ] {
            assert_eq!(members(&archive(hostile)), None, "{hostile:?}");
        }
        let cut = packed(tree().path());
        assert_eq!(members(&cut[..cut.len() / 2]), None);
        assert_eq!(members(b""), None);

        let taken = tempfile::tempdir().unwrap();
        File::create(taken.path().join("console")).unwrap();
        assert_eq!(unpack(&archive(&[(".", dir)]), taken.path()).unwrap(), Outcome::Other);
    }

    #[test]
    fn other_calls_are_for_the_real_one() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(
            are(&words(CREATE), CREATE) && !are(&words(&CREATE[1..]), CREATE) && !are(&words(&["--help"]), EXTRACT)
        );
    }
}
