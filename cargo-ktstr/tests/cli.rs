//! The command line. Tests that boot a machine fetch the kernel and QEMU if they are not cached.

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
fn kernel_path_prints_only_the_path() {
    let (status, stdout, stderr) = output(&mut ktstr(&["kernel", "path"]));
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(Path::new(stdout.trim_end()).is_file(), "{stdout}");
}

#[test]
fn unknown_spec_lists_the_known_ones() {
    for args in [["kernel", "path", "nonsense"], ["test", "--kernel", "nonsense"]] {
        // This Cargo would print its arguments if it were run.
        let (status, stdout, stderr) = output(ktstr(&args).env("CARGO", "/bin/echo"));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{args:?}");
        for known in ["debian:bookworm", "debian:trixie", "debian:sid", "host"] {
            assert!(stderr.contains(known), "{known} is not in: {stderr}");
        }
    }
}

#[test]
fn test_refuses_a_missing_kernel_before_cargo_runs() {
    let mut command = ktstr(&["test", "--kernel", "/nonexistent/bzImage"]);
    let (status, stdout, stderr) = output(command.env("CARGO", "/bin/echo"));
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("error: cannot find kernel `/nonexistent/bzImage`: "), "{stderr}");
}

#[test]
fn test_passes_arguments_and_variables_and_returns_the_status_of_cargo() {
    let dir = tempfile::tempdir().unwrap();
    let cargo = dir.path().join("cargo");
    // Written by another process: a child of a parallel test may still have a file of this process
    // open for writing, and such a file cannot be executed.
    let script = r#"printf '#!/bin/sh\necho "$*; $KTSTR_KERNEL; $KTSTR_ENGINE"\nexit 9\n' > "$0"
                    chmod +x "$0""#;
    assert!(Command::new("sh").args(["-c", script]).arg(&cargo).status().unwrap().success());
    for (args, printed) in [
        (&["test", "-p", "x", "--", "-q"][..], "test -p x -- -q; ; \n"),
        (&["test", "--nextest", "--engine", "qemu"], "nextest run; ; qemu\n"),
        (&["test", "--kernel", "debian:trixie", "-v"], "test -v; debian:trixie; \n"),
    ] {
        let (status, stdout, stderr) = output(ktstr(args).env("CARGO", &cargo));
        assert_eq!((status, stdout.as_str()), (Some(9), printed), "{stderr}");
    }
}

#[test]
fn doctor_fails_if_the_cache_cannot_be_written() {
    let (status, stdout, _) = output(ktstr(&["doctor"]).env("KTSTR_CACHE_DIR", "/proc/ktstr"));
    assert_eq!(status, Some(1), "{stdout}");
    assert!(stdout.contains("\nproblem  cache "), "{stdout}");
    assert!(stdout.contains("run: export KTSTR_CACHE_DIR="), "{stdout}");
}

#[test]
fn doctor_passes_on_a_host_that_runs_tests() {
    let (status, stdout, stderr) = output(&mut ktstr(&["doctor"]));
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    assert!(stdout.ends_with("tests can run on this machine\n"), "{stdout}");
}

#[test]
fn shell_returns_the_status_of_its_command() {
    let (status, stdout, stderr) = output(&mut ktstr(&["shell", "--exec", "exit 7"]));
    assert_eq!((status, stdout.as_str()), (Some(7), ""), "{stderr}");
}

#[test]
fn shell_has_the_requested_machine_and_both_streams() {
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
fn shell_shows_the_console_of_a_guest_that_panics() {
    let (status, stdout, stderr) =
        output(&mut ktstr(&["shell", "--exec", "echo c > /proc/sysrq-trigger; sleep 60"]));
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("error: guest kernel panicked: sysrq"), "{stderr}");
    assert!(stderr.contains("  console   the last 12 of "), "{stderr}");
}

#[test]
fn demo_passes_and_shows_its_capture() {
    let (status, stdout, stderr) = output(&mut ktstr(&["demo"]));
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("PASS demo::two_workers_land_in_their_cgroup"), "{stdout}");
    assert!(stdout.contains("cg_target has 2 processes"), "{stdout}");
}
