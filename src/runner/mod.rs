//! The host's side of a run: from a [`TestEntry`] to a verdict.

mod artifacts;
mod console;
mod engine;
mod image;
mod session;
pub mod shell;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Once;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ktstr_core::guest;
use ktstr_core::registry::{self, TestEntry};
use ktstr_core::result::{Machine, RunEnd, Timings, VmResult};
use ktstr_core::topology::{TestTopology, Topology};
use ktstr_core::wire::{self, Order, RunOrder};
use ktstr_vmm::VmConfig;

use crate::provision::{self, Kernel, cache::Cache};
use crate::report::{self, Failure};
use artifacts::Artifacts;
use image::Image;
pub use ktstr_vmm::probe;
pub(crate) use session::{Limits, Live};

/// What a generated `#[test]` returns.
pub type TestResult = Result<(), Failure>;

/// Variables of the host that the body gets, too.
const PASSED_ON: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// Runs a test: on the host, the virtual machine and the report; as PID 1, the guest's side.
pub fn run(entry: &'static TestEntry) -> TestResult {
    if guest::is_init() {
        guest::init();
    }
    ktstr_core::logging::init();
    let outcome = if entry.host_only { run_on_host(entry) } else { run_this_binary(entry) };
    match outcome {
        Ok(result) => conclude(entry, &result, None),
        Err(error) => Err(Failure::new(report::preparation_failed(entry, &error))),
    }
}

fn run_this_binary(entry: &TestEntry) -> Result<VmResult> {
    run_in_vm(entry, Program::this_test_binary()?)
}

/// Runs a test of a program without libtest, whose `main` begins with [`init_if_guest`].
/// `command` is what a person types to run it.
pub fn run_without_libtest(entry: &TestEntry, command: &str) -> TestResult {
    match Program::this_program().and_then(|program| run_in_vm(entry, program)) {
        Ok(result) => conclude(entry, &result, Some(command)),
        Err(error) => Err(Failure::new(report::preparation_failed(entry, &error))),
    }
}

/// Does the guest's side and never returns if this process is PID 1 of a machine of ours.
pub fn init_if_guest() {
    if guest::is_init() {
        guest::init();
    }
}

/// The engine that tests of this environment run on, and why. Fetches QEMU if that is to be it.
///
/// # Errors
///
/// If `KTSTR_ENGINE` asks for what there is not, or no engine can be had.
pub fn engine() -> Result<(String, String)> {
    let choice = engine::choose(&Cache::from_env()?)?;
    Ok((choice.engine.describe(), choice.reason.clone()))
}

/// Runs the body of `entry`, which `program` has, in a virtual machine and returns what is known of the run, whatever
/// its verdict. Neither `post_vm` nor `expect_err` is looked at.
///
/// # Errors
///
/// If the machine cannot be prepared: no kernel, no engine, no initramfs.
pub fn run_in_vm(entry: &TestEntry, program: Program) -> Result<VmResult> {
    let began = Instant::now();
    let test = entry.test_name();
    let env =
        PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let prepared = Prepared::new(&Wanted {
        program,
        kernel: entry.kernel,
        topology: entry.topology,
        memory_mib: entry.memory_mib,
        kaslr: entry.kaslr,
        programs: Vec::new(),
        links: Vec::new(),
    })?;
    let order =
        RunOrder { test: test.clone(), memory_mib: prepared.config.memory_mib, env: env.collect() };
    let limits = Limits { duration: Some(entry.duration), watchdog: entry.watchdog_timeout };
    let prepare = began.elapsed();
    let mut echo = Echo::default();
    let outcome = prepared.run(Order::Run(order), limits, &mut |live| {
        if let Live::Output(_, bytes) = live {
            echo.print(bytes);
        }
        None
    });
    echo.finish();
    Ok(VmResult {
        test,
        kernel_events: console::kernel_events(&outcome.console),
        end: outcome.end,
        captures: outcome.captures,
        events: outcome.events,
        console: outcome.console,
        log: outcome.log,
        machine: prepared.machine(),
        timings: Timings { prepare, ..outcome.timings },
    })
}

/// Prints what a body writes as it arrives, in whole lines, where libtest can capture it.
#[derive(Debug, Default)]
struct Echo {
    unfinished: Vec<u8>,
}

impl Echo {
    fn print(&mut self, bytes: &[u8]) {
        self.unfinished.extend_from_slice(bytes);
        if let Some(end) = self.unfinished.iter().rposition(|byte| *byte == b'\n') {
            let lines: Vec<u8> = self.unfinished.drain(..=end).collect();
            print!("{}", String::from_utf8_lossy(&lines));
        }
    }

    /// Prints what was left without a line break.
    fn finish(self) {
        if !self.unfinished.is_empty() {
            println!("{}", String::from_utf8_lossy(&self.unfinished));
        }
    }
}

/// Runs the body of a `host_only` test in this process.
fn run_on_host(entry: &TestEntry) -> Result<VmResult> {
    let began = Instant::now();
    let topology = TestTopology::read()?;
    let heard = std::cell::RefCell::new((Vec::new(), Vec::new()));
    let end = guest::run_body(entry, &topology, &|report| match report {
        wire::Report::Event(event) => heard.borrow_mut().0.push(event),
        wire::Report::Capture(capture) => heard.borrow_mut().1.push(capture),
        _ => {}
    });
    let (events, captures) = heard.into_inner();
    Ok(VmResult {
        test: entry.test_name(),
        end: session::end_of_body(end),
        kernel_events: Vec::new(),
        captures,
        events,
        console: String::new(),
        log: String::new(),
        machine: Machine {
            engine: "this host, no virtual machine".to_owned(),
            ..Machine::default()
        },
        timings: Timings { body: Some(began.elapsed()), slowness: 1.0, ..Timings::default() },
    })
}

/// Judges a run: `post_vm`, then what the test expects. Reports it.
fn conclude(entry: &TestEntry, result: &VmResult, command: Option<&str>) -> TestResult {
    let artifacts = Artifacts::write(result);
    let post_vm = entry.post_vm.map_or(Ok(()), |post_vm| post_vm(result));
    let verdict = judge(entry, &result.end, &post_vm);
    let folder = artifacts.as_ref().map(Artifacts::folder);
    let text = report::run(entry, result, &verdict, folder, command);
    match verdict {
        Err(_) => Err(Failure::new(text)),
        Ok(passed) => {
            println!("{text}");
            if let Passed::Skipped(reason) = passed {
                report::notice(&format!("{}: SKIPPED: {reason}", result.test));
            }
            if let Ok(artifacts) = artifacts {
                artifacts.discard();
            }
            Ok(())
        }
    }
}

/// How a test can be fine.
pub(crate) enum Passed {
    AsExpected,
    Skipped(String),
}

/// Whether the test passes, or why not.
pub(crate) fn judge(
    entry: &TestEntry,
    end: &RunEnd,
    post_vm: &Result<()>,
) -> Result<Passed, String> {
    use ktstr_core::assert::Outcome;

    let outcome = match end {
        RunEnd::Verdict(verdict) => Some(verdict.outcome),
        _ => None,
    };
    if end.is_infrastructure() {
        return Err(format!("infrastructure: {end}"));
    }
    if let Err(error) = post_vm {
        return Err(format!("post_vm: {error:#}"));
    }
    match (outcome, entry.expect_err) {
        (Some(Outcome::Skip), _) => {
            let RunEnd::Verdict(verdict) = end else { unreachable!("only a verdict can skip") };
            let reasons: Vec<_> = verdict.details.iter().map(|detail| &*detail.message).collect();
            Ok(Passed::Skipped(reasons.join("; ")))
        }
        (Some(Outcome::Pass), false) => Ok(Passed::AsExpected),
        (Some(Outcome::Pass | Outcome::Inconclusive), true) => {
            Err(format!("the test was to fail (`expect_err`), but its verdict is {end}"))
        }
        (_, true) => Ok(Passed::AsExpected),
        (Some(_), false) => {
            let RunEnd::Verdict(verdict) = end else {
                unreachable!("only a verdict has an outcome")
            };
            Err(verdict.details.first().map_or_else(|| end.to_string(), ToString::to_string))
        }
        (None, false) => Err(end.to_string()),
    }
}

/// The program that becomes PID 1, and its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its file on the host.
    pub path: PathBuf,
    /// What the kernel gives it as arguments.
    pub arguments: Vec<String>,
}

impl Program {
    /// This libtest binary. In the guest, any of its tests leads to [`run`], which finds itself to
    /// be PID 1; the first is taken so that every test of the binary boots the same machine.
    fn this_test_binary() -> Result<Self> {
        let first = registry::TESTS.iter().map(TestEntry::test_name).min();
        let first = first.context("this binary has no #[ktstr_test]")?;
        let arguments =
            ["--exact", &first, "--include-ignored", "--nocapture", "--quiet", "--test-threads=1"];
        Ok(Self { arguments: arguments.map(str::to_owned).into(), ..Self::this_program()? })
    }

    /// This program as it is, whose `main` calls [`init_if_guest`].
    pub(crate) fn this_program() -> Result<Self> {
        let path = std::env::current_exe().context("cannot find this program's own path")?;
        Ok(Self { path, arguments: Vec::new() })
    }
}

/// A machine as somebody wants it.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) program: Program,
    pub(crate) kernel: Option<&'a str>,
    pub(crate) topology: Topology,
    pub(crate) memory_mib: u32,
    pub(crate) kaslr: bool,
    /// More programs for the guest: where on the host, where in the guest.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Symbolic links in the guest: name, target.
    pub(crate) links: Vec<(String, String)>,
}

/// A machine that is ready to boot.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) choice: &'static engine::Choice,
    pub(crate) kernel: Kernel,
    pub(crate) config: VmConfig,
    topology: Topology,
}

impl Prepared {
    /// Finds kernel and engine, and builds the initramfs, or takes all three from the cache.
    pub(crate) fn new(wanted: &Wanted<'_>) -> Result<Self> {
        let cache = Cache::from_env()?;
        let choice = engine::choose(&cache)?;
        let kernel = provision::kernel::resolve(&cache, wanted.kernel)?;
        announce(choice, &kernel);
        let image = Image {
            init: &wanted.program.path,
            kernel: &kernel,
            programs: &wanted.programs,
            links: &wanted.links,
        };
        let initramfs = image.ensure(&cache)?;
        let initramfs_bytes = std::fs::metadata(&initramfs)
            .with_context(|| format!("cannot find {}", initramfs.display()))?
            .len();
        let topology = wanted.topology;
        let needed = needed_mib(&topology, initramfs_bytes);
        let config = VmConfig {
            kernel: kernel.boot.path.clone(),
            initramfs,
            cmdline: cmdline(wanted)?,
            topology: ktstr_vmm::Topology {
                numa_nodes: topology.numa_nodes,
                llcs: topology.llcs,
                cores_per_llc: topology.cores_per_llc,
                threads_per_core: topology.threads_per_core,
            },
            memory_mib: wanted.memory_mib.max(needed),
            ports: vec![wire::PORT.to_owned()],
        };
        Ok(Self { choice, kernel, config, topology })
    }

    /// Boots the machine and has it carry out `order`.
    pub(crate) fn run(
        &self,
        order: Order,
        limits: Limits,
        live: &mut dyn FnMut(Live<'_>) -> Option<Order>,
    ) -> session::Outcome {
        tracing::debug!("boot {:?}", self.config);
        let outcome = session::run(&*self.choice.engine, &self.config, order, limits, live);
        tracing::debug!("{:?} after {:?}", outcome.end, outcome.timings);
        outcome
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine {
            engine: self.choice.engine.describe(),
            engine_reason: self.choice.reason.clone(),
            engine_name: self.choice.name.to_owned(),
            kernel_spec: self.kernel.spec.to_string(),
            kernel_version: self.kernel.version.clone(),
            topology: self.topology.to_string(),
            memory_mib: self.config.memory_mib,
            initramfs: self.config.initramfs.clone(),
            cmdline: self.config.cmdline.clone(),
        }
    }
}

/// Says once per process, past libtest's capture, what the tests run on.
fn announce(choice: &engine::Choice, kernel: &Kernel) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let engine = choice.engine.describe();
        report::notice(&format!("engine {engine}: {} ({})", choice.reason, choice.origin));
        report::notice(&format!("kernel {} {}", kernel.spec, kernel.version));
    });
}

/// The least memory that lets the machine come up: what a stock kernel takes, its part for each
/// CPU, and the initramfs twice, for it is there packed and unpacked for a moment.
fn needed_mib(topology: &Topology, initramfs_bytes: u64) -> u32 {
    let initramfs_mib = u32::try_from(initramfs_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX / 4);
    112 + 3 * topology.nr_cpus() + 2 * initramfs_mib
}

fn cmdline(wanted: &Wanted<'_>) -> Result<String> {
    let mut words = vec![
        "panic=-1".to_owned(),
        "oops=panic".to_owned(),
        "printk.time=1".to_owned(),
        // A third of a stock kernel's boot under emulation, and nothing a test could notice.
        "cryptomgr.notests".to_owned(),
        "initcall_blacklist=jent_mod_init".to_owned(),
    ];
    if !wanted.kaslr {
        words.push("nokaslr".to_owned());
    }
    // What the kernel does not know becomes the environment of PID 1.
    words.push(format!("{}=1", guest::ENV));
    words.push(format!("LD_LIBRARY_PATH={}", image::LIBRARIES));
    words.push("PATH=/bin:/sbin:/usr/bin:/usr/sbin".to_owned());
    if !wanted.program.arguments.is_empty() {
        words.push("--".to_owned());
        words.extend(wanted.program.arguments.iter().cloned());
    }
    for word in &words {
        ensure!(!word.contains([' ', '"']), "`{word}` cannot stand on a kernel command line");
    }
    Ok(words.join(" "))
}
