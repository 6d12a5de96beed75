//! Every state that can be reached, and what is wrong with it.

use std::collections::HashMap;
use std::fmt;

use super::world::{Rules, State, World, successors};

/// What a walk through all states has found.
pub(crate) struct Walk {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) finding: Option<Finding>,
}

/// A violated property, and the shortest way to it.
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    trace: Vec<(&'static str, State)>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.what)?;
        for (number, (step, _)) in self.trace.iter().enumerate() {
            writeln!(f, "{number:4}  {step}")?;
        }
        let last = self.trace.last().map(|(_, state)| state);
        write!(f, "{last:#?}")
    }
}

struct Graph {
    states: Vec<State>,
    /// Where each was first reached from, and by what.
    parents: Vec<(u32, &'static str)>,
    /// Backwards, the steps that are no faults.
    before: Vec<(u32, u32)>,
    ends: Vec<u32>,
}

impl Graph {
    fn finding(&self, what: &'static str, mut at: u32) -> Finding {
        let mut trace = Vec::new();
        loop {
            let (parent, step) = self.parents[at as usize];
            trace.push((step, self.states[at as usize]));
            if parent == at {
                break;
            }
            at = parent;
        }
        trace.reverse();
        Finding { what, trace }
    }
}

/// Walks breadth first, so that the first way found is the shortest.
pub(crate) fn explore(world: &World, rules: &Rules) -> Walk {
    let mut graph = Graph {
        states: vec![State::FIRST],
        parents: vec![(0, "the migration begins")],
        before: Vec::new(),
        ends: Vec::new(),
    };
    let mut known = HashMap::from([(State::FIRST, 0_u32)]);
    let (mut at, mut steps) = (0, 0);
    let walk = |graph: &Graph, steps, finding| Walk { states: graph.states.len(), steps, finding };
    while let Some(&state) = graph.states.get(at) {
        let from = at as u32;
        if state.running() > 1 {
            return walk(&graph, steps, Some(graph.finding("two run", from)));
        }
        if state.wastes_memory() {
            return walk(&graph, steps, Some(graph.finding("its memory is lost for nothing", from)));
        }
        let mut quiet = true;
        for (step, after, fault) in successors(world, rules, state) {
            steps += 1;
            let fresh = graph.states.len() as u32;
            let to = *known.entry(after).or_insert(fresh);
            if to == fresh {
                graph.states.push(after);
                graph.parents.push((from, step));
            }
            if !fault {
                quiet = false;
                graph.before.push((to, from));
            }
        }
        if quiet {
            if !state.is_good_end() {
                let what = if state.running() == 1 { "it never ends" } else { "none runs for ever" };
                return walk(&graph, steps, Some(graph.finding(what, from)));
            }
            graph.ends.push(from);
        }
        at += 1;
    }
    let finding = cannot_end(&mut graph).map(|at| graph.finding("no end can be reached", at));
    walk(&graph, steps, finding)
}

/// A state from which no end can be reached without a further fault, if there is one.
fn cannot_end(graph: &mut Graph) -> Option<u32> {
    graph.before.sort_unstable();
    let mut ends = vec![false; graph.states.len()];
    let mut waiting = std::mem::take(&mut graph.ends);
    waiting.iter().for_each(|&end| ends[end as usize] = true);
    while let Some(to) = waiting.pop() {
        let first = graph.before.partition_point(|&(other, _)| other < to);
        for &(_, from) in graph.before[first..].iter().take_while(|&&(other, _)| other == to) {
            if !std::mem::replace(&mut ends[from as usize], true) {
                waiting.push(from);
            }
        }
    }
    ends.iter().position(|ends| !ends).map(|at| at as u32)
}
