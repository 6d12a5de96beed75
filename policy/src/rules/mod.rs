//! The operator's rules: CEL expressions (the Common Expression Language) over a container, a host, the notice and the source.
//!
//! A rule says when it holds and what follows. Rules are compiled once, when the configuration is read, and what can be known to be
//! wrong is an error then: syntax, names that do not exist, results that are not true or false. What shows only later, such as a
//! label that a container does not have, refuses the host where the rule would forbid, and counts nothing otherwise; both are said.

mod check;
mod judge;
mod values;

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cel::Program;

use crate::cost::micros;
use crate::fallback::NextBest;

pub use values::VARIABLES;

/// What follows where a rule holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Then {
    /// The container does not go to the host.
    Forbid,
    /// Going there costs so many seconds more; less where they are negative.
    Costs(f64),
    /// The container is not moved; this is done instead. Such a rule cannot speak of a host.
    Instead(NextBest),
}

/// A rule as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// What it is called in plans.
    pub name: String,
    /// The expression.
    pub when: String,
    /// What follows.
    pub then: Then,
}

/// The operator's rules, compiled.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    /// What any of them reads.
    reads: check::Reads,
}

#[derive(Debug)]
struct Rule {
    name: String,
    program: Program,
    then: Then,
    about_container: bool,
    about_host: bool,
}

/// Why a rule does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule `{rule}`: {problem}")]
pub struct RuleError {
    /// The rule's name.
    pub rule: String,
    /// Its place among the rules, from 0.
    pub number: usize,
    /// What is wrong.
    pub problem: RuleProblem,
    /// Where in the expression, in bytes, if that is known.
    pub offset: Option<usize>,
}

/// What can be wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleProblem {
    /// Not CEL.
    #[error("not an expression: {0}")]
    Syntax(String),
    /// A variable, field or function that does not exist.
    #[error("there is no `{name}`{}", .nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default())]
    Unknown {
        /// As it was written.
        name: String,
        /// What was meant, perhaps.
        nearest: Option<String>,
    },
    /// The result is no answer to "when".
    #[error("the result is {0}, and must be true or false")]
    NotBoolean(&'static str),
    /// It cannot be evaluated.
    #[error("cannot be evaluated: {0}")]
    Fails(String),
    /// A rule about the container alone looks at a host.
    #[error("whether to {0} is decided before any host is looked at; do without `host`, or forbid the host")]
    SpeaksOfHost(NextBest),
    /// Two rules of one name.
    #[error("there is another rule of this name")]
    DuplicateName,
}

impl Rules {
    /// Compiles rules, in their order.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn compile(written: &[Written]) -> Result<Self, RuleError> {
        let mut rules = Vec::new();
        let (mut reads, mut names) = (check::Reads::default(), BTreeSet::new());
        for (number, Written { name, when, then }) in written.iter().enumerate() {
            let error = |(problem, offset)| RuleError { rule: name.clone(), number, problem, offset };
            if !names.insert(name) {
                return Err(error((RuleProblem::DuplicateName, None)));
            }
            let program = parse(when).map_err(error)?;
            let own = check::check(&program, when).map_err(error)?;
            if let Then::Instead(next) = then
                && own.about("host")
            {
                return Err(error((RuleProblem::SpeaksOfHost(*next), when.find("host"))));
            }
            rules.push(Rule {
                name: name.clone(),
                program,
                then: *then,
                about_container: own.about("container"),
                about_host: own.about("host"),
            });
            reads.add(own);
        }
        Ok(Self { rules, reads })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl Then {
    /// What it adds to the cost, in microseconds.
    fn cost_us(self) -> i64 {
        match self {
            Self::Costs(seconds) => micros(seconds),
            Self::Forbid | Self::Instead(_) => 0,
        }
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.when)
    }
}

type Wrong = (RuleProblem, Option<usize>);

fn parse(when: &str) -> Result<Program, Wrong> {
    // The parser is a generated one; should it ever give up on a text by a panic, that is the text's fault and not the daemon's end.
    let parsed = catch_unwind(AssertUnwindSafe(|| Program::compile(when)));
    let Ok(parsed) = parsed else { return Err((RuleProblem::Syntax("the parser gave up".to_owned()), None)) };
    parsed.map_err(|errors| match errors.errors.first() {
        Some(first) => (RuleProblem::Syntax(first.msg.clone()), offset(when, first.pos)),
        None => (RuleProblem::Syntax(errors.to_string()), None),
    })
}

/// The byte at a line and a column, both from 1, the column in characters.
fn offset(text: &str, (line, column): (isize, isize)) -> Option<usize> {
    let (line, column) = (usize::try_from(line - 1).ok()?, usize::try_from(column - 1).ok()?);
    let begin: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let rest = text.get(begin..)?;
    Some(begin + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at))
}

/// The one of `known` that `word` was meant to be, perhaps: at most a third of its letters are wrong.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let distances = known.into_iter().map(|name| (strsim::damerau_levenshtein(word, name), name));
    let (distance, name) = distances.min()?;
    (distance <= word.chars().count().max(name.chars().count()).div_ceil(3)).then_some(name)
}

#[cfg(test)]
mod tests;
