use proptest::prelude::*;
use tar::Archive;

use super::*;

fn round_trip(member: &Member, contents: &[u8]) -> (Member, Vec<u8>) {
    let mut bytes = Vec::new();
    member.write(&mut Builder::new(&mut bytes), contents).expect("written");
    let mut archive = Archive::new(bytes.as_slice());
    let mut entries = archive.entries().expect("entries").raw(true);
    let extended =
        read_extended(&mut entries.next().expect("two members").expect("a header")).expect("an extended header");
    let mut entry = entries.next().expect("two members").expect("a header");
    let member = read(entry.header(), &extended).expect("a member");
    let mut contents = Vec::new();
    entry.read_to_end(&mut contents).expect("contents");
    (member, contents)
}

fn member(kind: Kind) -> Member {
    Member {
        path: "rootfs/a".into(),
        kind,
        mode: 0o4755,
        uid: 4_000_000_000,
        gid: 7,
        mtime: (1_700_000_000, 123_456_789),
        attributes: vec![("user.a=b%c".into(), b"line\nfeed\0and zero".to_vec())],
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    let name = prop::collection::vec(1_u8..=255, 1..300);
    prop_oneof![
        any::<bool>().prop_map(|fresh| Kind::Directory { fresh }),
        name.clone().prop_map(|name| Kind::Symlink { target: OsString::from_vec(name) }),
        name.prop_map(|name| Kind::Link { target: OsString::from_vec(name).into() }),
        (0_u64..4096, 0_u64..1 << 20)
            .prop_map(|(major, minor)| Kind::Character { rdev: nix::sys::stat::makedev(major, minor) }),
        (0_u64..4096, 0_u64..1 << 20)
            .prop_map(|(major, minor)| Kind::Block { rdev: nix::sys::stat::makedev(major, minor) }),
        Just(Kind::Fifo),
        Just(Kind::Socket),
    ]
}

proptest! {
    #[test]
    fn every_member_is_read_as_it_was_written(
        kind in kind(),
        path in prop::collection::vec(1_u8..=255, 1..400),
        mode in 0_u32..0o10000,
        (uid, gid) in any::<(u32, u32)>(),
        mtime in (-5_000_000_000_i64..5_000_000_000, 0_i64..1_000_000_000),
        attributes in prop::collection::vec(("user\\.[a-z=%\n]{1,20}", prop::collection::vec(any::<u8>(), 0..200)), 0..4),
    ) {
        let attributes = attributes.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let member = Member { path: OsString::from_vec(path).into(), kind, mode, uid, gid, mtime, attributes };
        // Keys of extended headers end at the first `=`; line feeds in them are no matter.
        prop_assert_eq!(round_trip(&member, b"").0, member);
    }

    #[test]
    fn hostile_extended_headers_are_errors_and_nothing_worse(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let extended = Extended { bytes };
        let _ = read(&tar::Header::new_ustar(), &extended);
    }
}

#[test]
fn contents_follow_their_member() {
    let file = member(Kind::File { size: 5, segments: vec![(0, 5)] });
    assert_eq!(round_trip(&file, b"hello"), (file, b"hello".to_vec()));
    let sparse = member(Kind::File { size: 1 << 40, segments: vec![(0, 3), (1 << 30, 2)] });
    assert_eq!(round_trip(&sparse, b"hello"), (sparse, b"hello".to_vec()));
    let hole = member(Kind::File { size: 1 << 40, segments: vec![] });
    assert_eq!(round_trip(&hole, b""), (hole, Vec::new()));
}

#[test]
fn sparse_maps_must_be_in_order_and_complete() {
    let map = |text: &str| parse_map(text.as_bytes(), 100, 10);
    assert_eq!(map("0,5,50,5"), Some(vec![(0, 5), (50, 5)]));
    for bad in ["0,5", "0,5,50,6", "50,5,0,5", "0,5,3,5", "95,10", "0,5,50", "a,b", "18446744073709551615,10"] {
        assert_eq!(map(bad), None, "{bad}");
    }
}

#[test]
fn times_before_the_epoch_are_posix_decimals() {
    assert_eq!(stamp_text(-1, 500_000_000), "-0.500000000");
    assert_eq!(stamp_text(-2, 250_000_000), "-1.750000000");
    assert_eq!(parse_stamp(b"-1.75"), Some((-2, 250_000_000)));
    assert_eq!(parse_stamp(b"12"), Some((12, 0)));
    assert_eq!(parse_stamp(b"12.-5"), None);
}

#[test]
fn lengths_of_records_count_themselves() {
    let mut extended = Extended::default();
    // 7 + 92 digits: the length grows from two digits to three.
    extended.add("key", &[b'x'; 92]);
    let text = String::from_utf8(extended.bytes.clone()).expect("ascii");
    assert!(text.starts_with(&format!("{} key=x", text.len())), "{text}");
    assert_eq!(extended.records().count(), 1);
}
