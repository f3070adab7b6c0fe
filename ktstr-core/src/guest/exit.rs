//! Converts wait statuses to [`ExitKind`].

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::WaitIdStatus;

use crate::model::exit::ExitKind;

impl From<ExitStatus> for ExitKind {
    fn from(status: ExitStatus) -> Self {
        from_parts(status.code(), status.signal())
    }
}

impl From<WaitIdStatus> for ExitKind {
    fn from(status: WaitIdStatus) -> Self {
        from_parts(status.exit_status(), status.terminating_signal())
    }
}

fn from_parts(status: Option<i32>, signal: Option<i32>) -> ExitKind {
    match (status, signal) {
        (Some(status), _) => ExitKind::Exited(status),
        (None, Some(signal)) => ExitKind::Signaled(signal),
        // Stopped and continued processes are reported only to callers that ask for them.
        (None, None) => unreachable!("the process has not ended"),
    }
}
