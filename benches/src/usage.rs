//! Processor seconds and memory, by the operating system's own account.

use anyhow::{Context, Result};
use std::fs;

/// Clock ticks a second, as Linux reports processor time to programs on every common machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of one.
pub(crate) const MIB: f64 = 1_048_576.0;

/// Processor seconds of a process, its living children, and the children that it has waited for.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let own = ticks(pid, true).unwrap_or(0.0);
    let children: f64 = children(pid).into_iter().map(|child| ticks(child, true).unwrap_or(0.0)).sum();
    (own + children) / TICKS_PER_SECOND
}

/// Processor seconds of the children that this process has waited for.
pub(crate) fn waited_children_seconds() -> f64 {
    let all = ticks(std::process::id(), true).unwrap_or(0.0);
    let own = ticks(std::process::id(), false).unwrap_or(0.0);
    (all - own) / TICKS_PER_SECOND
}

fn ticks(pid: u32, with_waited: bool) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses; the fields begin after the last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let wanted = if with_waited { 11..15 } else { 11..13 };
    fields.get(wanted)?.iter().map(|field| field.parse::<f64>().ok()).sum()
}

fn children(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .map(|text| text.split_whitespace().filter_map(|child| child.parse().ok()).collect())
        .unwrap_or_default()
}

/// The largest resident memory that a process has had, in bytes.
pub(crate) fn peak_bytes(pid: u32) -> Result<u64> {
    field(pid, "status", "VmHWM:")
}

/// The resident memory of a process now, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    field(pid, "status", "VmRSS:")
}

/// The memory that a process shares with nobody, in bytes.
pub(crate) fn private_bytes(pid: u32) -> Result<u64> {
    Ok(field(pid, "smaps_rollup", "Private_Clean:")? + field(pid, "smaps_rollup", "Private_Dirty:")?)
}

fn field(pid: u32, file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("process {pid} has gone"))?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name} in {file}"))?;
    let kib: u64 = line.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(kib * 1024)
}
