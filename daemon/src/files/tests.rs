//! Both passes over real directories. They need neither root nor an overlay: owners are the caller's, and a plain directory stands for
//! a mounted one where only the handling of whiteouts and fresh directories matters.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Hosts {
    source: TempDir,
    target: TempDir,
}

impl Hosts {
    fn new() -> Self {
        let directory = || tempfile::tempdir().expect("a directory");
        Self { source: directory(), target: directory() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }

    fn trees(&self) -> Vec<Tree> {
        vec![Tree { name: TreeName::Rootfs, directory: self.source.path().into() }]
    }

    fn places(&self, mounted: bool) -> Vec<Place> {
        let path = self.target.path().to_owned();
        let target = if mounted { Target::Mounted(path) } else { Target::Raw(path) };
        vec![Place { name: TreeName::Rootfs, target }]
    }

    fn full(&self) -> Snapshot {
        let mut bytes = Vec::new();
        let (snapshot, sent) = writer::full(&self.trees(), &mut bytes).expect("archived");
        assert_eq!(applier::apply(bytes.as_slice(), &self.places(false)).expect("applied"), sent);
        snapshot
    }

    fn difference(&self, snapshot: &Snapshot, mounted: bool) -> Totals {
        let mut bytes = Vec::new();
        let (_, sent) = writer::difference(&self.trees(), snapshot, &mut bytes).expect("archived");
        assert_eq!(applier::apply(bytes.as_slice(), &self.places(mounted)).expect("applied"), sent);
        sent
    }

    fn assert_same(&self) {
        assert_eq!(describe(self.source.path()), describe(self.target.path()));
    }
}

/// Everything that can be seen of a tree, one line an entry. Inodes are told by the first name they have.
fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes = std::collections::HashMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let found = fs::symlink_metadata(&path).expect("there");
        let name = path.strip_prefix(root).expect("below").to_owned();
        let first = inodes.entry(found.ino()).or_insert_with(|| name.clone()).clone();
        let kind = found.file_type();
        let contents = if kind.is_file() {
            fs::read(&path).expect("readable")
        } else if kind.is_symlink() {
            fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let time = (found.mtime(), found.mtime_nsec());
        let size = if kind.is_dir() { 0 } else { found.size() };
        let what = (found.mode(), found.uid(), found.gid(), found.rdev(), size, time);
        lines.push(format!("{name:?} {what:?} {first:?} {:?}", String::from_utf8_lossy(&contents)));
        if kind.is_dir() {
            let mut entries: Vec<_> =
                fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
            entries.sort();
            waiting.extend(entries.into_iter().rev());
        }
    }
    lines
}

#[test]
fn a_tree_of_every_kind_arrives_as_it_was() {
    let hosts = Hosts::new();
    fs::create_dir_all(hosts.path("dir/deeper/deepest")).expect("mkdir");
    fs::write(hosts.path("dir/file"), "contents").expect("write");
    fs::write(hosts.path("empty"), "").expect("write");
    fs::write(hosts.path(&format!("{}\n", "long".repeat(60))), "a long name with a line feed").expect("write");
    fs::write(hosts.source.path().join(OsStr::from_bytes(b"not \xff utf-8")), "bytes").expect("write");
    fs::set_permissions(hosts.path("dir/file"), fs::Permissions::from_mode(0o4711)).expect("chmod");
    fs::set_permissions(hosts.path("dir/deeper"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    fs::hard_link(hosts.path("dir/file"), hosts.path("dir/deeper/name")).expect("link");
    symlink("../nowhere\n", hosts.path("dir/link")).expect("symlink");
    mkfifo(&hosts.path("fifo"), Mode::S_IRUSR).expect("mkfifo");
    mknod(&hosts.path("whiteout"), SFlag::S_IFCHR, Mode::empty(), 0).expect("mknod");
    let _socket = std::os::unix::net::UnixListener::bind(hosts.path("socket")).expect("bind");
    // What the engine copied into a new volume goes away.
    fs::create_dir_all(hosts.target.path().join("from/image")).expect("mkdir");
    hosts.full();
    hosts.assert_same();
}

#[test]
fn holes_stay_holes() {
    let hosts = Hosts::new();
    let file = fs::File::create(hosts.path("sparse")).expect("create");
    file.set_len(4 << 20).expect("truncate");
    file.write_all_at(b"in the middle", 2 << 20).expect("write");
    let snapshot = hosts.full();
    hosts.assert_same();
    let blocks = |root: &Path| fs::metadata(root.join("sparse")).expect("there").blocks();
    assert!(blocks(hosts.target.path()) <= blocks(hosts.source.path()) + 8, "{}", blocks(hosts.target.path()));
    file.write_all_at(b"at the end", (4 << 20) - 10).expect("write");
    file.set_len(6 << 20).expect("truncate");
    assert!(hosts.difference(&snapshot, false).bytes < 1 << 20);
    hosts.assert_same();
}

#[test]
fn the_difference_makes_the_copy_exact() {
    for mounted in [false, true] {
        let hosts = Hosts::new();
        fs::create_dir_all(hosts.path("kept/deep")).expect("mkdir");
        fs::create_dir_all(hosts.path("renamed")).expect("mkdir");
        fs::create_dir_all(hosts.path("becomes-file/sub")).expect("mkdir");
        for name in ["kept/same", "kept/deep/changed", "renamed/inside", "becomes-dir", "removed", "mode", "linked"] {
            fs::write(hosts.path(name), name).expect("write");
        }
        let snapshot = hosts.full();
        fs::write(hosts.path("kept/deep/changed"), "longer than it was before").expect("write");
        fs::write(hosts.path("kept/new"), "new").expect("write");
        fs::rename(hosts.path("renamed"), hosts.path("other-name")).expect("rename");
        fs::remove_dir_all(hosts.path("becomes-file")).expect("rm");
        fs::write(hosts.path("becomes-file"), "a file").expect("write");
        fs::remove_file(hosts.path("becomes-dir")).expect("rm");
        fs::create_dir(hosts.path("becomes-dir")).expect("mkdir");
        fs::write(hosts.path("becomes-dir/x"), "x").expect("write");
        fs::remove_file(hosts.path("removed")).expect("rm");
        fs::set_permissions(hosts.path("mode"), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::hard_link(hosts.path("linked"), hosts.path("kept/second-name")).expect("link");
        hosts.difference(&snapshot, mounted);
        hosts.assert_same();
    }
}

#[test]
fn a_whiteout_is_a_removal_through_a_mounted_overlay() {
    let hosts = Hosts::new();
    let snapshot = hosts.full();
    // As if an image below had them.
    fs::create_dir_all(hosts.target.path().join("gone/with/all")).expect("mkdir");
    fs::write(hosts.target.path().join("stays"), "of the image").expect("write");
    fs::write(hosts.target.path().join("gone-too"), "of the image").expect("write");
    mknod(&hosts.path("gone"), SFlag::S_IFCHR, Mode::empty(), 0).expect("mknod");
    // Overlayfs links its whiteouts.
    fs::hard_link(hosts.path("gone"), hosts.path("gone-too")).expect("link");
    hosts.difference(&snapshot, true);
    assert!(!hosts.target.path().join("gone").exists());
    assert!(!hosts.target.path().join("gone-too").exists());
    assert!(hosts.target.path().join("stays").exists());
}

#[test]
fn attributes_arrive_and_go_away() {
    let hosts = Hosts::new();
    fs::create_dir(hosts.path("dir")).expect("mkdir");
    if xattr::set(hosts.path("dir"), "user.kept", b"1\n2").is_err() {
        return; // This filesystem has none.
    }
    xattr::set(hosts.path("dir"), "user.dropped", b"").expect("set");
    let snapshot = hosts.full();
    let get = |name: &str| xattr::get(hosts.target.path().join("dir"), name).expect("readable");
    assert_eq!(get("user.kept").as_deref(), Some(b"1\n2".as_slice()));
    assert_eq!(get("user.dropped").as_deref(), Some(b"".as_slice()));
    xattr::remove(hosts.path("dir"), "user.dropped").expect("removed");
    hosts.difference(&snapshot, false);
    assert_eq!(get("user.kept").as_deref(), Some(b"1\n2".as_slice()));
    assert_eq!(get("user.dropped"), None);
}

#[test]
fn a_complete_archive_does_not_go_through_a_mounted_overlay() {
    let hosts = Hosts::new();
    fs::write(hosts.target.path().join("of-the-image"), "").expect("write");
    let mut bytes = Vec::new();
    writer::full(&hosts.trees(), &mut bytes).expect("archived");
    let refused = applier::apply(bytes.as_slice(), &hosts.places(true));
    assert!(matches!(refused, Err(Error::FullIntoMounted { .. })), "{refused:?}");
    assert!(hosts.target.path().join("of-the-image").exists());
}

#[test]
fn every_cut_is_noticed() {
    let hosts = Hosts::new();
    fs::write(hosts.path("file"), vec![7; 3000]).expect("write");
    let mut bytes = Vec::new();
    writer::full(&hosts.trees(), &mut bytes).expect("archived");
    // The last two blocks are tar's own end, which may be missing.
    for length in (0..bytes.len() - 1024).step_by(97) {
        let cut = applier::apply(&bytes[..length], &hosts.places(false));
        assert!(matches!(cut, Err(Error::Truncated | Error::Malformed { .. })), "{length}: {cut:?}");
    }
    applier::apply(bytes.as_slice(), &hosts.places(false)).expect("the whole is whole");
}

fn forged(members: &[(&str, member::Kind)]) -> Vec<u8> {
    forged_with(members, &[])
}

fn forged_with(members: &[(&str, member::Kind)], attributes: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let header =
        member::Header { version: member::VERSION, pass: member::Pass::Difference, trees: vec![TreeName::Rootfs] };
    let header = serde_json::to_vec(&header).expect("json");
    member::write_note(&mut archive, member::HEADER, &header).expect("written");
    for (path, kind) in members {
        let member = member::Member {
            path: path.into(),
            kind: kind.clone(),
            mode: 0o644,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            mtime: (0, 0),
            attributes: attributes.iter().map(|(name, value)| ((*name).into(), value.to_vec())).collect(),
        };
        member.write(&mut archive, std::io::empty()).expect("written");
    }
    archive.into_inner().expect("written")
}

#[test]
fn hostile_archives_stay_in_their_tree() {
    use member::Kind;
    let hosts = Hosts::new();
    let outside = tempfile::tempdir().expect("a directory");
    let file = || Kind::File { size: 0, segments: vec![] };
    let link = Kind::Symlink { target: outside.path().into() };
    fs::create_dir(hosts.target.path().join("there")).expect("mkdir");
    symlink(outside.path(), hosts.target.path().join("waits")).expect("symlink");
    let up = || Kind::Symlink { target: "..".into() };
    let cases: [(&str, Vec<(&str, Kind)>); 15] = [
        ("a link that was there before", vec![("rootfs/waits/escaped", file())]),
        ("a link in the middle", vec![("rootfs/there/up", up()), ("rootfs/there/up/up/escaped", file())]),
        (
            "a hard link through a link",
            vec![("rootfs/up", up()), ("rootfs/hard", Kind::Link { target: "rootfs/up/x".into() })],
        ),
        ("a hard link to an absolute name", vec![("rootfs/hard", Kind::Link { target: "/etc/passwd".into() })]),
        ("a hard link to the tree", vec![("rootfs/hard", Kind::Link { target: "rootfs".into() })]),
        ("a hard link to another tree", vec![("rootfs/hard", Kind::Link { target: "volume/x/file".into() })]),
        ("a name with a zero byte", vec![("rootfs/a\0/../../escaped", file())]),
        ("a name that ends in dots", vec![("rootfs/there/..", file())]),
        ("a name without an end", vec![("rootfs//escaped", file())]),
        ("dots", vec![("rootfs/../escaped", file())]),
        ("an absolute name", vec![("/escaped", file())]),
        ("a link on the way", vec![("rootfs/link", link.clone()), ("rootfs/link/escaped", file())]),
        ("a hard link to outside", vec![("rootfs/hard", Kind::Link { target: "rootfs/../../etc/passwd".into() })]),
        ("the tree itself as a link", vec![("rootfs", link)]),
        ("another tree", vec![("volume/x/escaped", file())]),
    ];
    for (name, members) in cases {
        let applied = applier::apply(forged(&members).as_slice(), &hosts.places(false));
        assert!(!matches!(applied, Ok(_) | Err(Error::Truncated)), "{name}: {applied:?}");
        assert_eq!(fs::read_dir(outside.path()).expect("a directory").count(), 0, "{name}");
        assert!(!hosts.target.path().with_file_name("escaped").exists(), "{name}");
    }
}

/// What an archive of these members makes, whether or not it has an end.
fn apply_forged(hosts: &Hosts, members: &[(&str, member::Kind)], attributes: &[(&str, &[u8])]) {
    let applied = applier::apply(forged_with(members, attributes).as_slice(), &hosts.places(false));
    assert!(matches!(applied, Err(Error::Truncated)), "only the end is missing: {applied:?}");
}

#[test]
fn names_of_any_bytes_and_the_last_of_several_members_count() {
    use member::Kind;
    let hosts = Hosts::new();
    let outside = tempfile::tempdir().expect("a directory");
    let kept = outside.path().join("kept");
    fs::write(&kept, "precious").expect("write");
    let file = || Kind::File { size: 0, segments: vec![] };
    let link = Kind::Symlink { target: kept.clone().into() };
    // The second replaces the link itself, and is not written through it; nor is a directory made through one.
    let members = [
        ("rootfs/line\nfeed\r\u{1b}[2J", file()),
        ("rootfs/twice", link.clone()),
        ("rootfs/twice", file()),
        ("rootfs/hard", link.clone()),
        ("rootfs/second", Kind::Link { target: "rootfs/hard".into() }),
        ("rootfs/directory", link),
        ("rootfs/directory", Kind::Directory { fresh: false }),
    ];
    apply_forged(&hosts, &members, &[]);
    let inside = |name: &str| fs::symlink_metadata(hosts.target.path().join(name)).expect("there");
    assert!(inside("line\nfeed\r\u{1b}[2J").is_file() && inside("twice").is_file() && inside("directory").is_dir());
    assert!(inside("second").is_symlink(), "a hard link to a link is the link's other name");
    let about = fs::metadata(&kept).expect("there");
    assert_eq!((fs::read(&kept).expect("readable"), about.nlink()), (b"precious".to_vec(), 1));
}

#[test]
fn a_hosts_own_attributes_are_not_set_for_anybody() {
    let hosts = Hosts::new();
    let file = [("rootfs/file", member::Kind::File { size: 0, segments: vec![] })];
    let probe = hosts.path("probe");
    fs::write(&probe, "").expect("write");
    if xattr::set(&probe, "user.probe", b"").is_err() {
        return; // This filesystem has none.
    }
    let foreign: [(&str, &[u8]); 3] =
        [("user.fine", b"1"), ("security.selinux", b"system_u:object_r:etc_t:s0"), ("trusted.overlay.origin", b"x")];
    apply_forged(&hosts, &file, &foreign);
    let names: Vec<_> = xattr::list(hosts.target.path().join("file")).expect("listed").collect();
    assert_eq!(names, ["user.fine"]);
}

/// Somebody who may write into the tree swaps a directory for a link, and an entry for a link, as fast as he can.
#[test]
fn a_link_swapped_in_between_two_steps_leads_nowhere() {
    let hosts = Hosts::new();
    let outside = tempfile::tempdir().expect("a directory");
    let kept = outside.path().join("file");
    fs::write(&kept, "precious").expect("write");
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o600)).expect("chmod");
    let root = hosts.target.path();
    let (directory, aside, link) = (root.join("dir"), root.join("aside"), root.join("link"));
    fs::create_dir(&directory).expect("mkdir");
    let file = member::Kind::File { size: 0, segments: vec![] };
    let bytes = forged_with(&vec![("rootfs/dir/file", file); 20], &[("user.x", b"1")]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let before = describe(outside.path());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // The directory, and then the file in it, give way to links and come back.
                let _ = symlink(outside.path(), &link);
                let _ = fs::rename(&directory, &aside).and_then(|()| fs::rename(&link, &directory));
                let _ = fs::remove_file(&directory);
                let _ = fs::rename(&aside, &directory);
                let _ = fs::remove_file(directory.join("file"));
                let _ = symlink(&kept, directory.join("file"));
            }
        });
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_millis(500) {
            let applied = applier::apply(bytes.as_slice(), &hosts.places(false));
            assert!(applied.is_err(), "an archive without its end");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(describe(outside.path()), before);
    assert!(xattr::list(&kept).map_or(true, |mut names| names.next().is_none()));
}

#[test]
fn trees_without_a_place_and_places_without_a_tree_are_refused() {
    let hosts = Hosts::new();
    let mut bytes = Vec::new();
    writer::full(&hosts.trees(), &mut bytes).expect("archived");
    let mut places = hosts.places(false);
    places.push(Place { name: TreeName::Volume("v".to_owned()), target: Target::Raw(hosts.source.path().into()) });
    assert!(matches!(applier::apply(bytes.as_slice(), &places), Err(Error::UnknownTree { .. })));
    assert!(matches!(applier::apply(bytes.as_slice(), &[]), Err(Error::UnknownTree { .. })));
}

#[test]
fn the_first_pass_survives_a_tree_that_changes_under_it() {
    let hosts = Hosts::new();
    for number in 0..100 {
        fs::create_dir(hosts.path(&number.to_string())).expect("mkdir");
        fs::write(hosts.path(&format!("{number}/file")), vec![1; 2000]).expect("write");
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let snapshot = std::thread::scope(|scope| {
        let unrest = scope.spawn(|| {
            let mut round = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let number = round * 37 % 100;
                let (directory, file) = (hosts.path(&number.to_string()), hosts.path(&format!("{number}/file")));
                match round % 4 {
                    0 => drop(fs::remove_dir_all(&directory)),
                    1 => drop(fs::create_dir(&directory)),
                    2 => drop(fs::write(&file, vec![2; (round % 5000) as usize])),
                    _ => drop(fs::OpenOptions::new().append(true).open(&file).map(|mut file| file.write_all(b"more"))),
                }
            }
        });
        let snapshots: Vec<_> = (0..4).map(|_| hosts.full()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        unrest.join().expect("no panic");
        snapshots.into_iter().next_back().expect("four")
    });
    hosts.difference(&snapshot, false);
    hosts.assert_same();
}

#[test]
fn a_file_that_changes_under_the_freeze_is_an_error() {
    let hosts = Hosts::new();
    fs::write(hosts.path("log"), "one line").expect("write");
    let snapshot = hosts.full();
    fs::write(hosts.path("log"), vec![1; 4 << 20]).expect("write");
    /// Writes to the file as soon as it is being sent.
    struct Meddler(PathBuf, usize);
    impl Write for Meddler {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 += bytes.len();
            if self.1 > 1 << 20 {
                fs::OpenOptions::new().append(true).open(&self.0)?.write_all(b"more")?;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sent = writer::difference(&hosts.trees(), &snapshot, Meddler(hosts.path("log"), 0));
    assert!(matches!(sent, Err(Error::Changed { .. })), "{:?}", sent.map(|(_, totals)| totals));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_carry_both_passes_and_the_reason_of_a_failure() {
    let hosts = Hosts::new();
    let volume = tempfile::tempdir().expect("a directory");
    let copy = tempfile::tempdir().expect("a directory");
    fs::write(hosts.path("big"), vec![9; 3 << 20]).expect("write");
    fs::write(volume.path().join("data"), "in the volume").expect("write");
    let name = TreeName::Volume("v".to_owned());
    let mut trees = hosts.trees();
    trees.push(Tree { name: name.clone(), directory: volume.path().into() });
    let mut places = hosts.places(false);
    places.push(Place { name, target: Target::Raw(copy.path().into()) });

    let (mut stream, mut sink) = (archive(trees.clone()), apply(places.clone()));
    tokio::io::copy(&mut stream, &mut sink).await.expect("copied");
    let (snapshot, sent) = stream.finish().await.expect("sent");
    assert_eq!(sink.finish().await.expect("written"), sent);
    assert_eq!(measure(trees.clone()).await.expect("measured").entries, sent.entries);
    hosts.assert_same();

    fs::write(volume.path().join("data"), "changed in the volume").expect("write");
    let (mut stream, mut sink) = (difference(trees, snapshot), apply(places.clone()));
    tokio::io::copy(&mut stream, &mut sink).await.expect("copied");
    stream.finish().await.expect("sent");
    sink.finish().await.expect("written");
    assert_eq!(fs::read_to_string(copy.path().join("data")).expect("there"), "changed in the volume");

    let mut missing = archive(vec![Tree { name: TreeName::Rootfs, directory: hosts.path("missing") }]);
    let failed = missing.read_to_end(&mut Vec::new()).await.expect_err("the reader is told");
    assert!(failed.to_string().contains("missing"), "{failed}");
    assert!(matches!(missing.finish().await, Err(Error::Io { .. })));

    let mut sink = apply(places);
    sink.write_all(&[b'x'; 4096]).await.expect("taken");
    assert!(matches!(sink.finish().await, Err(Error::Malformed { .. })));
}
