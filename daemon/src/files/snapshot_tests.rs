use super::*;

fn seen(inode: u64, kind: u32, ctime: i64) -> Seen {
    Seen { device: 1, inode, mode: kind | 0o755, links: 1, size: 0, rdev: 0, ctime: (ctime, 0), opaque: false }
}

fn dir(inode: u64, ctime: i64) -> Seen {
    seen(inode, kinds::DIRECTORY, ctime)
}

fn file(inode: u64, ctime: i64) -> Seen {
    seen(inode, kinds::FILE, ctime)
}

fn opaque(seen: Seen) -> Seen {
    Seen { opaque: true, ..seen }
}

fn listing(entries: &[(&str, Seen)]) -> Listing {
    let entries = entries.iter().map(|(path, seen)| (PathBuf::from(path), *seen)).collect();
    Listing { entries, begun: (1000, 0), unstamped: false }
}

/// Changed, removed and fresh paths, each joined by spaces.
fn difference(before: &[(&str, Seen)], now: &[(&str, Seen)]) -> (String, String, String) {
    let difference = listing(before).difference(&listing(now));
    let text = |paths: Vec<&PathBuf>| {
        let paths =
            paths.into_iter().map(|path| if path.as_os_str().is_empty() { "/" } else { path.to_str().expect("utf-8") });
        paths.collect::<Vec<_>>().join(" ")
    };
    let mut fresh: Vec<_> = difference.fresh.iter().collect();
    fresh.sort();
    (
        text(difference.changed.iter().map(|(path, _)| path).collect()),
        text(difference.removed.iter().collect()),
        text(fresh),
    )
}

fn told(changed: &str, removed: &str, fresh: &str) -> (String, String, String) {
    (changed.to_owned(), removed.to_owned(), fresh.to_owned())
}

#[test]
fn nothing_is_sent_of_what_stayed() {
    let tree = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 1))];
    assert_eq!(difference(&tree, &tree), told("", "", ""));
}

#[test]
fn a_changed_file_takes_its_directories_along() {
    let before = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 1)), ("c", file(4, 1))];
    let now = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 2)), ("c", file(4, 1))];
    assert_eq!(difference(&before, &now), told("/ a a/b", "", ""));
}

#[test]
fn a_removed_directory_is_named_without_its_contents() {
    let before = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 1)), ("ab", file(4, 1))];
    let now = [("", dir(1, 2)), ("ab", file(4, 1))];
    assert_eq!(difference(&before, &now), told("/", "a", ""));
}

#[test]
fn a_renamed_directory_is_sent_with_its_contents_unchanged_as_they_are() {
    let before = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 1))];
    let now = [("", dir(1, 2)), ("z", dir(2, 2)), ("z/b", file(3, 1))];
    assert_eq!(difference(&before, &now), told("/ z z/b", "a", ""));
}

#[test]
fn a_directory_made_again_is_sent_whole_even_where_its_files_are_the_same_inodes() {
    let before = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 1))];
    let now = [("", dir(1, 2)), ("a", opaque(dir(9, 2))), ("a/b", file(3, 1))];
    assert_eq!(difference(&before, &now), told("/ a a/b", "", "a"));
}

#[test]
fn a_directory_in_the_place_of_a_whiteout_is_fresh() {
    let whiteout = seen(5, nix::sys::stat::SFlag::S_IFCHR.bits(), 1);
    let before = [("", dir(1, 1)), ("a", whiteout)];
    let now = [("", dir(1, 2)), ("a", opaque(dir(9, 2))), ("a/b", file(3, 2))];
    assert_eq!(difference(&before, &now), told("/ a a/b", "", "a"));
}

#[test]
fn an_opaque_directory_that_was_sent_before_is_not_emptied_again() {
    let before = [("", dir(1, 1)), ("a", opaque(dir(2, 1))), ("a/b", file(3, 1)), ("a/c", file(4, 1))];
    let now = [("", dir(1, 1)), ("a", opaque(dir(2, 1))), ("a/b", file(3, 2)), ("a/c", file(4, 1))];
    assert_eq!(difference(&before, &now), told("/ a a/b", "", ""));
}

#[test]
fn a_directory_copied_up_hides_nothing() {
    let before = [("", dir(1, 1))];
    let now = [("", dir(1, 2)), ("etc", dir(2, 2)), ("etc/passwd", file(3, 2))];
    assert_eq!(difference(&before, &now), told("/ etc etc/passwd", "", ""));
}

#[test]
fn a_file_in_the_place_of_a_directory_removes_what_was_in_it() {
    let before = [("", dir(1, 1)), ("a", dir(2, 1)), ("a/b", file(3, 1))];
    let now = [("", dir(1, 2)), ("a", file(9, 2))];
    assert_eq!(difference(&before, &now), told("/ a", "a/b", ""));
}

#[test]
fn all_names_of_a_changed_inode_go_together() {
    let linked = |ctime| Seen { links: 2, ..file(3, ctime) };
    let before = [("", dir(1, 1)), ("a", linked(1)), ("b", linked(1)), ("c", file(4, 1))];
    let now = [("", dir(1, 1)), ("a", linked(1)), ("b", linked(2)), ("c", file(4, 1))];
    assert_eq!(difference(&before, &now), told("/ a b", "", ""));
}

#[test]
fn what_changed_while_the_first_pass_began_is_sent_again() {
    let tree = [("", dir(1, 1)), ("a", file(2, 1000)), ("b", file(3, 999))];
    assert_eq!(difference(&tree, &tree), told("/ a", "", ""));
}

#[test]
fn files_without_time_stamps_are_always_sent_again() {
    let tree = [("", dir(1, 1)), ("a", file(2, 1)), ("d", dir(3, 1))];
    let before = Listing { unstamped: true, ..listing(&tree) };
    let changed: Vec<_> = before.difference(&listing(&tree)).changed.into_iter().map(|(path, _)| path).collect();
    assert_eq!(changed, [PathBuf::new(), "a".into()]);
}

#[test]
fn whiteouts_are_links_of_one_inode_and_still_sent_once() {
    let whiteout = |ctime| Seen { links: 3, ..seen(5, kinds::CHARACTER, ctime) }.in_layer(true);
    let before = [("", dir(1, 1)), ("a", whiteout(1))];
    let now = [("", dir(1, 2)), ("a", whiteout(2)), ("b", whiteout(2))];
    assert_eq!(difference(&before, &now), told("/ b", "", ""));
}
