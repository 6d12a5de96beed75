//! The ways in which a container is moved.

use serde::{Deserialize, Serialize};

use crate::command::output;
use crate::error::{Error, Result};
use crate::testbed::Testbed;

use super::SOURCE;

/// The configuration as users get it: lines that begin with `#: ` are the defaults.
const PACKAGED: &str = include_str!("../../../packaging/config.toml");
/// Tells the modes of `[memory]` by its error: every one that there is, and no other list to keep.
const ASK: &str = "printf '[memory]\\nmode = \"?\"\\n' > /run/spothop-bench.toml; \
                   spothop doctor --config /run/spothop-bench.toml || :; rm /run/spothop-bench.toml";

/// A way to move a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Way {
    /// `spothop migrate`, with daemons that are configured like this.
    Spothop(Mode),
    /// `podman container checkpoint`, a copy of the archive, `podman container restore`.
    Podman,
    /// `runc checkpoint`, a copy of CRIU's images, `runc restore`.
    Criu,
}

/// How spothop's daemons treat memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Mode {
    /// What it is called here.
    pub(super) name: String,
    /// `[memory]` of `config.toml`.
    pub(super) table: String,
}

impl Mode {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), table: format!("mode = \"{name}\"") }
    }
}

impl Way {
    /// Its name in tables.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Spothop(mode) => format!("spothop, {}", mode.name),
            Self::Podman => "Podman".to_owned(),
            Self::Criu => "plain CRIU".to_owned(),
        }
    }

    /// Its name on the command line.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Spothop(mode) => &mode.name,
            Self::Podman => "podman",
            Self::Criu => "criu",
        }
    }

    /// How many times the container's memory it needs, all hosts together, at the most. spothop keeps the tasks at the source until those
    /// at the target are there, and the pages in a store meanwhile; once more, if all of them are put into images first. The others
    /// have the images twice, and the tasks on one side.
    pub(super) fn copies(&self) -> u64 {
        match self {
            Self::Spothop(mode) if mode.name == "dump" || mode.table.contains("eager") => 4,
            Self::Spothop(_) | Self::Podman | Self::Criu => 3,
        }
    }
}

/// All ways: spothop's modes, the default one first and once more with a restore that is not lazy, then the others.
///
/// # Errors
/// [`Error::Unexpected`] when the installed spothop does not tell its modes.
pub(super) fn all(bed: &Testbed) -> Result<Vec<Way>> {
    let asked = output(&mut bed.exec(SOURCE, ["sh", "-c", ASK])?)?;
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    let default = default_mode(PACKAGED);
    let mut modes = told_modes(&said);
    let Some(at) = modes.iter().position(|mode| Some(mode.as_str()) == default) else {
        return Err(Error::Unexpected { what: "the modes of memory that spothop tells".to_owned(), text: said });
    };
    modes[..=at].rotate_right(1);
    let mut ways: Vec<Way> = modes.iter().map(|name| Way::Spothop(Mode::named(name))).collect();
    let eager =
        Mode { name: format!("{}-eager", modes[0]), table: format!("mode = \"{}\"\nrestore = \"eager\"", modes[0]) };
    ways.insert(1, Way::Spothop(eager));
    ways.extend([Way::Podman, Way::Criu]);
    Ok(ways)
}

/// serde's words: "unknown variant `?`, expected one of `a`, `b`" or "expected `a` or `b`".
fn told_modes(said: &str) -> Vec<String> {
    let line = said.lines().find(|line| line.contains("unknown variant `?`"));
    let Some((_, listed)) = line.and_then(|line| line.split_once("expected")) else { return Vec::new() };
    listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn default_mode(packaged: &str) -> Option<&str> {
    packaged.lines().find_map(|line| line.strip_prefix("#: mode = \"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_from_the_program_s_error() {
        let said = "FAIL  configuration  /run/x.toml:2:8: unknown variant `?`, expected one of `pre-copy`, `stop-and-copy`, `dump`\n  |\n";
        assert_eq!(told_modes(said), ["pre-copy", "stop-and-copy", "dump"]);
        assert_eq!(told_modes("x: unknown variant `?`, expected `a` or `b`"), ["a", "b"]);
        assert_eq!(told_modes("all is well"), [""; 0]);
    }

    #[test]
    fn images_of_all_pages_take_the_memory_once_more() {
        let [lazy, dump] = ["pre-copy", "dump"].map(|mode| Way::Spothop(Mode::named(mode)).copies());
        assert_eq!((lazy, dump), (3, 4));
    }

    #[test]
    fn the_packaged_configuration_tells_the_default() {
        assert!(default_mode(PACKAGED).is_some_and(|mode| !mode.is_empty()));
        assert_eq!(default_mode("#: mode = \"x\"\n"), Some("x"));
    }
}
