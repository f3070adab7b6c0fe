//! The tests of a binary: one [`TestEntry`] per `#[ktstr_test]`, collected by the linker.
//!
//! Nothing runs before `main`: the slice is plain static data. Its order is unspecified, so entries are
//! found by name.

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

/// A function that examines the record of a run on the host; its error fails the test.
pub type PostVm = fn(&VmResult) -> anyhow::Result<()>;

/// One `#[ktstr_test]`: its parameters and its body.
///
/// The attribute writes only the fields that were given and takes the others from
/// [`TestEntry::DEFAULT`], so that each default exists once.
#[derive(Debug, Clone)]
pub struct TestEntry {
    /// The function's name.
    pub name: &'static str,
    /// `module_path!()` at the function; it begins with the crate's name.
    pub module_path: &'static str,
    /// The virtual machine.
    pub machine: MachineSpec,
    /// The intended run time of the body; [`Ctx::duration`].
    pub duration: Duration,
    /// The time that a load is given to settle; [`Ctx::settle`].
    pub settle: Duration,
    /// The default number of workers of a cgroup; [`Ctx::cgroup_def`].
    pub workers_per_cgroup: u32,
    /// The time by which a body may exceed `duration` and `settle`, and the longest silence of a guest.
    pub watchdog_timeout: Duration,
    /// The parent of the scenario's cgroups, relative to the cgroup2 mount.
    pub workload_root_cgroup: &'static str,
    /// Whether the test passes if, and only if, its body fails.
    pub expect_err: ExpectErr,
    /// Whether an inconclusive verdict passes.
    pub allow_inconclusive: bool,
    /// The checks of workers and cgroups, with their limits.
    pub assert: Assert,
    /// The external programs of the guest.
    pub payloads: &'static [&'static Payload],
    /// Environment variables of the body: `NAME=value`, or `NAME` for the host's value.
    pub env: &'static [&'static str],
    /// Whether the body runs on the host, without a virtual machine.
    pub host_only: bool,
    /// Whether the test has a machine that is booted for it, instead of one forked from a guest that was
    /// booted before.
    pub fresh: bool,
    /// Reserved: reproduce a failure with more tracing.
    pub auto_repro: bool,
    /// Runs on the host after the guest has ended, whether the body passed or failed. Does not run after
    /// an infrastructure failure or a skip.
    pub post_vm: Option<PostVm>,
    /// Like `post_vm`, but also runs after a skip and after an infrastructure failure.
    pub post_vm_unconditional: Option<PostVm>,
    /// The function with the attribute.
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
        fresh: false,
        auto_repro: true,
        post_vm: None,
        post_vm_unconditional: None,
        body: |_| Ok(AssertResult::pass()),
    };

    /// Returns the name of the test in libtest: the module path without the crate, then the function.
    pub fn test_name(&self) -> String {
        match self.module_path.split_once("::") {
            Some((_, modules)) => format!("{modules}::{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// Returns the part of `path` after the last `::`.
pub const fn last_component(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut start = bytes.len();
    while start > 0 && bytes[start - 1] != b':' {
        start -= 1;
    }
    path.split_at(start).1
}

/// Returns the names of all tests in libtest, sorted.
pub fn names() -> Vec<String> {
    let mut names: Vec<_> = TESTS.iter().map(TestEntry::test_name).collect();
    names.sort();
    names
}

/// Returns the entry of the test with this name in libtest.
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
