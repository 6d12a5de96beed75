//! `[policy]`: what the operator has decided about plans.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, de};
use spothop_policy::rules::{Then, Written};
use spothop_policy::{NextBest, Rules, Weights};
use toml::Spanned;

use super::Problem;

/// `[policy]`.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What becomes of containers that cannot be moved in time and have no label `io.spothop.fallback`: the first that is possible.
    /// Default: `["park", "drop"]`.
    pub fallback: Vec<NextBest>,
    /// What things are worth, in seconds of moving. Default: those of [`Weights`].
    pub weights: Weights,
    /// The operator's rules, in the file's order. Default: none.
    pub rules: Vec<Written>,
    compiled: Arc<spothop_policy::Policy>,
}

impl Policy {
    /// As the planner takes it.
    #[must_use]
    pub fn compiled(&self) -> &spothop_policy::Policy {
        &self.compiled
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        // The rest is made of these.
        (&self.fallback, &self.weights, &self.rules) == (&other.fallback, &other.weights, &other.rules)
    }
}

/// `[policy]` as written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Table {
    fallback: Vec<NextBest>,
    #[serde(deserialize_with = "weights")]
    weights: Weights,
    rules: Vec<RuleTable>,
}

impl Default for Table {
    fn default() -> Self {
        let spothop_policy::Policy { fallback, weights, .. } = spothop_policy::Policy::default();
        Self { fallback, weights, rules: Vec::new() }
    }
}

/// One `[[policy.rules]]` entry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    /// What it is called in plans.
    name: String,
    /// A CEL expression over `container`, `host`, `notice` and `source`.
    when: Spanned<String>,
    /// What follows.
    then: Spanned<Word>,
    /// How much is preferred or charged, in seconds of moving.
    seconds: Option<Spanned<f64>>,
}

/// `then` of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Forbid,
    Prefer,
    Penalty,
    Park,
    Cold,
    Drop,
}

impl Table {
    /// Compiles the rules. A problem comes with its place in `text`.
    pub(super) fn validate(self, text: &str) -> Result<Policy, (Range<usize>, Problem)> {
        let rules = self.rules.iter().map(written).collect::<Result<Vec<_>, _>>()?;
        let compiled = Rules::compile(&rules).map_err(|error| {
            let when = &self.rules[error.number].when;
            (place(text, when, error.offset), Problem::Rule(Box::new(error)))
        })?;
        let compiled =
            spothop_policy::Policy { weights: self.weights, fallback: self.fallback.clone(), rules: compiled };
        Ok(Policy { fallback: self.fallback, weights: self.weights, rules, compiled: Arc::new(compiled) })
    }
}

fn written(rule: &RuleTable) -> Result<Written, (Range<usize>, Problem)> {
    let seconds = rule.seconds.as_ref();
    let word = *rule.then.get_ref();
    let then = match (word, seconds) {
        (Word::Prefer | Word::Penalty, None) => return Err((rule.then.span(), Problem::RuleWithoutSeconds)),
        (Word::Prefer | Word::Penalty, Some(seconds)) => {
            let (span, seconds) = (seconds.span(), *seconds.get_ref());
            if !(0.0..=1e9).contains(&seconds) {
                return Err((span, Problem::RuleSeconds));
            }
            Then::Costs(if word == Word::Prefer { -seconds } else { seconds })
        }
        (_, Some(seconds)) => return Err((seconds.span(), Problem::RuleWithSeconds)),
        (Word::Forbid, None) => Then::Forbid,
        (Word::Park, None) => Then::Instead(NextBest::Park),
        (Word::Cold, None) => Then::Instead(NextBest::Cold),
        (Word::Drop, None) => Then::Instead(NextBest::Drop),
    };
    Ok(Written { name: rule.name.clone(), when: rule.when.get_ref().clone(), then })
}

/// Where in the file something is that is so many bytes into an expression. Where the file has it with escapes, the whole of it.
fn place(text: &str, when: &Spanned<String>, offset: Option<usize>) -> Range<usize> {
    let span = when.span();
    let at = || {
        let begin = span.start + text.get(span.clone())?.find(when.get_ref().as_str())?;
        let at = begin + offset?;
        Some(at..at + 1)
    };
    at().unwrap_or(span)
}

fn weights<'de, D: Deserializer<'de>>(from: D) -> Result<Weights, D::Error> {
    let weights = Weights::deserialize(from)?;
    match weights.out_of_range() {
        Some(name) => Err(de::Error::custom(format_args!("the weight `{name}` is not between 0 and 1000000"))),
        None => Ok(weights),
    }
}
