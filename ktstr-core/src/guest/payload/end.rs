//! How a run of a payload ended.

use std::fmt;

use crate::model::exit::ExitKind;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadEnd {
    /// It exited with this status.
    Exited(i32),
    /// A signal with this number killed it, which the test did not send.
    Signaled(i32),
    /// SIGKILL killed it in a cgroup in which an OOM kill is expected.
    KilledAsExpected,
    /// The test stopped it: how. It has not exited, so no exit status can be judged.
    Stopped(String),
}

/// Writes `exit status 0`, `signal 11 (SIGSEGV)`, `killed by the test`.
impl fmt::Display for PayloadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => ExitKind::Exited(*status).fmt(f),
            Self::Signaled(signal) => ExitKind::Signaled(*signal).fmt(f),
            Self::KilledAsExpected => f.write_str("killed as expected"),
            Self::Stopped(how) => f.write_str(how),
        }
    }
}
