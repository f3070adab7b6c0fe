//! The cargo that runs the tests.

use std::sync::Once;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open};

/// Returns the cargo that started this process, if one did.
pub(super) fn cargo() -> Option<Pid> {
    getppid().filter(|parent| is_cargo(*parent))
}

/// Ends this process together with the cargo that started it, if one did: after `kill -9` of cargo
/// its machines would keep running although no report of them is read.
///
/// Everything that this process has started ends with it in turn.
pub(super) fn end_with_cargo() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Some(cargo) = cargo() else { return };
        let Ok(pidfd) = pidfd_open(cargo, PidfdFlags::empty()) else { return };
        let watch = move || {
            // With another parent, cargo has ended and another process may have its pid.
            while getppid() == Some(cargo) {
                match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) {
                    Ok(1) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => return,
                }
            }
            // SIGKILL, as cargo got it: a thread must not report the end of its machine as a failure.
            let _ = kill_process(getpid(), Signal::KILL);
        };
        let thread = std::thread::Builder::new().name("ktstr-parent".to_owned());
        if let Err(error) = thread.spawn(watch) {
            tracing::warn!("cannot watch for the end of cargo: {error}");
        }
    });
}

fn is_cargo(pid: Pid) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "cargo" || name == "cargo-nextest")
}
