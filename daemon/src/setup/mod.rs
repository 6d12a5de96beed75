//! One-time changes to the host, made on request, undone on request.

pub mod docker;
mod write;

pub use self::write::write_atomically;
