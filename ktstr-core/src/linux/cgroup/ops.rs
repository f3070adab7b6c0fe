//! The trait through which scenarios operate on cgroups.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::{CgroupStats, Controller, Error, Knob};

/// Operations on cgroups. Every name is that of a cgroup below the parent, such as `a/b`.
pub trait CgroupOps: fmt::Debug + Send + Sync {
    /// Returns the cgroup in which all others are created.
    fn parent_path(&self) -> &Path;

    /// Returns the cgroup from which on controllers are enabled: the root of the hierarchy, or a
    /// delegated cgroup.
    fn walk_root(&self) -> &Path;

    /// Returns how many cgroups could not be removed and still exist.
    fn outstanding_removes(&self) -> usize;

    /// Creates the parent and enables controllers for all cgroups below it, level by level from the
    /// walk root on. An empty set does nothing and needs no privilege.
    ///
    /// Processes in a delegated walk root, including the caller, move to a leaf of it.
    ///
    /// # Errors
    ///
    /// If the caller is not root and the walk root is the default; if a controller is not available
    /// in the walk root; if a level in between contains processes; if the kernel rejects it.
    fn setup(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error>;

    /// Creates a cgroup and its missing ancestors, each with every controller that
    /// [`setup`](Self::setup) has enabled. Does not change an existing cgroup.
    fn create_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Thaws a cgroup, moves its processes out, waits until it is empty and removes it. Succeeds if it
    /// does not exist. Processes move to the root of the hierarchy, or to a leaf of the delegated
    /// cgroup; threads of a threaded cgroup move to its parent.
    ///
    /// # Errors
    ///
    /// If it has children or does not become empty. Failures are counted: while more than ten such
    /// cgroups exist, removing others is refused. Removing one of them again, or a descendant of
    /// one, is always tried.
    fn remove_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Writes a value to a file of the cgroup. The methods below do that for each file.
    ///
    /// # Errors
    ///
    /// An error of `cpuset.cpus` describes the state of the cgroup and its parent.
    fn set_knob(&self, name: &str, knob: &Knob) -> Result<(), Error>;

    /// Sets `cpuset.cpus`; the empty set is [`clear_cpuset`](Self::clear_cpuset).
    fn set_cpuset(&self, name: &str, cpus: &BTreeSet<usize>) -> Result<(), Error> {
        self.set_knob(name, &Knob::list("cpuset.cpus", cpus))
    }

    /// Empties `cpuset.cpus`: the cgroup inherits the CPUs of its parent.
    ///
    /// While processes are in the cgroup or a descendant, Linux 6.12 and earlier refuse that (ENOSPC;
    /// 7.2 does not). `cpuset.cpus` is then set to the parent's `cpuset.cpus.effective`. Unlike with
    /// inheritance, CPUs that the parent gets later, or that come online later, are not added. CPUs
    /// that the parent loses are still removed, and if none of the copy is left, those of the parent
    /// are used.
    fn clear_cpuset(&self, name: &str) -> Result<(), Error> {
        self.set_cpuset(name, &BTreeSet::new())
    }

    /// Sets `cpuset.mems`; the empty set is [`clear_cpuset_mems`](Self::clear_cpuset_mems).
    fn set_cpuset_mems(&self, name: &str, nodes: &BTreeSet<usize>) -> Result<(), Error> {
        self.set_knob(name, &Knob::list("cpuset.mems", nodes))
    }

    /// Empties `cpuset.mems`: the cgroup inherits the memory nodes of its parent, with the
    /// limits of [`clear_cpuset`](Self::clear_cpuset).
    fn clear_cpuset_mems(&self, name: &str) -> Result<(), Error> {
        self.set_cpuset_mems(name, &BTreeSet::new())
    }

    /// Sets `cpu.max`: `quota_us` (from 1,000; `None` for no limit) of CPU time in each period of
    /// `period_us` (1,000 to 1,000,000).
    fn set_cpu_max(&self, name: &str, quota_us: Option<u64>, period_us: u64) -> Result<(), Error> {
        self.set_knob(name, &Knob::cpu_max(quota_us, period_us)?)
    }

    /// Sets `cpu.weight`, 1 to 10,000; the default is 100.
    fn set_cpu_weight(&self, name: &str, weight: u32) -> Result<(), Error> {
        self.set_knob(name, &Knob::weight("cpu.weight", weight)?)
    }

    /// Sets `memory.max` in bytes, rounded down to pages by the kernel; `None` removes the limit.
    fn set_memory_max(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.max", bytes, "max")?)
    }

    /// Sets `memory.high` in bytes, rounded down to pages by the kernel; `None` removes the limit.
    fn set_memory_high(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.high", bytes, "max")?)
    }

    /// Sets `memory.low` in bytes, rounded down to pages by the kernel; `None` removes the
    /// protection: it writes `0`, because `max` would protect everything.
    fn set_memory_low(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.low", bytes, "0")?)
    }

    /// Sets `memory.swap.max` in bytes, rounded down to pages by the kernel; `None` removes the limit.
    fn set_memory_swap_max(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.swap.max", bytes, "max")?)
    }

    /// Sets `io.weight`, 1 to 10,000, for all devices. Requires a kernel with `CONFIG_BLK_CGROUP_IOCOST`.
    fn set_io_weight(&self, name: &str, weight: u32) -> Result<(), Error> {
        self.set_knob(name, &Knob::weight("io.weight", weight)?)
    }

    /// Sets `pids.max`, up to 4,194,304; `None` removes the limit.
    fn set_pids_max(&self, name: &str, max: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::pids_max(max)?)
    }

    /// Freezes or thaws a cgroup and its descendants; returns when `cgroup.events` reports it, or at
    /// once if a frozen ancestor prevents thawing.
    ///
    /// # Errors
    ///
    /// If the caller is in a cgroup to freeze, or it takes more than ten seconds.
    fn set_freeze(&self, name: &str, frozen: bool) -> Result<(), Error>;

    /// Kills every process in a cgroup and its descendants; returns when the last one has ended. In a
    /// threaded cgroup, kills every process that has a thread there.
    ///
    /// # Errors
    ///
    /// If the caller is in it, or processes are left after ten seconds: the error lists them.
    fn kill_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Moves one process, see [`move_tasks`](Self::move_tasks).
    fn move_task(&self, name: &str, pid: i32) -> Result<(), Error> {
        self.move_tasks(name, &[pid])
    }

    /// Moves processes, with all their threads, into a cgroup. Skips those that have ended, with a
    /// warning. Retries EBUSY three times, 100 ms apart, because a sched_ext scheduler may reject a
    /// move temporarily.
    ///
    /// # Errors
    ///
    /// If all of them have ended, or the cgroup has CPUs but no memory nodes.
    fn move_tasks(&self, name: &str, pids: &[i32]) -> Result<(), Error>;

    /// Moves a child that waits between its fork and its work. Unlike [`move_task`](Self::move_task),
    /// it does not check the cpuset of the cgroup first.
    ///
    /// # Errors
    ///
    /// If the child could not be moved, also because it has ended. The caller must not start its work
    /// then, because it would run in the wrong cgroup.
    fn place_task_during_handshake(&self, name: &str, pid: i32) -> Result<(), Error>;

    /// Disables all controllers for the children of a cgroup.
    fn clear_subtree_control(&self, name: &str) -> Result<(), Error>;

    /// Enables one more controller for the children of the parent.
    fn add_parent_subtree_controller(&self, controller: Controller) -> Result<(), Error>;

    /// Moves the processes of a cgroup out until none is left: to the root of the hierarchy, or to a
    /// leaf of the delegated cgroup. Moves the threads of a threaded cgroup to its parent, so that
    /// their processes stay in their threaded domain.
    fn drain_tasks(&self, name: &str) -> Result<(), Error>;

    /// Returns the processes in a cgroup, in the order of `cgroup.procs`; of a threaded cgroup,
    /// those that have a thread in it.
    ///
    /// # Errors
    ///
    /// If the cgroup does not exist.
    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error>;

    /// Reads the counters of a cgroup; those of a controller that is not enabled are `None`.
    fn stats(&self, name: &str) -> Result<CgroupStats, Error>;

    /// Removes all cgroups below the parent, the deepest first, and the parent unless it is the
    /// walk root.
    ///
    /// # Errors
    ///
    /// [`Error::Root`] if the parent is the root of the hierarchy: nothing is removed then. Else the
    /// error of the first cgroup that cannot be listed or removed. All others are still tried, and
    /// each error is logged as a warning.
    fn cleanup_all(&self) -> Result<(), Error>;
}
