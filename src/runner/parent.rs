//! The cargo that runs the tests.

use std::sync::Once;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open};

/// Has this process end with the cargo that started it, if one did: after `kill -9` of that, nobody
/// would see a verdict, and the machines of this process would run on for nobody.
///
/// What this process has started ends with it in turn.
pub(super) fn end_with_cargo() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Some(cargo) = getppid().filter(|parent| is_cargo(*parent)) else { return };
        let Ok(pidfd) = pidfd_open(cargo, PidfdFlags::empty()) else { return };
        let watch = move || {
            // If it has another parent by now, that number may be another's, too.
            while getppid() == Some(cargo) {
                match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) {
                    Ok(1) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => return,
                }
            }
            // As if by the same hand: whoever is in the middle of something must not report it.
            let _ = kill_process(getpid(), Signal::KILL);
        };
        let thread = std::thread::Builder::new().name("ktstr-parent".to_owned());
        if let Err(error) = thread.spawn(watch) {
            tracing::warn!("will not notice the end of cargo: {error}");
        }
    });
}

fn is_cargo(pid: Pid) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "cargo" || name == "cargo-nextest")
}
