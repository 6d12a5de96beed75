use super::*;

fn compile(when: &str, then: Then) -> Result<Rules, RuleError> {
    Rules::compile(&[Written { name: "r".to_owned(), when: when.to_owned(), then }])
}

fn problem(when: &str) -> (String, Option<usize>) {
    let error = compile(when, Then::Forbid).expect_err(when);
    (error.problem.to_string(), error.offset)
}

#[test]
fn what_is_right_compiles() {
    for when in [
        "host.zone == source.zone && host.spot",
        "host.price > 0.5 || host.load / double(host.cpus) > 0.8",
        "has(container.labels.team) && container.labels.team == 'a'",
        "'team' in container.labels && container.labels['team'] in ['a', 'b']",
        "host.runs.exists(name, name.startsWith('db-'))",
        "notice.seconds_left >= 0 && container.memory_mib > 4096",
        "container.labels.absent == 'known only later'",
        "true",
    ] {
        compile(when, Then::Forbid).unwrap_or_else(|error| panic!("{when}: {error}"));
    }
}

#[test]
fn what_is_wrong_is_known_at_once_with_its_place() {
    let (text, at) = problem("host.zone == ");
    assert!(text.starts_with("not an expression: "), "{text}");
    assert!(at.is_some_and(|at| at >= 10), "{at:?}");
    assert_eq!(
        problem("true && host.zoen == 'a'"),
        ("there is no `host.zoen`; did you mean `host.zone`?".to_owned(), Some(13))
    );
    // Also where an evaluation would not come by.
    assert_eq!(problem("true || container.image_id == 'a'").1, Some(18));
    assert_eq!(problem("hots.spot").0, "there is no `hots`; did you mean `host`?");
    assert_eq!(problem("container.priority").0, "the result is a number, and must be true or false");
    assert_eq!(
        problem("container.name > 3").0,
        "cannot be evaluated: an operator or function does not take values of this kind"
    );
    assert!(problem("undefined(host)").0.contains("there is no `undefined`"));
    assert!(problem("").0.starts_with("not an expression"));
}

#[test]
fn a_rule_that_decides_before_hosts_are_looked_at_cannot_speak_of_one() {
    let error = compile("container.priority < 0 && host.spot", Then::Instead(NextBest::Drop)).unwrap_err();
    assert_eq!((error.problem, error.offset), (RuleProblem::SpeaksOfHost(NextBest::Drop), Some(26)));
    compile("container.priority < 0", Then::Instead(NextBest::Drop)).unwrap();
}

#[test]
fn names_are_unique() {
    let rule = Written { name: "one".to_owned(), when: "true".to_owned(), then: Then::Forbid };
    let error = Rules::compile(&[rule.clone(), rule]).unwrap_err();
    assert_eq!((error.number, error.problem), (1, RuleProblem::DuplicateName));
}

#[test]
fn the_nearest_name_is_near() {
    assert_eq!(nearest("max_concurent", ["max_concurrent", "memory_reserve"]), Some("max_concurrent"));
    assert_eq!(nearest("something", ["max_concurrent", "memory_reserve"]), None);
    assert_eq!(nearest("zoen", ["zone"]), Some("zone"));
    assert_eq!(nearest("x", []), None);
}
