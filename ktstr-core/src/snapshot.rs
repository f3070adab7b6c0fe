//! Captures: what a test saw at one moment, kept in the guest and sent to the host at once.
//!
//! A capture that has been taken is on the host even if the guest dies a moment later. In the
//! guest, a [`SnapshotBridge`] hands the captures of the current thread to the test body.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupStats;
use crate::process::Stat;
use crate::workload::WorkerReport;

/// The processes of one cgroup at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupProcsSnapshot {
    /// The name the test gave this capture.
    pub tag: String,
    /// The cgroup, as the test names it.
    pub cgroup: String,
    /// What `cgroup.procs` listed, in its order.
    pub pids: Vec<i32>,
    /// Who they were. A process that ended between the two reads is missing here.
    pub procs: Vec<ProcIdentity>,
    /// When, in nanoseconds since the guest booted.
    pub at_ns: u64,
}

/// A process, told apart from a later one that has the same pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcIdentity {
    /// The process id.
    pub pid: i32,
    /// The command name, at most 15 bytes.
    pub comm: String,
    /// Start time in clock ticks after boot.
    ///
    /// Source: proc_pid_stat(5), field 22.
    pub start_ticks: u64,
}

impl ProcIdentity {
    /// Reads `/proc/PID/stat`; `None` if the process is gone.
    pub fn read(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        Some(Self { pid, comm: stat.comm, start_ticks: stat.start_ticks })
    }
}

/// What the cgroups of a scenario held and had used by one moment, and what its workers had done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The name the test gave it.
    pub name: String,
    /// When it was begun, in nanoseconds since the guest booted.
    pub at_ns: u64,
    /// All cgroups that the scenario has made and not removed.
    pub cgroups: Vec<CgroupSnapshot>,
    /// All workers that have not been stopped.
    pub workers: Vec<WorkerReport>,
}

/// What one cgroup held and had used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CgroupSnapshot {
    /// The cgroup, as the test names it.
    pub cgroup: String,
    /// Who was in it, without those in groups below.
    pub procs: Vec<ProcIdentity>,
    /// What the kernel had counted since it was made, for it and those below.
    pub stats: CgroupStats,
}

type Callback = dyn Fn(&CgroupProcsSnapshot) + Send + Sync;

/// Collects the captures taken on a thread, in order. Clones share what was collected.
#[derive(Clone)]
pub struct SnapshotBridge {
    callback: Arc<Callback>,
    cgroup_procs: Arc<Mutex<Vec<CgroupProcsSnapshot>>>,
    snapshots: Arc<Mutex<Vec<Snapshot>>>,
}

thread_local! {
    static CURRENT: RefCell<Option<SnapshotBridge>> = const { RefCell::new(None) };
}

impl SnapshotBridge {
    /// A bridge that calls `callback` for each capture of a cgroup's processes as it is taken.
    pub fn new(callback: impl Fn(&CgroupProcsSnapshot) + Send + Sync + 'static) -> Self {
        Self {
            callback: Arc::new(callback),
            cgroup_procs: Arc::default(),
            snapshots: Arc::default(),
        }
    }

    /// Makes this the bridge of the current thread until the guard is dropped, which brings back
    /// the one before.
    #[must_use = "the bridge is in place only while the guard lives"]
    pub fn set_thread_local(&self) -> BridgeGuard {
        BridgeGuard { previous: CURRENT.replace(Some(self.clone())) }
    }

    /// Takes the captures of cgroups' processes collected so far, the oldest first.
    pub fn drain_cgroup_procs(&self) -> Vec<CgroupProcsSnapshot> {
        drain(&self.cgroup_procs)
    }

    /// Takes the snapshots collected so far, the oldest first.
    pub fn drain_snapshots(&self) -> Vec<Snapshot> {
        drain(&self.snapshots)
    }
}

impl fmt::Debug for SnapshotBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotBridge")
            .field("cgroup_procs", &self.cgroup_procs)
            .field("snapshots", &self.snapshots)
            .finish_non_exhaustive()
    }
}

/// Keeps a [`SnapshotBridge`] in place; see [`SnapshotBridge::set_thread_local`].
#[derive(Debug)]
pub struct BridgeGuard {
    previous: Option<SnapshotBridge>,
}

impl Drop for BridgeGuard {
    fn drop(&mut self) {
        CURRENT.set(self.previous.take());
    }
}

fn lock<T>(collected: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    collected.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drain<T>(collected: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *lock(collected))
}

/// Hands a capture to the bridge of the current thread, if there is one.
pub(crate) fn collect(capture: CgroupProcsSnapshot) {
    if let Some(bridge) = CURRENT.with_borrow(Clone::clone) {
        (bridge.callback)(&capture);
        lock(&bridge.cgroup_procs).push(capture);
    }
}

/// Hands a snapshot to the bridge of the current thread, if there is one.
pub(crate) fn collect_snapshot(snapshot: Snapshot) {
    if let Some(bridge) = CURRENT.with_borrow(Clone::clone) {
        lock(&bridge.snapshots).push(snapshot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(tag: &str) -> CgroupProcsSnapshot {
        CgroupProcsSnapshot {
            tag: tag.to_owned(),
            cgroup: "cg".to_owned(),
            pids: vec![7],
            procs: Vec::new(),
            at_ns: 1,
        }
    }

    fn tags(bridge: &SnapshotBridge) -> Vec<String> {
        bridge.drain_cgroup_procs().into_iter().map(|capture| capture.tag).collect()
    }

    #[test]
    fn captures_arrive_in_order_and_once() {
        let seen = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&seen);
        let bridge = SnapshotBridge::new(move |_| *counter.lock().unwrap() += 1);
        let shared = bridge.clone();
        let guard = bridge.set_thread_local();
        collect(capture("a"));
        collect(capture("b"));
        drop(guard);
        collect(capture("after the guard"));
        assert_eq!(tags(&shared), ["a", "b"]);
        assert_eq!(tags(&bridge), [""; 0]);
        assert_eq!(*seen.lock().unwrap(), 2);
    }

    #[test]
    fn a_guard_restores_the_bridge_before_it() {
        let (outer, inner) = (SnapshotBridge::new(|_| ()), SnapshotBridge::new(|_| ()));
        let _outer_guard = outer.set_thread_local();
        {
            let _inner_guard = inner.set_thread_local();
            collect(capture("inner"));
        }
        collect(capture("outer"));
        assert_eq!(tags(&inner), ["inner"]);
        assert_eq!(tags(&outer), ["outer"]);
    }

    #[test]
    fn a_callback_may_use_its_own_bridge() {
        let inner = SnapshotBridge::new(|_| ());
        let again = inner.clone();
        let bridge = SnapshotBridge::new(move |_| {
            let _guard = again.set_thread_local();
        });
        let _guard = bridge.set_thread_local();
        collect(capture("a"));
        assert_eq!(tags(&bridge), ["a"]);
    }
}
