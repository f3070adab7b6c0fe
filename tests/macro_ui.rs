//! `#[ktstr_test]` from the outside: its compile errors, and the entries that it registers.

// The documented signature, with `&Ctx` instead of `&Ctx<'_>`, must compile if these lints are errors.
#![deny(rust_2018_idioms)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ktstr::__private::{ExpectErr, Llcs, MachineSpec, TESTS, TestEntry, Topology};
use ktstr::prelude::*;

#[test]
fn ktstr_test_diagnostics_match_snapshots() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    cases.pass("tests/ui/pass/all_keys.rs");
}

/// Errors that depend on the target and on other macros: trybuild compiles programs without tests.
#[test]
fn ktstr_test_rejects_tests_that_would_never_run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = tempfile::tempdir()?;
    let files = [
        "Cargo.toml",
        "src/lib.rs",
        "tests/hidden.rs",
        "tests/macro_on_top.rs",
        "tests/no_harness.rs",
        "on-top/Cargo.toml",
        "on-top/src/lib.rs",
    ];
    for file in files {
        let text = fs::read_to_string(root.join("tests/rejected").join(file))?;
        let place = copy.path().join(file);
        fs::create_dir_all(place.parent().context("a file has a directory")?)?;
        fs::write(place, text.replace("\"../..\"", &format!("{root:?}")))?;
    }
    // The versions of this build, so that nothing is fetched.
    fs::copy(root.join("Cargo.lock"), copy.path().join("Cargo.lock"))?;
    let output = Command::new(env!("CARGO"))
        .args(["check", "--tests", "--keep-going", "--offline", "--color=never"])
        .current_dir(copy.path())
        .env("CARGO_TARGET_DIR", root.join("target/tests/rejected"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let mut errors = Vec::new();
    for (line, next) in text.lines().zip(text.lines().skip(1)) {
        // Errors of cargo itself have no location.
        if line.starts_with("error")
            && let Some(place) = next.trim().strip_prefix("--> ")
        {
            errors.push(format!("{place}: {}", line.split_once(": ").context("no message")?.1));
        }
    }
    errors.sort();
    let hidden = "this test is never run: libtest cannot see it";
    let on_top = "makes the function a test, whose only parameter is the context; to run several \
                  cases, loop over them in the body";
    let wanted = [
        format!("tests/hidden.rs:12:8: {hidden}"),
        format!("tests/hidden.rs:20:8: {hidden}"),
        format!("tests/macro_on_top.rs:11:1: remove `#[on_top::test]`: `#[ktstr_test]` {on_top}"),
        format!(
            "tests/macro_on_top.rs:5:1: remove `#[on_top::cases(1, 2)]`: `#[ktstr_test]` {on_top}"
        ),
        "tests/no_harness.rs:6:4: this test is never run: its target has `harness = false`"
            .to_owned(),
    ];
    ensure!(errors == wanted, "{errors:#?}\n{text}");
    Ok(())
}

#[ktstr_test(
    numa_nodes = 2,
    llcs = 4,
    cores = 1,
    threads = 2,
    memory_mib = 512,
    duration_s = 1,
    workers_per_cgroup = 3,
    watchdog_timeout_s = 30,
    kernel = "debian:trixie",
    workload_root_cgroup = "/ui",
    expect_err,
    allow_inconclusive,
    host_only = false,
    ignore = "only its entry is examined",
    kaslr = false,
    mitigations = true,
    kargs = "isolcpus=1",
    auto_repro = false,
    post_vm = accept,
    post_vm_unconditional = accept,
    env = ["SEED=7", "LIMIT"]
)]
fn all_keys(_: &Ctx) -> Result<AssertResult> {
    Err(std::io::Error::other("as expected").into())
}

fn accept(_: &VmResult) -> Result<()> {
    Ok(())
}

#[test]
fn entry_has_every_key() {
    let entry = TESTS.iter().find(|entry| entry.name == "all_keys").expect("`all_keys` is linked");
    let topology = Topology { numa_nodes: 2, llcs: Llcs::even(4, 1), threads_per_core: 2 };
    assert_eq!(entry.module_path, module_path!());
    let machine = MachineSpec {
        topology,
        memory_mib: 512,
        kernel: Some("debian:trixie".into()),
        kaslr: false,
        mitigations: true,
        kargs: "isolcpus=1".into(),
    };
    assert_eq!(entry.machine, machine);
    assert_eq!(entry.duration, Duration::from_secs(1));
    assert_eq!(entry.watchdog_timeout, Duration::from_secs(30));
    assert_eq!(entry.workload_root_cgroup, "/ui");
    assert_eq!(entry.expect_err, ExpectErr::Any);
    assert_eq!(entry.assert, Assert::DEFAULT);
    assert!(!entry.host_only && !entry.auto_repro);
    assert!(entry.post_vm.is_some() && entry.post_vm_unconditional.is_some());
    assert!(entry.workers_per_cgroup == 3 && entry.allow_inconclusive);
    assert_eq!(entry.env, ["SEED=7", "LIMIT"]);
}

#[ktstr_test(cores = [4, 2], ignore = "only its entry is examined")]
fn list_of_cores(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[test]
fn entry_has_a_list_of_cores() {
    let mut entries = TESTS.iter().filter(|entry| entry.name == "list_of_cores");
    let topology = Topology { llcs: Llcs::of(&[4, 2]), ..Topology::DEFAULT };
    assert!(entries.next().is_some_and(|entry| entry.machine.topology == topology));
}

#[ktstr_test(
    expect_err = "max_gap_ms",
    not_stuck = false,
    isolation = false,
    no_oom_kill = false,
    judge_emulated_time,
    max_gap_ms = 50,
    max_spread_pct = 5.5,
    max_throughput_cv = 0.2,
    min_iteration_rate = 1000,
    min_work_rate = 0.5,
    max_migration_ratio = 0.1,
    max_p99_wake_latency_ns = 70_000,
    max_wake_latency_cv = 2,
    min_page_locality = 0.9,
    max_throttled_pct = 60,
    max_quota_error_pct = 10,
    max_weight_error_pct = 15,
    max_cpu_pressure_pct = 80,
    max_memory_pressure_pct = 1,
    max_io_pressure_pct = 2,
    ignore = "only its entry is examined"
)]
fn all_checks(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[test]
fn entry_has_every_check() {
    let mut entries = TESTS.iter().filter(|entry| entry.name == "all_checks");
    let entry = entries.next().expect("`all_checks` is linked");
    assert_eq!(entry.expect_err, ExpectErr::Containing("max_gap_ms"));
    let wanted = Assert {
        not_stuck: false,
        isolation: false,
        no_oom_kill: false,
        judge_emulated_time: true,
        max_gap_ms: Some(50),
        max_spread_pct: Some(5.5),
        max_throughput_cv: Some(0.2),
        min_iteration_rate: Some(1000.0),
        min_work_rate: Some(0.5),
        max_migration_ratio: Some(0.1),
        max_p99_wake_latency_ns: Some(70_000),
        max_wake_latency_cv: Some(2.0),
        min_page_locality: Some(0.9),
        max_throttled_pct: Some(60.0),
        max_quota_error_pct: Some(10.0),
        max_weight_error_pct: Some(15.0),
        max_cpu_pressure_pct: Some(80.0),
        max_memory_pressure_pct: Some(1.0),
        max_io_pressure_pct: Some(2.0),
    };
    assert_eq!(entry.assert, wanted);
}

/// The expansion does not depend on names that are in scope.
#[no_implicit_prelude]
mod without_the_implicit_prelude {
    use ::ktstr::prelude::{AssertResult, Ctx, Result, VmResult, ktstr_test};
    use ::std::result::Result::Ok;

    #[ktstr_test(
        crate = ::ktstr,
        max_gap_ms = 50,
        expect_err = "x",
        env = ["A=1"],
        post_vm = accept,
        ignore = "only has to compile"
    )]
    fn compiles(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }

    fn accept(_: &VmResult) -> Result<()> {
        Ok(())
    }
}

/// Tests may have names that the expansion uses, or needs to find elsewhere.
mod names_of_the_expansion {
    use ktstr::prelude::*;

    macro_rules! tests {
        ($($name:ident)*) => {$(
            #[ktstr_test(ignore = "only has to compile")]
            fn $name(_: &Ctx) -> Result<AssertResult> {
                std::fs::metadata("/")?;
                Ok(AssertResult::pass())
            }
        )*};
    }

    tests!(harness here name path std core ktstr linkme run ctx u8 r#try);
}

/// The attribute checks and documents the keys with these numbers.
#[test]
fn entry_defaults_match_the_attribute() {
    let entry = TestEntry::DEFAULT;
    let topology = Topology { numa_nodes: 1, llcs: Llcs::even(1, 2), threads_per_core: 1 };
    let MachineSpec { memory_mib, kernel, kaslr, mitigations, kargs, .. } = &entry.machine;
    assert_eq!((entry.machine.topology, *memory_mib), (topology, 256));
    assert!(kernel.is_none() && *kaslr && !mitigations && kargs.is_empty());
    assert_eq!(entry.duration, Duration::from_secs(5));
    assert_eq!(entry.watchdog_timeout, Duration::from_secs(20));
    assert_eq!(entry.workload_root_cgroup, "/ktstr");
    assert_eq!((entry.expect_err, entry.assert), (ExpectErr::No, Assert::DEFAULT));
    assert!(entry.assert.not_stuck && entry.assert.isolation && entry.assert.no_oom_kill);
    assert!(!entry.assert.judge_emulated_time);
    assert!(!entry.host_only && entry.auto_repro);
    assert!(entry.post_vm.is_none() && entry.post_vm_unconditional.is_none());
    assert!(
        entry.workers_per_cgroup == 2 && !entry.allow_inconclusive && entry.payloads.is_empty()
    );
}
