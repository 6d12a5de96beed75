//! The planner as its callers see it.

mod learning;
mod properties;
mod scenarios;
mod support;
