//! The `#[ktstr_test]` attribute.
//!
//! This crate only writes paths into `ktstr::__private` and depends on no other crate of the
//! project. `keys` is the table of the attribute's keys, `args` reads the attribute by it,
//! `signature` reads the function below it, `expand` joins them. All work on `proc_macro2` types,
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
/// The function has the signature `fn name(ctx: &Ctx) -> Result<AssertResult>` and shows up in
/// `cargo test` as any other test of its module.
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
/// Numbers and strings are literals; the keys of checks that are no whole numbers take a decimal point.
/// A boolean key alone means `true`.
///
/// | Key | Value | Default | Meaning |
/// |---|---|---|---|
/// | `numa_nodes` | 1 to 64 | 1 | NUMA nodes of the guest |
/// | `llcs` | 1 to 255 | 1 | last-level caches over all nodes, a multiple of `numa_nodes` |
/// | `cores` | 1 to 255, or a list | 2 | cores below each last-level cache: `4`, or `[4, 2]` if they differ |
/// | `threads` | 1 to 8 | 1 | SMT threads of each core |
/// | `memory_mib` | 64 to 1048576 | 256 | memory over all nodes, at least 32 MiB for each; raised to what the machine needs to boot |
/// | `duration_s` | 1 to 86400 | 5 | how long the body means to run, in seconds |
/// | `settle_ms` | 0 to 86400000 | 500 | how long a load is given to settle, in milliseconds |
/// | `workers_per_cgroup` | 1 to 10000 | 2 | how many workers a cgroup of `ctx.cgroup_def` has if its definition does not set a number |
/// | `watchdog_timeout_s` | 1 to 86400 | 20 | seconds a body may run over, or a guest be silent |
/// | `kernel` | string | from the environment | the kernel to boot, as in `KTSTR_KERNEL` |
/// | `workload_root_cgroup` | string | `"/ktstr"` | the cgroup below which the scenario works |
/// | `expect_err` | boolean, string or `regex` | `false` | pass if, and only if, the guest's side fails, and if a text or `regex("...")` is given, with that in its message |
/// | `allow_inconclusive` | boolean | `false` | pass if the verdict is inconclusive; the report shows `INCONCLUSIVE` |
/// | `host_only` | boolean | `false` | run the body on the host, without a VM |
/// | `ignore` | nothing or string | not ignored | skip unless asked for, and the reason |
/// | `kaslr` | boolean | `true` | let the guest's kernel randomise its addresses, as far as the engine's way to boot it allows |
/// | `mitigations` | boolean | `false` | keep page-table isolation where the guest's CPUs are emulated, at a tenth of the system call rate; elsewhere the kernel decides |
/// | `kargs` | string | none | extra words for the command line of the guest's kernel, such as `"nohz_full=1 isolcpus=1"` |
/// | `auto_repro` | boolean | `true` | reserved: reproduce a failure with more tracing |
/// | `post_vm` | path | none | host-side `fn(&VmResult) -> Result<()>`, run after the guest, whatever the verdict |
/// | `post_vm_unconditional` | path | none | as `post_vm`, but run however the run ended, after a failure of the infrastructure too |
/// | `payloads` | list of paths | none | external programs for the guest: constants of type `Payload` |
/// | `env` | list of strings | none | environment variables of the body: `"NAME=value"`, or `"NAME"` for the host's value |
/// | `crate` | path | the crate `ktstr` | where the expansion finds the crate: `crate = my_support::ktstr` |
/// | `not_stuck` | boolean | `true` | fail if a worker makes no progress |
/// | `isolation` | boolean | `true` | fail if a worker is seen on a CPU outside of the cpuset that was set for it |
/// | `no_oom_kill` | boolean | `true` | fail if a process is killed for want of memory, unless its cgroup says that it will be |
/// | `judge_emulated_time` | boolean | `false` | judge what depends on time, too, where the guest's CPUs are emulated in software |
/// | `max_gap_ms` | 1 to 86400000 | not checked | the longest time between two turns of a worker's loop |
/// | `max_spread_pct` | 0 to 100 | not checked | percentage points between the shares of a CPU that equal workers get |
/// | `max_throughput_cv` | 0 to 1000 | not checked | coefficient of variation of equal workers' work per CPU time |
/// | `min_iteration_rate` | 0.001 to 1000000000000 | not checked | turns of a worker's loop per second |
/// | `min_work_rate` | 0.001 to 1000000000000 | not checked | a worker's units of work per second of its CPU time |
/// | `max_migration_ratio` | 0 to 1 | not checked | a worker's changes of CPU per turn of its loop |
/// | `max_p99_wake_latency_ns` | 1 to 4294967295 | not checked | what 99 % of a worker's wake-ups take at most |
/// | `max_wake_latency_cv` | 0 to 1000 | not checked | coefficient of variation of a worker's wake-up latencies |
/// | `min_page_locality` | 0 to 1 | not checked | the part of a worker's pages on the nodes it may run on |
/// | `max_throttled_pct` | 0 to 100 | not checked | periods in which a cgroup with a quota is throttled |
/// | `max_quota_error_pct` | 0 to 100 | not checked | how far the CPU time of a cgroup with a quota is off that |
/// | `max_weight_error_pct` | 0 to 100 | not checked | how much of what its weight entitles it to a cgroup may lack |
/// | `max_cpu_pressure_pct` | 0 to 100 | not checked | time in which a task of a cgroup waits for a CPU |
/// | `max_memory_pressure_pct` | 0 to 100 | not checked | time in which a task of a cgroup waits for memory |
/// | `max_io_pressure_pct` | 0 to 100 | not checked | time in which a task of a cgroup waits for input or output |
///
/// A list of `cores` has one number for each last-level cache, in the order of the nodes, and makes
/// `llcs` superfluous. A guest has at most 255 CPUs: the product of `llcs`, `cores` and `threads`,
/// or the sum of the list times `threads`. A `workload_root_cgroup` begins
/// with `/`, which stands for the cgroup2 mount (`/a`, not `/sys/fs/cgroup/a`), is not `/` itself, and has
/// no line break and no component that is empty, begins with a dot or is longer than 255 bytes. `payloads`
/// lists each path once.
/// `kargs` refuses words that the runner or another key sets, such as `console` and `nr_cpus`. The
/// words of the environment variable `KTSTR_KARGS` follow those of the key.
/// `host_only` excludes every key that describes the virtual machine.
///
/// `expect_err` accepts every way in which the guest's side can fail once the body has started: an
/// error, a failed check, a panic, a death, a hang. It never accepts a fault of the machinery. With
/// `expect_err = "text"` the message of one of its failures, as the report shows it, must contain the
/// text, letter by letter; `expect_err = regex("^max_gap_ms: \d+")` wants a match of a regular expression,
/// in the syntax of the crate `regex-lite`. A failure without it fails the test and is shown.
/// An inconclusive verdict is no failure.
///
/// `post_vm` is not called after such a fault, nor after a skip; `post_vm_unconditional` is called
/// whenever the machine was prepared. An error of either fails the test, whatever it expects. A test may
/// have both.
///
/// With `allow_inconclusive` an inconclusive verdict passes and is reported as `INCONCLUSIVE` with its
/// reasons. It does not change what a failed check means, and does not satisfy `expect_err`.
///
/// `payloads` has each of the programs put into the guest with its shared libraries: the host's, or that
/// of a Debian package. A program that is nowhere, and a payload that cannot work, such as one with a
/// regular expression that cannot be read, fail the test before a machine is booted.
///
/// Of the host's environment the body gets `RUST_BACKTRACE`, `RUST_LIB_BACKTRACE`, `RUST_LOG`, `RUST_MIN_STACK`,
/// whatever begins with `PROPTEST_` or `QUICKCHECK_`, and the variables that `KTSTR_ENV=NAME,NAME` names. `env` adds
/// to these or replaces them: `env = ["SEED=7", "LIMIT"]` sets `SEED`, and `LIMIT` to its value on the host,
/// if it has one there.
///
/// What the checks mean exactly, over which workers, and what they do when there is nothing to measure,
/// is documented at `ktstr::assert::Assert`, whose fields have the names of the keys.
///
/// # The crate's name
///
/// The expansion begins its paths with `ktstr`. That is the dependency of this name or what
/// `use kt::prelude::*` brings under it, whatever the dependency's own name, and also through a crate
/// that re-exports it. Where neither is there, as under `#[no_implicit_prelude]`, or something else is
/// called `ktstr`, the key `crate` has the path: `crate = kt`, `crate = my_support::ktstr`, `crate = ::ktstr`.
///
/// # Where tests can be
///
/// A test is a function of a module in a target that libtest runs. Inside another function or a
/// constant, and in a target with `harness = false`, nothing would ever run it: both are compile errors.
///
/// # Other attributes
///
/// `#[cfg]`, `#[allow]`, `#[ignore]`, doc comments and the like go with the test. `#[test]` is
/// implied and an error; so is `#[should_panic]`, for which `expect_err` stands. So are attributes
/// that make tests of their own, such as `#[rstest]` and `#[tokio::test]`, above this one or below.
///
/// The lint `elided_lifetimes_in_paths`, which is part of `rust_2018_idioms`, accepts `&Ctx` in the
/// signature of a test. In other functions it wants `&Ctx<'_>`.
///
/// # Errors
///
/// Every mistake is a compile error on the token that causes it, all of them in one build.
#[proc_macro_attribute]
pub fn ktstr_test(attr: TokenStream, item: TokenStream) -> TokenStream {
    expand::ktstr_test(attr.into(), item.into()).into()
}
