//! Every test of a binary runs under its own name, whatever the names of the other tests are.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, Output};

use ktstr::__private::{TESTS, TestEntry};
use ktstr::prelude::*;

#[path = "identity/long_name.rs"]
mod long_name;

/// Has the first name of the registry.
#[ktstr_test(cores = 1, ignore = "libtest runs it only on request")]
fn a_first_test_that_is_ignored(_: &Ctx) -> Result<AssertResult> {
    bail!("runs only on request")
}

/// The kernel treats the second byte of `à`, C3 A0, as a space on its command line.
#[ktstr_test(cores = 1)]
fn a_voilà_un_test(_: &Ctx) -> Result<AssertResult> {
    has_name("a_voilà_un_test")
}

#[ktstr_test(cores = 1)]
fn prefix(_: &Ctx) -> Result<AssertResult> {
    has_name("prefix")
}

#[ktstr_test(cores = 1)]
fn prefix_of_another(_: &Ctx) -> Result<AssertResult> {
    has_name("prefix_of_another")
}

mod r#try {
    use super::*;

    mod gen_and_more {
        use super::*;

        #[ktstr_test(cores = 1)]
        fn r#gen(_: &Ctx) -> Result<AssertResult> {
            has_name("r#try::gen_and_more::r#gen")
        }
    }

    // Not keywords, so libtest drops the `r#`.
    #[ktstr_test(cores = 1)]
    fn r#union(_: &Ctx) -> Result<AssertResult> {
        has_name("r#try::union")
    }
}

/// Passes if the thread has this name, which libtest gave it.
fn has_name(name: &str) -> Result<AssertResult> {
    let thread = std::thread::current();
    ensure!(thread.name() == Some(name), "{thread:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn body_has_its_own_names(_: &Ctx) -> Result<AssertResult> {
    let name = "body_has_its_own_names";
    let verdict = has_name(name)?;
    let comm = fs::read_to_string("/proc/self/comm")?;
    ensure!(comm.trim_end() == &name[..15], "{comm}");
    let arguments: Vec<_> = std::env::args().collect();
    let names = TESTS.iter().map(TestEntry::test_name);
    let named: Vec<_> = names.filter(|name| arguments.contains(name)).collect();
    ensure!(named == [name], "{arguments:?}");
    let cmdline: Vec<_> = arguments.iter().flat_map(|word| [word.as_bytes(), b"\0"]).collect();
    ensure!(fs::read("/proc/self/cmdline")? == cmdline.concat());
    Ok(verdict)
}

#[ktstr_test(cores = 1)]
fn current_exe_is_the_test_binary(_: &Ctx) -> Result<AssertResult> {
    let program = std::env::current_exe()?;
    ensure!(std::env::args_os().next() == Some(OsString::from(&program)), "{program:?}");
    let output = Command::new(program).args(["--list", "--exact", "prefix"]).output()?;
    let list = String::from_utf8_lossy(&output.stdout);
    ensure!(list.starts_with("prefix: test\n"), "{list}");
    Ok(AssertResult::pass())
}

/// PR_SET_PDEATHSIG of a body must not refer to a process or thread that ends before it.
#[ktstr_test(cores = 1)]
fn parent_of_the_body_is_pid_1(_: &Ctx) -> Result<AssertResult> {
    let parent = rustix::process::getppid();
    ensure!(parent == Some(rustix::process::Pid::INIT), "{parent:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, expect_err, post_vm = log_names_the_test)]
fn overflows_its_stack(_: &Ctx) -> Result<AssertResult> {
    ensure!(use_stack(usize::MAX) == 0);
    Ok(AssertResult::pass())
}

fn log_names_the_test(result: &VmResult) -> Result<()> {
    let log = &result.log;
    ensure!(log.contains("thread 'overflows_its_stack' "), "{log}");
    ensure!(log.contains(" has overflowed its stack"), "{log}");
    let kind = ExitKind::Signaled(libc::SIGABRT);
    ensure!(result.end == RunEnd::BodyExited { kind, last_panic: None }, "{}", result.end);
    Ok(())
}

/// Uses at least `pages` pages of the stack, and returns the sum of their bytes.
#[inline(never)]
fn use_stack(pages: usize) -> usize {
    let page = std::hint::black_box([0_u8; 4096]);
    if pages == 0 {
        return 0;
    }
    use_stack(pages - 1) + page.iter().map(|byte| usize::from(*byte)).sum::<usize>()
}

const MIB_IN_PAGES: usize = 256;

#[ktstr_test(cores = 1, ignore = "needs RUST_MIN_STACK")]
fn uses_much_stack(_: &Ctx) -> Result<AssertResult> {
    use_much_stack()
}

#[ktstr_test(cores = 1, env = ["RUST_MIN_STACK=33554432"])]
fn min_stack_by_key_reaches_the_body_and_its_threads(_: &Ctx) -> Result<AssertResult> {
    use_much_stack()
}

fn use_much_stack() -> Result<AssertResult> {
    ensure!(use_stack(4 * MIB_IN_PAGES) == 0);
    let other = std::thread::spawn(|| use_stack(4 * MIB_IN_PAGES));
    ensure!(other.join().is_ok_and(|sum| sum == 0));
    Ok(AssertResult::pass())
}

fn run(test: &str, min_stack: &str) -> Result<(Output, String)> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", test, "--include-ignored"])
        .env("RUST_MIN_STACK", min_stack)
        .env("NO_COLOR", "1")
        .output()?;
    let text = [&output.stdout[..], &output.stderr].concat();
    Ok((output, String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn min_stack_reaches_the_body_and_its_threads() -> Result<()> {
    let (output, text) = run("uses_much_stack", "33554432")?;
    ensure!(output.status.success(), "{text}");
    Ok(())
}

#[test]
fn min_stack_larger_than_the_guest_is_refused() -> Result<()> {
    let (output, text) = run("uses_much_stack", "1073741824")?;
    ensure!(!output.status.success(), "{text}");
    ensure!(text.contains("RUST_MIN_STACK is 1073741824 bytes, more than half"), "{text}");
    Ok(())
}
