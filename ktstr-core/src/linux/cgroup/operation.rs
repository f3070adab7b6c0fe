//! The operations that an error names.

use std::fmt;

/// An operation on cgroupfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Looking for a file or directory.
    LookFor,
    /// Reading a file.
    Read,
    /// Understanding the content of a file.
    Parse,
    /// Waiting for a change of a file.
    WaitFor,
    /// Writing to a file.
    Write,
    /// Listing the children of a cgroup.
    List,
    /// Creating a cgroup.
    Create,
    /// Removing a cgroup.
    Remove,
    /// A call that [`RecordingCgroups::fail`](super::RecordingCgroups::fail) made fail: a method or a knob.
    Recorded(&'static str),
}

impl Operation {
    /// Returns whether its object is a cgroup, and not one of its files.
    pub(super) fn is_on_cgroup(self) -> bool {
        matches!(self, Self::List | Self::Create | Self::Remove)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookFor => "look for",
            Self::Read => "read",
            Self::Parse => "parse",
            Self::WaitFor => "wait for",
            Self::Write => "write",
            Self::List => "list cgroup",
            Self::Create => "create cgroup",
            Self::Remove => "remove cgroup",
            Self::Recorded(call) => call,
        })
    }
}
