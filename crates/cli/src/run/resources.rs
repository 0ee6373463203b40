//! How much of the disk and of the memory is in use, for the gates on them.

use crossfade_control::Percent;
use std::{fs, path::Path};

/// How full the file system is on which `folder` lies, as somebody without special rights finds it; `None` where the system
/// does not say.
pub(super) fn disk_used(folder: &Path) -> Option<Percent> {
    let found = rustix::fs::statvfs(folder).ok()?;
    // What is kept back for root is not there for us.
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    let total = used.saturating_add(found.f_bavail);
    (total > 0).then(|| Percent::of(used, total))
}

/// How much of the memory is in use: of the limit of this process's control group where it has one, else of the machine's;
/// `None` where the system does not say.
pub(super) fn memory_used() -> Option<Percent> {
    in_control_group().or_else(|| of_machine(&fs::read_to_string("/proc/meminfo").ok()?))
}

/// By `/proc/meminfo` (proc(5)): all that is not available to a program without swapping.
fn of_machine(meminfo: &str) -> Option<Percent> {
    let total = line(meminfo, "MemTotal:")?;
    let available = line(meminfo, "MemAvailable:")?;
    (total > 0).then(|| Percent::of(total.saturating_sub(available), total))
}

/// By the files of control groups, version 2.
fn in_control_group() -> Option<Percent> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(own);
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    of_group(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
}

/// What files cached and not used lately is given back as soon as somebody needs it: it is not counted.
fn of_group(max: &str, current: &str, stat: &str) -> Option<Percent> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let idle = line(stat, "inactive_file").unwrap_or(0);
    (max > 0).then(|| Percent::of(current.saturating_sub(idle), max))
}

/// The number after a name at the beginning of a line.
fn line(text: &str, name: &str) -> Option<u64> {
    let mut found =
        text.lines().filter_map(|line| line.split_once(char::is_whitespace)).filter(|(key, _)| *key == name);
    found.next()?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_and_a_group_say_how_much_is_in_use() {
        let meminfo = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    250 kB\n";
        assert_eq!(of_machine(meminfo), "75%".parse().ok());
        assert_eq!(of_machine("MemTotal: 1000 kB\n"), None);
        let stat = "anon 500\ninactive_file 200\nactive_file 100\n";
        assert_eq!(of_group("1000\n", "800\n", stat), "60%".parse().ok());
        assert_eq!(of_group("max\n", "800\n", stat), None, "a group without a limit says nothing");
    }

    #[test]
    fn this_machine_has_a_disk_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        let nothing: Percent = "0%".parse().unwrap();
        assert!(disk_used(folder.path()).unwrap() > nothing);
        assert!(memory_used().unwrap() > nothing);
        assert_eq!(disk_used(&folder.path().join("absent")), None);
    }
}
