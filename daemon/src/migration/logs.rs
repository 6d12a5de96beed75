//! CRIU's logs, kept for every migration, for whoever wants to know more than the error says.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::{Side, Workspace};

/// The newest of them that are kept. Compressed they have about twenty kilobytes each.
const KEPT: usize = 200;

/// Of a log that is longer: this much of its beginning, where CRIU says what it is and what it was told, ...
const HEAD: usize = 64 << 10;

/// ... and this much of its end, where the errors of a failed run stand. A tree of a thousand tasks makes tens of MiB.
const TAIL: usize = 448 << 10;

/// zstd's default: a tenth of the size in a few milliseconds.
const LEVEL: i32 = 3;

/// A log of CRIU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriuLog {
    /// Where it is: compressed by zstd once the migration is over.
    pub path: PathBuf,
    /// What is kept of it.
    pub text: String,
}

/// The logs below a state directory: `logs/<migration>.<dump|restore>.log.zst`.
#[derive(Debug, Clone)]
pub struct Logs {
    directory: PathBuf,
}

impl Logs {
    /// Those below the state directory `state`.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self { directory: state.join("logs") }
    }

    /// Keeps what CRIU has logged in a migration's workspace, if it has. A failure is told, and changes nothing else.
    pub(super) fn keep(&self, workspace: &Workspace) {
        let Some(migration) = workspace.directory().file_name().and_then(|name| name.to_str()) else { return };
        let kept = [Side::Source, Side::Target].into_iter().try_for_each(|side| {
            let Some(text) = absent(head_and_tail(&written(workspace, side)))? else { return Ok(()) };
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            let path = self.path(migration, side);
            let new = path.with_extension("new");
            fs::write(&new, zstd::encode_all(text.as_slice(), LEVEL)?)?;
            fs::rename(new, path)
        });
        if let Err(error) = kept.and_then(|()| self.prune()) {
            warn!(migration, %error, "CRIU's logs were not kept");
        }
    }

    /// CRIU's log of one side of a migration: from its workspace while there is one, or else as it was kept; none if CRIU was
    /// never called, or newer logs have taken its place.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(&self, workspace: &Workspace, migration: &str, side: Side) -> io::Result<Option<CriuLog>> {
        let written = written(workspace, side);
        if let Some(text) = absent(head_and_tail(&written))? {
            return Ok(Some(CriuLog { path: written, text: String::from_utf8_lossy(&text).into_owned() }));
        }
        let path = self.path(migration, side);
        let Some(file) = absent(File::open(&path))? else { return Ok(None) };
        let text = zstd::decode_all(file)?;
        Ok(Some(CriuLog { path, text: String::from_utf8_lossy(&text).into_owned() }))
    }

    fn path(&self, migration: &str, side: Side) -> PathBuf {
        let verb = match side {
            Side::Source => "dump",
            Side::Target => "restore",
        };
        self.directory.join(format!("{migration}.{verb}.log.zst"))
    }

    fn prune(&self) -> io::Result<()> {
        let Some(entries) = absent(self.directory.read_dir())? else { return Ok(()) };
        // Migration ids are UUIDv7: their order is that of time.
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths.iter().rev().skip(KEPT).try_for_each(fs::remove_file)
    }
}

/// Where CRIU writes it.
fn written(workspace: &Workspace, side: Side) -> PathBuf {
    workspace.directory().join(match side {
        Side::Source => "dump.log",
        Side::Target => "work/restore.log",
    })
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// A file's text, without its middle if it is long; cut between lines.
fn head_and_tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut text = Vec::new();
    if length <= (HEAD + TAIL) as u64 {
        file.read_to_end(&mut text)?;
        return Ok(text);
    }
    (&mut file).take(HEAD as u64).read_to_end(&mut text)?;
    text.truncate(text.iter().rposition(|&byte| byte == b'\n').map_or(HEAD, |newline| newline + 1));
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length - TAIL as u64))?;
    file.take(TAIL as u64).read_to_end(&mut tail)?;
    let begin = tail.iter().position(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let left_out = length - (text.len() + tail.len() - begin) as u64;
    text.extend(format!("[... {left_out} bytes are left out ...]\n").bytes());
    text.extend(&tail[begin..]);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        root: tempfile::TempDir,
        logs: Logs,
    }

    fn case() -> Case {
        let root = tempfile::tempdir().unwrap();
        Case { logs: Logs::of(root.path()), root }
    }

    impl Case {
        fn workspace(&self, migration: &str, log: &str, text: &str) -> Workspace {
            let workspace = Workspace::at(self.root.path().join("run").join(migration));
            fs::create_dir_all(workspace.directory().join("work")).unwrap();
            fs::write(workspace.directory().join(log), text).unwrap();
            workspace
        }
    }

    #[test]
    fn a_log_is_kept_beyond_its_workspace_and_shown_as_it_was() {
        let case = case();
        let workspace = case.workspace("m1", "dump.log", "(00.1) Error (criu/x.c:9): no\n");
        let live = case.logs.read(&workspace, "m1", Side::Source).unwrap().unwrap();
        assert_eq!(live.path, workspace.directory().join("dump.log"));

        case.logs.keep(&workspace);
        fs::remove_dir_all(workspace.directory()).unwrap();

        let kept = case.logs.read(&workspace, "m1", Side::Source).unwrap().unwrap();
        assert_eq!(kept.text, live.text);
        assert_eq!(kept.path, case.root.path().join("logs/m1.dump.log.zst"));
        assert_eq!(case.logs.read(&workspace, "m1", Side::Target).unwrap(), None);
        assert_eq!(case.logs.read(&workspace, "m2", Side::Source).unwrap(), None);
    }

    #[test]
    fn both_sides_on_one_host_have_a_log_each() {
        let case = case();
        let source = case.workspace("m1", "dump.log", "dump\n");
        case.logs.keep(&source);
        fs::remove_dir_all(source.directory()).unwrap();
        let target = case.workspace("m1", "work/restore.log", "restore\n");
        case.logs.keep(&target);
        fs::remove_dir_all(target.directory()).unwrap();
        assert_eq!(case.logs.read(&target, "m1", Side::Source).unwrap().unwrap().text, "dump\n");
        assert_eq!(case.logs.read(&target, "m1", Side::Target).unwrap().unwrap().text, "restore\n");
    }

    #[test]
    fn a_long_log_keeps_its_beginning_and_its_end() {
        let case = case();
        let text: String = (0..100_000).map(|n| format!("(00.{n:06}) a line\n")).collect();
        let workspace = case.workspace("m1", "dump.log", &text);
        case.logs.keep(&workspace);
        fs::remove_dir_all(workspace.directory()).unwrap();
        let kept = case.logs.read(&workspace, "m1", Side::Source).unwrap().unwrap();
        assert!(kept.text.len() < HEAD + TAIL + 100);
        assert!(kept.text.starts_with("(00.000000) a line\n") && kept.text.ends_with("(00.099999) a line\n"));
        let cut: Vec<_> = kept.text.lines().filter(|line| line.starts_with("[... ")).collect();
        let kept_lines = kept.text.len() - cut[0].len() - 1;
        assert_eq!(cut, [format!("[... {} bytes are left out ...]", text.len() - kept_lines)]);
        assert!(kept.text.lines().all(|line| line.len() == 18 || line == cut[0]));
        assert!(fs::metadata(kept.path).unwrap().len() < 100 << 10);
    }

    #[test]
    fn the_newest_logs_stay() {
        let case = case();
        fs::create_dir(&case.logs.directory).unwrap();
        for n in 0..KEPT {
            fs::write(case.logs.path(&format!("m{n:04}"), Side::Source), "").unwrap();
        }
        case.logs.keep(&case.workspace("m9999", "dump.log", "new\n"));
        let count = case.logs.directory.read_dir().unwrap().count();
        assert_eq!(count, KEPT);
        assert!(!case.logs.path("m0000", Side::Source).exists() && case.logs.path("m9999", Side::Source).exists());
    }
}
