//! Ends what a test started when the test itself ends without saying so: by a panic in a static, by Ctrl-C, by SIGKILL.
//!
//! A watchdog is a small shell that waits for a line on a pipe whose other end only the test's process holds. The pipe
//! closes with that process, however it ends. The shell then ends the server by its process id (after a look that the id
//! is still that server's) and removes its folder.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

const SERVER: &str = r#"
read -r word
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; then
  kill -QUIT "$pid"
  while [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; do sleep 0.05; done
fi
rm -rf "$1"
"#;

const PROCESS: &str = r#"
read -r word
[ "$word" = done ] && exit 0
[ "$(cut -d ' ' -f 22 "/proc/$1/stat" 2>/dev/null)" = "$2" ] && kill -KILL "$1"
"#;

/// As the one before, and the folder goes too where nobody said that the end was in order.
const PROCESS_IN: &str = r#"
read -r word
[ "$word" = done ] && exit 0
if [ "$(cut -d ' ' -f 22 "/proc/$1/stat" 2>/dev/null)" = "$2" ]; then
  kill -KILL "$1"
  while [ -d "/proc/$1" ]; do sleep 0.05; done
fi
rm -rf "$3"
"#;

#[derive(Debug)]
pub(crate) struct Watchdog(Child);

impl Watchdog {
    /// Over a PostgreSQL server whose data is in `folder/data`.
    pub(crate) fn over_server(folder: &Path) -> Self {
        Self::spawn(Command::new("sh").args(["-c", SERVER, "watchdog"]).arg(folder))
    }

    /// Over one process. Its start time tells it from a later one with the same id.
    pub(crate) fn over_process(pid: u32) -> Self {
        Self::spawn(Command::new("sh").args(["-c", PROCESS, "watchdog", &pid.to_string(), &started(pid)]))
    }

    /// Over one process and the folder that it works in.
    pub(crate) fn over_process_in(pid: u32, folder: &Path) -> Self {
        let process = [&pid.to_string(), &started(pid)].map(String::clone);
        Self::spawn(Command::new("sh").args(["-c", PROCESS_IN, "watchdog"]).args(process).arg(folder))
    }

    fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        Self(child.unwrap_or_else(|error| panic!("no shell for a watchdog: {error}")))
    }

    /// What it watches has ended in order; waits until it has tidied up.
    pub(crate) fn end(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // Fails only when the shell is gone, and then there is nobody to tell.
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.0.wait();
    }
}

/// When a process was started.
fn started(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.split(' ').nth(21).unwrap_or("gone").to_owned()
}
