//! A container's files from a hostile source: whatever the archive says, nothing outside of its places is made, changed or removed.

#![no_main]

use std::io::Write;
use std::os::unix::fs::symlink;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use spothop::files::{Place, Target, TreeName};
use spothop_fuzz::{Room, block_on};
use tar::{Builder, EntryType};
use tokio::io::AsyncWriteExt;

/// Parts of names. What is not ours is made of them as well as what is.
const PARTS: [&[u8]; 20] = [
    b"a",
    b"b",
    b"c",
    b"rootfs",
    b"volume",
    b"v",
    b"..",
    b".",
    b"",
    b"outside",
    b"file",
    b"directory",
    b"\n",
    b"\0",
    b"\xff",
    b"inside",
    b".spothop",
    b".removed",
    b".end",
    b"out",
];
const KINDS: [u8; 12] = *b"0125346x\0L7g";
const KEYS: [&str; 14] = [
    "SPOTHOP.socket",
    "SPOTHOP.fresh",
    "GNU.sparse.size",
    "GNU.sparse.map",
    "GNU.sparse.numblocks",
    "SCHILY.xattr.user.x",
    "SCHILY.xattr.trusted.overlay.opaque",
    "SCHILY.xattr.trusted.overlay.redirect",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.system.posix_acl_access",
    "path",
    "linkpath",
    "mtime",
    "size",
];
const TIMES: [&str; 8] = ["0", "1.5", "-1.999999999", "9223372036854775807", "-9223372036854775808", "1.", ".5", "1e9"];

#[derive(Arbitrary, Debug)]
struct Made {
    full: bool,
    mounted: bool,
    with_volume: bool,
    /// What the places hold already: links to where nothing may be written.
    links: Vec<(u8, u8)>,
    members: Vec<Entry>,
    /// Instead of the totals that fit.
    end: Option<Vec<u8>>,
    cut: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    tree: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    absolute: bool,
    kind: u8,
    mode: u16,
    owner: Option<(u32, u32)>,
    time: u8,
    size: Option<u32>,
    contents: Vec<u8>,
    device: Option<(u16, u16)>,
    records: Vec<(u8, Vec<u8>)>,
    raw_header: Option<Vec<u8>>,
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else { return };
    let room = Room::new();
    // As it comes, or made member by member with right checksums.
    let (bytes, places) = if which % 2 == 0 {
        (rest.to_vec(), places(&room, which % 4 == 2, false))
    } else {
        let Ok(made) = Made::arbitrary_take_rest(Unstructured::new(rest)) else { return };
        for (name, to) in made.links.iter().take(4) {
            let name = ["a", "b", "c", "out"][usize::from(*name) % 4];
            // Two of the same name are one.
            let _ = symlink(target(*to, &room), room.inside().join(name));
        }
        (archive(&made, &room), places(&room, made.mounted, made.with_volume))
    };
    let _ = block_on(async {
        let mut sink = spothop::files::apply(places);
        // The sink breaks when the archive is refused; `finish` says why.
        let _ = sink.write_all(&bytes).await;
        sink.finish().await
    });
    room.check();
});

fn places(room: &Room, mounted: bool, with_volume: bool) -> Vec<Place> {
    let root = room.inside().to_owned();
    let mut places =
        vec![Place { name: TreeName::Rootfs, target: if mounted { Target::Mounted(root) } else { Target::Raw(root) } }];
    if with_volume {
        places.push(Place { name: TreeName::Volume("v".into()), target: Target::Raw(room.volume()) });
    }
    places
}

fn target(which: u8, room: &Room) -> std::path::PathBuf {
    match which % 5 {
        0 => room.outside(),
        1 => "../outside".into(),
        2 => "../outside/file".into(),
        3 => "/proc/self/cwd".into(),
        _ => "b".into(),
    }
}

fn archive(made: &Made, room: &Room) -> Vec<u8> {
    let mut out = Builder::new(Vec::new());
    let pass = if made.full { "full" } else { "difference" };
    let trees =
        if made.with_volume { serde_json::json!(["rootfs", { "volume": "v" }]) } else { serde_json::json!(["rootfs"]) };
    let head = serde_json::json!({ "version": 1, "pass": pass, "trees": trees }).to_string();
    member(&mut out, b".spothop", None, EntryType::Regular.as_byte(), &[], head.as_bytes(), |_| {});
    let (mut entries, mut removed, mut stored) = (0, 0, 0);
    for entry in made.members.iter().take(32) {
        let path = name(entry.tree, &entry.path, entry.absolute, room);
        let link = if entry.link.first().is_some_and(|first| *first >= 200) {
            Some(std::os::unix::ffi::OsStringExt::into_vec(target(entry.tree, room).into_os_string()))
        } else {
            Some(name(entry.tree, &entry.link, false, room))
        };
        let records: Vec<_> = entry
            .records
            .iter()
            .take(8)
            .map(|(key, value)| (KEYS[usize::from(*key) % KEYS.len()], value.as_slice()))
            .collect();
        let kind = KINDS[usize::from(entry.kind) % KINDS.len()];
        let contents: &[u8] =
            if matches!(kind, b'0' | b'7' | b'\0') || path.starts_with(b".") { &entry.contents } else { &[] };
        let time = TIMES[usize::from(entry.time) % TIMES.len()].as_bytes();
        let records: Vec<_> = records.into_iter().chain([("mtime", time)]).collect();
        if path.starts_with(b".removed/") {
            removed += contents.split(|byte| *byte == 0).filter(|name| !name.is_empty()).count() as u64;
        } else {
            entries += 1;
            stored += contents.len() as u64;
        }
        member(&mut out, &path, link.as_deref(), kind, &records, contents, |header| {
            header.set_mode(entry.mode.into());
            if let Some((uid, gid)) = entry.owner {
                header.set_uid(uid.into());
                header.set_gid(gid.into());
            }
            if let Some(size) = entry.size {
                header.set_size(size.into());
            }
            let (major, minor) = entry.device.unwrap_or((0, 0));
            let _ = header.set_device_major(major.into());
            let _ = header.set_device_minor(minor.into());
            if let Some(raw) = &entry.raw_header {
                let bytes = header.as_mut_bytes();
                let length = raw.len().min(bytes.len());
                bytes[..length].copy_from_slice(&raw[..length]);
            }
        });
    }
    let totals = serde_json::json!({ "entries": entries, "removed": removed, "bytes": stored }).to_string();
    member(
        &mut out,
        b".end",
        None,
        EntryType::Regular.as_byte(),
        &[],
        made.end.as_deref().unwrap_or(totals.as_bytes()),
        |_| {},
    );
    let mut bytes = out.into_inner().unwrap();
    if let Some(cut) = made.cut {
        bytes.truncate(usize::from(cut));
    }
    bytes
}

fn name(tree: u8, parts: &[u8], absolute: bool, room: &Room) -> Vec<u8> {
    let mut name: Vec<u8> = match tree % 8 {
        0..=4 => b"rootfs".to_vec(),
        5 => b"volume/v".to_vec(),
        6 => b".removed/rootfs".to_vec(),
        _ => Vec::new(),
    };
    if absolute {
        name = std::os::unix::ffi::OsStringExt::into_vec(room.outside().into_os_string());
    }
    for part in parts.iter().take(8) {
        name.push(b'/');
        name.extend(PARTS[usize::from(*part) % PARTS.len()]);
    }
    name
}

fn member(
    out: &mut Builder<Vec<u8>>,
    path: &[u8],
    link: Option<&[u8]>,
    kind: u8,
    records: &[(&str, &[u8])],
    contents: &[u8],
    change: impl FnOnce(&mut tar::Header),
) {
    let mut extended = Vec::new();
    let first = [("path", path), ("mtime", b"0")];
    let link = link.map(|link| ("linkpath", link));
    for (key, value) in first.into_iter().chain(link).chain(records.iter().copied()) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        write!(extended, "{length} {key}=").unwrap();
        extended.extend(value);
        extended.push(b'\n');
    }
    let header = |kind: u8, size: usize| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(size as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    };
    out.append(&header(b'x', extended.len()), extended.as_slice()).unwrap();
    let mut own = header(kind, contents.len());
    change(&mut own);
    own.set_cksum();
    out.append(&own, contents).unwrap();
}
