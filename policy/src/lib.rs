//! Pure planning: which container goes where, and why not elsewhere.
