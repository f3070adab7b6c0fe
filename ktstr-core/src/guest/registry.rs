//! The tests of a binary: one [`TestEntry`] per `#[ktstr_test]`, gathered by the linker.
//!
//! Nothing runs before `main`: the slice is plain static data. The linker does not promise an
//! order, so entries are found by name.

use std::time::Duration;

use crate::guest::assert::{Assert, AssertResult};
use crate::guest::payload::Payload;
use crate::guest::scenario::Ctx;
use crate::model::machine::MachineSpec;
pub use crate::model::record::ExpectErr;
use crate::model::record::VmResult;

/// Every `#[ktstr_test]` of this binary.
#[linkme::distributed_slice]
pub static TESTS: [TestEntry];

/// A function that examines a run on the host; its error fails the test.
pub type PostVm = fn(&VmResult) -> anyhow::Result<()>;

/// One `#[ktstr_test]`: what it asks for and what it runs.
///
/// The attribute writes only the fields its author gave and takes the others from
/// [`TestEntry::DEFAULT`], so that each default is stated once.
#[derive(Debug, Clone)]
pub struct TestEntry {
    /// The function's name.
    pub name: &'static str,
    /// `module_path!()` at the function, the crate's name first.
    pub module_path: &'static str,
    /// The virtual machine.
    pub machine: MachineSpec,
    /// How long the body means to run; [`Ctx::duration`].
    pub duration: Duration,
    /// How long a load is given to settle; [`Ctx::settle`].
    pub settle: Duration,
    /// How many workers a cgroup has by default; [`Ctx::cgroup_def`].
    pub workers_per_cgroup: u32,
    /// How much longer than `duration` and `settle` a body may run, and how long a guest may be silent.
    pub watchdog_timeout: Duration,
    /// The cgroup below the cgroup2 mount under which the scenario makes its groups.
    pub workload_root_cgroup: &'static str,
    /// Whether the test passes if, and only if, the guest's side of it fails.
    pub expect_err: ExpectErr,
    /// Whether an inconclusive verdict passes.
    pub allow_inconclusive: bool,
    /// What is checked of workers and cgroups, and by which bounds.
    pub assert: Assert,
    /// The external programs that are put into the guest.
    pub payloads: &'static [&'static Payload],
    /// Environment variables of the body: `NAME=value`, or `NAME` for the host's value.
    pub env: &'static [&'static str],
    /// Run the body on the host, without a virtual machine.
    pub host_only: bool,
    /// Reserved: reproduce a failure with more tracing.
    pub auto_repro: bool,
    /// Runs on the host after the guest is gone, whatever the verdict; not if the body was never
    /// reached, nor after a skip.
    pub post_vm: Option<PostVm>,
    /// As `post_vm`, but runs however the run ended: after a skip and a failure of the infrastructure
    /// too.
    pub post_vm_unconditional: Option<PostVm>,
    /// The author's function.
    pub body: fn(&Ctx) -> anyhow::Result<AssertResult>,
}

impl TestEntry {
    /// The defaults of the attribute's keys.
    pub const DEFAULT: Self = Self {
        name: "",
        module_path: "",
        machine: MachineSpec::DEFAULT,
        duration: Duration::from_secs(5),
        settle: Duration::from_millis(500),
        workers_per_cgroup: 2,
        watchdog_timeout: Duration::from_secs(20),
        workload_root_cgroup: "/ktstr",
        expect_err: ExpectErr::No,
        allow_inconclusive: false,
        assert: Assert::DEFAULT,
        payloads: &[],
        env: &[],
        host_only: false,
        auto_repro: true,
        post_vm: None,
        post_vm_unconditional: None,
        body: |_| Ok(AssertResult::pass()),
    };

    /// The name libtest knows the test by: the module path without the crate, then the function.
    pub fn test_name(&self) -> String {
        match self.module_path.split_once("::") {
            Some((_, modules)) => format!("{modules}::{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// Returns what follows the last `::` of `path`.
pub const fn last_component(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut start = bytes.len();
    while start > 0 && bytes[start - 1] != b':' {
        start -= 1;
    }
    path.split_at(start).1
}

/// Returns the names of all tests as libtest knows them, sorted: the linker does not promise an order.
pub fn names() -> Vec<String> {
    let mut names: Vec<_> = TESTS.iter().map(TestEntry::test_name).collect();
    names.sort();
    names
}

/// Returns the entry that libtest calls `test_name`.
pub fn find(test_name: &str) -> Option<&'static TestEntry> {
    TESTS.iter().find(|entry| entry.test_name() == test_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_component_keeps_raw_names_whole() {
        for (path, want) in
            [("a::b::c", "c"), ("a", "a"), ("a::r#try::r#gen", "r#gen"), ("a::voilà", "voilà")]
        {
            assert_eq!(last_component(path), want);
        }
    }
}
