//! The planner as its callers see it.

mod learning;
mod optimum;
mod properties;
mod rules;
mod scenarios;
mod support;
