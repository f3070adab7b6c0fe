//! The controllers of cgroup v2.

use std::collections::BTreeSet;
use std::fmt;

/// A controller of cgroup v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPUs and memory nodes.
    Cpuset,
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// The number of processes.
    Pids,
    /// Block devices.
    Io,
}

impl Controller {
    /// All controllers.
    pub const ALL: [Self; 5] = [Self::Cpuset, Self::Cpu, Self::Memory, Self::Pids, Self::Io];

    /// Returns the name in `cgroup.controllers`: `cpuset`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpuset => "cpuset",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Formats a value for `cgroup.subtree_control`, sorted by name: `+cpu +memory`.
pub(super) fn subtree_control(sign: &str, controllers: &BTreeSet<Controller>) -> String {
    let mut words: Vec<_> = controllers.iter().map(|name| format!("{sign}{name}")).collect();
    words.sort_unstable();
    words.join(" ")
}
