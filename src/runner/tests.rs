//! Defective machines, and how the host reports them. Each test boots a VM.

mod freeze;

use std::fs;
use std::path::Path;
use std::time::Duration;

use ktstr::prelude::*;
use ktstr_core::registry::{self, TestEntry};
use ktstr_core::result::{ClockSpan, Machine, Timings};
use ktstr_core::wire::{Order, RunOrder};

use super::initramfs::GuestFiles;
use super::{Prepared, Program, RunLimits, Wanted};

#[ktstr_test(cores = 1)]
fn subject(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[test]
fn judge_on_waives_emulated_time_unless_requested() {
    let gap = AssertDetail::new(DetailKind::Gap, "63 ms").time_based();
    let failed = || AssertResult::fail(gap.clone());
    for (engine, judge_emulated_time, outcome) in [
        ("qemu", false, Outcome::Pass),
        ("qemu", true, Outcome::Fail),
        ("kvm", false, Outcome::Fail),
    ] {
        let assert = Assert::DEFAULT.judge_emulated_time(judge_emulated_time);
        let entry = TestEntry { assert, ..TestEntry::DEFAULT };
        let machine = Machine { engine_name: engine.to_owned(), ..Machine::default() };
        let end = super::judge_on(&machine, &entry, &[], None, RunEnd::Verdict(failed()));
        let RunEnd::Verdict(verdict) = end else { panic!("{end}") };
        assert_eq!(verdict.outcome, outcome, "{engine}");
        assert_eq!(verdict.notes.is_empty(), outcome == Outcome::Fail, "{engine}");
    }
}

#[test]
fn judge_on_makes_failures_on_busy_hosts_inconclusive() {
    let machine = Machine { engine_name: "kvm".to_owned(), ..Machine::default() };
    let gap = || AssertDetail::new(DetailKind::Gap, "63 ms");
    for (detail, stolen, outcome) in [
        (gap().time_based().cpu(1), [0.001, 0.002, 0.38], Outcome::Inconclusive),
        (gap().time_based(), [0.001, 0.002, 0.004], Outcome::Fail),
        (gap().cpu(2), [0.001, 0.002, 0.38], Outcome::Fail),
    ] {
        let label = format!("{detail:?}");
        let end = RunEnd::Verdict(AssertResult::fail(detail));
        let end = super::judge_on(&machine, &TestEntry::DEFAULT, &stolen, None, end);
        let RunEnd::Verdict(verdict) = end else { panic!("{end}") };
        assert_eq!(verdict.outcome, outcome, "{label}");
        let is_explained = format!("{}", verdict.details[0]).contains("steal time of vCPU 2: 38 %");
        assert_eq!(is_explained, outcome == Outcome::Inconclusive, "{label}");
    }
}

fn ended(end: RunEnd) -> VmResult {
    VmResult {
        test: "test".to_owned(),
        end,
        kernel_events: Vec::new(),
        captures: Vec::new(),
        snapshots: Vec::new(),
        events: Vec::new(),
        console: String::new(),
        log: String::new(),
        machine: Machine::default(),
        timings: Timings::default(),
        stolen: Vec::new(),
    }
}

#[test]
fn hook_errors_depend_on_the_end_of_the_run() {
    let entry = TestEntry {
        post_vm: Some(|_| bail!("seen")),
        post_vm_unconditional: Some(|result| panic!("{}", result.test)),
        ..TestEntry::DEFAULT
    };
    let always = "post_vm_unconditional: panicked: test";
    let both = &["post_vm: seen", always][..];
    for (end, wanted) in [
        (RunEnd::Verdict(AssertResult::pass()), both),
        (RunEnd::Verdict(AssertResult::fail_msg("why")), both),
        (RunEnd::GuestGone("why".to_owned()), both),
        (RunEnd::Verdict(AssertResult::skip("why")), &[always]),
        (RunEnd::EngineFailed("why".to_owned()), &[always]),
        (RunEnd::WrongTopology(vec!["why".to_owned()]), &[always]),
    ] {
        let result = ended(end);
        assert_eq!(super::hook_errors(&entry, &result), wanted, "{}", result.end);
        assert_eq!(super::hook_errors(&TestEntry::DEFAULT, &result), [""; 0]);
    }
}

#[test]
fn judge_on_needs_as_much_steal_time_as_explains_a_failure() {
    let body = Duration::from_secs(10);
    let stuck = |explained_by: Option<u64>| {
        let detail = AssertDetail::new(DetailKind::WorkerStuck, "no iteration in 5.1s");
        AssertDetail { explained_by: explained_by.map(Duration::from_millis), ..detail }
    };
    for engine in ["qemu", "kvm"] {
        let machine = Machine { engine_name: engine.to_owned(), ..Machine::default() };
        for (explained_by, stolen, outcome) in [
            (Some(3100), vec![0.1, 0.32], Outcome::Inconclusive),
            (Some(3100), vec![0.1, 0.30], Outcome::Fail),
            (Some(0), vec![0.0, 0.009], Outcome::Fail),
            (Some(0), vec![], Outcome::Fail),
            (None, vec![0.1, 0.99], Outcome::Fail),
        ] {
            let end = RunEnd::Verdict(AssertResult::fail(stuck(explained_by)));
            let entry = TestEntry::DEFAULT;
            let end = super::judge_on(&machine, &entry, &stolen, Some(body), end);
            let RunEnd::Verdict(verdict) = end else { panic!("{end}") };
            assert_eq!(verdict.outcome, outcome, "{engine}: {explained_by:?}, {stolen:?}");
            let text = verdict.details[0].to_string();
            let numbers = "vCPU 1 did not run for 3.2s of the body's 10.0s because the host was busy \
                           (steal time 32 %); 3.1s explain the failure";
            assert_eq!(text.contains(numbers), outcome == Outcome::Inconclusive, "{text}");
        }
    }
}

/// Returns the name by which libtest knows the test at this path.
fn test_name(path: &str) -> String {
    path.split_once("::").expect("a path begins with its crate").1.to_owned()
}

/// Returns the machine of the test at this path.
fn prepare(path: &str) -> Prepared {
    prepare_with(Program::this_test_binary().unwrap(), path)
}

fn prepare_with(program: Program, path: &str) -> Prepared {
    let entry = registry::find(&test_name(path)).expect("the attribute has registered it");
    let wanted = Wanted {
        program,
        kernel: None,
        topology: entry.topology,
        memory_mib: entry.memory_mib,
        kaslr: true,
        mitigations: false,
        env: &[],
        contents: GuestFiles::default(),
        nests: false,
    };
    Prepared::new(&wanted).unwrap()
}

/// Runs `subject` on a machine that `spoil` has changed after it was prepared.
fn end_on(spoil: impl FnOnce(&mut Prepared, &Path)) -> RunEnd {
    end_of(concat!(module_path!(), "::subject"), spoil)
}

/// Runs the test at this path on a machine that `spoil` has changed after it was prepared.
fn end_of(path: &str, spoil: impl FnOnce(&mut Prepared, &Path)) -> RunEnd {
    let mut prepared = prepare(path);
    let memory_mib = prepared.config.memory_mib;
    let dir = tempfile::tempdir().unwrap();
    spoil(&mut prepared, dir.path());
    run(&prepared, path, memory_mib)
}

/// Runs the test at this path on the machine.
fn run(prepared: &Prepared, path: &str, memory_mib: u32) -> RunEnd {
    let test = test_name(path);
    let entry = registry::find(&test).expect("the attribute has registered it");
    let limits = RunLimits { duration: Some(entry.duration), watchdog: Duration::from_secs(5) };
    let order = RunOrder { test, memory_mib, env: Vec::new() };
    prepared.run(Order::Run(order), limits, &mut |_| None).unwrap().end
}

fn init_failure(end: RunEnd) -> String {
    assert!(end.is_infrastructure(), "{end:?}");
    let RunEnd::InitFailed(why) = end else { panic!("{end:?}") };
    why
}

/// Appends a word to the kernel's command line.
fn add_kernel_word(prepared: &mut Prepared, word: &str) {
    prepared.config.cmdline.push_str(&format!(" {word}"));
}

/// Runs the test at this path with a TSC of this rate, if the guest kernel takes the rate from its command line.
fn end_with_tsc(path: &str, khz: u32) -> Option<RunEnd> {
    let mut is_emulated = true;
    let end = end_of(path, |prepared, _| {
        is_emulated = prepared.choice.is_emulated();
        add_kernel_word(prepared, &format!("tsc_early_khz={khz}"));
    });
    if !is_emulated {
        eprintln!("skipped: guests of KVM have its clock");
    }
    is_emulated.then_some(end)
}

#[test]
fn run_detects_a_clock_that_is_too_fast() {
    // The TSC of every host is faster.
    let path = concat!(module_path!(), "::subject");
    let Some(end) = end_with_tsc(path, 400_000) else { return };
    assert!(end.is_infrastructure(), "{end:?}");
    let RunEnd::WrongClock { span: ClockSpan::Boot, guest, host } = end else { panic!("{end:?}") };
    assert!(guest > host, "{guest:?} {host:?}");
}

#[ktstr_test(cores = 1, duration_s = 20, ignore = "of a machine with a wrong clock")]
fn sleeper(_: &Ctx) -> Result<AssertResult> {
    std::thread::sleep(Duration::from_secs(20));
    Ok(AssertResult::pass())
}

#[test]
fn run_detects_a_clock_that_is_too_slow() {
    // The TSC of every host is much slower.
    let path = concat!(module_path!(), "::sleeper");
    let Some(end) = end_with_tsc(path, 20_000_000) else { return };
    let RunEnd::WrongClock { span: ClockSpan::Body, guest, host } = end else { panic!("{end:?}") };
    assert!(guest < host / 2, "{guest:?} {host:?}");
}

/// Replaces the initramfs by a changed copy.
fn change_initramfs(prepared: &mut Prepared, dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&prepared.config.initramfs).unwrap();
    change(&mut bytes);
    prepared.config.initramfs = dir.join("initramfs");
    fs::write(&prepared.config.initramfs, bytes).unwrap();
}

#[test]
fn run_passes_on_an_unchanged_machine() {
    let end = end_on(|_, _| ());
    assert_eq!(end, RunEnd::Verdict(AssertResult::pass()));
}

#[test]
fn run_detects_an_initramfs_without_its_end() {
    let end = end_on(|prepared, dir| {
        change_initramfs(prepared, dir, |bytes| {
            let mark = bytes.windows(9).rposition(|name| name == b"ktstr/end").unwrap();
            bytes.truncate(mark - 110);
        });
    });
    assert!(init_failure(end).contains("cut short"));
}

#[test]
fn run_detects_an_initramfs_cut_in_half() {
    let end = end_on(|prepared, dir| {
        change_initramfs(prepared, dir, |bytes| bytes.truncate(bytes.len() / 2));
    });
    init_failure(end);
}

#[test]
fn init_failure_names_a_missing_library() {
    let end = end_on(|prepared, dir| {
        change_initramfs(prepared, dir, |bytes| {
            let name = b"lib/libgcc_s.so.1";
            let at = bytes.windows(name.len()).rposition(|window| window == name).unwrap();
            bytes[at + name.len() - 1] = b'9';
        });
    });
    assert!(init_failure(end).contains("libgcc_s.so.1"));
}

#[test]
fn init_failure_names_what_pid_1_was_asked_for() {
    let path = concat!(module_path!(), "::subject");
    let program = Program::this_test_binary().unwrap();
    let arguments = ["--exact", "no_such_test"].map(str::to_owned).to_vec();
    let prepared = prepare_with(Program { arguments, ..program }, path);
    let why = init_failure(run(&prepared, path, prepared.config.memory_mib));
    assert!(why.contains("PID 1 exited with status 0"), "{why}");
    assert!(why.contains("were [\"--exact\", \"no_such_test\"]; the registry"), "{why}");
    assert!(why.contains("\"runner::tests::subject\""), "{why}");
}

#[test]
fn init_failure_names_a_program_that_cannot_be_executed() {
    let end = end_on(|prepared, dir| {
        change_initramfs(prepared, dir, |bytes| {
            let name = b"ktstr/program\0";
            let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
            bytes[at] = b'K';
        });
    });
    assert_eq!(init_failure(end), "cannot execute /ktstr/program: errno 2");
}

#[test]
fn run_boots_a_compressed_image() {
    let end = end_on(|prepared, _| {
        assert_ne!(prepared.config.kernel, prepared.kernel.image);
        prepared.config.kernel = prepared.kernel.image.clone();
    });
    assert_eq!(end, RunEnd::Verdict(AssertResult::pass()));
}

#[test]
fn engine_failure_names_too_little_memory() {
    for memory_mib in [48, 72] {
        let end = end_on(|prepared, _| prepared.config.memory_mib = memory_mib);
        let RunEnd::EngineFailed(why) = end else { panic!("{end:?}") };
        assert!(why.contains("memory"), "{memory_mib} MiB: {why}");
    }
}

#[test]
fn run_refuses_a_machine_that_differs_from_the_request() {
    let end = end_on(|prepared, _| {
        prepared.config.topology.llc_cores = vec![2, 2];
        prepared.config.memory_mib += 32;
    });
    let RunEnd::WrongTopology(differences) = end else { panic!("{end:?}") };
    let text = differences.join("\n");
    for what in ["online CPUs", "NUMA nodes", "last-level caches", "cores", "memory"] {
        assert!(text.contains(&format!("{what}: asked for")), "{what} is missing in\n{text}");
    }
}

#[test]
fn init_failure_names_a_missing_driver() {
    let end = end_on(|prepared, _| {
        add_kernel_word(prepared, "initcall_blacklist=virtio_console_init");
    });
    let why = init_failure(end);
    // By its option where the driver is built in, by its file where it is a module.
    assert!(why.to_lowercase().contains("virtio_console"), "{why}");
}

#[test]
fn engine_failure_names_a_file_that_is_not_a_kernel() {
    let end = end_on(|prepared, dir| {
        prepared.config.kernel = dir.join("kernel");
        fs::write(&prepared.config.kernel, vec![0; 1 << 20]).unwrap();
    });
    let RunEnd::EngineFailed(why) = end else { panic!("{end:?}") };
    assert!(why.contains("kernel"), "{why}");
}

#[test]
fn run_detects_a_corrupt_kernel() {
    let end = end_on(|prepared, dir| {
        let mut bytes = fs::read(&prepared.config.kernel).unwrap();
        let text = 2 << 20;
        bytes[text..text + (8 << 20)].fill(0xcc);
        prepared.config.kernel = dir.join("kernel");
        fs::write(&prepared.config.kernel, bytes).unwrap();
    });
    let why = init_failure(end);
    assert!(why.contains("before its kernel printed anything"), "{why}");
}
