//! CRIU: features, dump, restore, log triage.
