//! Pages and files as one stream of bytes each.
//!
//! ```text
//! pages:  again and again { u32 object │ u64 offset │ u32 length │ u8 is there data? │ length bytes, if so }     little endian
//! files:  a tar archive of regular files
//! ```
//!
//! An object is a process with its marks, as on the wire (`migration::packing`). Pages of zeros have no data.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};

use bytes::{BufMut as _, Bytes, BytesMut};
use spothop_transfer::{Extent, ExtentSink, ExtentSource, Limits};
use tokio::sync::mpsc;

const HEAD: usize = 17;

/// Bytes that go to the next stage at once.
const BATCH: usize = 256 << 10;

/// A stage of a stream: pieces, or what went wrong.
pub(super) type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// Gives all pages of `source` to `out`. Blocks. An error is what reading a page said; that nobody takes them any more is none.
pub(super) fn give_pages(source: &dyn ExtentSource, out: &Pieces) -> io::Result<()> {
    while let Some(extent) = source.next() {
        let mut piece = BytesMut::zeroed(HEAD + extent.length as usize);
        let count = source.read(extent, &mut piece[HEAD..])?;
        if count == 0 {
            continue;
        }
        let data = piece[HEAD..HEAD + count].iter().any(|byte| *byte != 0);
        piece.truncate(HEAD + if data { count } else { 0 });
        let mut head = &mut piece[..HEAD];
        head.put_u32_le(extent.object);
        head.put_u64_le(extent.offset);
        // A piece has a mebibyte at most.
        head.put_u32_le(count as u32);
        head.put_u8(u8::from(data));
        if out.blocking_send(Ok(piece.freeze())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Puts all pages that come from `from` into `sink`, at most so many bytes.
pub(super) fn take_pages(mut from: impl Read, sink: &dyn ExtentSink, limits: Limits) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut total: u64 = 0;
    while let Some(head) = read_head(&mut from)? {
        let number =
            |range: std::ops::Range<usize>| head[range].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        // As wide as they were written.
        let (object, offset, length) = (number(0..4) as u32, number(4..12), number(12..16) as u32);
        total += u64::from(length);
        if length > Extent::MAX_LENGTH || total > limits.max_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more pages than were announced"));
        }
        if head[16] == 0 {
            sink.zero(object, offset, length)?;
            continue;
        }
        buffer.resize(length as usize, 0);
        from.read_exact(&mut buffer)?;
        sink.put(object, offset, &buffer)?;
    }
    Ok(())
}

/// None at the end of the stream.
fn read_head(from: &mut impl Read) -> io::Result<Option<[u8; HEAD]>> {
    let mut head = [0; HEAD];
    let mut done = 0;
    while done < HEAD {
        match from.read(&mut head[done..]) {
            Ok(0) if done == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(head))
}

/// Gives the files `root/name` to `out`. Blocks.
pub(super) fn give_files(root: &Path, names: &[String], out: &Pieces) -> io::Result<()> {
    let mut archive = tar::Builder::new(Outlet { out, buffer: BytesMut::with_capacity(BATCH) });
    for name in names {
        let file = File::open(root.join(name))?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(file.metadata()?.len());
        header.set_mode(0o600);
        archive.append_data(&mut header, name, file)?;
    }
    archive.into_inner()?.flush()
}

/// Makes the files that come from `from` in the directory `root`, as new ones that are ours alone, within `limits`.
pub(super) fn take_files(from: impl Read, root: &Path, limits: Limits) -> io::Result<()> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (mut bytes, mut files) = (0_u64, 0);
    for entry in tar::Archive::new(from).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let plain = matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if !plain || entry.header().entry_type() != tar::EntryType::Regular {
            return Err(wrong("something else than a file of CRIU's is among its images"));
        }
        (bytes, files) = (bytes.saturating_add(entry.size()), files + 1);
        if bytes > limits.max_bytes || files > limits.max_files {
            return Err(wrong("more images than were announced"));
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(root.join(&name))?;
        io::copy(&mut entry, &mut file)?;
    }
    Ok(())
}

/// What is written here goes to the next stage.
struct Outlet<'a> {
    out: &'a Pieces,
    buffer: BytesMut,
}

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BATCH {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(BATCH);
        self.out.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Mutex;

    use super::*;

    struct Memory(Mutex<Vec<(Extent, Vec<u8>)>>);

    impl ExtentSource for Memory {
        fn next(&self) -> Option<Extent> {
            self.0.lock().unwrap().last().map(|(extent, _)| *extent)
        }

        fn read(&self, _: Extent, buffer: &mut [u8]) -> io::Result<usize> {
            let (_, bytes) = self.0.lock().unwrap().pop().unwrap();
            buffer[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
    }

    #[derive(Default)]
    struct Taken(Mutex<BTreeMap<(u32, u64), Page>>);

    /// Its bytes; none for zeros.
    type Page = Option<Vec<u8>>;

    impl ExtentSink for Taken {
        fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().insert((object, offset), Some(bytes.to_vec()));
            Ok(())
        }

        fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()> {
            assert_eq!(length, 4096);
            self.0.lock().unwrap().insert((object, offset), None);
            Ok(())
        }
    }

    fn stream(give: impl FnOnce(&Pieces) -> io::Result<()> + Send + 'static) -> Vec<u8> {
        let (out, mut pieces) = mpsc::channel(1);
        let giving = std::thread::spawn(move || give(&out));
        let mut all = Vec::new();
        while let Some(piece) = pieces.blocking_recv() {
            all.extend_from_slice(&piece.unwrap());
        }
        giving.join().unwrap().unwrap();
        all
    }

    #[test]
    fn pages_come_back_in_their_places_without_what_was_gone() {
        let extent = |object, offset, length| Extent { object, offset, length };
        let source = Memory(Mutex::new(vec![
            (extent(1, 0x1000, 4096), vec![7; 4096]),
            (extent(1, 0x9000, 4096), vec![0; 4096]),
            (extent(7 | 1 << 31, u64::MAX - 1, 8192), vec![9; 5000]),
            (extent(2, 0, 4096), Vec::new()),
        ]));
        let bytes = stream(move |out| give_pages(&source, out));
        let taken = Taken::default();
        take_pages(&bytes[..], &taken, Limits::bytes(4096 + 4096 + 5000)).unwrap();
        let wanted = [
            ((1, 0x1000), Some(vec![7; 4096])),
            ((1, 0x9000), None),
            ((7 | 1 << 31, u64::MAX - 1), Some(vec![9; 5000])),
        ];
        assert_eq!(*taken.0.lock().unwrap(), BTreeMap::from(wanted));
        take_pages(&bytes[..], &Taken::default(), Limits::bytes(9000)).unwrap_err();
        take_pages(&bytes[..bytes.len() - 1], &Taken::default(), Limits::bytes(1 << 20)).unwrap_err();
    }

    #[test]
    fn files_come_back_and_nothing_else_does() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("core-1.img"), vec![5; 1 << 20]).unwrap();
        fs::write(from.path().join("empty.img"), "").unwrap();
        let names = ["core-1.img".to_owned(), "empty.img".to_owned()];
        let root = from.path().to_owned();
        let bytes = stream(move |out| give_files(&root, &names, out));
        take_files(&bytes[..], to.path(), Limits::bytes(1 << 20)).unwrap();
        assert_eq!(fs::read(to.path().join("core-1.img")).unwrap(), vec![5; 1 << 20]);
        assert_eq!(fs::read(to.path().join("empty.img")).unwrap(), b"");
        take_files(&bytes[..], to.path(), Limits::bytes(1 << 20)).unwrap_err();
        let other = tempfile::tempdir().unwrap();
        take_files(&bytes[..], other.path(), Limits::bytes((1 << 20) - 1)).unwrap_err();
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let to = tempfile::tempdir().unwrap();
        for kind in [tar::EntryType::Symlink, tar::EntryType::Directory, tar::EntryType::Regular] {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.as_old_mut().name[..5].copy_from_slice(b"../up");
            header.set_cksum();
            archive.append(&header, io::empty()).unwrap();
            take_files(&archive.into_inner().unwrap()[..], to.path(), Limits::bytes(1)).unwrap_err();
        }
    }
}
