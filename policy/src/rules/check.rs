//! What can be known of a rule before it is used.

use std::collections::{BTreeMap, BTreeSet};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, ExecutionError, Program, Value};

use super::values::{self, VARIABLES};
use super::{RuleProblem, Wrong, nearest};
use crate::container::Container;
use crate::host::{Facts, Source};
use crate::plan::Request;

/// Which fields of which variables are read; a variable that is used as a whole has all of them.
#[derive(Debug, Default)]
pub(super) struct Reads(BTreeMap<String, BTreeSet<String>>);

impl Reads {
    /// Whether a variable is read at all.
    pub(super) fn about(&self, variable: &str) -> bool {
        self.0.contains_key(variable)
    }

    /// Whether a field of it is.
    pub(super) fn field(&self, variable: &str, field: &str) -> bool {
        self.0.get(variable).is_some_and(|fields| fields.contains(field))
    }

    pub(super) fn add(&mut self, other: Self) {
        for (variable, fields) in other.0 {
            self.0.entry(variable).or_default().extend(fields);
        }
    }
}

/// Looks for names that do not exist, and evaluates the rule for an example of everything.
pub(super) fn check(program: &Program, when: &str) -> Result<Reads, Wrong> {
    let mut reads = Reads::default();
    walk(program.expression(), &mut reads).map_err(|(name, nearest)| {
        let last = name.rsplit('.').next().unwrap_or(&name);
        let offset = when.find(name.as_str()).map(|at| at + name.len() - last.len()).or_else(|| when.find(last));
        (RuleProblem::Unknown { name, nearest }, offset)
    })?;
    match program.execute(&example()) {
        Ok(Value::Bool(_)) | Err(ExecutionError::NoSuchKey(_)) => Ok(reads),
        Ok(other) => Err((RuleProblem::NotBoolean(kind(&other)), None)),
        Err(ExecutionError::UndeclaredReference(name)) => {
            let known = VARIABLES.iter().map(|(variable, _)| *variable);
            let nearest = nearest(&name, known).map(str::to_owned);
            Err((RuleProblem::Unknown { name: name.to_string(), nearest }, when.find(name.as_str())))
        }
        Err(error) => Err((RuleProblem::Fails(reason(&error)), None)),
    }
}

/// What went wrong, without the values: there may be passwords among labels.
pub(super) fn reason(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("there is no `{key}`; ask with has() first"),
        ExecutionError::UndeclaredReference(name) => format!("there is no `{name}`"),
        ExecutionError::NoSuchOverload => "an operator or function does not take values of this kind".to_owned(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "a division by zero".to_owned(),
        ExecutionError::Overflow(..) => "a number that is too large".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "a list that is too short".to_owned(),
        _ => "an operator or function does not do with these values".to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Int(_) | Value::UInt(_) | Value::Float(_) => "a number",
        Value::String(_) => "a text",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
        Value::Null => "null",
        _ => "something else",
    }
}

/// A container and a host of which everything is known.
fn example() -> Context<'static> {
    let some = || Some("example".to_owned());
    let container =
        Container { name: "example".to_owned(), memory_bytes: 1 << 30, cpu_milli: 100, ..Container::default() };
    let facts = Facts {
        free_memory_bytes: 1 << 33,
        free_disk_bytes: 1 << 33,
        cpus: 2,
        load_milli: 500,
        zone: some(),
        pool: some(),
        price_micros: Some(100_000),
        placement_score: Some(6),
        notices_last_day: 1,
        ..Facts::default()
    };
    let mut context = Context::default();
    let all = |_: &str| true;
    context.add_variable_from_value("container", values::map(values::container(&container), all));
    context.add_variable_from_value("host", values::map(values::host("example", &facts), all));
    context.add_variable_from_value("notice", values::map(values::notice(&Request::default()), all));
    context.add_variable_from_value("source", values::map(values::source(&Source::default()), all));
    context
}

/// Fields of our variables that do not exist, with the nearest that does.
fn walk(expression: &IdedExpr, reads: &mut Reads) -> Result<(), (String, Option<String>)> {
    match &expression.expr {
        Expr::Select(select) => {
            if let Expr::Ident(name) = &select.operand.expr
                && let Some((variable, fields)) = VARIABLES.iter().find(|(variable, _)| variable == name)
            {
                if !fields.contains(&select.field.as_str()) {
                    let nearest =
                        nearest(&select.field, fields.iter().copied()).map(|field| format!("{variable}.{field}"));
                    return Err((format!("{variable}.{}", select.field), nearest));
                }
                reads.0.entry(name.clone()).or_default().insert(select.field.clone());
                return Ok(());
            }
            walk(&select.operand, reads)
        }
        Expr::Ident(name) => {
            if let Some((_, fields)) = VARIABLES.iter().find(|(variable, _)| variable == name) {
                reads.0.entry(name.clone()).or_default().extend(fields.iter().map(|field| (*field).to_owned()));
            }
            Ok(())
        }
        Expr::Call(call) => {
            call.target.iter().map(|target| &**target).chain(&call.args).try_for_each(|part| walk(part, reads))
        }
        Expr::Comprehension(all) => {
            let parts = [&all.iter_range, &all.accu_init, &all.loop_cond, &all.loop_step, &all.result];
            parts.into_iter().try_for_each(|part| walk(part, reads))
        }
        Expr::List(list) => list.elements.iter().try_for_each(|part| walk(part, reads)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| walk_entry(&entry.expr, reads)),
        Expr::Struct(whole) => whole.entries.iter().try_for_each(|entry| walk_entry(&entry.expr, reads)),
        Expr::Literal(_) | Expr::Unspecified => Ok(()),
    }
}

fn walk_entry(entry: &EntryExpr, reads: &mut Reads) -> Result<(), (String, Option<String>)> {
    match entry {
        EntryExpr::StructField(field) => walk(&field.value, reads),
        EntryExpr::MapEntry(entry) => walk(&entry.key, reads).and_then(|()| walk(&entry.value, reads)),
    }
}
