//! The unit tests that depend on the kernel, on one that is older than this machine's: in a virtual machine that boots Debian's.
//!
//! Linux 6.1 cannot follow writes by userfaultfd (that is 6.7), and has soft-dirty bits, which many others are built without. The machine is
//! emulated: where it runs, virtualisation by hardware is often missing, and sometimes only half there. It has no disk and no network, and
//! everything that it needs is in its initial file system: the test program that cargo has built, the libraries of that, busybox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::base::{lock, remove_if_there};
use crate::command::{command, output, run as run_command};
use crate::error::{Context, Error, Result};
use crate::layout::CACHE;
use crate::machine::{self, workspace};

/// The suite whose kernel it is: Linux 6.1.
const SUITE: &str = "bookworm";

/// A package that depends on the newest kernel of the suite for clouds, which has few drivers.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What its first process needs.
const BUSYBOX: &str = "busybox-static";

/// By which archives of Debian are known to apt.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The methods of following memory that this kernel has (`SPOTHOP_TEST_METHODS` in the unit tests): a test that finds others fails.
const METHODS: &str = "soft-dirty,content";

/// The tests that depend on the kernel, and others beside them, which take no time. They need no file but the program's own.
const TESTS: &str =
    "memory::tracking memory::pagemap memory::areas memory::parent memory::reader memory::store memory::pager";

/// How long the machine may run, in seconds: it takes 20 to 30 on an idle host.
const LIMIT: &str = "300";

/// Begins the line that says how the tests ended.
const ENDED: &str = "older kernel: tests ended with ";

/// The first process. The RAM disk is for files that are read past the page cache, which no file system in memory can do there. Without
/// the last line of the tests there is no success, however it ends.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
insmod /brd.ko rd_nr=1 rd_size=16384 && mke2fs /dev/ram0 >/dev/null && mount -t ext2 /dev/ram0 /work
uname -sr
cd /work
/tests $TESTS
echo \"$ENDED$?\"
poweroff -f
";

/// What a machine of this kernel is made of.
struct Kernel {
    image: PathBuf,
    /// The module of RAM disks.
    ram_disk: PathBuf,
    busybox: PathBuf,
}

impl Kernel {
    fn within(root: &Path) -> Self {
        let file = |name| root.join(name);
        Self { image: file("vmlinuz"), ram_disk: file("brd.ko"), busybox: file("busybox") }
    }
}

/// Runs the tests there. `built` are the arguments of cargo with which their program has been built, which it then finds again.
///
/// # Errors
/// When the machine cannot be made, does not start, or a test fails there; the tests' own words have been shown.
pub fn run(built: &[&str]) -> Result<()> {
    let kernel = ensure(&|line| eprintln!("{line}"))?;
    let program = test_program(built)?;
    let scratch = tempfile::tempdir().on("make a directory in", &std::env::temp_dir())?;
    let initial = scratch.path().join("initial.cpio");
    pack(&kernel, &program, &scratch.path().join("root"), &initial)?;
    let console = boot(&kernel.image, &initial)?;
    eprintln!("{}", console.trim());
    verdict(&console)
}

/// Makes what the machine needs unless it is there. `say` hears what is done.
///
/// # Errors
/// [`Error::Command`] with the words of apt.
pub fn prepare(say: &dyn Fn(&str)) -> Result<()> {
    ensure(say).map(drop)
}

fn ensure(say: &dyn Fn(&str)) -> Result<Kernel> {
    machine::prepare_emulator(say)?;
    let recipe = [SUITE, KERNEL, BUSYBOX].join("\n");
    let place = Path::new(CACHE).join(format!("kernel-{:016x}", xxh3_64(recipe.as_bytes())));
    fs::create_dir_all(CACHE).on("make", Path::new(CACHE))?;
    let _lock = lock(&Path::new(CACHE).join("kernel.lock"))?;
    if !place.is_dir() {
        say(&format!("fetching the kernel of Debian's {SUITE} to {}", place.display()));
        let partial = place.with_extension("partial");
        remove_if_there(&partial)?;
        fetch(&partial)?;
        fs::rename(&partial, &place).on("name", &place)?;
    }
    Ok(Kernel::within(&place))
}

/// Unpacks the packages. Nothing of them is installed on this machine.
fn fetch(place: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().on("make a directory in", &std::env::temp_dir())?;
    let apt = Apt::new(scratch.path())?;
    let kernel = apt.dependency(KERNEL)?;
    let root = scratch.path().join("root");
    for package in [kernel.as_str(), BUSYBOX] {
        run_command(command("dpkg-deb", ["--extract"]).arg(apt.download(package)?).arg(&root))?;
    }
    let version = kernel.trim_start_matches("linux-image-");
    fs::create_dir_all(place).on("make", place)?;
    let parts = Kernel::within(place);
    copy(&root.join("boot").join(format!("vmlinuz-{version}")), &parts.image)?;
    // Where it lies since /lib and /usr/lib are one, and where it lay before.
    let module = format!("lib/modules/{version}/kernel/drivers/block/brd.ko");
    let module = [root.join(&module), root.join("usr").join(&module)].into_iter().find(|path| path.is_file());
    copy(&module.unwrap_or_else(|| root.join("lib/modules")), &parts.ram_disk)?;
    let busybox = [root.join("bin/busybox"), root.join("usr/bin/busybox")].into_iter().find(|path| path.is_file());
    copy(&busybox.unwrap_or_else(|| root.join("bin/busybox")), &parts.busybox)
}

/// apt with a state of its own, that knows the one suite.
struct Apt<'a> {
    directory: &'a Path,
    options: Vec<String>,
}

impl<'a> Apt<'a> {
    fn new(directory: &'a Path) -> Result<Self> {
        let at = |name: &str| directory.join(name);
        for name in ["lists/partial", "cache/archives/partial", "downloads", "parts"] {
            fs::create_dir_all(at(name)).on("make", &at(name))?;
        }
        let mirror = machine::debian_mirror()?;
        let source = format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n");
        fs::write(at("sources.list"), source).on("write", &at("sources.list"))?;
        fs::write(at("status"), "").on("write", &at("status"))?;
        let settings = [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", at("parts")),
            ("Dir::State::Lists", at("lists")),
            ("Dir::State::Status", at("status")),
            ("Dir::Cache", at("cache")),
        ];
        let options = settings.iter().map(|(key, value)| format!("--option={key}={}", value.display()));
        // Its own user could not write to our directory.
        let options = options.chain(["--option=APT::Sandbox::User=root".into()]).collect();
        let apt = Self { directory, options };
        run_command(command("apt-get", ["-q", "update", "--error-on=any"]).args(&apt.options))?;
        Ok(apt)
    }

    /// The first package that `package` depends on.
    fn dependency(&self, package: &str) -> Result<String> {
        let said = run_command(command("apt-cache", ["depends", package]).args(&self.options))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let first = said.lines().find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned));
        first.ok_or_else(|| Error::Unexpected { what: format!("`apt-cache depends {package}`"), text: said })
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        let place = self.directory.join("downloads").join(package);
        fs::create_dir_all(&place).on("make", &place)?;
        run_command(command("apt-get", ["-q", "download", package]).args(&self.options).current_dir(&place))?;
        let mut files = fs::read_dir(&place).on("read", &place)?;
        match files.next() {
            Some(file) => Ok(file.on("read", &place)?.path()),
            None => Err(Error::Unexpected { what: format!("`apt-get download {package}`"), text: "no file".into() }),
        }
    }
}

/// The unit test program of `spothop-criu`, from what cargo says of each thing that it has built.
fn test_program(built: &[&str]) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut build = command(&cargo, ["test"]);
    build.args(built).args(["--no-run", "--message-format=json"]);
    let said = run_command(build.current_dir(workspace()).env_remove("CARGO_MANIFEST_DIR"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    program_among(&said).ok_or_else(|| Error::Unexpected { what: "what cargo has built".into(), text: tail(&said) })
}

fn program_among(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_it = |message: &Value| {
        message["target"]["name"] == "spothop_criu"
            && message["target"]["kind"][0] == "lib"
            && message["profile"]["test"] == true
    };
    messages.filter(is_it).find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Makes the machine's initial file system, in `root`, and packs it.
fn pack(kernel: &Kernel, program: &Path, root: &Path, packed: &Path) -> Result<()> {
    for directory in ["bin", "dev", "proc", "sys", "tmp", "work"] {
        fs::create_dir_all(root.join(directory)).on("make", root)?;
    }
    copy(&kernel.busybox, &root.join("bin/busybox"))?;
    copy(&kernel.ram_disk, &root.join("brd.ko"))?;
    copy(program, &root.join("tests"))?;
    let said = run_command(command("ldd", [""; 0]).arg(program))?;
    for library in libraries(&String::from_utf8_lossy(&said.stdout)) {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().unwrap_or(root)).on("make", &to)?;
        copy(&library, &to)?;
    }
    let init = root.join("init");
    let text = INIT.replace("$TESTS", TESTS).replace("$ENDED", ENDED);
    let text = text.replace("cd /work\n", &format!("cd /work\nexport SPOTHOP_TEST_METHODS={METHODS}\n"));
    fs::write(&init, text).on("write", &init)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).on("set the mode of", &init)?;
    let script = "find . | cpio --quiet --create --format=newc >\"$1\"";
    run_command(command("sh", ["-c", script, "sh"]).arg(packed).current_dir(root)).map(drop)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or a path alone (ldd(1)).
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).on("copy", from).map(drop)
}

/// Runs the machine until it turns itself off, and returns what it said.
fn boot(kernel: &Path, initial: &Path) -> Result<String> {
    let mut machine = command("timeout", [LIMIT, "qemu-system-x86_64"]);
    // With two processors, threads really run beside whoever looks at their memory.
    machine.args(["-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    machine.args(["-m", "1024", "-smp", "2", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    machine.arg("-kernel").arg(kernel).arg("-initrd").arg(initial);
    machine.args(["-append", "console=ttyS0 quiet panic=-1"]);
    let ended = output(&mut machine)?;
    let console = String::from_utf8_lossy(&ended.stdout).replace('\r', "");
    if ended.status.success() {
        return Ok(console);
    }
    let said = format!("{}{}", tail(&console), String::from_utf8_lossy(&ended.stderr));
    Err(Error::Command { command: format!("timeout {LIMIT} qemu-system-x86_64"), status: ended.status, output: said })
}

/// The tests passed if they say so; a machine that crashes says nothing.
fn verdict(console: &str) -> Result<()> {
    match console.lines().find_map(|line| line.strip_prefix(ENDED)) {
        Some("0") if console.contains("test result: ok.") => Ok(()),
        _ => Err(Error::OlderKernel { console: tail(console) }),
    }
}

/// The last lines of a long text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_that_passed_are_a_success() {
        let passed = format!("Linux 6.1\ntest result: ok. 3 passed\n{ENDED}0\n");
        assert!(verdict(&passed).is_ok());
        for console in
            ["", "Kernel panic", "test result: ok.", &format!("{ENDED}0\n"), &passed.replace("with 0", "with 101")]
        {
            assert!(verdict(console).is_err(), "{console}");
        }
        assert!(verdict("Kernel panic").unwrap_err().to_string().contains("Kernel panic"));
    }

    #[test]
    fn the_test_program_is_the_librarys() {
        let message = |kind: &str, test: bool, executable: &str| {
            let target = serde_json::json!({ "kind": [kind], "name": "spothop_criu" });
            serde_json::json!({ "target": target, "profile": { "test": test }, "executable": executable }).to_string()
        };
        let messages = [message("lib", false, "/a"), message("test", true, "/b"), message("lib", true, "/c")];
        assert_eq!(program_among(&messages.join("\n")), Some(PathBuf::from("/c")));
        assert_eq!(program_among("{}\nnot JSON\n"), None);
    }

    #[test]
    fn libraries_are_found_with_the_loader_and_without_what_has_no_file() {
        let ldd =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(libraries(ldd), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]);
    }
}
