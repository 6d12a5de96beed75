//! Which pages a task still lacks, and where in the store they are.

use std::ops::Range;

use rangemap::{RangeMap, RangeSet};

use crate::memory::{PAGE, Pages};

/// The pages that a task still lacks, by the addresses that they have now. Ranges are page-aligned.
#[derive(Debug, Clone)]
pub(super) struct Remaining {
    /// Value: what an address has to be shifted by (wrapping) for the place in the store; 0 until a mapping is moved.
    runs: RangeMap<u64, u64>,
    /// Where mappings were moved to since [`Remaining::quiet`].
    moved: RangeSet<u64>,
    /// Whether any was ever moved.
    shifted: bool,
}

impl Remaining {
    /// `pages`, each at its own address in the store.
    pub(super) fn new(pages: &Pages) -> Self {
        Self { runs: pages.iter().map(|range| (range.clone(), 0)).collect(), moved: RangeSet::new(), shifted: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// At most `length` bytes that are in one piece here and in the store: the first at or above `address`, or else the first of all.
    /// With the place in the store of its first byte.
    pub(super) fn piece(&self, address: u64, length: u64) -> Option<(Range<u64>, u64)> {
        let ahead = self.runs.overlapping(address..u64::MAX).next();
        let (run, shift) = ahead.or_else(|| self.runs.first_range_value())?;
        // What was passed over is not forgotten: it is the first of all one day.
        let start = if run.contains(&address) { address } else { run.start };
        Some((start..run.end.min(start.saturating_add(length)), start.wrapping_add(*shift)))
    }

    /// The pages around `page`, which is one of those: those within the block of `length` bytes (a power of two) that it is in, and with
    /// it in one piece.
    pub(super) fn around(&self, page: u64, length: u64) -> Option<(Range<u64>, u64)> {
        let (run, shift) = self.runs.get_key_value(&page)?;
        let block = page & !(length - 1);
        let start = block.max(run.start);
        Some((start..run.end.min(block.saturating_add(length)), start.wrapping_add(*shift)))
    }

    /// The pages from `page`, which is none of those, up to the next of those or up to `length` bytes.
    pub(super) fn gap(&self, page: u64, length: u64) -> Range<u64> {
        let end = page.saturating_add(length.max(PAGE));
        let next = self.runs.overlapping(page..end).next().map_or(end, |(run, _)| run.start);
        page..next.max(page + PAGE)
    }

    /// They are in, or nobody needs them any more.
    pub(super) fn drop_range(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.runs.remove(range);
        }
    }

    /// A mapping is gone.
    ///
    /// Who unmaps reports it after the kernel has let go of the mappings, and another thread may have moved a mapping to the same place
    /// and reported that before. Hence the pages that were moved there stay until no report is outstanding: if it was the other
    /// way round, they have no mapping, and the kernel will not take them.
    pub(super) fn unmap(&mut self, range: Range<u64>) {
        let gone: Vec<_> = self.moved.gaps(&range).collect();
        gone.into_iter().for_each(|range| self.drop_range(range));
    }

    /// A mapping was moved, and what was at the new place is gone; false when the task lacks pages there which nobody has reported as
    /// gone. Two threads' reports came in the wrong order then.
    #[must_use]
    pub(super) fn remap(&mut self, from: u64, to: u64, length: u64) -> bool {
        let (old, new) = (from..from.saturating_add(length), to..to.saturating_add(length));
        if old.is_empty() || from == to {
            return true;
        }
        let runs: Vec<_> = self.runs.overlapping(&old).map(|(run, shift)| (run.clone(), *shift)).collect();
        self.drop_range(old.clone());
        let free = !self.runs.overlaps(&new);
        for (run, shift) in runs {
            let start = run.start.max(old.start) - from + to;
            let end = run.end.min(old.end) - from + to;
            self.runs.insert(start..end, shift.wrapping_add(from).wrapping_sub(to));
        }
        self.moved.insert(new);
        self.shifted = true;
        free
    }

    /// Where in the store `page` is, if it is one of those.
    pub(super) fn place(&self, page: u64) -> Option<u64> {
        self.runs.get(&page).map(|shift| page.wrapping_add(*shift))
    }

    /// What has the places `places` in the store becomes one of `others`.
    pub(super) fn hand_over(&mut self, places: &Range<u64>, others: &mut Self) {
        let of = |run: &Range<u64>, shift: u64| {
            let back = |place: u64| place.wrapping_sub(shift);
            let (start, end) = (run.start.wrapping_add(shift), run.end.wrapping_add(shift));
            let (start, end) = (start.max(places.start), end.min(places.end));
            (start < end).then(|| (back(start)..back(end), shift))
        };
        let found: Vec<_> = match self.shifted {
            false => self.runs.overlapping(places).filter_map(|(run, shift)| of(run, *shift)).collect(),
            true => self.runs.iter().filter_map(|(run, shift)| of(run, *shift)).collect(),
        };
        for (range, shift) in found {
            self.runs.remove(range.clone());
            others.runs.insert(range, shift);
        }
    }

    /// The kernel says that no report is outstanding.
    pub(super) fn quiet(&mut self) {
        self.moved.clear();
    }

    #[cfg(test)]
    fn listing(&self) -> Vec<(Range<u64>, u64)> {
        self.runs.iter().map(|(run, shift)| (run.clone(), run.start.wrapping_add(*shift))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages by their numbers.
    fn at(pages: Range<u64>) -> Range<u64> {
        pages.start * PAGE..pages.end * PAGE
    }

    fn lacking<const N: usize>(ranges: [(u64, u64); N]) -> Remaining {
        Remaining::new(&ranges.into_iter().map(|(start, end)| at(start..end)).collect())
    }

    #[test]
    fn pieces_go_on_from_an_address_and_begin_anew_at_the_end() {
        let mut remaining = lacking([(2, 5), (8, 9)]);
        assert_eq!(remaining.piece(3 * PAGE, PAGE), Some((at(3..4), 3 * PAGE)));
        assert_eq!(remaining.piece(5 * PAGE, 4 * PAGE), Some((at(8..9), 8 * PAGE)));
        assert_eq!(remaining.piece(9 * PAGE, 2 * PAGE), Some((at(2..4), 2 * PAGE)));
        remaining.drop_range(at(0..100));
        assert!(remaining.is_empty());
        assert_eq!(remaining.piece(0, PAGE), None);
    }

    #[test]
    fn a_neighbourhood_stays_in_its_block_and_its_run() {
        let remaining = lacking([(2, 5), (8, 9)]);
        assert_eq!(remaining.around(3 * PAGE, 4 * PAGE), Some((at(2..4), 2 * PAGE)));
        assert_eq!(remaining.around(4 * PAGE, 4 * PAGE), Some((at(4..5), 4 * PAGE)));
        assert_eq!(remaining.around(5 * PAGE, 4 * PAGE), None);
        assert_eq!(remaining.gap(5 * PAGE, 16 * PAGE), at(5..8));
        assert_eq!(remaining.gap(9 * PAGE, 2 * PAGE), at(9..11));
    }

    #[test]
    fn moved_pages_keep_their_place_in_the_store() {
        let mut remaining = lacking([(2, 5), (8, 9)]);
        assert!(remaining.remap(at(3..4).start, at(20..21).start, 6 * PAGE));
        assert_eq!(remaining.listing(), [(at(2..3), 2 * PAGE), (at(20..22), 3 * PAGE), (at(25..26), 8 * PAGE)]);
        assert!(remaining.remap(at(20..21).start, at(3..4).start, PAGE));
        assert_eq!(
            remaining.listing(),
            [(at(2..4), 2 * PAGE), (at(21..22), 4 * PAGE), (at(25..26), 8 * PAGE)],
            "back beside its neighbour it is one piece with it"
        );
        assert_eq!(remaining.around(21 * PAGE, 16 * PAGE), Some((at(21..22), 4 * PAGE)));
    }

    #[test]
    fn pages_that_have_come_are_found_where_they_were_moved_to() {
        let (mut owed, mut here) = (lacking([(2, 6), (8, 9)]), lacking([(20, 22)]));
        owed.hand_over(&at(0..3), &mut here);
        assert_eq!(here.listing(), [(at(2..3), 2 * PAGE), (at(20..22), 20 * PAGE)]);
        for remaining in [&mut owed, &mut here] {
            assert!(remaining.remap(at(4..5).start, at(40..41).start, 6 * PAGE));
        }
        assert_eq!(owed.place(41 * PAGE), Some(5 * PAGE));
        owed.hand_over(&at(3..6), &mut here);
        owed.hand_over(&at(4..5), &mut here);
        assert_eq!(
            here.listing(),
            [(at(2..4), 2 * PAGE), (at(20..22), 20 * PAGE), (at(40..42), 4 * PAGE)],
            "beside each other and in one piece"
        );
        assert_eq!(owed.listing(), [(at(44..45), 8 * PAGE)]);
    }

    #[test]
    fn a_mapping_may_move_by_less_than_its_length() {
        let mut remaining = lacking([(2, 6)]);
        assert!(remaining.remap(2 * PAGE, 3 * PAGE, 4 * PAGE));
        assert_eq!(remaining.listing(), [(at(3..7), 2 * PAGE)]);
    }

    #[test]
    fn reports_in_the_wrong_order_neither_drop_nor_mix_pages() {
        // One thread has unmapped 2..5, another has moved 8..9 there, and is heard first.
        let mut remaining = lacking([(8, 9)]);
        assert!(remaining.remap(8 * PAGE, 3 * PAGE, PAGE));
        remaining.unmap(at(2..5));
        assert_eq!(remaining.listing(), [(at(3..4), 8 * PAGE)]);
        remaining.quiet();
        remaining.unmap(at(2..5));
        assert!(remaining.is_empty());

        let mut remaining = lacking([(2, 5), (8, 9)]);
        assert!(!remaining.remap(8 * PAGE, 3 * PAGE, PAGE));
    }
}
