//! Moves bytes between two hosts: TLS, framing, chunks, compression.
