//! What an operator says to the planner by labels on a container.

use crate::fallback::NextBest;

/// `io.spothop.group=NAME[,NAME…]`: no two containers of a group on one host.
pub const GROUP: &str = "io.spothop.group";
/// `io.spothop.avoid-with=NAME[,NAME…]`: not on a host where a container of that name runs.
pub const AVOID_WITH: &str = "io.spothop.avoid-with";
/// `io.spothop.require=KEY[=VALUE][,…]`: only on hosts that have all of these labels, with that value where one is given.
pub const REQUIRE: &str = "io.spothop.require";
/// `io.spothop.avoid=KEY[=VALUE][,…]`: not on hosts that have one of these labels, with that value where one is given.
pub const AVOID: &str = "io.spothop.avoid";
/// `io.spothop.fallback=park|cold|drop[,…]`: what becomes of it when it cannot be moved in time; the first that is possible.
pub const FALLBACK: &str = "io.spothop.fallback";

/// `io.spothop.post-copy=never`: all of its memory is at the target before it runs there, whatever the source's configuration says.
pub const POST_COPY: &str = "io.spothop.post-copy";

/// The parts of a label's value: between commas, without the blanks around them, the empty ones left out.
pub(crate) fn words(value: Option<&String>) -> impl Iterator<Item = &str> {
    value.into_iter().flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// What [`FALLBACK`] says, in its order, and the words in it that mean nothing.
pub(crate) fn fallback(value: Option<&String>) -> (Vec<NextBest>, Vec<&str>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for word in words(value) {
        match word.parse() {
            Ok(next) => known.push(next),
            Err(_) => unknown.push(word),
        }
    }
    (known, unknown)
}
