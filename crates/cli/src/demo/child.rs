//! The migrator as a child process, driven by commands that a user has too.

use anyhow::{Context, Result, bail, ensure};
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The program, with the folder and the spec that it is run with.
pub(super) struct Crossfade {
    folder: PathBuf,
    spec: String,
}

impl Crossfade {
    pub(super) fn new(folder: &Path, spec: &str) -> Self {
        Self { folder: folder.to_owned(), spec: spec.to_owned() }
    }

    fn program(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.current_dir(&self.folder).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts `crossfade run`; its words go to a file beside the spec.
    pub(super) fn start(&self) -> Result<Running<'_>> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("run.log"))?;
        let child = self
            .program()?
            .args(["run", &self.spec])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting `crossfade run`")?;
        Ok(Running { child: RefCell::new(child), of: self })
    }

    /// Runs a command to its end and gives what it printed.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<String> {
        let output = self.program()?.args(arguments).output().context("starting a command")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "`crossfade {}` ended with {}\n{printed}{}\n(the running migrator's words are in {})",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.folder.join("run.log").display()
        );
        Ok(printed)
    }

    pub(super) fn wait_caught_up(&self) -> Result<()> {
        self.command(&["wait", &self.spec, "--caught-up", "--timeout", "60s"]).map(drop)
    }
}

/// A `crossfade run` that is running; it ends with this value.
pub(super) struct Running<'a> {
    child: RefCell<Child>,
    of: &'a Crossfade,
}

impl Running<'_> {
    /// SIGKILL: no chance to tidy up.
    pub(super) fn kill(self) -> Result<()> {
        self.check_alive()?;
        let mut child = self.child.borrow_mut();
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The child must not have ended by itself.
    pub(super) fn check_alive(&self) -> Result<()> {
        if let Some(status) = self.child.borrow_mut().try_wait()? {
            let log = std::fs::read_to_string(self.of.folder.join("run.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            bail!(
                "`crossfade run` ended by itself with {status}: {}",
                last.into_iter().rev().collect::<Vec<_>>().join(" | ")
            );
        }
        Ok(())
    }

    /// Waits for its end, which comes with a switch.
    pub(super) fn ended(self) -> Result<()> {
        let status = self.child.borrow_mut().wait()?;
        ensure!(status.success(), "`crossfade run` ended with {status} after the switch");
        Ok(())
    }

    /// Asks it to stop, as Ctrl-C does, and waits for its end.
    pub(super) fn stop(self) -> Result<()> {
        self.check_alive()?;
        let pid = self.child.borrow().id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &pid]).status()?.success(), "SIGTERM could not be sent");
        let status = self.child.borrow_mut().wait()?;
        ensure!(status.success(), "`crossfade run` ended with {status} when asked to stop");
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        if matches!(child.try_wait(), Ok(None)) {
            // Nothing more can be done about a child that cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
