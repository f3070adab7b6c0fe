//! Scheduling statistics of the host for a thread.

use std::time::Duration;

use crate::error::Error;

/// Returns the total time that a thread was runnable but did not run.
///
/// Source: Linux 6.12, scheduler/sched-stats.rst: the second number, in nanoseconds.
pub(crate) fn run_delay(tid: i32) -> Result<Duration, Error> {
    let fail = Error::io::<std::io::Error>("read the schedstat of a vCPU's thread");
    let text = std::fs::read_to_string(format!("/proc/{tid}/schedstat")).map_err(fail)?;
    let second = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    second.map(Duration::from_nanos).ok_or_else(|| {
        Error::Protocol(format!("the schedstat of thread {tid} is `{}`", text.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_delay_never_decreases() {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let before = run_delay(own).unwrap();
        std::thread::yield_now();
        assert!(run_delay(own).unwrap() >= before);
        run_delay(-1).unwrap_err();
    }
}
