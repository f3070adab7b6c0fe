//! A test double of the manager: in memory, records calls, fails on request.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::controller::{Controller, subtree_control};
use super::model::{Hierarchy, PARENT, ROOT, Refusal, parent_of};
use super::procs::{caller_is_in, check_pid};
use super::{CgroupOps, CgroupStats, Error, Knob, MOUNT, Operation, names};
use crate::linux::sync::lock;

/// One recorded call of an operation that changes cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The method, or the file for a knob: `create_cgroup`, `cpu.max`.
    pub operation: &'static str,
    /// The cgroup; empty if the call concerns the parent.
    pub cgroup: String,
    /// The pids, controllers or the knob's value; empty if there is none.
    pub value: String,
}

/// Cgroups in memory. Records calls that change cgroups, including those that fail. Any call can be
/// made to fail, also `read_procs` and `stats`.
///
/// ```
/// use ktstr_core::cgroup::{CgroupOps, Controller, RecordingCgroups};
///
/// let cgroups = RecordingCgroups::new();
/// cgroups.fail("cpu.max", "a", libc::EINVAL);
/// cgroups.setup(&[Controller::Cpu].into())?;
/// cgroups.create_cgroup("a")?;
/// let error = cgroups.set_cpu_max("a", Some(20_000), 100_000).unwrap_err();
/// assert!(error.to_string().contains("EINVAL"));
/// assert_eq!(cgroups.calls()[2].value, "20000 100000");
/// # Ok::<_, ktstr_core::cgroup::Error>(())
/// ```
///
/// It refuses the same as the manager and the kernel, with the same errors:
///
/// - names, pids and values out of range, as the manager checks them;
/// - operations on a cgroup that does not exist, names of interface files (`EEXIST`), removing a
///   cgroup that has children;
/// - knobs of a controller that [`setup`](CgroupOps::setup) has not enabled, and enabling one that
///   its parent does not have (`ENOENT`); disabling one that a child has enabled (`EBUSY`);
/// - CPUs the machine does not have (`ERANGE`) and memory nodes it does not have (`EINVAL`);
/// - processes in a cgroup with controllers enabled for its children (`EBUSY`), controllers in a
///   cgroup with processes ([`Error::Occupied`]), and threaded domains, which are cgroups with both
///   processes and only `cpu`, `cpuset` and `pids` enabled for their children (`EOPNOTSUPP`);
/// - moving a process that has ended (`ESRCH`, [`Error::AllGone`]); freezing or killing the caller.
///
/// It emulates Linux up to 6.12 when `cpuset.cpus` of a cgroup with processes is emptied, see
/// [`clear_cpuset`](CgroupOps::clear_cpuset).
///
/// Not modelled, but available through [`fail`](Self::fail): privileges and delegation, controllers
/// and files that a kernel lacks (`io.weight`), `cgroup.max.depth` and `cgroup.max.descendants`
/// (`EAGAIN`), cpuset partitions, cgroups made threaded by `cgroup.type`, kernel threads and
/// real-time processes (`EINVAL`), sched_ext schedulers (`EBUSY`), timeouts. Limits have no effect.
#[derive(Debug)]
pub struct RecordingCgroups {
    parent: PathBuf,
    state: Mutex<RecordingState>,
}

#[derive(Debug)]
struct RecordingState {
    cgroups: Hierarchy,
    /// The controllers that `setup` has enabled.
    enabled: BTreeSet<Controller>,
    stats: BTreeMap<String, CgroupStats>,
    calls: Vec<Call>,
    failures: Vec<(&'static str, String, i32)>,
}

impl Default for RecordingCgroups {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordingCgroups {
    /// Returns a double with 64 CPUs and 8 memory nodes, without cgroups, calls and failures.
    pub fn new() -> Self {
        Self::with_machine(64, 8)
    }

    /// Returns a double like [`new`](Self::new), with `nr_cpus` CPUs and `nr_nodes` memory nodes.
    pub fn with_machine(nr_cpus: usize, nr_nodes: usize) -> Self {
        let state = RecordingState {
            cgroups: Hierarchy::new(nr_cpus, nr_nodes),
            enabled: BTreeSet::new(),
            stats: BTreeMap::new(),
            calls: Vec::new(),
            failures: Vec::new(),
        };
        Self { parent: PathBuf::from("/sys/fs/cgroup/recording"), state: Mutex::new(state) }
    }

    /// Makes the next `operation` (see [`Call::operation`]) on `cgroup` fail with an error number.
    /// Each call adds one failure.
    pub fn fail(&self, operation: &'static str, cgroup: &str, errno: i32) {
        lock(&self.state).failures.push((operation, cgroup.to_owned(), errno));
    }

    /// Ends a process: it leaves its cgroup and cannot be moved any more. All other positive pids are
    /// running processes; [`kill_cgroup`](CgroupOps::kill_cgroup) also ends some.
    pub fn end_process(&self, pid: i32) {
        lock(&self.state).cgroups.end(pid);
    }

    /// Returns all recorded calls, in order.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// Returns the cgroups on which `operation` was called, in order.
    pub fn calls_of(&self, operation: &str) -> Vec<String> {
        let calls = self.calls().into_iter().filter(|call| call.operation == operation);
        calls.map(|call| call.cgroup).collect()
    }

    /// Returns the names of all cgroups.
    pub fn groups(&self) -> Vec<String> {
        lock(&self.state).cgroups.names().cloned().collect()
    }

    /// Returns the CPUs that the processes of a cgroup may run on: `cpuset.cpus.effective`.
    ///
    /// # Errors
    ///
    /// If there is no such cgroup.
    pub fn effective_cpus(&self, name: &str) -> Result<BTreeSet<usize>, Error> {
        names::check(name)?;
        self.run(Operation::Read, name, "cpuset.cpus.effective", "", |state| {
            state.cgroups.effective_cpus(name)
        })
    }

    /// Sets the result of [`stats`](CgroupOps::stats) for a cgroup, except for `populated` and
    /// `frozen`, which follow from its state.
    ///
    /// # Errors
    ///
    /// If there is no such cgroup.
    pub fn set_stats(&self, name: &str, stats: CgroupStats) -> Result<(), Error> {
        names::check(name)?;
        self.run(Operation::Write, name, "", "", |state| {
            state.cgroups.pids(name)?;
            state.stats.insert(name.to_owned(), stats);
            Ok(())
        })
    }

    fn record(&self, operation: &'static str, name: &str, value: String) -> Result<(), Error> {
        names::check(name)?;
        self.record_any(operation, name, value)
    }

    /// Records like [`record`](Self::record), but also accepts the parent.
    fn record_any(&self, operation: &'static str, name: &str, value: String) -> Result<(), Error> {
        let call = Call { operation, cgroup: name.to_owned(), value: value.clone() };
        lock(&self.state).calls.push(call);
        self.fail_as_planned(operation, name, &value)
    }

    fn fail_as_planned(
        &self,
        operation: &'static str,
        name: &str,
        value: &str,
    ) -> Result<(), Error> {
        let planned =
            |(planned, cgroup, _): &(&str, String, i32)| *planned == operation && cgroup == name;
        let mut state = lock(&self.state);
        match state.failures.iter().position(planned) {
            Some(index) => {
                let errno = state.failures.remove(index).2;
                let rule = "RecordingCgroups::fail was called for this";
                let operation = Operation::Recorded(operation);
                Err(io_error(operation, self.path(name), value, Refusal { errno, rule }))
            }
            None => Ok(()),
        }
    }

    /// Runs an operation on the model; an error names the file of the cgroup.
    fn run<T>(
        &self,
        operation: Operation,
        name: &str,
        file: &str,
        value: &str,
        then: impl FnOnce(&mut RecordingState) -> Result<T, Refusal>,
    ) -> Result<T, Error> {
        let path = if file.is_empty() { self.path(name) } else { self.path(name).join(file) };
        then(&mut lock(&self.state)).map_err(|refusal| io_error(operation, path, value, refusal))
    }

    fn path(&self, name: &str) -> PathBuf {
        if name == PARENT { self.parent.clone() } else { self.parent.join(name) }
    }

    /// Creates a cgroup; succeeds if it exists.
    fn create(&self, name: &str) -> Result<(), Error> {
        self.run(Operation::Create, name, "", "", |state| {
            if state.cgroups.has(name) { Ok(()) } else { state.cgroups.create(name) }
        })
    }

    /// Enables controllers for the children of a cgroup, unless it holds processes.
    fn enable(&self, name: &str, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        let value = subtree_control("+", controllers);
        let pids = lock(&self.state).cgroups.pids(name).unwrap_or_default().to_vec();
        if !pids.is_empty() {
            return Err(Error::Occupied { path: self.path(name), value, pids });
        }
        self.run(Operation::Write, name, "cgroup.subtree_control", &value, |state| {
            state.cgroups.enable(name, controllers)
        })
    }

    /// Creates the parent, with the controllers that `setup` has enabled.
    fn create_parent(&self) -> Result<(), Error> {
        let enabled = lock(&self.state).enabled.clone();
        self.create(PARENT)?;
        if enabled.is_empty() { Ok(()) } else { self.enable(PARENT, &enabled) }
    }

    fn attach(&self, name: &str, pid: i32) -> Result<(), Error> {
        check_pid(&self.path(name), pid)?;
        self.run(Operation::Write, name, "cgroup.procs", &pid.to_string(), |state| {
            state.cgroups.attach(name, pid)
        })
    }

    fn refuse_with_caller(&self, name: &str, operation: &str) -> Result<(), Error> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if lock(&self.state).cgroups.pids_of_tree(name).contains(&own) {
            return Err(caller_is_in(&self.path(name), operation));
        }
        Ok(())
    }
}

fn io_error(operation: Operation, path: PathBuf, value: &str, refusal: Refusal) -> Error {
    Error::Io {
        operation,
        path,
        value: (!value.is_empty()).then(|| value.to_owned()),
        cause: io::Error::from_raw_os_error(refusal.errno),
        advice: refusal.rule.to_owned(),
    }
}

fn words(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

impl CgroupOps for RecordingCgroups {
    fn parent_path(&self) -> &Path {
        &self.parent
    }

    fn walk_root(&self) -> &Path {
        Path::new(MOUNT)
    }

    fn outstanding_removes(&self) -> usize {
        0
    }

    fn setup(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        self.record_any("setup", PARENT, subtree_control("+", controllers))?;
        if controllers.is_empty() {
            return Ok(());
        }
        self.run(Operation::Write, PARENT, "../cgroup.subtree_control", "", |state| {
            state.cgroups.enable(ROOT, controllers)
        })?;
        self.create(PARENT)?;
        self.enable(PARENT, controllers)?;
        lock(&self.state).enabled.extend(controllers);
        Ok(())
    }

    fn create_cgroup(&self, name: &str) -> Result<(), Error> {
        self.record("create_cgroup", name, String::new())?;
        self.create_parent()?;
        let enabled = lock(&self.state).enabled.clone();
        let ends = name.match_indices('/').map(|(end, _)| end).chain([name.len()]);
        for level in ends.map(|end| &name[..end]) {
            let parent = parent_of(level).filter(|parent| *parent != PARENT);
            if let Some(parent) = parent.filter(|_| !enabled.is_empty()) {
                self.enable(parent, &enabled)?;
            }
            self.create(level)?;
        }
        Ok(())
    }

    fn remove_cgroup(&self, name: &str) -> Result<(), Error> {
        self.record("remove_cgroup", name, String::new())?;
        let path = self.path(name);
        let state = &mut *lock(&self.state);
        if !state.cgroups.has(name) {
            return Ok(());
        }
        let own = |child: &String| child.rsplit('/').next().unwrap_or_default().to_owned();
        let children: Vec<_> = state.cgroups.children(name).map(own).collect();
        if !children.is_empty() {
            return Err(Error::HasChildren { path, children });
        }
        let removed = state.cgroups.drain(name).and_then(|()| state.cgroups.remove(name));
        state.stats.remove(name);
        removed.map_err(|refusal| io_error(Operation::Remove, path, "", refusal))
    }

    fn set_knob(&self, name: &str, knob: &Knob) -> Result<(), Error> {
        self.record(knob.file(), name, knob.value().to_owned())?;
        self.run(Operation::Write, name, knob.file(), knob.value(), |state| {
            state.cgroups.write(name, knob)
        })
    }

    fn set_freeze(&self, name: &str, frozen: bool) -> Result<(), Error> {
        self.record("set_freeze", name, frozen.to_string())?;
        if frozen {
            self.refuse_with_caller(name, "freeze")?;
        }
        self.run(Operation::Write, name, "cgroup.freeze", if frozen { "1" } else { "0" }, |state| {
            state.cgroups.set_frozen(name, frozen)
        })
    }

    fn kill_cgroup(&self, name: &str) -> Result<(), Error> {
        self.record("kill_cgroup", name, String::new())?;
        self.refuse_with_caller(name, "kill the processes of")?;
        self.run(Operation::Write, name, "cgroup.kill", "1", |state| {
            state.cgroups.pids(name)?;
            for pid in state.cgroups.pids_of_tree(name) {
                state.cgroups.end(pid);
            }
            Ok(())
        })
    }

    fn move_tasks(&self, name: &str, pids: &[i32]) -> Result<(), Error> {
        self.record("move_tasks", name, words(pids))?;
        let mut gone = 0;
        for &pid in pids {
            match self.attach(name, pid) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => gone += 1,
                other => other?,
            }
        }
        if gone == pids.len() && gone > 0 {
            return Err(Error::AllGone { path: self.path(name), pids: pids.to_vec() });
        }
        Ok(())
    }

    fn place_task_during_handshake(&self, name: &str, pid: i32) -> Result<(), Error> {
        self.record("place_task_during_handshake", name, pid.to_string())?;
        self.attach(name, pid)
    }

    fn clear_subtree_control(&self, name: &str) -> Result<(), Error> {
        self.record("clear_subtree_control", name, String::new())?;
        self.run(Operation::Write, name, "cgroup.subtree_control", "", |state| {
            state.cgroups.disable_all(name)
        })
    }

    fn add_parent_subtree_controller(&self, controller: Controller) -> Result<(), Error> {
        self.record_any("add_parent_subtree_controller", PARENT, controller.to_string())?;
        self.enable(PARENT, &[controller].into())?;
        lock(&self.state).enabled.insert(controller);
        Ok(())
    }

    fn drain_tasks(&self, name: &str) -> Result<(), Error> {
        self.record("drain_tasks", name, String::new())?;
        self.run(Operation::Read, name, "cgroup.procs", "", |state| state.cgroups.drain(name))
    }

    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error> {
        names::check(name)?;
        self.fail_as_planned("read_procs", name, "")?;
        self.run(Operation::Read, name, "cgroup.procs", "", |state| {
            state.cgroups.pids(name).map(<[i32]>::to_vec)
        })
    }

    fn stats(&self, name: &str) -> Result<CgroupStats, Error> {
        names::check(name)?;
        self.fail_as_planned("stats", name, "")?;
        self.run(Operation::Read, name, "cgroup.events", "", |state| {
            state.cgroups.pids(name)?;
            let mut stats = state.stats.get(name).cloned().unwrap_or_default();
            stats.populated |= state.cgroups.is_populated(name);
            stats.frozen |= state.cgroups.is_frozen(name);
            Ok(stats)
        })
    }

    fn cleanup_all(&self) -> Result<(), Error> {
        self.record_any("cleanup_all", PARENT, String::new())?;
        let mut state = lock(&self.state);
        state.cgroups.remove_tree(PARENT);
        state.stats.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recording_cgroups_refuse_what_the_manager_refuses() {
        let cgroups = RecordingCgroups::new();
        cgroups.move_tasks("none", &[]).expect("nothing to move is fine");
        cgroups.create_cgroup("a/b/c").unwrap();
        cgroups.create_cgroup("ab").unwrap();
        let error = cgroups.remove_cgroup("a").unwrap_err().to_string();
        assert!(error.contains(r#"it has children ["b"]"#), "{error}");
        let error = cgroups.move_tasks("a", &[0]).unwrap_err().to_string();
        assert!(error.contains("pids are positive"), "{error}");
        cgroups.fail("stats", "a", libc::EIO);
        let error = cgroups.stats("a").unwrap_err().to_string();
        assert!(error.contains("EIO"), "{error}");
        cgroups.stats("a").expect("it fails once");
    }
}
