//! The files of images: magic words, lengths, messages.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use prost::Message;

use super::{COMMON, ImageError};

/// The longest image that is read, in bytes: a pagemap entry has about 17, and one entry stands for at least one page.
const LONGEST_FILE: u64 = 256 << 20;

/// The longest message: `mm` has about 60 bytes for each mapping, of which the kernel allows 65,530 if it is not told otherwise.
const LONGEST_MESSAGE: u64 = 64 << 20;

/// An image that is read message by message.
pub(super) struct Image<'a> {
    path: &'a Path,
    file: BufReader<File>,
    left: u64,
}

impl<'a> Image<'a> {
    pub(super) fn existing(path: &'a Path, magic: u32) -> Result<Self, ImageError> {
        Self::open(path, magic)?.ok_or_else(|| access(path)(io::ErrorKind::NotFound.into()))
    }

    pub(super) fn open(path: &'a Path, magic: u32) -> Result<Option<Self>, ImageError> {
        let file = match open(path) {
            Err(ImageError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let left = file.metadata().map_err(access(path))?.len();
        if left > LONGEST_FILE {
            return Err(ImageError::Long { path: path.to_owned(), bytes: left });
        }
        let mut image = Self { path, file: BufReader::new(file), left };
        match (image.word()?, image.word()?) {
            (Some(COMMON), Some(found)) if found == magic => Ok(Some(image)),
            _ => Err(ImageError::Kind { path: path.to_owned() }),
        }
    }

    /// The next message; `None` at the end.
    pub(super) fn next<M: Message + Default>(&mut self) -> Result<Option<M>, ImageError> {
        let Some(bytes) = self.bytes()? else { return Ok(None) };
        M::decode(&bytes[..]).map(Some).map_err(|source| ImageError::Message { path: self.path.to_owned(), source })
    }

    /// The next message, of which only the messages in its field `wanted` matter: `each` gets one after the other. All of them at once
    /// would take memory for far more than has come, as an empty one is two bytes long.
    pub(super) fn parts<M: Message + Default>(
        &mut self,
        wanted: usize,
        mut each: impl FnMut(M) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let bytes = self.bytes()?.ok_or_else(|| self.torn())?;
        let damaged = |source| ImageError::Message { path: self.path.to_owned(), source };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            // As all numbers of protobuf: a field's number and, in the lowest three bits, the kind of what follows.
            let key = prost::decode_length_delimiter(&mut rest).map_err(damaged)?;
            let length = match key & 7 {
                0 => prost::decode_length_delimiter(&mut rest).map(|_| 0).map_err(damaged)?,
                1 => 8,
                2 => prost::decode_length_delimiter(&mut rest).map_err(damaged)?,
                5 => 4,
                // Groups, which CRIU does not have.
                _ => return Err(ImageError::Kind { path: self.path.to_owned() }),
            };
            let (field, others) = rest.split_at_checked(length).ok_or_else(|| self.torn())?;
            if (key >> 3, key & 7) == (wanted, 2) {
                each(M::decode(field).map_err(damaged)?)?;
            }
            rest = others;
        }
        Ok(())
    }

    pub(super) fn required<M: Message + Default>(&mut self) -> Result<M, ImageError> {
        self.next()?.ok_or_else(|| self.torn())
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(length) = self.word()? else { return Ok(None) };
        if u64::from(length) > LONGEST_MESSAGE {
            return Err(ImageError::Long { path: self.path.to_owned(), bytes: length.into() });
        }
        if u64::from(length) > self.left {
            return Err(self.torn());
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn torn(&self) -> ImageError {
        ImageError::Torn { path: self.path.to_owned() }
    }

    fn word(&mut self) -> Result<Option<u32>, ImageError> {
        let mut word = [0; 4];
        match self.left {
            0 => return Ok(None),
            1..4 => return Err(self.torn()),
            _ => self.fill(&mut word)?,
        }
        Ok(Some(u32::from_le_bytes(word)))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ImageError> {
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.torn(),
            _ => access(self.path)(source),
        })?;
        self.left -= bytes.len() as u64;
        Ok(())
    }
}

/// The regular file at `path`, to be read. Nothing else is waited for or followed.
pub(in crate::memory) fn open(path: &Path) -> Result<File, ImageError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(access(path))?;
    match file.metadata().map_err(access(path))?.is_file() {
        true => Ok(file),
        false => Err(ImageError::Kind { path: path.to_owned() }),
    }
}

/// Writes a file whole, in the place of what is at `path`: it is the old or the new one at each moment.
pub(in crate::memory) fn replace(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> Result<(), ImageError> {
    let new = path.with_extension("new");
    let written = || {
        // An older one that was left behind must not be written through: it may be a link.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write(&File::options().write(true).create_new(true).mode(0o600).open(&new)?)?;
        fs::rename(&new, path)
    };
    written().map_err(access(path))
}

pub(super) fn write_message(file: &mut impl Write, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    file.write_all(&(bytes.len() as u32).to_le_bytes())?;
    file.write_all(&bytes)
}

pub(in crate::memory) fn access(path: &Path) -> impl Fn(io::Error) -> ImageError + '_ {
    move |source| ImageError::Access { path: path.to_owned(), source }
}
