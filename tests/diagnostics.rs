//! What people read of a run stays right where files, names and signals are not as usual.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output};

use ktstr::prelude::*;

/// The variable that has a copy of this binary replace its own file.
const REPLACE: &str = "KTSTR_TEST_REPLACE";

#[ktstr_test(host_only, ignore = "only for a copy of this program")]
fn copy_1_is_replaced_by_another_program(_: &Ctx) -> Result<AssertResult> {
    let copy = std::env::current_exe()?;
    ensure!(std::env::var_os(REPLACE).is_some(), "{} is not a copy", copy.display());
    let other = copy.with_extension("other");
    fs::write(&other, "not even a program")?;
    fs::rename(other, copy)?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, ignore = "only for a copy of this program")]
fn copy_2_boots(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(host_only, ignore = "fails on purpose")]
fn copy_3_fails(_: &Ctx) -> Result<AssertResult> {
    bail!("on purpose")
}

#[ktstr_test(cores = 1, ignore = "only for the tests below")]
fn boots(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(host_only, ignore = "fails on purpose")]
fn z_a_name_that_no_file_system_takes_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on(
    _: &Ctx,
) -> Result<AssertResult> {
    bail!("on purpose")
}

const LONG: &str = "z_a_name_that_no_file_system_takes_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on_and_it_goes_on";

#[ktstr_test(cores = 1, post_vm = log_has_the_sequences, ignore = "writes to the terminal")]
fn writes_sequences(_: &Ctx) -> Result<AssertResult> {
    println!("a screen \x1b[2J is cleared, \x1b[31mred\x1b[0m");
    let mut verdict = AssertResult::pass();
    verdict.note("a title \x1b]0;evil\x07");
    Ok(verdict)
}

fn log_has_the_sequences(result: &VmResult) -> Result<()> {
    ensure!(result.log.contains("screen \x1b[2J is cleared, \x1b[31mred"), "{:?}", result.log);
    Ok(())
}

fn run(program: &Path, arguments: &[&str]) -> Result<(Output, String)> {
    let mut command = Command::new(program);
    command.args(arguments).args(["--include-ignored", "--test-threads=1"]);
    let output = command.env("NO_COLOR", "1").env(REPLACE, "1").output()?;
    let text = [&output.stdout[..], &output.stderr].concat();
    Ok((output, String::from_utf8_lossy(&text).into_owned()))
}

/// The value of a line of the report.
fn line_of<'a>(report: &'a str, name: &str) -> Result<&'a str> {
    let line = report.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in\n{report}"))?.trim())
}

#[test]
fn program_boots_after_its_file_was_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy");
    fs::copy(std::env::current_exe()?, &copy)?;
    let (output, text) = run(&copy, &["copy_"])?;
    ensure!(!output.status.success() && text.contains("2 passed; 1 failed"), "{text}");
    // The name leads to another program now, of which the reader has to know.
    ensure!(line_of(&text, "rerun")?.contains(copy.to_str().context("UTF-8")?), "{text}");
    ensure!(text.contains("the program has been rebuilt since this run began"), "{text}");
    Ok(())
}

#[test]
fn run_passes_where_sigchld_is_ignored() -> Result<()> {
    let script = "trap '' CHLD; exec \"$0\" --exact boots --include-ignored";
    let output = Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe()?)
        .env("KTSTR_ENGINE", "qemu")
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn artifacts_and_rerun_are_right_for_a_name_of_300_bytes() -> Result<()> {
    let (output, text) = run(&std::env::current_exe()?, &["--exact", LONG])?;
    ensure!(!output.status.success(), "{text}");
    let folder = Path::new(line_of(&text, "artefacts")?);
    ensure!(fs::read_to_string(folder.join("run.json"))?.contains(LONG), "{text}");
    let rerun = line_of(&text, "rerun")?;
    let output = Command::new("sh").args(["-c", rerun]).output()?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{rerun}: {output:?}");
    Ok(())
}

#[test]
fn artifacts_and_rerun_are_right_for_a_path_that_is_not_utf8() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path().join(OsStr::from_bytes(b"target \xff"));
    fs::create_dir(&folder)?;
    fs::File::create(folder.join("CACHEDIR.TAG"))?.write_all(b"")?;
    let copy = folder.join("copy");
    fs::copy(std::env::current_exe()?, &copy)?;
    // As Cargo does, from a directory that has the target directory in it: libtest refuses a name
    // of its own that is not UTF-8.
    let mut command = Command::new("./copy");
    command.args(["--exact", "copy_3_fails", "--include-ignored"]).current_dir(&folder);
    let text = String::from_utf8(command.env("NO_COLOR", "1").output()?.stdout)?;
    ensure!(!text.contains("incomplete:"), "{text}");
    let runs = fs::read_dir(folder.join("ktstr"))?.collect::<Result<Vec<_>, _>>()?;
    let [run] = &runs[..] else { bail!("{runs:?}") };
    ensure!(run.path().join("copy/copy_3_fails/run.json").exists(), "{text}");
    let rerun = line_of(&text, "rerun")?;
    let output = Command::new("sh").args(["-c", rerun]).output()?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{rerun}: {output:?}");
    Ok(())
}

#[test]
fn sequences_of_a_body_do_not_reach_the_terminal() -> Result<()> {
    let (output, text) =
        run(&std::env::current_exe()?, &["--exact", "writes_sequences", "--nocapture"])?;
    ensure!(output.status.success() && !text.contains('\x1b'), "{text:?}");
    ensure!(text.contains(r"a screen \u{1b}[2J is cleared, red"), "{text}");
    ensure!(text.contains(r"a title \u{1b}]0;evil\u{7}"), "{text}");
    Ok(())
}

/// Tools read `test NAME ... ok`, and what goes before the result must not be on the same line.
#[test]
fn nothing_is_printed_before_the_result_of_a_passed_test() -> Result<()> {
    // Fills the cache: a run that waits for it or fetches something says so.
    let (output, text) = run(&std::env::current_exe()?, &["--exact", "boots"])?;
    ensure!(output.status.success(), "{text}");
    let output = Command::new("sh")
        .args(["-c", "exec \"$0\" --exact boots --include-ignored --test-threads=1 2>&1"])
        .arg(std::env::current_exe()?)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.lines().any(|line| line == "test boots ... ok"), "{text}");
    Ok(())
}
