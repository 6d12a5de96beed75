//! Container images: imported on every host, and made from the Debian base for workloads.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;

use crate::command::check;
use crate::error::{Context, Error, Result};
use crate::testbed::Testbed;

impl Testbed {
    /// Imports a root file system as the image `name` on every host, with the same ID everywhere: made on the first host, saved and
    /// loaded onto the others. `changes` are Dockerfile instructions like `CMD ["redis-server"]`. Returns the ID.
    ///
    /// # Errors
    /// [`Error::Command`] with Docker's words; [`Error::Io`] when the file cannot be read.
    pub fn import_image(&self, name: &str, archive: &Path, changes: &[&str]) -> Result<String> {
        let mut hosts = self.state().hosts.iter();
        let Some(first) = hosts.next() else {
            return Ok(String::new());
        };
        let file = File::open(archive).on("open", archive)?;
        let mut import = self.exec(&first.name, ["docker", "import"])?;
        for change in changes {
            import.args(["--change", change]);
        }
        import.args(["-", name]).stdin(file);
        let output = import.output().map_err(|source| start("docker", source))?;
        let id = check(&import, output)?.stdout;
        for host in hosts {
            self.copy_image(name, &first.name, &host.name)?;
        }
        Ok(String::from_utf8_lossy(&id).trim().to_owned())
    }

    fn copy_image(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let mut save = self.exec(from, ["docker", "save", name])?;
        let mut saving =
            save.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|source| start("docker", source))?;
        let mut load = self.exec(to, ["docker", "load"])?;
        if let Some(archive) = saving.stdout.take() {
            load.stdin(archive);
        }
        let loaded = load.output().map_err(|source| start("docker", source))?;
        let saved = saving.wait_with_output().map_err(|source| start("docker", source))?;
        check(&load, loaded)?;
        check(&save, saved).map(drop)
    }
}

fn start(program: &str, source: io::Error) -> Error {
    Error::Start { program: program.to_owned(), source }
}
