//! How a process ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended: the two cases that wait(2) distinguishes.
///
/// `Display` is the one place that formats it: `exit status 1`, `signal 9 (SIGKILL)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// The process exited with this status.
    Exited(i32),
    /// A signal with this number killed the process.
    Signaled(i32),
}

impl ExitKind {
    /// Returns whether SIGKILL ended the process, as the OOM killer and `cgroup.kill` do it.
    pub fn is_sigkill(self) -> bool {
        self == Self::Signaled(libc::SIGKILL)
    }
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Signaled(signal) => match SIGNALS.iter().find(|(number, _)| *number == signal) {
                Some((_, name)) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
        }
    }
}

/// The signals that kill a process by default, with their names in signal(7).
const SIGNALS: [(i32, &str); 18] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGSYS, "SIGSYS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_kind_displays_status_and_signal_name() {
        for (kind, text) in [
            (ExitKind::Exited(0), "exit status 0"),
            (ExitKind::Exited(137), "exit status 137"),
            (ExitKind::Signaled(9), "signal 9 (SIGKILL)"),
            (ExitKind::Signaled(34), "signal 34"),
        ] {
            assert_eq!(kind.to_string(), text);
            assert_eq!(kind.is_sigkill(), kind == ExitKind::Signaled(9));
        }
    }
}
