//! The command line as people call it. What boots a machine fetches kernel and QEMU if need be.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn ktstr(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cargo-ktstr"));
    command.arg("ktstr").args(args).stdin(Stdio::null());
    for name in ["KTSTR_KERNEL", "KTSTR_ENGINE", "CARGO_TERM_COLOR"] {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn path_prints_the_path_alone() {
    let (status, stdout, stderr) = output(&mut ktstr(&["kernel", "path"]));
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(Path::new(stdout.trim_end()).is_file(), "{stdout}");
}

#[test]
fn a_wrong_spec_lists_the_known_ones() {
    for args in [["kernel", "path", "nonsense"], ["test", "--kernel", "nonsense"]] {
        // A Cargo that would say so if it were run.
        let (status, stdout, stderr) = output(ktstr(&args).env("CARGO", "/bin/echo"));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{args:?}");
        for known in ["debian:bookworm", "debian:trixie", "debian:sid", "host"] {
            assert!(stderr.contains(known), "{known} is not in: {stderr}");
        }
    }
}

#[test]
fn a_kernel_that_is_not_there_is_told_before_cargo_runs() {
    let mut command = ktstr(&["test", "--kernel", "/nonexistent/bzImage"]);
    let (status, stdout, stderr) = output(command.env("CARGO", "/bin/echo"));
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("error: no kernel `/nonexistent/bzImage`: "), "{stderr}");
}

#[test]
fn cargo_gets_the_arguments_the_variables_and_the_last_word() {
    let dir = tempfile::tempdir().unwrap();
    let cargo = dir.path().join("cargo");
    // Written by another process: one that a parallel test forks may hold a file of ours open, and
    // such a file cannot be run.
    let script = r#"printf '#!/bin/sh\necho "$*; $KTSTR_KERNEL; $KTSTR_ENGINE"\nexit 9\n' > "$0"
                    chmod +x "$0""#;
    assert!(Command::new("sh").args(["-c", script]).arg(&cargo).status().unwrap().success());
    for (args, said) in [
        (&["test", "-p", "x", "--", "-q"][..], "test -p x -- -q; ; \n"),
        (&["test", "--nextest", "--engine", "qemu"], "nextest run; ; qemu\n"),
        (&["test", "--kernel", "debian:trixie", "-v"], "test -v; debian:trixie; \n"),
    ] {
        let (status, stdout, stderr) = output(ktstr(args).env("CARGO", &cargo));
        assert_eq!((status, stdout.as_str()), (Some(9), said), "{stderr}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_makes_the_doctor_fail() {
    let (status, stdout, _) = output(ktstr(&["doctor"]).env("KTSTR_CACHE_DIR", "/proc/ktstr"));
    assert_eq!(status, Some(1), "{stdout}");
    assert!(stdout.contains("\nproblem  cache "), "{stdout}");
    assert!(stdout.contains("run: export KTSTR_CACHE_DIR="), "{stdout}");
}

#[test]
fn a_host_that_runs_tests_satisfies_the_doctor() {
    let (status, stdout, stderr) = output(&mut ktstr(&["doctor"]));
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    assert!(stdout.ends_with("tests can run here\n"), "{stdout}");
}

#[test]
fn a_command_gives_its_status() {
    let (status, stdout, stderr) = output(&mut ktstr(&["shell", "--exec", "exit 7"]));
    assert_eq!((status, stdout.as_str()), (Some(7), ""), "{stderr}");
}

#[test]
fn a_command_has_the_machine_asked_for_and_both_streams() {
    let line = "nproc; echo aside >&2; cat";
    let mut command = ktstr(&["shell", "--llcs", "2", "--cores", "1", "--exec", line]);
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    std::fs::write(&input, "from the host\n").unwrap();
    command.stdin(std::fs::File::open(input).unwrap());
    let (status, stdout, stderr) = output(&mut command);
    assert_eq!((status, stdout.as_str()), (Some(0), "2\nfrom the host\n"), "{stderr}");
    assert!(stderr.ends_with("aside\n"), "{stderr}");
}

#[test]
fn a_guest_that_dies_shows_its_last_words() {
    let (status, stdout, stderr) =
        output(&mut ktstr(&["shell", "--exec", "echo c > /proc/sysrq-trigger; sleep 60"]));
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("error: the guest's kernel panicked: sysrq"), "{stderr}");
    assert!(stderr.contains("  console   the last 12 of "), "{stderr}");
}

#[test]
fn the_demo_passes_and_shows_what_it_saw() {
    let (status, stdout, stderr) = output(&mut ktstr(&["demo"]));
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("PASS demo::two_workers_land_in_their_cgroup"), "{stdout}");
    assert!(stdout.contains("cg_target holds 2 processes"), "{stdout}");
}
