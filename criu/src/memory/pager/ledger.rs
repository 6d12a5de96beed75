//! What is still at the source: which pages, who waits for them, and what of it has come. Shared by all threads of a pager, and by the
//! daemon, which fetches it. All addresses here are places in the store, which stay the same whatever the tasks do with their mappings.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::task::NEIGHBOURHOOD;
use crate::memory::{PAGE, Pages, Vpid, bytes};

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger(Mutex<State>);

#[derive(Debug)]
struct State {
    owed: BTreeMap<Vpid, Pages>,
    /// Of `owed`.
    bytes: u64,
    /// Places that threads wait for, the first one first.
    wanted: VecDeque<(Vpid, u64)>,
    /// Where the background goes on: behind what was wanted last.
    cursor: (Vpid, u64),
    /// What has come, one after the other.
    come: Vec<(Vpid, Range<u64>)>,
}

impl Ledger {
    pub(super) fn new(owed: BTreeMap<Vpid, Pages>) -> Self {
        let bytes = owed.values().map(bytes).sum();
        Self(Mutex::new(State { owed, bytes, wanted: VecDeque::new(), cursor: (0, 0), come: Vec::new() }))
    }

    /// A thread waits for the page at `place`.
    pub(super) fn want(&self, vpid: Vpid, place: u64) {
        let mut state = self.lock();
        let is_owed = state.owed.get(&vpid).is_some_and(|pages| pages.contains(&place));
        if is_owed && !state.wanted.contains(&(vpid, place)) {
            state.wanted.push_back((vpid, place));
        }
    }

    /// These pages are in the store. What was not owed is none of it: it may be there for long, and in the tasks too.
    pub(super) fn arrived(&self, pages: impl IntoIterator<Item = (Vpid, Range<u64>)>) {
        let State { owed, bytes, wanted, come, .. } = &mut *self.lock();
        for (vpid, range) in pages {
            let Some(owed) = owed.get_mut(&vpid).filter(|_| !range.is_empty()) else { continue };
            let before = come.len();
            come.extend(owed.overlapping(&range).map(|part| (vpid, common(part, &range))));
            *bytes -= come[before..].iter().map(|(_, part)| part.end - part.start).sum::<u64>();
            owed.remove(range);
        }
        wanted.retain(|(vpid, place)| owed.get(vpid).is_some_and(|pages| pages.contains(place)));
    }

    /// What has come since there were `seen` ranges of it.
    pub(super) fn since(&self, seen: usize) -> Vec<(Vpid, Range<u64>)> {
        self.lock().come.get(seen..).unwrap_or_default().to_vec()
    }

    /// What to fetch next, at most `most` bytes but always some, and how much is owed in all: what threads wait for with its neighbours,
    /// then the rest. The same again until it has come.
    pub(super) fn next(&self, most: u64) -> (Vec<(Vpid, Range<u64>)>, u64) {
        let State { owed, bytes: left, wanted, cursor, .. } = &mut *self.lock();
        // Whole pages, whatever was measured.
        let (mut picked, mut room) = (Picked::default(), most.max(NEIGHBOURHOOD) & !(PAGE - 1));
        for &(vpid, place) in wanted.iter() {
            let Some(pages) = owed.get(&vpid) else { continue };
            let block = place & !(NEIGHBOURHOOD - 1);
            picked.add(vpid, pages, block..block + NEIGHBOURHOOD, &mut room);
            *cursor = (vpid, block + NEIGHBOURHOOD);
        }
        let (vpid, place) = *cursor;
        if let Some(pages) = owed.get(&vpid) {
            picked.add(vpid, pages, place..u64::MAX, &mut room);
        }
        for (&vpid, pages) in owed.range((Excluded(vpid), Unbounded)).chain(owed.range(..=vpid)) {
            picked.add(vpid, pages, 0..u64::MAX, &mut room);
        }
        (picked.order, *left)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages that are to be fetched.
#[derive(Debug, Default)]
struct Picked {
    /// In the order of their urgency.
    order: Vec<(Vpid, Range<u64>)>,
    pages: BTreeMap<Vpid, Pages>,
}

impl Picked {
    /// As much of `pages` within `range` as there is room for, and as is not picked yet.
    fn add(&mut self, vpid: Vpid, pages: &Pages, range: Range<u64>, room: &mut u64) {
        let picked = self.pages.entry(vpid).or_default();
        for owed in pages.overlapping(&range) {
            let gaps: Vec<_> = picked.gaps(&common(owed, &range)).collect();
            for gap in gaps {
                if *room == 0 {
                    return;
                }
                let part = gap.start..gap.end.min(gap.start.saturating_add(*room));
                *room -= part.end - part.start;
                picked.insert(part.clone());
                self.order.push((vpid, part));
            }
        }
    }
}

fn common(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pages: Range<u64>) -> Range<u64> {
        pages.start * PAGE..pages.end * PAGE
    }

    fn ledger() -> Ledger {
        Ledger::new([(1, Pages::from_iter([at(0..40), at(100..110)])), (7, Pages::from_iter([at(3..5)]))].into())
    }

    #[test]
    fn all_of_it_is_named_once_and_the_same_again_until_it_has_come() {
        let ledger = ledger();
        let (first, left) = ledger.next(33 * PAGE - 1);
        assert_eq!((&first[..], left), (&[(1, at(0..32))][..], 52 * PAGE));
        assert_eq!(ledger.next(32 * PAGE).0, first);
        ledger.arrived(first);
        let (rest, left) = ledger.next(u64::MAX);
        assert_eq!((&rest[..], left), (&[(1, at(32..40)), (1, at(100..110)), (7, at(3..5))][..], 20 * PAGE));
        ledger.arrived(rest);
        assert_eq!(ledger.next(u64::MAX), (vec![], 0));
    }

    #[test]
    fn what_is_waited_for_comes_first_with_its_neighbours_and_then_what_is_behind_it() {
        let ledger = ledger();
        ledger.want(1, 20 * PAGE);
        ledger.want(7, 4 * PAGE);
        ledger.want(1, 21 * PAGE);
        ledger.want(1, 50 * PAGE);
        let (pages, _) = ledger.next(30 * PAGE);
        assert_eq!(pages, [(1, at(16..32)), (7, at(3..5)), (1, at(32..40)), (1, at(100..104))]);
        ledger.arrived([(1, at(16..32)), (7, at(3..5))]);
        assert_eq!(ledger.next(16 * PAGE).0, [(1, at(32..40)), (1, at(100..108))], "nobody waits any more");
    }

    #[test]
    fn only_what_was_owed_has_come_and_everybody_hears_of_it_once() {
        let ledger = ledger();
        ledger.arrived([(1, at(30..105)), (2, at(0..1)), (1, at(30..105))]);
        let seen = ledger.since(0);
        assert_eq!(seen, [(1, at(30..40)), (1, at(100..105))]);
        ledger.arrived([(1, at(0..1))]);
        assert_eq!(ledger.since(seen.len()), [(1, at(0..1))]);
        assert_eq!(ledger.next(u64::MAX).1, (29 + 5 + 2) * PAGE);
    }
}
