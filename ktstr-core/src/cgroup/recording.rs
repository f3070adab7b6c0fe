//! A double of the manager for unit tests: in memory, recording, failing on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::manager::lock;
use super::{CgroupOps, CgroupStats, Controller, Error, Knob, controllers, names, tasks};

/// One call that changes something, as [`RecordingCgroups`] saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The method, or the file for a knob: `create_cgroup`, `cpu.max`.
    pub operation: &'static str,
    /// The group; empty if the call concerns the parent.
    pub cgroup: String,
    /// The pids, controllers or the knob's value; empty if there is none.
    pub value: String,
}

/// Cgroups in memory. Names, pids and values are checked as the manager does; calls that change
/// something are recorded, also those that fail; any can be made to fail, `read_procs` and `stats`
/// included.
///
/// ```
/// use ktstr_core::cgroup::{CgroupOps, RecordingCgroups};
///
/// let cgroups = RecordingCgroups::new();
/// cgroups.fail("cpu.max", "a", libc::EINVAL);
/// cgroups.create_cgroup("a")?;
/// let error = cgroups.set_cpu_max("a", Some(20_000), 100_000).unwrap_err();
/// assert!(error.to_string().contains("EINVAL"));
/// assert_eq!(cgroups.calls()[1].value, "20000 100000");
/// # Ok::<_, ktstr_core::cgroup::Error>(())
/// ```
#[derive(Debug)]
pub struct RecordingCgroups {
    parent: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<String, Group>,
    calls: Vec<Call>,
    failures: Vec<(&'static str, String, i32)>,
}

#[derive(Debug, Default)]
struct Group {
    pids: Vec<i32>,
    stats: CgroupStats,
}

impl Default for RecordingCgroups {
    fn default() -> Self {
        Self { parent: PathBuf::from("/sys/fs/cgroup/recording"), state: Mutex::default() }
    }
}

impl RecordingCgroups {
    /// No groups, no calls, no failures.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the next `operation` (see [`Call::operation`]) on `cgroup` fail with an error number,
    /// once. Said twice, it fails twice.
    pub fn fail(&self, operation: &'static str, cgroup: &str, errno: i32) {
        lock(&self.state).failures.push((operation, cgroup.to_owned(), errno));
    }

    /// Everything that was called, in order.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// The groups on which `operation` was called, in order.
    pub fn calls_of(&self, operation: &str) -> Vec<String> {
        let calls = self.calls().into_iter().filter(|call| call.operation == operation);
        calls.map(|call| call.cgroup).collect()
    }

    /// The groups that are there, by name.
    pub fn groups(&self) -> Vec<String> {
        lock(&self.state).groups.keys().cloned().collect()
    }

    /// Sets what [`stats`](CgroupOps::stats) says of a group.
    ///
    /// # Errors
    ///
    /// If there is no such group.
    pub fn set_stats(&self, name: &str, stats: CgroupStats) -> Result<(), Error> {
        self.group(name, |group| group.stats = stats)
    }

    fn record(&self, operation: &'static str, name: &str, value: String) -> Result<(), Error> {
        if !name.is_empty() {
            names::check(name)?;
        }
        let call = Call { operation, cgroup: name.to_owned(), value: value.clone() };
        lock(&self.state).calls.push(call);
        self.fail_as_told(operation, name, value)
    }

    fn fail_as_told(
        &self,
        operation: &'static str,
        name: &str,
        value: String,
    ) -> Result<(), Error> {
        let planned =
            |(planned, cgroup, _): &(&str, String, i32)| *planned == operation && cgroup == name;
        let mut state = lock(&self.state);
        match state.failures.iter().position(planned) {
            Some(index) => {
                let errno = state.failures.remove(index).2;
                Err(self.error(operation, name, value, errno))
            }
            None => Ok(()),
        }
    }

    fn error(&self, operation: &'static str, name: &str, value: String, errno: i32) -> Error {
        Error::Io {
            operation,
            path: self.parent.join(name),
            value: (!value.is_empty()).then_some(value),
            cause: io::Error::from_raw_os_error(errno),
            advice: "this double was told to fail, or has no such group".to_owned(),
        }
    }

    fn group<T>(&self, name: &str, then: impl FnOnce(&mut Group) -> T) -> Result<T, Error> {
        names::check(name)?;
        match lock(&self.state).groups.get_mut(name) {
            Some(group) => Ok(then(group)),
            None => Err(self.error("find cgroup", name, String::new(), libc::ENOENT)),
        }
    }

    fn place(&self, name: &str, pids: &[i32]) -> Result<(), Error> {
        self.group(name, |_| ())?;
        pids.iter().try_for_each(|pid| tasks::check_pid(&self.parent.join(name), *pid))?;
        let mut state = lock(&self.state);
        for group in state.groups.values_mut() {
            group.pids.retain(|pid| !pids.contains(pid));
        }
        state.groups.entry(name.to_owned()).or_default().pids.extend(pids);
        Ok(())
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
        Path::new(super::MOUNT)
    }

    fn outstanding_removes(&self) -> usize {
        0
    }

    fn setup(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        self.record("setup", "", controllers::line("+", controllers))
    }

    fn create_cgroup(&self, name: &str) -> Result<(), Error> {
        self.record("create_cgroup", name, String::new())?;
        let mut state = lock(&self.state);
        for (end, _) in name.match_indices('/') {
            state.groups.entry(name[..end].to_owned()).or_default();
        }
        state.groups.entry(name.to_owned()).or_default();
        Ok(())
    }

    fn remove_cgroup(&self, name: &str) -> Result<(), Error> {
        self.record("remove_cgroup", name, String::new())?;
        let groups = &mut lock(&self.state).groups;
        let below = groups.keys().filter_map(|group| group.strip_prefix(name)?.strip_prefix('/'));
        let children: Vec<_> =
            below.filter(|below| !below.contains('/')).map(str::to_owned).collect();
        if !children.is_empty() {
            return Err(Error::HasChildren { path: self.parent.join(name), children });
        }
        groups.remove(name);
        Ok(())
    }

    fn set_knob(&self, name: &str, knob: &Knob) -> Result<(), Error> {
        self.record(knob.file(), name, knob.value().to_owned())?;
        self.group(name, |_| ())
    }

    fn set_freeze(&self, name: &str, frozen: bool) -> Result<(), Error> {
        self.record("set_freeze", name, frozen.to_string())?;
        self.group(name, |group| group.stats.frozen = frozen)
    }

    fn kill_cgroup(&self, name: &str) -> Result<(), Error> {
        self.record("kill_cgroup", name, String::new())?;
        self.group(name, |group| group.pids.clear())
    }

    fn move_tasks(&self, name: &str, pids: &[i32]) -> Result<(), Error> {
        self.record("move_tasks", name, words(pids))?;
        if pids.is_empty() { Ok(()) } else { self.place(name, pids) }
    }

    fn place_task_during_handshake(&self, name: &str, pid: i32) -> Result<(), Error> {
        self.record("place_task_during_handshake", name, pid.to_string())?;
        self.place(name, &[pid])
    }

    fn clear_subtree_control(&self, name: &str) -> Result<(), Error> {
        self.record("clear_subtree_control", name, String::new())?;
        self.group(name, |_| ())
    }

    fn add_parent_subtree_controller(&self, controller: Controller) -> Result<(), Error> {
        self.record("add_parent_subtree_controller", "", controller.to_string())
    }

    fn drain_tasks(&self, name: &str) -> Result<(), Error> {
        self.record("drain_tasks", name, String::new())?;
        self.group(name, |group| group.pids.clear())
    }

    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error> {
        self.fail_as_told("read_procs", name, String::new())?;
        self.group(name, |group| group.pids.clone())
    }

    fn stats(&self, name: &str) -> Result<CgroupStats, Error> {
        self.fail_as_told("stats", name, String::new())?;
        self.group(name, |group| group.stats.clone())
    }

    fn cleanup_all(&self) -> Result<(), Error> {
        self.fail_as_told("cleanup_all", "", String::new())?;
        lock(&self.state).groups.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_refuses_what_the_manager_refuses() {
        let cgroups = RecordingCgroups::new();
        cgroups.move_tasks("none", &[]).expect("nothing to move is fine");
        cgroups.create_cgroup("a/b/c").unwrap();
        cgroups.create_cgroup("ab").unwrap();
        let error = cgroups.remove_cgroup("a").unwrap_err().to_string();
        assert!(error.contains(r#"it has groups ["b"]"#), "{error}");
        let error = cgroups.move_tasks("a", &[0]).unwrap_err().to_string();
        assert!(error.contains("pids are positive"), "{error}");
        cgroups.fail("stats", "a", libc::EIO);
        let error = cgroups.stats("a").unwrap_err().to_string();
        assert!(error.contains("EIO"), "{error}");
        cgroups.stats("a").expect("it fails once");
    }
}
