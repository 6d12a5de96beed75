//! Everything that is decoded before a peer is known to be one of ours or right after: hellos, control frames, chunks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spothop_fuzz::block_on;
use spothop_transfer::fuzzing;

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else { return };
    block_on(async {
        match which % 5 {
            0 => fuzzing::frames(bytes).await,
            1 => fuzzing::chunks(bytes).await,
            2 => fuzzing::hellos(bytes).await,
            3 => drop(fuzzing::greet(bytes.to_vec()).await),
            // With a right checksum, as a hostile peer would send it.
            _ => {
                let Some((&kind, payload)) = bytes.split_first() else { return };
                let mut control = fuzzing::frame(kind, payload).await;
                control.extend(fuzzing::frame(3, b"").await);
                let mut session = fuzzing::session(control, vec![Vec::new()]);
                while let Ok(Some(_)) = session.recv().await {}
            }
        }
    });
});
