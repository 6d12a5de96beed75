//! A container's files, moved in two passes: all of them while it runs, then the difference under the freeze.
//!
//! What moves are *trees*: the writable layer of the container (overlayfs' upper directory, with its whiteouts and opaque
//! directories) and its local volumes. One archive holds all trees of a container; its format is POSIX tar (pax), see
//! `member.rs`.
//!
//! ```text
//! source                                         target
//! archive(trees) ── pass 1, while it runs ─────► apply(places): Raw upper directory and volumes, before start
//!   └► Snapshot
//! difference(trees, snapshot) ── frozen ───────► apply(places): Mounted merged directory, volumes Raw
//! ```
//!
//! **Pass 1** reads a tree that changes under it: files may vanish, shrink and grow, and none of that is a failure. The
//! [`Snapshot`] says what each entry looked like *before* it was read. At the target the pass replaces everything that
//! was there: volumes may hold what the engine copied from the image.
//!
//! **Pass 2** is exact. It sends every entry whose inode, change time, size or kind differs from the snapshot, and the names that are
//! gone. Two things would be missed by that alone and are sent always: an entry that was changed so shortly before pass 1
//! looked at it that a second change could bear the same time stamp; and everything regular on a filesystem that keeps no
//! time stamps for mapped writes (tmpfs). And one is made visible: writing through a mapping to a page that is dirty already
//! touches no time stamp, so pass 1 writes such pages out before it reads a file, and the next write is stamped again.
//! An entry that changes while pass 2 reads it is an error: somebody outside the container writes there.
//!
//! **Mounted or raw.** While the overlay is mounted, its upper directory must not be written behind its back. Pass 2 goes
//! through the merged directory then: a whiteout is a removal, an opaque directory is one that is removed and made again,
//! and overlayfs writes both into the upper directory as it should.
//!
//! What is deliberately absent: unlinked but open files (CRIU has their contents in its images), the contents of mounted tmpfs
//! (CRIU's too), and access times. Sockets are made again as empty inodes; CRIU replaces those that are bound.
//!
//! All blocking work is done on blocking threads; memory is bounded by the number of entries, not by their contents.

mod applier;
mod beneath;
mod error;
mod member;
mod snapshot;
mod stream;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use error::Error;
pub use snapshot::Snapshot;
pub use stream::{ArchiveSink, ArchiveStream};

/// Name of a tree, the same on both hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeName {
    /// The container's writable layer. In archives: `rootfs/`.
    Rootfs,
    /// A volume, by its name. In archives: `volume/<name>/`.
    Volume(String),
}

impl fmt::Display for TreeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rootfs => out.write_str("rootfs"),
            Self::Volume(name) => write!(out, "volume/{name}"),
        }
    }
}

/// A tree to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Its name.
    pub name: TreeName,
    /// Its directory on this host: the raw upper directory (reading it while mounted is safe) or the volume.
    pub directory: PathBuf,
}

/// Where a tree is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the tree.
    pub name: TreeName,
    /// Where, and in which way.
    pub target: Target,
}

/// Way of writing a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A volume, or an upper directory that is *not* mounted: whiteouts and opaque marks are written as they are.
    Raw(PathBuf),
    /// A mounted overlay's merged directory. Takes a difference only.
    Mounted(PathBuf),
}

/// What an archive held, for the journal and the timeline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Files, directories, links and so on.
    pub entries: u64,
    /// Names removed.
    pub removed: u64,
    /// Bytes of file contents, holes not counted.
    pub bytes: u64,
}

/// Pass 1: everything in `trees`. Reading begins at once, on a blocking thread.
///
/// Needs root, and a tokio runtime around it.
#[must_use]
pub fn archive(trees: Vec<Tree>) -> ArchiveStream {
    ArchiveStream::of(move |out| writer::full(&trees, out))
}

/// Pass 2: what changed in `trees` since `snapshot`. The trees must be those of pass 1, by name, and nobody may write to them.
#[must_use]
pub fn difference(trees: Vec<Tree>, snapshot: Arc<Snapshot>) -> ArchiveStream {
    ArchiveStream::of(move |out| writer::difference(&trees, &snapshot, out))
}

/// Writes an archive, of either pass, to `places`: one for every tree of the archive, and no others.
///
/// Write the archive into the sink and then call [`ArchiveSink::finish`]; only its `Ok` says that everything is there.
#[must_use]
pub fn apply(places: Vec<Place>) -> ArchiveSink {
    ArchiveSink::of(move |archive| applier::apply(archive, &places))
}

/// How much there is in `trees`, for a prediction: only names are read.
///
/// # Errors
/// [`Error::Io`] when a directory cannot be read.
pub async fn measure(trees: Vec<Tree>) -> Result<Totals, Error> {
    tokio::task::spawn_blocking(move || writer::measure(&trees)).await.map_err(|_| Error::Stopped)?
}

#[cfg(test)]
mod tests;
