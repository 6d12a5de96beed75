//! Byte counts as an operator reads them.

use std::fmt;

/// Shows a number of bytes in the largest binary unit of which there is at least one: `512 B`, `1.5 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        // `ilog2` is 10 at least and 63 at most here, so the index is 0 to 5.
        let unit = (self.0.ilog2() / 10) as usize;
        // The cast rounds only from 2^53 on, far below the one decimal shown.
        let value = self.0 as f64 / (1u64 << (10 * unit)) as f64;
        write!(f, "{value:.1} {}", UNITS[unit - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_at_powers_of_1024() {
        let shown = [0, 1023, 1024, 1536, 1 << 20, 3 << 29, u64::MAX].map(|n| Bytes(n).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.5 GiB", "16.0 EiB"]);
    }
}
