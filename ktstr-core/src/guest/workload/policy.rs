//! Scheduling policies.

use std::io;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Pid;

use crate::linux::sys::{self, SchedAttr};

/// Of linux/sched.h; libc has no name for it.
const SCHED_EXT: u32 = 7;

/// The scheduling policy of a worker, as sched(7) describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SchedPolicy {
    /// `SCHED_NORMAL`: a fair share of the CPU, by nice value.
    #[default]
    Normal,
    /// `SCHED_BATCH`: like Normal, but does not preempt others when it wakes.
    Batch,
    /// `SCHED_IDLE`: the smallest share there is.
    Idle,
    /// `SCHED_FIFO` with this priority, 1 to 99: before every fair task, for as long as it wants.
    Fifo(u8),
    /// `SCHED_RR` with this priority, 1 to 99: like Fifo, but its equals take turns.
    RoundRobin(u8),
    /// `SCHED_DEADLINE`: `runtime` of CPU time in each `period`, had by `deadline` after its begin.
    /// It cannot be combined with an affinity.
    Deadline {
        /// CPU time per period, at least 1.024 µs.
        runtime: Duration,
        /// When it must be had, not before `runtime`.
        deadline: Duration,
        /// The period, not shorter than `deadline`.
        period: Duration,
    },
    /// `SCHED_EXT`: the BPF scheduler that is loaded, from Linux 6.12 on; as Normal if there is none.
    Ext,
}

impl SchedPolicy {
    /// Whether weights decide what it gets.
    pub(super) fn is_fair(&self) -> bool {
        matches!(self, Self::Normal | Self::Batch | Self::Idle | Self::Ext)
    }

    /// Returns the weight of a task with this policy and nice value, by which the fair class divides
    /// CPU time; `None` for a task of another class.
    ///
    /// Source: Linux 6.12, kernel/sched/core.c, `sched_prio_to_weight` (each nice level is a factor of
    /// 1.25), and kernel/sched/sched.h, `WEIGHT_IDLEPRIO`.
    pub(super) fn weight(&self, nice: i8) -> Option<u32> {
        match self {
            Self::Idle => Some(3),
            _ if self.is_fair() => Some((1024.0 / 1.25_f64.powi(nice.into())).round() as u32),
            _ => None,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match *self {
            Self::Fifo(priority) | Self::RoundRobin(priority) if !(1..=99).contains(&priority) => {
                Err(format!("{priority} is not a realtime priority (1 to 99)"))
            }
            Self::Deadline { runtime, deadline, period }
                if runtime < Duration::from_nanos(1024)
                    || runtime > deadline
                    || deadline > period =>
            {
                Err(format!(
                    "{self:?} is impossible: 1.024 µs <= runtime <= deadline <= period must hold"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Gives the policy and a nice value to a process.
    pub(super) fn apply(self, pid: Option<Pid>, nice: i8) -> anyhow::Result<()> {
        self.set(pid, nice).with_context(|| self.refusal())
    }

    /// As [`apply`](Self::apply), without a word on what went wrong.
    pub(super) fn set(self, pid: Option<Pid>, nice: i8) -> io::Result<()> {
        // Not by `sched_setattr` alone, which knows a nice value only for some policies.
        rustix::process::setpriority_process(pid, nice.into())?;
        sys::sched_setattr(pid, self.attr(nice))
    }

    fn attr(self, nice: i8) -> SchedAttr {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let of = |policy| SchedAttr { policy, nice: nice.into(), ..SchedAttr::default() };
        let realtime = |policy, priority: u8| SchedAttr { priority: priority.into(), ..of(policy) };
        match self {
            Self::Normal => of(libc::SCHED_OTHER as u32),
            Self::Batch => of(libc::SCHED_BATCH as u32),
            Self::Idle => of(libc::SCHED_IDLE as u32),
            Self::Fifo(priority) => realtime(libc::SCHED_FIFO as u32, priority),
            Self::RoundRobin(priority) => realtime(libc::SCHED_RR as u32, priority),
            Self::Deadline { runtime, deadline, period } => SchedAttr {
                runtime_ns: nanos(runtime),
                deadline_ns: nanos(deadline),
                period_ns: nanos(period),
                // Without it, the process could not fork.
                flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
                ..of(libc::SCHED_DEADLINE as u32)
            },
            Self::Ext => of(SCHED_EXT),
        }
    }

    /// What it means if the kernel refuses.
    fn refusal(self) -> String {
        let why = match self {
            Self::Ext => {
                "; EINVAL means a kernel without sched_ext (Linux 6.12, CONFIG_SCHED_CLASS_EXT)"
            }
            Self::Fifo(_) | Self::RoundRobin(_) => {
                "; EPERM means no CAP_SYS_NICE, or a cgroup without realtime time (RT_GROUP_SCHED)"
            }
            Self::Deadline { .. } => {
                "; EBUSY means that the CPUs have no such bandwidth left, EPERM that it may not use all"
            }
            _ => "",
        };
        format!("cannot set the policy {self:?}{why}")
    }
}

/// The kernel would take the nearest one instead.
pub(super) fn check_nice(nice: i8) -> Result<(), String> {
    match nice {
        -20..=19 => Ok(()),
        _ => Err(format!("{nice} is not a nice value (-20 to 19)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::workload::WorkSpec;
    use crate::guest::workload::testing::{Running, stat_field};

    /// proc_pid_stat(5): the fields `nice` and `policy`.
    const NICE: usize = 19;
    const POLICY: usize = 41;

    #[test]
    fn worker_has_the_policy_and_nice_value_of_its_spec() {
        let deadline = SchedPolicy::Deadline {
            runtime: Duration::from_micros(100),
            deadline: Duration::from_millis(50),
            period: Duration::from_millis(100),
        };
        for (policy, number) in [
            (SchedPolicy::Normal, 0),
            (SchedPolicy::Fifo(1), 1),
            (SchedPolicy::RoundRobin(2), 2),
            (SchedPolicy::Batch, 3),
            (SchedPolicy::Idle, 5),
            (deadline, 6),
        ] {
            let work = crate::guest::workload::WorkType::TimerLatency;
            let spec = WorkSpec::default().policy(policy).nice(7).work_type(work);
            let running = Running::start(spec);
            assert_eq!(stat_field(running.pid(0), POLICY), number, "{policy:?}");
            assert_eq!(stat_field(running.pid(0), NICE), 7, "{policy:?}");
        }
    }

    #[test]
    fn apply_reports_a_kernel_without_sched_ext() {
        let released = Running::try_start(WorkSpec::default().policy(SchedPolicy::Ext));
        let has_ext = std::path::Path::new("/sys/kernel/sched_ext").exists();
        match released {
            Ok(running) => {
                assert!(has_ext);
                assert_eq!(stat_field(running.pid(0), POLICY), 7);
            }
            Err(error) => {
                assert!(!has_ext, "{error:#}");
                assert!(format!("{error:#}").contains("a kernel without sched_ext"), "{error:#}");
            }
        }
    }

    #[test]
    fn weight_changes_by_a_quarter_per_nice_level() {
        for (policy, nice, weight) in [
            (SchedPolicy::Normal, 0, Some(1024)),
            (SchedPolicy::Batch, 19, Some(15)),
            (SchedPolicy::Normal, 10, Some(110)),
            (SchedPolicy::Ext, -10, Some(9537)),
            (SchedPolicy::Normal, -20, Some(88_818)),
            (SchedPolicy::Idle, -20, Some(3)),
            (SchedPolicy::Fifo(1), 0, None),
        ] {
            assert_eq!(policy.weight(nice), weight, "{policy:?}, {nice}");
        }
    }

    #[test]
    fn check_refuses_impossible_policies() {
        let ms = Duration::from_millis;
        for bad in [
            SchedPolicy::Fifo(0),
            SchedPolicy::RoundRobin(100),
            SchedPolicy::Deadline { runtime: ms(2), deadline: ms(1), period: ms(3) },
            SchedPolicy::Deadline { runtime: ms(0), deadline: ms(1), period: ms(3) },
            SchedPolicy::Deadline { runtime: ms(1), deadline: ms(4), period: ms(3) },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert_eq!(SchedPolicy::Fifo(99).check(), Ok(()));
        assert!(check_nice(20).is_err() && check_nice(-21).is_err() && check_nice(-20).is_ok());
    }
}
