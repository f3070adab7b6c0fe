//! The controllers of cgroup v2.

use std::collections::BTreeSet;

named_enum! {
    /// A controller of cgroup v2.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Controller {
        /// CPUs and memory nodes.
        Cpuset => "cpuset",
        /// CPU time.
        Cpu => "cpu",
        /// Memory.
        Memory => "memory",
        /// The number of processes.
        Pids => "pids",
        /// Block devices.
        Io => "io",
    }
}

impl Controller {
    /// All controllers.
    pub const ALL: [Self; 5] = [Self::Cpuset, Self::Cpu, Self::Memory, Self::Pids, Self::Io];
}

/// Formats a value for `cgroup.subtree_control`, sorted by name: `+cpu +memory`.
pub(super) fn subtree_control(sign: &str, controllers: &BTreeSet<Controller>) -> String {
    let mut words: Vec<_> = controllers.iter().map(|name| format!("{sign}{name}")).collect();
    words.sort_unstable();
    words.join(" ")
}
