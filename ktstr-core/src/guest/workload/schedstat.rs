//! The kernel's counters of a process in `/proc/PID/schedstat`.

use std::io;
use std::time::Duration;

use rustix::process::Pid;

/// Time on a CPU, time waiting for one, times put on one.
///
/// While a process runs, the first is that of the last tick or context switch. Once it has ended and until
/// it is reaped, all are final.
///
/// Source: Linux 6.12, Documentation/scheduler/sched-stats.rst (`/proc/<pid>/schedstat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Schedstat {
    pub(super) cpu: Duration,
    pub(super) run_delay: Duration,
    pub(super) timeslices: u64,
}

impl Schedstat {
    pub(super) fn read(pid: Pid) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("malformed schedstat `{text}`"))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            cpu: Duration::from_nanos(next()?),
            run_delay: Duration::from_nanos(next()?),
            timeslices: next()?,
        })
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            run_delay: self.run_delay.saturating_sub(before.run_delay),
            timeslices: self.timeslices.saturating_sub(before.timeslices),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_three_numbers() {
        let ns = Duration::from_nanos;
        let stat = Schedstat { cpu: ns(51), run_delay: ns(17), timeslices: 2 };
        assert_eq!(Schedstat::parse("51 17 2\n"), Some(stat));
        assert_eq!(stat.since(stat), Schedstat::default());
        for bad in ["", "51 17", "51 x 2"] {
            assert_eq!(Schedstat::parse(bad), None);
        }
    }
}
