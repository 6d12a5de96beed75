//! Directories, mounts and markers.

use std::fs;
use std::path::Path;

use super::{Owner, Places, Thing};

/// What the last dump of a container that had come here before leaves in the directory of that migration: a file to bind over
/// (`spothop_criu::dump`). Empty, on a tmpfs, and used again.
const BOUND_OVER: &str = "criu.conf";

pub(super) fn things(places: &Places) -> Vec<Thing> {
    let mounts = fs::read_to_string(places.proc.join("self/mountinfo")).unwrap_or_default();
    let mut things = mounted(&mounts, &places.runtime);
    for room in ["dump", "restore"] {
        things.extend(entries(&places.runtime.join(room)).map(|(id, path)| directory(id, &path)));
    }
    things.extend(entries(&places.state.join("pending")).map(|(id, path)| marker(id, &path)));
    things
}

/// Names and paths in a directory; none if it is not there.
fn entries(directory: &Path) -> impl Iterator<Item = (String, std::path::PathBuf)> {
    let found = directory.read_dir().into_iter().flatten().flatten();
    found.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
}

fn directory(id: String, path: &Path) -> Thing {
    let names: Vec<_> = entries(path).map(|(name, _)| name).collect();
    // While a dump is under way, this is where it binds its file: any may be that dump.
    let (what, owner) = if names == [BOUND_OVER] {
        (format!("the empty {}", path.join(BOUND_OVER).display()), Owner::Any)
    } else {
        (format!("the directory {}", path.display()), Owner::Migration(id))
    };
    Thing { what, owner, since: modified(path), remove: format!("rm -r {}", path.display()), harms: false }
}

fn marker(id: String, path: &Path) -> Thing {
    Thing {
        what: format!("the marker {}, which keeps a half-made container from starting", path.display()),
        owner: Owner::Migration(id),
        since: modified(path),
        remove: format!("when no half-made container of it is left (docker ps -a): rm {}", path.display()),
        harms: false,
    }
}

/// Mounts below the runtime directory, from `/proc/self/mountinfo` (proc(5): the fifth field is the mount point).
fn mounted(mountinfo: &str, runtime: &Path) -> Vec<Thing> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter_map(|point| {
        let mut below = Path::new(point).strip_prefix(runtime).ok()?.iter().map(|part| part.to_string_lossy());
        let (room, id) = (below.next()?, below.next()?);
        matches!(&*room, "dump" | "restore").then(|| Thing {
            what: format!("the mount {point}"),
            owner: Owner::Migration(id.into_owned()),
            since: modified(Path::new(point)),
            remove: format!("umount {point}"),
            harms: false,
        })
    });
    ours.collect()
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|about| about.modified()).ok()
}
