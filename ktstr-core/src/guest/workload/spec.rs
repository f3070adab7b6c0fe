//! A group of equal workers, as a test asks for it.

use std::fmt;

use super::{AffinityIntent, MemoryPolicy, SchedPolicy, WorkType, policy};

/// A group of equal workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkSpec {
    pub(crate) workers: Option<u32>,
    pub(crate) comm: String,
    pub(crate) work_type: WorkType,
    pub(super) policy: SchedPolicy,
    pub(super) affinity: AffinityIntent,
    pub(super) nice: i8,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) memory_policy: MemoryPolicy,
}

impl Default for WorkSpec {
    fn default() -> Self {
        Self {
            workers: None,
            comm: "ktstr-worker".to_owned(),
            work_type: WorkType::default(),
            policy: SchedPolicy::default(),
            affinity: AffinityIntent::default(),
            nice: 0,
            uid: None,
            gid: None,
            memory_policy: MemoryPolicy::default(),
        }
    }
}

impl WorkSpec {
    /// Sets the number of workers; if not set, 1, or the number of their cgroup's definition.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the number of workers if it is not set.
    pub(crate) fn or_workers(mut self, workers: u32) -> Self {
        self.workers = self.workers.or(Some(workers));
        self
    }

    pub(crate) fn count(&self) -> u32 {
        self.workers.unwrap_or(1)
    }

    /// Sets the workers' command name, at most 15 bytes.
    pub fn comm(mut self, comm: impl Into<String>) -> Self {
        self.comm = comm.into();
        self
    }

    /// Sets what the workers do.
    pub fn work_type(mut self, work_type: WorkType) -> Self {
        self.work_type = work_type;
        self
    }

    /// Sets the workers' scheduling policy; Normal if not set.
    pub fn policy(mut self, policy: SchedPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the CPUs on which the workers may run; those that their cgroup allows if not set.
    pub fn affinity(mut self, affinity: AffinityIntent) -> Self {
        self.affinity = affinity;
        self
    }

    /// Sets the workers' nice value, -20 to 19; 0 if not set.
    pub fn nice(mut self, nice: i8) -> Self {
        self.nice = nice;
        self
    }

    /// Sets the workers' user; that of the test if not set.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Sets the workers' group, which is then their only one; that of the test if not set.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Sets the NUMA nodes from which the workers get their memory.
    pub fn memory_policy(mut self, memory_policy: MemoryPolicy) -> Self {
        self.memory_policy = memory_policy;
        self
    }

    /// Checks what does not depend on the machine. The error is a text.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.count() == 0 {
            return Err("a spawn needs at least 1 worker, not 0".to_owned());
        }
        let comm = &self.comm;
        if comm.is_empty() || comm.len() > 15 || comm.contains(['\0', '\n']) {
            return Err(format!(
                "`{comm}` is not a command name (1 to 15 bytes, without NUL and line break)"
            ));
        }
        policy::check_nice(self.nice)?;
        self.policy.check()?;
        self.memory_policy.check()?;
        self.check_combination()?;
        self.work_type.check()?;
        self.work_type.group_size(self.count()).map(|_| ())
    }

    fn check_combination(&self) -> Result<(), String> {
        let work = &self.work_type;
        if matches!(self.policy, SchedPolicy::Deadline { .. })
            && (self.affinity != AffinityIntent::Inherit || work.places_itself())
        {
            return Err("the kernel refuses an affinity for a Deadline task".to_owned());
        }
        if work.ranks_itself() && (self.policy != SchedPolicy::Normal || self.nice != 0) {
            return Err(format!(
                "{work:?} sets the policies and nice values of its workers; remove the spec's"
            ));
        }
        Ok(())
    }
}

/// `2 x spin (SpinWait)`.
impl fmt::Display for WorkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} ({:?})", self.count(), self.comm, self.work_type)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn check_refuses_impossible_specs() {
        let spec = WorkSpec::default;
        let of = |work_type, workers| spec().work_type(work_type).workers(workers);
        let ms = Duration::from_millis;
        let deadline = SchedPolicy::Deadline { runtime: ms(1), deadline: ms(10), period: ms(10) };
        for (bad, why) in [
            (spec().workers(0), "at least 1 worker"),
            (spec().comm(""), "command name"),
            (spec().comm("sixteen bytes xx"), "command name"),
            (spec().nice(20), "not a nice value"),
            (spec().policy(SchedPolicy::Fifo(0)), "not a realtime priority"),
            (spec().policy(deadline).affinity(AffinityIntent::SingleCpu), "for a Deadline task"),
            (of(WorkType::PipeIo, 3), "groups of 2"),
            (of(WorkType::PriorityInversion, 2), "groups of 3"),
            (of(WorkType::PriorityInversion, 3).nice(1), "sets the policies"),
            (of(WorkType::FutexFanOut, 1), "at least 2"),
            (
                of(WorkType::Sequence(vec![(WorkType::NiceSweep, ms(9))]), 1).nice(1),
                "sets the policies",
            ),
            (of(WorkType::Sequence(vec![]), 1), "at least 1 phase"),
            (of(WorkType::Sequence(vec![(WorkType::PipeIo, ms(10))]), 2), "works alone"),
            (of(WorkType::Sequence(vec![(WorkType::SpinWait, ms(0))]), 2), "at least 1ms"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(spec().comm("fifteen bytes x").check(), Ok(()));
        assert_eq!(of(WorkType::PriorityInversion, 6).check(), Ok(()));
    }
}
