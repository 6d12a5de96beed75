//! Files: any connection carries any chunk of any file, so that all of them are busy to the end.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::chunks::{self, Pack, Packed, Put};
use super::transfer::{Progress, Transfer};
use super::{CHUNK, Limits, Stats};
use crate::codec::{Packer, Place, Unpacker, seal};
use crate::error::Error;
use crate::session::TransferParts;
use crate::wire::chunk::{Encoding, Header};
use crate::wire::message::{self, Content, Digest};

/// See [`crate::Session::send_files`].
pub(crate) async fn send(
    parts: TransferParts<'_>,
    root: &Path,
    files: &[String],
    progress: Progress<'_>,
) -> Result<Stats, Error> {
    let (mut transfer, connections) = Transfer::new(parts, progress);
    let outcome = async {
        check_names(files.iter().map(String::as_str))?;
        let (root, names) = (root.to_owned(), files.to_vec());
        let sources = transfer.context.jobs.run(move || sources(&root, &names)).await?;
        let announced = files.iter().zip(&sources);
        let announced =
            announced.map(|(name, source)| message::File { name: name.clone(), size: source.size }).collect();
        transfer.announce(Content::Files { files: announced }).await?;

        let queue = Arc::new(Queue { sources, next: Mutex::default() });
        for (index, connection) in connections.into_iter().enumerate() {
            transfer.workers.spawn(chunks::send(index, connection, queue.clone(), transfer.context.clone()));
        }
        let ((), connections) = transfer.drive(async { Ok(()) }).await?;
        let digests = queue.sources.iter().map(Source::digest).collect();
        transfer.finish(digests).await?;
        Ok(connections)
    }
    .await;
    transfer.conclude(outcome).await
}

/// See [`crate::Session::receive_files`].
pub(crate) async fn receive(
    parts: TransferParts<'_>,
    root: &Path,
    limits: &Limits,
    progress: Progress<'_>,
) -> Result<Stats, Error> {
    let (mut transfer, connections) = Transfer::new(parts, progress);
    let outcome = async {
        let (content, chunk_bytes) = transfer.announced().await?;
        let Content::Files { files } = content else {
            return Err(transfer.protocol("both sides mean the same kind of transfer, here files"));
        };
        check_names(files.iter().map(|file| file.name.as_str()))?;
        check_limits(&files, limits)?;
        let root = root.to_owned();
        let targets = transfer.context.jobs.run(move || targets(&root, files, chunk_bytes)).await?;

        let targets = Arc::new(Targets(targets));
        for (index, connection) in connections.into_iter().enumerate() {
            let (targets, context) = (targets.clone(), transfer.context.clone());
            transfer.workers.spawn(chunks::receive(index, connection, targets, chunk_bytes, context));
        }
        let ((), connections) = transfer.drive(async { Ok(()) }).await?;
        let finish = transfer.finished().await?;
        if finish.digests.len() != targets.0.len() {
            return Err(transfer.protocol("the manifest has a digest for each file"));
        }
        for (target, digest) in targets.0.iter().zip(finish.digests) {
            if target.digest().as_ref() != Some(&digest) {
                return Err(Error::Digest { peer: transfer.context.peer.to_string(), object: target.name.clone() });
            }
        }
        transfer.confirm().await?;
        Ok(connections)
    }
    .await;
    transfer.conclude(outcome).await
}

/// Plain names, each once.
fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for name in names {
        let plain = !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
        if !plain || !seen.insert(name) {
            return Err(Error::FileName { name: name.to_owned() });
        }
    }
    Ok(())
}

fn check_limits(files: &[message::File], limits: &Limits) -> Result<(), Error> {
    let (count, limit) = (files.len() as u64, limits.max_files as u64);
    if count > limit {
        return Err(Error::Limit { what: "the number of files", actual: count, limit });
    }
    let total = files.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size));
    if total > limits.max_bytes {
        return Err(Error::Limit { what: "the files' size (bytes)", actual: total, limit: limits.max_bytes });
    }
    Ok(())
}

fn file_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::File { action, path: path.to_owned(), source: Arc::new(source) }
}

/// A file to be sent.
struct Source {
    path: PathBuf,
    /// When the transfer began, in bytes.
    size: u64,
    /// Checksums of its chunks.
    checksums: Mutex<Vec<u64>>,
}

impl Source {
    fn digest(&self) -> String {
        let checksums = self.checksums.lock().unwrap_or_else(PoisonError::into_inner);
        digest(checksums.iter().copied(), self.size, CHUNK)
    }
}

fn digest(checksums: impl Iterator<Item = u64>, size: u64, chunk_bytes: u32) -> String {
    let mut digest = Digest::default();
    for checksum in checksums {
        digest.chunk(checksum, u64::from(chunk_bytes).min(size - digest.length()));
    }
    digest.finish()
}

fn chunks_of(size: u64, chunk_bytes: u32) -> usize {
    // A file of so many chunks that they could not be counted would not fit the limits of any receiver.
    usize::try_from(size.div_ceil(u64::from(chunk_bytes))).unwrap_or(usize::MAX)
}

fn sources(root: &Path, names: &[String]) -> Result<Vec<Source>, Error> {
    let source = |name: &String| {
        let path = root.join(name);
        let metadata = path.metadata().map_err(file_error("open", &path))?;
        if !metadata.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(file_error("open", &path)(source));
        }
        let size = metadata.len();
        Ok(Source { path, size, checksums: Mutex::new(vec![0; chunks_of(size, CHUNK)]) })
    };
    names.iter().map(source).collect()
}

/// The chunks still to be sent, in the order of the files.
struct Queue {
    sources: Vec<Source>,
    next: Mutex<Next>,
}

/// A chunk to be sent, taken by one connection.
struct Taken {
    object: usize,
    file: Arc<File>,
    offset: u64,
    length: usize,
}

/// The chunk that is next.
#[derive(Default)]
struct Next {
    object: usize,
    offset: u64,
    /// The file, once its first chunk was taken.
    file: Option<Arc<File>>,
}

impl Queue {
    /// Takes a chunk; `None` when there are no more.
    fn take(&self) -> Result<Option<Taken>, Error> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(source) = self.sources.get(next.object) else { return Ok(None) };
            if next.offset == source.size {
                *next = Next { object: next.object + 1, ..Next::default() };
                continue;
            }
            let file = match &next.file {
                Some(file) => file.clone(),
                None => {
                    let file = Arc::new(File::open(&source.path).map_err(file_error("open", &source.path))?);
                    next.file.insert(file).clone()
                }
            };
            let (object, offset) = (next.object, next.offset);
            let length = (source.size - offset).min(u64::from(CHUNK));
            next.offset += length;
            // At most CHUNK.
            return Ok(Some(Taken { object, file, offset, length: length as usize }));
        }
    }
}

impl Pack for Queue {
    fn pack(&self, transfer: u32, packer: &mut Packer, raw: &mut Vec<u8>) -> Result<Packed, Error> {
        let Some(Taken { object, file, offset, length }) = self.take()? else { return Ok(Packed::End) };
        let source = &self.sources[object];
        raw.resize(length, 0);
        file.read_exact_at(raw, offset).map_err(file_error("read", &source.path))?;
        let checksum = seal(raw);
        let index = (offset / u64::from(CHUNK)) as usize;
        source.checksums.lock().unwrap_or_else(PoisonError::into_inner)[index] = checksum.unwrap_or(0);
        // The announcement, at most MAX_MESSAGE long, could not list 2^32 files.
        let place = Place { transfer, object: object as u32, offset };
        Ok(Packed::Piece(packer.pack(place, raw, checksum)))
    }
}

/// A file to be received.
struct Target {
    name: String,
    path: PathBuf,
    size: u64,
    chunk_bytes: u32,
    state: Mutex<TargetState>,
}

struct TargetState {
    /// Open between its first chunk with bytes and its last chunk.
    file: Option<Arc<File>>,
    /// Of each chunk that is there, by its place. Not a list of all that should be: a size is only announced, and of a petabyte the
    /// mere list would take more memory than there is.
    checksums: BTreeMap<u64, u64>,
    missing: u64,
}

/// Makes all files, empty but of their full size, so that what is never written is a hole.
fn targets(root: &Path, files: Vec<message::File>, chunk_bytes: u32) -> Result<Vec<Target>, Error> {
    let target = |message::File { name, size }| {
        let path = root.join(&name);
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.set_len(size);
        create().map_err(file_error("create", &path))?;
        let missing = size.div_ceil(u64::from(chunk_bytes));
        let state = TargetState { file: None, checksums: BTreeMap::new(), missing };
        Ok(Target { name, path, size, chunk_bytes, state: Mutex::new(state) })
    };
    files.into_iter().map(target).collect()
}

impl Target {
    /// Verifies a chunk and puts it in its place.
    fn put(&self, header: &Header, stored: &mut Vec<u8>, unpacker: &mut Unpacker, peer: &str) -> Result<(), Error> {
        let protocol = |rule| Error::Protocol { peer: peer.into(), rule };
        let chunk_bytes = u64::from(self.chunk_bytes);
        let expected = self.size.saturating_sub(header.offset).min(chunk_bytes);
        if !header.offset.is_multiple_of(chunk_bytes) || u64::from(header.raw_length) != expected {
            return Err(protocol("a chunk has its place in its file"));
        }
        unpacker.unpack(header, stored, &self.name, peer)?;
        if header.encoding != Encoding::Zero {
            let file = self.file().map_err(file_error("open", &self.path))?;
            file.write_all_at(stored, header.offset).map_err(file_error("write", &self.path))?;
        }

        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checksums.insert(header.offset / chunk_bytes, header.checksum).is_some() {
            return Err(protocol("a chunk comes once"));
        }
        state.missing -= 1;
        if state.missing == 0 {
            state.file = None;
        }
        Ok(())
    }

    fn file(&self) -> io::Result<Arc<File>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &state.file {
            return Ok(file.clone());
        }
        // Just made by us, so a link in its place is nobody's good intention.
        let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(&self.path)?;
        Ok(state.file.insert(Arc::new(file)).clone())
    }

    /// `None` while a chunk is missing.
    fn digest(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.missing == 0).then(|| digest(state.checksums.values().copied(), self.size, self.chunk_bytes))
    }
}

/// All files of a transfer, in the order of their object numbers.
struct Targets(Vec<Target>);

impl Put for Targets {
    fn put(&self, header: &Header, stored: &mut Vec<u8>, unpacker: &mut Unpacker, peer: &str) -> Result<(), Error> {
        match self.0.get(header.object as usize) {
            Some(target) => target.put(header, stored, unpacker, peer),
            None => Err(Error::Protocol { peer: peer.into(), rule: "a chunk is of an announced file" }),
        }
    }
}
