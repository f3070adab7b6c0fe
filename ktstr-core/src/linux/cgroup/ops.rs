//! The surface that scenario code holds as `&dyn CgroupOps`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::controller::Controller;
use super::error::Error;
use super::knobs::Knob;
use super::stats::CgroupStats;

/// What test code may do to cgroups. Every name is that of a group below the parent.
pub trait CgroupOps: fmt::Debug + Send + Sync {
    /// The group under which all others are made.
    fn parent_path(&self) -> &Path;

    /// The group from which on controllers are enabled: the root of the hierarchy, or of what was
    /// delegated.
    fn walk_root(&self) -> &Path;

    /// How many groups could not be removed and are still there.
    fn outstanding_removes(&self) -> usize;

    /// Makes the parent and enables controllers for all groups below it, level by level from the
    /// walk root. An empty set does nothing at all and needs no privilege.
    ///
    /// A delegated walk root may hold processes, the caller among them: they move to a leaf of it.
    ///
    /// # Errors
    ///
    /// Without root under the default walk root; if a controller is not available at the walk
    /// root; if a level on the way holds processes; if the kernel refuses.
    fn setup(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error>;

    /// Makes a group, and the groups above it as needed, each with every controller that
    /// [`setup`](Self::setup) enabled. An existing one is left as it is.
    fn create_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Thaws a cgroup, moves its processes out, waits until it is empty and removes it; a missing
    /// one is fine. Processes go to the root of the hierarchy, or to a leaf of what was delegated;
    /// of a threaded cgroup, threads go to its parent.
    ///
    /// # Errors
    ///
    /// If it has groups below it or does not get empty. Failures are counted: while more than ten
    /// such groups are there, others are refused. Removing one of them again, or a group below
    /// one, is always tried.
    fn remove_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Writes a value to a file of the group; the methods below do it by name.
    ///
    /// # Errors
    ///
    /// A failed `cpuset.cpus` carries a snapshot of the group and the one above.
    fn set_knob(&self, name: &str, knob: &Knob) -> Result<(), Error>;

    /// Sets `cpuset.cpus`; the empty set is [`clear_cpuset`](Self::clear_cpuset).
    fn set_cpuset(&self, name: &str, cpus: &BTreeSet<usize>) -> Result<(), Error> {
        self.set_knob(name, &Knob::list("cpuset.cpus", cpus))
    }

    /// Empties `cpuset.cpus`: the cgroup inherits the CPUs of its parent.
    ///
    /// While processes are in the cgroup or below it, Linux 6.12 and earlier refuse that (ENOSPC;
    /// 7.2 does not), and `cpuset.cpus` becomes a copy of the parent's `cpuset.cpus.effective`.
    /// What inheriting would have is lost then: CPUs that the parent gets later, or that come
    /// online later, are not added. CPUs that the parent loses are still taken away, and if none of
    /// the copy is left, the parent's are used.
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

    /// Sets `cpu.max`: `quota_us` (from 1,000; `None` is no limit) of CPU time in each period of
    /// `period_us` (1,000 to 1,000,000).
    fn set_cpu_max(&self, name: &str, quota_us: Option<u64>, period_us: u64) -> Result<(), Error> {
        self.set_knob(name, &Knob::cpu_max(quota_us, period_us)?)
    }

    /// Sets `cpu.weight`, 1 to 10,000; the kernel's default is 100.
    fn set_cpu_weight(&self, name: &str, weight: u32) -> Result<(), Error> {
        self.set_knob(name, &Knob::weight("cpu.weight", weight)?)
    }

    /// Sets `memory.max` in bytes, rounded down to pages by the kernel; `None` is no limit.
    fn set_memory_max(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.max", bytes, "max")?)
    }

    /// Sets `memory.high` in bytes, rounded down to pages by the kernel; `None` is no limit.
    fn set_memory_high(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.high", bytes, "max")?)
    }

    /// Sets `memory.low` in bytes, rounded down to pages by the kernel; `None` is no protection:
    /// `0`, as `max` would protect everything.
    fn set_memory_low(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.low", bytes, "0")?)
    }

    /// Sets `memory.swap.max` in bytes, rounded down to pages by the kernel; `None` is no limit.
    fn set_memory_swap_max(&self, name: &str, bytes: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::memory("memory.swap.max", bytes, "max")?)
    }

    /// Sets `io.weight`, 1 to 10,000, for all devices. Needs a kernel with `CONFIG_BLK_CGROUP_IOCOST`.
    fn set_io_weight(&self, name: &str, weight: u32) -> Result<(), Error> {
        self.set_knob(name, &Knob::weight("io.weight", weight)?)
    }

    /// Sets `pids.max`, up to 4,194,304; `None` is no limit.
    fn set_pids_max(&self, name: &str, max: Option<u64>) -> Result<(), Error> {
        self.set_knob(name, &Knob::pids_max(max)?)
    }

    /// Freezes or thaws a group and all below it; returns when `cgroup.events` says so, or at once if
    /// a group above keeps it frozen.
    ///
    /// # Errors
    ///
    /// If the caller is in a group to freeze, or it takes more than ten seconds.
    fn set_freeze(&self, name: &str, frozen: bool) -> Result<(), Error>;

    /// Kills every process in a cgroup and below it; returns when the last one is gone. In a
    /// threaded cgroup, kills every process that has a thread there.
    ///
    /// # Errors
    ///
    /// If the caller is in it, or processes are left after ten seconds: they are named.
    fn kill_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Moves one process as [`move_tasks`](Self::move_tasks) does.
    fn move_task(&self, name: &str, pid: i32) -> Result<(), Error> {
        self.move_tasks(name, &[pid])
    }

    /// Moves processes, with all their threads, into a group. Those that have ended are skipped
    /// with a warning; EBUSY is tried three times more, 100 ms apart, as a sched_ext scheduler may
    /// say no for a moment.
    ///
    /// # Errors
    ///
    /// If all of them have ended, or the group has CPUs but no memory nodes.
    fn move_tasks(&self, name: &str, pids: &[i32]) -> Result<(), Error>;

    /// Moves a child that is held between its fork and its work. Unlike
    /// [`move_task`](Self::move_task) it does not look at the group's cpuset first.
    ///
    /// # Errors
    ///
    /// Whatever kept the child out, its end included. The caller must not let it go on then: it
    /// would work in the wrong group.
    fn place_task_during_handshake(&self, name: &str, pid: i32) -> Result<(), Error>;

    /// Disables all controllers for the children of a group.
    fn clear_subtree_control(&self, name: &str) -> Result<(), Error>;

    /// Enables one more controller for the children of the parent.
    fn add_parent_subtree_controller(&self, controller: Controller) -> Result<(), Error>;

    /// Moves the processes of a cgroup out until none is left: to the root of the hierarchy, or to
    /// a leaf of what was delegated, where no other cgroup may hold processes. Moves the threads of
    /// a threaded cgroup to its parent, so that their processes stay in their threaded domain.
    fn drain_tasks(&self, name: &str) -> Result<(), Error>;

    /// Returns the processes in a cgroup, in the order of `cgroup.procs`; of a threaded cgroup,
    /// those that have a thread in it.
    ///
    /// # Errors
    ///
    /// If there is no such group; an empty one is an empty list.
    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error>;

    /// What the kernel counts for a group; a part is `None` if its controller is not enabled.
    fn stats(&self, name: &str) -> Result<CgroupStats, Error>;

    /// Removes all cgroups below the parent, the deepest first, and the parent unless it is the
    /// walk root.
    ///
    /// # Errors
    ///
    /// [`Error::Root`] if the parent is the root of the hierarchy: nothing is removed then. Else the
    /// first cgroup that cannot be listed or removed. All others are tried too, and each that
    /// remains is logged as a warning.
    fn cleanup_all(&self) -> Result<(), Error>;
}
