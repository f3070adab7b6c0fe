//! Defective machines, and how the host reports them. Each test boots a VM.

mod fork;
mod freeze;
mod template;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ktstr::prelude::*;
use ktstr_core::machine::Llcs;
use ktstr_core::record::{Hook, HookError, RunRecord};
use ktstr_core::registry::{self, TestEntry};
use ktstr_core::result::{ClockSpan, GuestExit, RunPhase};
use ktstr_core::wire::{Request, RunRequest};

use super::initramfs::GuestFiles;
use super::session::RunOutcome;
use super::{MachineRequest, Prepared, Program, RunLimits};

#[ktstr_test(cores = 1)]
fn subject(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[test]
fn hook_errors_depend_on_how_the_run_ended() {
    let entry = TestEntry {
        post_vm: Some(|_| bail!("seen")),
        post_vm_unconditional: Some(|record| panic!("{}", record.test)),
        name: "test",
        ..TestEntry::DEFAULT
    };
    let error =
        |hook, panicked, message: &str| HookError { hook, panicked, message: message.to_owned() };
    let always = error(Hook::PostVmUnconditional, true, "test");
    let both = &[error(Hook::PostVm, false, "seen"), always.clone()][..];
    let always = &[always][..];
    let exit = GuestExit::Reset;
    for (end, wanted) in [
        (RunEnd::Verdict(AssertResult::pass()), both),
        (RunEnd::Verdict(AssertResult::fail_msg("why")), both),
        (RunEnd::GuestGone { exit, phase: RunPhase::Body, unread_bytes: 0 }, both),
        (RunEnd::Verdict(AssertResult::skip("why")), always),
        (RunEnd::EngineFailed("why".to_owned()), always),
        (RunEnd::WrongTopology(vec!["why".to_owned()]), always),
    ] {
        let record = RunRecord { end, ..super::record::begin(&entry) };
        assert_eq!(super::hook_errors(&entry, &record), wanted, "{}", record.end);
        assert_eq!(super::hook_errors(&TestEntry::DEFAULT, &record), []);
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
    let request = MachineRequest {
        program,
        spec: &entry.machine,
        env: &[],
        contents: GuestFiles::default(),
        nests: false,
        forks: false,
    };
    Prepared::new(&request).unwrap()
}

/// Runs `subject` on a machine that `spoil` has changed after it was prepared.
fn end_on(spoil: impl FnOnce(&mut Prepared, &Path)) -> RunEnd {
    end_of(concat!(module_path!(), "::subject"), spoil)
}

/// Runs the test at this path on a machine that `spoil` has changed after it was prepared.
fn end_of(path: &str, spoil: impl FnOnce(&mut Prepared, &Path)) -> RunEnd {
    let mut prepared = prepare(path);
    let dir = tempfile::tempdir().unwrap();
    spoil(&mut prepared, dir.path());
    run(&prepared, path)
}

/// Runs the test at this path on the machine.
fn run(prepared: &Prepared, path: &str) -> RunEnd {
    outcome(prepared, path).end
}

fn outcome(prepared: &Prepared, path: &str) -> RunOutcome {
    outcome_with(prepared, path, Vec::new())
}

/// Runs the test at this path on the machine, with these variables.
fn outcome_with(prepared: &Prepared, path: &str, env: Vec<(OsString, OsString)>) -> RunOutcome {
    let test = test_name(path);
    let entry = registry::find(&test).expect("the attribute has registered it");
    let limits = RunLimits { duration: Some(entry.duration), watchdog: Duration::from_secs(5) };
    let request = RunRequest { test, machine: prepared.spec.clone(), env, restored: None };
    prepared.run(Request::Run(request), limits, &mut |_| None).unwrap()
}

fn init_failure(end: RunEnd) -> String {
    assert!(end.is_infrastructure(), "{end:?}");
    let RunEnd::InitFailed(why) = end else { panic!("{end:?}") };
    why.to_string()
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
    assert!(init_failure(end).contains("truncated"));
}

#[test]
fn run_detects_an_initramfs_cut_in_half() {
    let end = end_on(|prepared, dir| {
        change_initramfs(prepared, dir, |bytes| bytes.truncate(bytes.len() / 2));
    });
    init_failure(end);
}

/// With this variable, the loader only lists the libraries of the program.
#[test]
fn init_failure_has_the_end_of_a_program_that_starts_no_body() {
    let path = concat!(module_path!(), "::subject");
    let env = vec![("LD_TRACE_LOADED_OBJECTS".into(), "1".into())];
    let why = init_failure(outcome_with(&prepare(path), path, env).end);
    assert!(why.contains("ended before the body began"), "{why}");
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
    let why = init_failure(run(&prepared, path));
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
        prepared.config.topology.llcs = Llcs::even(2, 2);
        prepared.config.memory_mib += 32;
    });
    let RunEnd::WrongTopology(differences) = end else { panic!("{end:?}") };
    let text = differences.join("\n");
    for what in ["online CPUs", "NUMA nodes", "last-level caches", "cores", "memory"] {
        assert!(text.contains(&format!("{what}: requested")), "{what} is missing in\n{text}");
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
