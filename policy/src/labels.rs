//! What an operator says to the planner by labels on a container.

/// `io.spothop.group=NAME[,NAME…]`: no two containers of a group on one host.
pub const GROUP: &str = "io.spothop.group";

/// The parts of a label's value: between commas, without the blanks around them, the empty ones left out.
pub(crate) fn words(value: Option<&String>) -> impl Iterator<Item = &str> {
    value.into_iter().flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}
