//! Rules at work: each is evaluated as seldom as what it speaks of allows.

use std::collections::BTreeSet;

use cel::{Context, Value};

use super::{Rule, Rules, Then, check, values};
use crate::container::Container;
use crate::fallback::NextBest;
use crate::host::{Host, HostState};
use crate::plan::Request;
use crate::refusal::Refusal;

/// What the rules say of a container and a host.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) cost_us: i64,
}

/// Whether a rule holds, or why that cannot be said.
type Holds = Result<bool, String>;

/// The rules, and all that they are asked about.
pub(crate) struct Judge<'r> {
    rules: &'r [Rule],
    root: Context<'static>,
    containers: Vec<Value>,
    hosts: Vec<Value>,
    names: Vec<&'r str>,
    /// Of rules that do not speak of both: by rule, then by container or by host.
    known: Vec<Vec<Holds>>,
    notes: BTreeSet<String>,
}

impl Rules {
    /// Has the rules look at a request.
    pub(crate) fn judge<'r>(
        &'r self,
        request: &Request,
        containers: &[&'r Container],
        hosts: &[&'r Host],
    ) -> Judge<'r> {
        let read = |variable: &'static str| move |field: &str| self.reads.field(variable, field);
        let mut judge = Judge {
            rules: &self.rules,
            root: Context::empty(),
            containers: Vec::new(),
            hosts: Vec::new(),
            names: containers.iter().map(|container| container.name.as_str()).collect(),
            known: Vec::new(),
            notes: BTreeSet::new(),
        };
        if self.is_empty() {
            return judge;
        }
        judge.root = Context::default();
        judge.root.add_variable_from_value("notice", values::map(values::notice(request), read("notice")));
        judge.root.add_variable_from_value("source", values::map(values::source(&request.source), read("source")));
        judge.containers =
            containers.iter().map(|container| values::map(values::container(container), read("container"))).collect();
        judge.hosts = hosts
            .iter()
            .map(|host| match &host.state {
                HostState::Reachable(facts) => values::map(values::host(&host.name, facts), read("host")),
                // Refused without looking any further.
                HostState::Unreachable { .. } => Value::Null,
            })
            .collect();
        judge.known = judge
            .rules
            .iter()
            .map(|rule| match (rule.about_container, rule.about_host) {
                (true, true) => Vec::new(),
                (false, true) => (0..hosts.len()).map(|host| judge.holds(rule, None, Some(host))).collect(),
                (_, false) => (0..containers.len()).map(|container| judge.holds(rule, Some(container), None)).collect(),
            })
            .collect();
        judge
    }
}

impl Judge<'_> {
    /// What a rule does with a container instead of moving it, and the rule's name: the first that holds.
    pub(crate) fn instead(&mut self, container: usize) -> Option<(NextBest, String)> {
        let mut found = None;
        for (number, rule) in self.rules.iter().enumerate() {
            let Then::Instead(next) = rule.then else { continue };
            match &self.known[number][container] {
                Ok(true) if found.is_none() => found = Some((next, rule.name.clone())),
                Ok(_) => {}
                Err(reason) => {
                    let said = format!("rule {} counts nothing for {}: {reason}", rule.name, self.names[container]);
                    self.notes.insert(said);
                }
            }
        }
        found
    }

    /// What all others say of a container and a host that has answered.
    pub(crate) fn pair(&mut self, container: usize, host: usize) -> Verdict {
        let mut verdict = Verdict::default();
        for (number, rule) in self.rules.iter().enumerate() {
            if matches!(rule.then, Then::Instead(_)) {
                continue;
            }
            let holds = match (rule.about_container, rule.about_host) {
                (true, true) => self.holds(rule, Some(container), Some(host)),
                (false, true) => self.known[number][host].clone(),
                (_, false) => self.known[number][container].clone(),
            };
            match (holds, rule.then) {
                (Ok(false), _) => {}
                (Ok(true), Then::Forbid) => verdict.refusals.push(Refusal::Rule { rule: rule.name.clone() }),
                (Ok(true), then) => verdict.cost_us += then.cost_us(),
                (Err(reason), Then::Forbid) => {
                    verdict.refusals.push(Refusal::RuleFailed { rule: rule.name.clone(), reason });
                }
                (Err(reason), _) => {
                    let said = format!("rule {} counts nothing for {}: {reason}", rule.name, self.names[container]);
                    self.notes.insert(said);
                }
            }
        }
        verdict
    }

    /// What the operator should know.
    pub(crate) fn into_notes(self) -> BTreeSet<String> {
        self.notes
    }

    fn holds(&self, rule: &Rule, container: Option<usize>, host: Option<usize>) -> Holds {
        let mut context = self.root.new_inner_scope();
        for (variable, value) in [
            ("container", container.map(|container| &self.containers[container])),
            ("host", host.map(|host| &self.hosts[host])),
        ] {
            if let Some(value) = value {
                context.add_variable_from_value(variable, value.clone());
            }
        }
        match rule.program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err("the result is neither true nor false".to_owned()),
            Err(error) => Err(check::reason(&error)),
        }
    }
}
