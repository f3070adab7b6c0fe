//! The `#[ktstr_test]` attribute.
//!
//! This crate only writes paths into `ktstr::__private` and does not depend on another crate of the
//! project. `keys` is the table of the attribute's keys, `args` parses the attribute with it,
//! `signature` parses the function below it, `expand` writes the test. All use `proc_macro2` types,
//! so that they can be tested outside of a compiler.

#![forbid(unsafe_code)]

mod args;
mod errors;
mod expand;
#[allow(unreachable_pub)] // ktstr-core, which has this file too, exports it
mod kargs;
mod keys;
mod signature;

use proc_macro::TokenStream;

/// Runs a function as a test inside its own virtual machine.
///
/// The function has the signature `fn name(ctx: &Ctx) -> Result<AssertResult>`. `cargo test` lists it
/// like any other test of its module.
///
/// ```ignore
/// use ktstr::prelude::*;
///
/// #[ktstr_test(llcs = 2, cores = 2, memory_mib = 512, duration_s = 2)]
/// fn sees_four_cpus(ctx: &Ctx) -> Result<AssertResult> {
///     assert_eq!(std::thread::available_parallelism()?.get(), 4);
///     Ok(AssertResult::pass())
/// }
/// ```
///
/// # Keys
///
/// Numbers and strings are literals; keys that take fractions accept a decimal point. A boolean key
/// alone means `true`.
///
/// | Key | Value | Default | Meaning |
/// |---|---|---|---|
/// | `numa_nodes` | 1 to 64 | 1 | NUMA nodes of the guest |
/// | `llcs` | 1 to 255 | 1 | last-level caches over all nodes, a multiple of `numa_nodes` |
/// | `cores` | 1 to 255, or a list | 2 | cores of each last-level cache: `4`, or `[4, 2]` if they differ |
/// | `threads` | 1 to 8 | 1 | SMT threads of each core |
/// | `memory_mib` | 64 to 1048576 | 256 | memory over all nodes, at least 32 MiB per node; raised if the machine could not boot with it |
/// | `duration_s` | 1 to 86400 | 5 | intended run time of the body, in seconds |
/// | `settle_ms` | 0 to 86400000 | 500 | time that a load is given to settle, in milliseconds |
/// | `workers_per_cgroup` | 1 to 10000 | 2 | workers of a cgroup of `ctx.cgroup_def`, unless its definition sets a number |
/// | `watchdog_timeout_s` | 1 to 86400 | 20 | seconds that a body may exceed its run time, or a guest may be silent |
/// | `kernel` | string | from the environment | the kernel to boot, as in `KTSTR_KERNEL` |
/// | `workload_root_cgroup` | string | `"/ktstr"` | parent of the cgroups of the scenario |
/// | `expect_err` | boolean, string or `regex` | `false` | pass if, and only if, the body fails; with a text or `regex("...")`, only if its message contains or matches that |
/// | `allow_inconclusive` | boolean | `false` | pass if the verdict is inconclusive; the report shows `INCONCLUSIVE` |
/// | `host_only` | boolean | `false` | run the body on the host, without a VM |
/// | `ignore` | nothing or string | not ignored | ignore the test like `#[ignore]`, with the reason |
/// | `kaslr` | boolean | `true` | the guest's kernel randomizes its addresses, as far as the engine's boot method allows |
/// | `mitigations` | boolean | `false` | keep page-table isolation on emulated CPUs, which reduces the system call rate to a tenth; on KVM the kernel decides |
/// | `kargs` | string | none | extra words of the guest's kernel command line, such as `"nohz_full=1 isolcpus=1"` |
/// | `fresh` | boolean | `false` | boot a machine for this test; do not fork a guest that was booted before |
/// | `auto_repro` | boolean | `true` | reserved: reproduce a failure with more tracing |
/// | `post_vm` | path | none | `fn(&VmResult) -> Result<()>` that examines the run on the host, whether the body passed or failed |
/// | `post_vm_unconditional` | path | none | like `post_vm`, but also after a skip or an infrastructure failure |
/// | `payloads` | list of paths | none | external programs for the guest: constants of type `Payload` |
/// | `env` | list of strings | none | environment variables of the body: `"NAME=value"`, or `"NAME"` for the host's value |
/// | `crate` | path | the crate `ktstr` | path of the crate for the expansion: `crate = my_support::ktstr` |
/// | `not_stuck` | boolean | `true` | fail if a worker makes no progress |
/// | `isolation` | boolean | `true` | fail if a worker runs on a CPU outside of its cpuset |
/// | `no_oom_kill` | boolean | `true` | fail if the kernel kills a process because memory is exhausted, unless its cgroup expects it |
/// | `judge_emulated_time` | boolean | `false` | apply time-based checks also where software emulates the CPUs |
/// | `max_gap_ms` | 1 to 86400000 | not checked | longest time between two iterations of a worker |
/// | `max_spread_pct` | 0 to 100 | not checked | percentage points between the CPU shares of equal workers |
/// | `max_throughput_cv` | 0 to 1000 | not checked | coefficient of variation of the work per CPU time of equal workers |
/// | `min_iteration_rate` | 0.001 to 1000000000000 | not checked | iterations of a worker per second |
/// | `min_work_rate` | 0.001 to 1000000000000 | not checked | units of work per second of a worker's CPU time |
/// | `max_migration_ratio` | 0 to 1 | not checked | CPU migrations per iteration of a worker |
/// | `max_p99_wake_latency_ns` | 1 to 4294967295 | not checked | 99th percentile of a worker's wake-up latency |
/// | `max_wake_latency_cv` | 0 to 1000 | not checked | coefficient of variation of a worker's wake-up latencies |
/// | `min_page_locality` | 0 to 1 | not checked | fraction of a worker's pages that are on the nodes that it may run on |
/// | `max_throttled_pct` | 0 to 100 | not checked | percentage of the periods in which a cgroup with a quota is throttled |
/// | `max_quota_error_pct` | 0 to 100 | not checked | deviation of the CPU time of a cgroup from its quota, in percent |
/// | `max_weight_error_pct` | 0 to 100 | not checked | percentage by which the CPU time of a cgroup may be below the share of its weight |
/// | `max_cpu_pressure_pct` | 0 to 100 | not checked | percentage of the time in which a task of a cgroup waits for a CPU |
/// | `max_memory_pressure_pct` | 0 to 100 | not checked | percentage of the time in which a task of a cgroup waits for memory |
/// | `max_io_pressure_pct` | 0 to 100 | not checked | percentage of the time in which a task of a cgroup waits for I/O |
///
/// A list of `cores` has one number for each last-level cache, in the order of the nodes; `llcs` can
/// be omitted then. A guest has at most 255 CPUs: the product of `llcs`, `cores` and `threads`, or the
/// sum of the list times `threads`.
///
/// A `workload_root_cgroup` begins with `/`, which is the cgroup2 mount: `/a`, not `/sys/fs/cgroup/a`.
/// It is not `/` itself, and has no line break and no component that is empty, begins with a dot or is
/// longer than 255 bytes. `payloads` lists each path once. `host_only` excludes the keys of the
/// virtual machine and its run: also `watchdog_timeout_s`, `fresh`, `auto_repro`, `post_vm`,
/// `post_vm_unconditional`, `payloads`, `env` and `judge_emulated_time`.
///
/// `kargs` rejects words that the runner or another key sets, such as `console` and `nr_cpus`. The
/// words of the environment variable `KTSTR_KARGS` are appended to those of the key. The guest checks
/// that its kernel has received all of them.
///
/// `expect_err` accepts every failure of the guest after the body has started: an error, a failed
/// check, a panic, a crash, a hang. It never accepts an infrastructure failure. With `expect_err =
/// "text"`, one of the failures that the report shows must contain the text; with
/// `expect_err = regex("^max_gap_ms: \d+")`, one must match the regular expression, in the syntax of the
/// crate `regex-lite`. Otherwise the test fails and the failure is shown. An inconclusive verdict is not
/// a failure.
///
/// `post_vm` does not run after an infrastructure failure or a skip; `post_vm_unconditional` runs
/// whenever the machine was prepared. An error of either fails the test, whatever it expects. A test may
/// have both.
///
/// With `allow_inconclusive`, an inconclusive verdict passes and is reported as `INCONCLUSIVE` with its
/// reasons. A failed check still fails the test, and an inconclusive verdict does not satisfy
/// `expect_err`.
///
/// The programs of `payloads` are put into the guest with their shared libraries, from the host or from
/// a Debian package. A program that does not exist, and a payload that cannot work, such as one with an
/// invalid regular expression, fail the test before a machine boots.
///
/// The body has these variables of the host's environment: `RUST_BACKTRACE`, `RUST_LIB_BACKTRACE`,
/// `RUST_LOG`, `RUST_MIN_STACK`, those that begin with `PROPTEST_` or `QUICKCHECK_`, and those that
/// `KTSTR_ENV=NAME,NAME` names. `env` adds variables or replaces them: `env = ["SEED=7", "LIMIT"]` sets
/// `SEED` to 7, and `LIMIT` to its value on the host, if it is set there.
///
/// `ktstr::assert::Assert`, with fields of the same names, documents the checks: the exact condition,
/// the workers it applies to, and the outcome without measurements.
///
/// # The crate's name
///
/// The paths of the expansion begin with `ktstr`. That is the dependency of this name, or the import of
/// `use kt::prelude::*`, which also works if the dependency is renamed or is a dependency of a crate that
/// re-exports it. If neither exists, as under `#[no_implicit_prelude]`, or another item is called
/// `ktstr`, give the path with the key `crate`: `crate = kt`, `crate = my_support::ktstr`,
/// `crate = ::ktstr`.
///
/// # Where tests can be
///
/// A test is a function of a module in a target with libtest's harness. Tests inside another function
/// or a constant, and in a target with `harness = false`, would never run: both are compile errors.
///
/// # Other attributes
///
/// `#[cfg]`, `#[allow]`, `#[ignore]`, doc comments and the like apply to the test. `#[test]` is implied,
/// and an error if written; so is `#[should_panic]`, which `expect_err` replaces. Attributes that make
/// tests themselves, such as `#[rstest]` and `#[tokio::test]`, are errors above this one and below.
///
/// The lint `elided_lifetimes_in_paths`, part of `rust_2018_idioms`, accepts `&Ctx` in the signature of a
/// test. In other functions it requires `&Ctx<'_>`.
///
/// # Errors
///
/// Every mistake is a compile error at the token that causes it, all of them in one build.
#[proc_macro_attribute]
pub fn ktstr_test(attr: TokenStream, item: TokenStream) -> TokenStream {
    expand::ktstr_test(attr.into(), item.into()).into()
}
