//! What daemons say to each other, what the journal and the gate's ticket hold, and what Docker answers: JSON of a peer or of another
//! version.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use spothop::migration::gate::Ticket;
use spothop::migration::message::{Answer, Request};
use spothop::migration::{Phase, Step};

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else { return };
    match which % 6 {
        0 => again::<Request>(bytes),
        1 => again::<Answer>(bytes),
        2 => again::<Ticket>(bytes),
        3 => again::<Step>(bytes),
        4 => {
            if let Ok(phase) = String::from_utf8_lossy(bytes).parse::<Phase>() {
                assert_eq!(phase.to_string().parse::<Phase>().unwrap(), phase);
            }
        }
        _ => {
            let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
            let mut part = || parts.next().unwrap_or_default();
            if let Some(container) = spothop::orchestrator::judge(part(), part(), part()) {
                // What Docker says of a container is what goes over the wire.
                let text = serde_json::to_vec(&container.recipe).unwrap();
                let back: spothop::orchestrator::Recipe = serde_json::from_slice(&text).unwrap();
                assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&container.recipe).unwrap());
            }
        }
    }
});

/// What is understood is said again in the same words.
fn again<T: Serialize + DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let _ = format!("{message:?}");
    let text = serde_json::to_vec(&message).unwrap();
    let back: T = serde_json::from_slice(&text).unwrap();
    assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&message).unwrap());
}
