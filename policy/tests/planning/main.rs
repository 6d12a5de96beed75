//! The planner as its callers see it.

mod properties;
mod scenarios;
mod support;
