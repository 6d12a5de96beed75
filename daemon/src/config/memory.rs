//! `[memory]`: how the memory of containers goes over.

use serde::{Deserialize, Deserializer, de};
use spothop_criu::memory::tracking::Method;

/// `[memory]`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// The best way in which a container that leaves this host may be read; the planner takes it or a lower one for each. Default:
    /// `pre-copy`.
    pub mode: Mode,
    /// How the pages are found that were written since they were sent. Default: `auto`, the best that this host's kernel can do.
    pub tracking: Tracking,
    /// Processor cores that this daemon may use while a container that it reads still runs. Not kept when a deadline is near.
    /// Default: half of this machine's.
    #[serde(deserialize_with = "cores")]
    pub max_precopy_cpu: f64,
    /// How a container that comes to this host gets its memory. Default: `lazy`.
    pub restore: Restore,
}

impl Default for Memory {
    fn default() -> Self {
        let all = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        Self {
            mode: Mode::default(),
            tracking: Tracking::default(),
            max_precopy_cpu: all / 2.0,
            restore: Restore::default(),
        }
    }
}

/// How a container is read, the best first. Where a host cannot do one, the next is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As `pre-copy`; but what is left when it is frozen follows after it runs, where that spares a long freeze and surely ends before
    /// the deadline. Until it has followed, the loss of either host is the loss of the memory.
    PostCopy,
    /// Its memory goes over in rounds while it runs, and only what was written since is sent while it is frozen.
    #[default]
    PreCopy,
    /// It is frozen, and its memory goes from it to the target with no file in between.
    StopAndCopy,
    /// It is frozen, and CRIU writes all of its memory into files (on a tmpfs), which are sent.
    Dump,
}

/// How written pages are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tracking {
    /// The best that there is.
    #[default]
    Auto,
    /// This one, or where it cannot be had for a process, its content.
    Only(Method),
}

impl<'de> Deserialize<'de> for Tracking {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Only).map_err(|_| {
            de::Error::custom(format_args!(
                "`{text}` is no way of tracking; write \"auto\", \"write-protect\", \"soft-dirty\" or \"content\""
            ))
        })
    }
}

/// How a restored container gets its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restore {
    /// It runs at once, and gets its memory (all of it is on this host by then) when it first touches it, and the rest meanwhile.
    #[default]
    Lazy,
    /// All of it, before it runs.
    Eager,
}

fn cores<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let cores = f64::deserialize(from)?;
    if !(0.01..=4096.0).contains(&cores) {
        return Err(de::Error::custom(format_args!("{cores} is not between 0.01 and 4096 cores")));
    }
    Ok(cores)
}
