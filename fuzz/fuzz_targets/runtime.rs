//! What `spothop-oci` and CRIU's action scripts read: command lines, bundles, handoff messages, CRIU's words and logs.

#![no_main]

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use spothop_criu::handoff::{Report, RestoreRequest, Verdict, is_migration_id, line, read_line};
use spothop_criu::log::Triage;
use spothop_criu::oci::fuzzing;
use spothop_fuzz::Room;

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 8 {
        0 => {
            let arguments: Vec<_> =
                bytes.split(|byte| *byte == 0).map(|part| OsString::from_vec(part.to_vec())).collect();
            fuzzing::command_line(&arguments);
        }
        1 => {
            let room = Room::new();
            fs::write(room.inside().join("config.json"), bytes).unwrap();
            fuzzing::bundle(room.inside());
            room.check();
        }
        2 => {
            let mut parts = text.splitn(3, '\n');
            let mut part = || parts.next().unwrap_or_default();
            fuzzing::environment(part(), part(), part());
        }
        3 => fuzzing::held(bytes),
        4 => fuzzing::runtime_log(&text),
        5 => {
            let triage = Triage::of_text(&text);
            let _ = triage.or_else(|| "nothing".into());
        }
        6 => {
            if let Ok(report) = read_line::<Report>(&mut &*bytes) {
                assert_eq!(read_line::<Report>(&mut line(&report).unwrap().as_slice()).unwrap(), report);
            }
            if let Ok(verdict) = read_line::<Verdict>(&mut &*bytes) {
                assert_eq!(read_line::<Verdict>(&mut line(&verdict).unwrap().as_slice()).unwrap(), verdict);
            }
            let _ = serde_json::from_slice::<RestoreRequest>(bytes);
        }
        _ => {
            if is_migration_id(&text) {
                assert!(text.len() == 36 && !text.contains(['/', '.']));
            }
        }
    }
});
