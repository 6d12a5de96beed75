//! How the pager of a lazy restore has ended, as it or its guard notes down for the daemon: `paged.json`.
//!
//! Whoever finds no pager any more learns here whether its tasks have all of their memory. The note is written before the last of the two
//! processes ends, and with it the pager's socket ([`crate::memory::pager::ask`]).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::handoff::Directory;
use crate::memory::pager::Counters;

/// How it ended: the pager's own word, or its guard's if it was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "kebab-case")]
pub enum Paged {
    /// All tasks had all their pages, or had ended.
    Whole(Counters),
    /// The restore came to nothing before its tasks ran.
    GivenUp,
    /// Tasks lacked pages that nobody could give them any more, and were killed.
    Failed {
        /// What happened.
        reason: String,
    },
}

/// The longest note, in bytes: it fits the page that its first byte took ([`Note::begin`]).
const LONGEST_NOTE: usize = 4096;

impl Paged {
    /// The note in `directory`; `None` where there is no whole one: the pager has not ended, or was killed together with its guard.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(directory: &Directory) -> io::Result<Option<Self>> {
        match fs::read(directory.paged()) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Where the end will be noted down.
#[derive(Debug)]
pub struct Note(File);

impl Note {
    /// An empty one, in place of what a former attempt has left. Its page is taken here: at the end there is room for it, however full the
    /// host's memory is by then.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(directory: &Directory) -> io::Result<Self> {
        let mut note = File::create(directory.paged())?;
        note.write_all(b"\n")?;
        Ok(Self(note))
    }

    /// Writes down how it ended, unless somebody else has. What is too long is cut.
    ///
    /// # Errors
    /// What the file system says.
    pub fn end(&self, paged: &Paged) -> io::Result<()> {
        if self.0.metadata()?.len() > 1 {
            return Ok(());
        }
        let mut text = serde_json::to_vec(paged)?;
        if text.len() > LONGEST_NOTE
            && let Paged::Failed { reason } = paged
        {
            // Escaped, a character of it takes six bytes at most.
            let reason = reason.chars().take(LONGEST_NOTE / 8).collect();
            text = serde_json::to_vec(&Paged::Failed { reason })?;
        }
        self.0.write_all_at(&text, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_about_a_pager_s_end_counts_and_no_word_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::at(scratch.path());
        assert_eq!(Paged::read(&directory).unwrap(), None);
        let note = Note::begin(&directory).unwrap();
        assert_eq!(Paged::read(&directory).unwrap(), None);
        let whole = Paged::Whole(Counters { pages: 7, ..Counters::default() });
        note.end(&whole).unwrap();
        note.end(&Paged::GivenUp).unwrap();
        assert_eq!(Paged::read(&directory).unwrap(), Some(whole));
        let note = Note::begin(&directory).unwrap();
        assert_eq!(Paged::read(&directory).unwrap(), None, "that was a former attempt");
        note.end(&Paged::Failed { reason: "\u{1}ü".repeat(LONGEST_NOTE) }).unwrap();
        assert!(fs::metadata(directory.paged()).unwrap().len() <= LONGEST_NOTE as u64);
        let Some(Paged::Failed { reason }) = Paged::read(&directory).unwrap() else { panic!("a reason") };
        assert!(reason.starts_with("\u{1}ü"));
    }
}
