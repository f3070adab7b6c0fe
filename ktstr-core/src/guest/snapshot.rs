//! Captures: the state of a scenario at one moment, kept in the guest and sent to the host at once.
//!
//! The data types are in [`crate::model::snapshot`]. A capture is on the host even if the guest crashes a
//! moment later. In the guest, a [`SnapshotBridge`] passes the captures of the current thread to the test
//! body.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::linux::process::Stat;
use crate::linux::sync::lock;
pub use crate::model::snapshot::{
    CgroupProcsSnapshot, CgroupSnapshot, KernelSnapshot, ProcIdentity, Snapshot,
};

impl ProcIdentity {
    /// Reads `/proc/PID/stat`; `None` if the process has exited.
    ///
    /// # Errors
    ///
    /// If the file exists and cannot be read.
    pub fn read(pid: i32) -> std::io::Result<Option<Self>> {
        let Some(stat) = Stat::read(pid)? else { return Ok(None) };
        let comm = String::from_utf8_lossy(&stat.comm).into_owned();
        Ok(Some(Self { pid, comm, start_ticks: stat.start_ticks }))
    }
}

/// Returns kernel values for a snapshot, or `None`. Called with the name given to
/// [`Op::capture_snapshot`] while the snapshot is taken.
///
/// [`Op::capture_snapshot`]: crate::guest::scenario::ops::Op::capture_snapshot
pub type CaptureCallback = Arc<dyn Fn(&str) -> Option<KernelSnapshot> + Send + Sync>;

/// A capture of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Capture {
    /// The processes of a cgroup, from [`Op::capture_cgroup_procs`].
    ///
    /// [`Op::capture_cgroup_procs`]: crate::guest::scenario::ops::Op::capture_cgroup_procs
    CgroupProcs(CgroupProcsSnapshot),
    /// All cgroups and workers, from [`Op::capture_snapshot`].
    ///
    /// [`Op::capture_snapshot`]: crate::guest::scenario::ops::Op::capture_snapshot
    Snapshot(Snapshot),
}

impl Capture {
    /// Returns the tag or the name that the test gave this capture.
    pub fn name(&self) -> &str {
        match self {
            Self::CgroupProcs(procs) => &procs.tag,
            Self::Snapshot(snapshot) => &snapshot.name,
        }
    }
}

/// Collects the captures of both kinds taken on a thread, in order. Clones share what was collected.
#[derive(Clone)]
pub struct SnapshotBridge {
    capture: CaptureCallback,
    on_cgroup_procs: Arc<dyn Fn(&CgroupProcsSnapshot) + Send + Sync>,
    captures: Arc<Mutex<Vec<Capture>>>,
}

thread_local! {
    static CURRENT: RefCell<Option<SnapshotBridge>> = const { RefCell::new(None) };
}

impl SnapshotBridge {
    /// Creates a bridge that adds the kernel values that `capture` returns to each snapshot.
    ///
    /// [`SnapshotBridge::default`] creates a bridge without kernel values.
    pub fn new(capture: CaptureCallback) -> Self {
        Self { capture, on_cgroup_procs: Arc::new(|_| ()), captures: Arc::default() }
    }

    /// Sets a function that is called with each capture of a cgroup's processes as it is taken;
    /// replaces an earlier one.
    #[must_use = "the bridge is consumed and returned"]
    pub fn on_cgroup_procs(
        mut self,
        on_cgroup_procs: impl Fn(&CgroupProcsSnapshot) + Send + Sync + 'static,
    ) -> Self {
        self.on_cgroup_procs = Arc::new(on_cgroup_procs);
        self
    }

    /// Makes this the bridge of the current thread until the guard is dropped, which restores the
    /// previous one. Keep a clone to read what was collected.
    #[must_use = "the bridge is in place only while the guard lives"]
    pub fn set_thread_local(self) -> BridgeGuard {
        BridgeGuard { previous: CURRENT.replace(Some(self)) }
    }

    /// Returns the number of captures of both kinds that were collected and not drained.
    pub fn len(&self) -> usize {
        lock(&self.captures).len()
    }

    /// Returns whether it holds no captures.
    pub fn is_empty(&self) -> bool {
        lock(&self.captures).is_empty()
    }

    /// Returns whether there is a capture of either kind with this tag or name.
    pub fn has(&self, name: &str) -> bool {
        lock(&self.captures).iter().any(|capture| capture.name() == name)
    }

    /// Returns a copy of the oldest capture of a cgroup's processes with this tag, which stays.
    pub fn cgroup_procs_by_tag(&self, tag: &str) -> Option<CgroupProcsSnapshot> {
        lock(&self.captures).iter().find_map(|capture| match capture {
            Capture::CgroupProcs(procs) if procs.tag == tag => Some(procs.clone()),
            _ => None,
        })
    }

    /// Takes all captures collected so far, the oldest first.
    pub fn drain_ordered(&self) -> Vec<Capture> {
        std::mem::take(&mut *lock(&self.captures))
    }

    /// Takes the captures of cgroups' processes collected so far, the oldest first. Snapshots stay.
    pub fn drain_cgroup_procs(&self) -> Vec<CgroupProcsSnapshot> {
        let mut captures = lock(&self.captures);
        let drained = captures.extract_if(.., |capture| matches!(capture, Capture::CgroupProcs(_)));
        let drained = drained.filter_map(|capture| match capture {
            Capture::CgroupProcs(procs) => Some(procs),
            Capture::Snapshot(_) => None,
        });
        drained.collect()
    }

    /// Takes the snapshots collected so far, the oldest first. Captures of processes stay.
    pub fn drain_snapshots(&self) -> Vec<Snapshot> {
        let mut captures = lock(&self.captures);
        let drained = captures.extract_if(.., |capture| matches!(capture, Capture::Snapshot(_)));
        let drained = drained.filter_map(|capture| match capture {
            Capture::Snapshot(snapshot) => Some(snapshot),
            Capture::CgroupProcs(_) => None,
        });
        drained.collect()
    }
}

impl fmt::Debug for SnapshotBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotBridge").field("captures", &self.captures).finish_non_exhaustive()
    }
}

/// Creates a bridge that only collects.
impl Default for SnapshotBridge {
    fn default() -> Self {
        Self::new(Arc::new(|_| None))
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

/// Passes a capture to the bridge of the current thread, if there is one.
pub(crate) fn collect(capture: Capture) {
    let Some(bridge) = CURRENT.with_borrow(Clone::clone) else { return };
    if let Capture::CgroupProcs(procs) = &capture {
        (bridge.on_cgroup_procs)(procs);
    }
    lock(&bridge.captures).push(capture);
}

/// Returns the kernel values that the bridge of the current thread, if any, has for the snapshot `name`.
pub(crate) fn kernel_snapshot(name: &str) -> Option<KernelSnapshot> {
    // Cloned first, so that the callback may set another bridge.
    let bridge = CURRENT.with_borrow(Clone::clone)?;
    (bridge.capture)(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn procs(tag: &str) -> Capture {
        Capture::CgroupProcs(CgroupProcsSnapshot {
            tag: tag.to_owned(),
            cgroup: "cg".to_owned(),
            pids: vec![7],
            procs: Vec::new(),
            at_ns: 1,
        })
    }

    fn snapshot(name: &str) -> Capture {
        let (cgroups, workers) = (Vec::new(), Vec::new());
        let kernel = kernel_snapshot(name);
        Capture::Snapshot(Snapshot { name: name.to_owned(), at_ns: 1, cgroups, workers, kernel })
    }

    fn tags(bridge: &SnapshotBridge) -> Vec<String> {
        bridge.drain_cgroup_procs().into_iter().map(|capture| capture.tag).collect()
    }

    #[test]
    fn bridge_collects_in_order_while_the_guard_lives() {
        let seen = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&seen);
        let bridge =
            SnapshotBridge::default().on_cgroup_procs(move |_| *counter.lock().unwrap() += 1);
        let shared = bridge.clone();
        let guard = bridge.clone().set_thread_local();
        collect(procs("a"));
        collect(procs("b"));
        drop(guard);
        collect(procs("after the guard"));
        assert_eq!(tags(&shared), ["a", "b"]);
        assert_eq!(tags(&bridge), [""; 0]);
        assert_eq!(*seen.lock().unwrap(), 2);
    }

    #[test]
    fn guard_restores_the_previous_bridge() {
        let (outer, inner) = (SnapshotBridge::default(), SnapshotBridge::default());
        let _outer_guard = outer.clone().set_thread_local();
        {
            let _inner_guard = inner.clone().set_thread_local();
            collect(procs("inner"));
        }
        collect(procs("outer"));
        assert_eq!(tags(&inner), ["inner"]);
        assert_eq!(tags(&outer), ["outer"]);
    }

    #[test]
    fn callbacks_may_use_a_bridge() {
        let inner = SnapshotBridge::default();
        let (first, second) = (inner.clone(), inner);
        let bridge = SnapshotBridge::new(Arc::new(move |_| {
            let _guard = first.clone().set_thread_local();
            None
        }));
        let bridge = bridge.on_cgroup_procs(move |_| {
            let _guard = second.clone().set_thread_local();
        });
        let _guard = bridge.clone().set_thread_local();
        collect(procs("a"));
        collect(snapshot("b"));
        assert_eq!(bridge.len(), 2);
    }

    #[test]
    fn capture_callback_adds_kernel_values_by_name() {
        let bridge = SnapshotBridge::new(Arc::new(|name: &str| {
            (name == "full").then(|| KernelSnapshot::new().with_value("jiffies", 42))
        }));
        let _guard = bridge.clone().set_thread_local();
        collect(snapshot("full"));
        collect(snapshot("bare"));
        collect(procs("full"));
        let kernels: Vec<_> =
            bridge.drain_snapshots().into_iter().map(|snapshot| snapshot.kernel).collect();
        assert_eq!(kernels, [Some(KernelSnapshot::new().with_value("jiffies", 42)), None]);
    }

    #[test]
    fn drains_keep_the_order_and_what_they_do_not_take() {
        let bridge = SnapshotBridge::default();
        assert!(bridge.is_empty() && bridge.drain_ordered().is_empty());
        let _guard = bridge.clone().set_thread_local();
        let taken = [procs("a"), snapshot("b"), procs("c"), procs("a")];
        taken.clone().into_iter().for_each(collect);
        assert_eq!(
            (bridge.len(), bridge.has("b"), bridge.has("c"), bridge.has("d")),
            (4, true, true, false)
        );
        assert_eq!(bridge.cgroup_procs_by_tag("b"), None);
        assert!(bridge.cgroup_procs_by_tag("c").is_some_and(|procs| procs.cgroup == "cg"));
        assert_eq!(bridge.drain_ordered(), taken);
        taken.into_iter().for_each(collect);
        assert_eq!(tags(&bridge), ["a", "c", "a"]);
        assert_eq!(bridge.drain_ordered(), [snapshot("b")]);
        collect(procs("a"));
        collect(snapshot("b"));
        assert_eq!(bridge.drain_snapshots().len(), 1);
        assert_eq!(tags(&bridge), ["a"]);
        assert!(bridge.is_empty());
    }
}
