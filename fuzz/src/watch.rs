//! What every thread does when an input takes long. Of a timeout libFuzzer tells only the stack of the first, which as a rule waits for
//! another one.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No input takes so long, and libFuzzer's limit is longer.
const LONG: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_secs(1);

static WATCH: Once = Once::new();
static BEGAN: Mutex<Option<Instant>> = Mutex::new(None);

/// Runs what an input does.
pub fn watched<T>(run: impl FnOnce() -> T) -> T {
    WATCH.call_once(|| drop(thread::spawn(watch)));
    note(Some(Instant::now()));
    let result = run();
    note(None);
    result
}

fn note(began: Option<Instant>) {
    *BEGAN.lock().unwrap_or_else(PoisonError::into_inner) = began;
}

/// Tells of each input once. The looks that were taken meanwhile say whether the machine stood still.
fn watch() {
    let (mut input, mut told, mut looks) = (None, None, 0);
    loop {
        thread::sleep(TICK);
        let began = *BEGAN.lock().unwrap_or_else(PoisonError::into_inner);
        looks = if began == input { looks + 1 } else { 1 };
        input = began;
        if let Some(took) = began.map(|began| began.elapsed()).filter(|took| *took > LONG && began != told) {
            eprintln!("an input takes {took:?} by now; in this time there were {looks} looks at it, one a second");
            tell();
            told = began;
        }
    }
}

/// Where the threads are, by the kernel; and by gdb where it is installed.
fn tell() {
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let of = |name| fs::read_to_string(task.path().join(name)).unwrap_or_else(|error| error.to_string());
        // proc_pid_syscall(5), proc_pid_stack(5)
        let [name, state, call, stack] = ["comm", "wchan", "syscall", "stack"].map(of);
        eprintln!("{:?} {} in {state}, system call {}\n{stack}", task.file_name(), name.trim(), call.trim());
    }
    let process = std::process::id().to_string();
    let stacks = ["-batch", "-ex", "set print frame-arguments none", "-ex", "thread apply all backtrace", "-p"];
    // Missing is no failure.
    let _ = Command::new("gdb").args(stacks).arg(process).stdin(Stdio::null()).status();
}
