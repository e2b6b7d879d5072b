//! ⇄ What the kernel says of this process, read when it is asked for. Linux; elsewhere nothing is known.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The kernel's figures, as far as they could be read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    /// CPU used since its start, seconds.
    pub cpu_s: Option<f64>,
    /// Resident memory, bytes.
    pub resident_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// Limits by name: soft, hard, unit.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
    /// The kernel.
    pub kernel: Option<String>,
    /// Control groups that it is in.
    #[serde(default)]
    pub cgroups: Vec<String>,
}

/// The figures that a metrics page needs.
pub(crate) fn figures() -> ProcessView {
    let status = read("status");
    let field = |name: &str| number_after(&status, name);
    ProcessView {
        cpu_s: cpu(&read("stat")),
        resident_bytes: field("VmRSS:").map(|kib| kib * 1024),
        threads: field("Threads:"),
        open_fds: std::fs::read_dir("/proc/self/fd")
            .ok()
            .map(|entries| entries.count() as u64),
        ..ProcessView::default()
    }
}

/// All of them.
pub(crate) fn everything() -> ProcessView {
    let limits = read("limits");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    ProcessView {
        limits: limits.lines().skip(1).filter_map(limit).collect(),
        kernel: kernel.map(|k| k.trim().to_owned()),
        cgroups: read("cgroup").lines().map(str::to_owned).collect(),
        ..figures()
    }
}

/// Empty when there is none.
fn read(file: &str) -> String {
    std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default()
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// User and system time of `/proc/self/stat`. The name of the command, in parentheses, may have blanks in it.
fn cpu(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let used = ticks()? + ticks()?;
    Some(used as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// `Max open files            1024                 1048576              files`
fn limit(line: &str) -> Option<(String, String)> {
    let (name, values) = line.split_once("  ")?;
    let values: Vec<&str> = values.split_whitespace().collect();
    Some((name.to_owned(), values.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_they_are() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu(stat), Some(200.0 / ticks));
        assert_eq!(
            number_after("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"),
            Some(12)
        );
        let line = "Max open files            1024                 1048576              files     ";
        let (name, values) = limit(line).unwrap();
        assert_eq!(
            (name.as_str(), values.as_str()),
            ("Max open files", "1024 1048576 files")
        );
    }
}
