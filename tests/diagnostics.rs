//! Reports and records of runs with unusual files, names, signals and parent processes.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ktstr::prelude::*;
use ktstr::provision::{Cache, kernel};
use ktstr::record::{ImageId, RunRecord};

/// The environment variable that makes a copy of this binary replace its own file.
const REPLACE: &str = "KTSTR_TEST_REPLACE";

#[ktstr_test(host_only, ignore = "only for a copy of this program")]
fn copy_1_is_replaced_by_another_program(_: &Ctx) -> Result<AssertResult> {
    let copy = std::env::current_exe()?;
    ensure!(std::env::var_os(REPLACE).is_some(), "{} is not a copy", copy.display());
    let other = copy.with_extension("other");
    fs::write(&other, "not a program")?;
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

#[ktstr_test(host_only, ignore = "runs until it is killed")]
fn waits_to_be_killed(_: &Ctx) -> Result<AssertResult> {
    println!("the body runs");
    loop {
        std::thread::park();
    }
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

/// Returns the value of a line of the report.
fn line_of<'a>(report: &'a str, name: &str) -> Result<&'a str> {
    let line = report.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in\n{report}"))?.trim())
}

#[test]
fn program_boots_after_its_file_was_replaced() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("copy");
    fs::copy(std::env::current_exe()?, &copy)?;
    let (output, text) = run(&copy, &["copy_"])?;
    ensure!(!output.status.success() && text.contains("2 passed; 1 failed"), "{text}");
    // The path is that of another program now.
    ensure!(line_of(&text, "rerun")?.contains(copy.to_str().context("UTF-8")?), "{text}");
    ensure!(text.contains("the program has been rebuilt since this run began"), "{text}");
    Ok(())
}

#[test]
fn run_passes_if_its_parent_ignores_sigchld() -> Result<()> {
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
fn artifacts_and_rerun_support_a_name_of_300_bytes() -> Result<()> {
    let (output, text) = run(&std::env::current_exe()?, &["--exact", LONG])?;
    ensure!(!output.status.success(), "{text}");
    let directory = Path::new(line_of(&text, "artifacts")?);
    let record = read_record(&directory.join("run.json"))?;
    ensure!(record.test == LONG && record.passed == Some(false), "{text}");
    let rerun = line_of(&text, "rerun")?;
    let output = Command::new("sh").args(["-c", rerun]).output()?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{rerun}: {output:?}");
    Ok(())
}

#[test]
fn artifacts_and_rerun_support_a_path_that_is_not_utf8() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let target = directory.path().join(OsStr::from_bytes(b"target \xff"));
    fs::create_dir(&target)?;
    copy_into_target(&target)?;
    // As Cargo does, from a directory that has the target directory in it: libtest refuses a name
    // of its own that is not UTF-8.
    let mut command = Command::new("./copy");
    command.args(["--exact", "copy_3_fails", "--include-ignored"]).current_dir(&target);
    let text = String::from_utf8(command.env("NO_COLOR", "1").output()?.stdout)?;
    ensure!(!text.contains("failed to write"), "{text}");
    read_record(&the_run(&target)?.join("copy/copy_3_fails/run.json"))?;
    let rerun = line_of(&text, "rerun")?;
    let output = Command::new("sh").args(["-c", rerun]).output()?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{rerun}: {output:?}");
    Ok(())
}

#[test]
fn output_of_a_body_is_shown_without_its_escape_sequences() -> Result<()> {
    let (output, text) =
        run(&std::env::current_exe()?, &["--exact", "writes_sequences", "--nocapture"])?;
    ensure!(output.status.success() && !text.contains('\x1b'), "{text:?}");
    ensure!(text.contains(r"a screen \u{1b}[2J is cleared, red"), "{text}");
    ensure!(text.contains(r"a title \u{1b}]0;evil\u{7}"), "{text}");
    Ok(())
}

/// Reads the record of a run.
fn read_record(path: &Path) -> Result<RunRecord> {
    let json = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(serde_json::from_slice(&json)?)
}

/// Copies this binary into a directory, which becomes its target directory. Returns its path.
fn copy_into_target(target: &Path) -> Result<PathBuf> {
    fs::write(target.join("CACHEDIR.TAG"), "")?;
    let copy = target.join("copy");
    fs::copy(std::env::current_exe()?, &copy)?;
    Ok(copy)
}

/// Returns the directory of the only run in a target directory.
fn the_run(target: &Path) -> Result<PathBuf> {
    let runs = fs::read_dir(target.join("ktstr"))?.collect::<Result<Vec<_>, _>>()?;
    let [run] = &runs[..] else { bail!("not one run: {runs:?}") };
    Ok(run.path())
}

#[test]
fn record_of_a_killed_run_is_running() -> Result<()> {
    let target = tempfile::tempdir()?;
    let mut command = Command::new(copy_into_target(target.path())?);
    command.args(["--exact", "waits_to_be_killed", "--include-ignored", "--nocapture"]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("a pipe")?;
    let mut lines = BufReader::new(output).lines();
    while lines.next().context("the body did not run")?? != "the body runs" {}
    child.kill()?;
    child.wait()?;
    let record = read_record(&the_run(target.path())?.join("copy/waits_to_be_killed/run.json"))?;
    ensure!((record.end, record.passed) == (RunEnd::Running, None));
    ensure!(record.test == "waits_to_be_killed" && record.schema == RunRecord::SCHEMA);
    ensure!(!record.host.kernel.is_empty() && record.requested.is_none(), "{:?}", record.host);
    Ok(())
}

#[test]
fn record_of_a_passed_run_is_kept_without_its_console() -> Result<()> {
    let target = tempfile::tempdir()?;
    let copy = copy_into_target(target.path())?;
    let (output, text) = run(&copy, &["--exact", "boots"])?;
    ensure!(output.status.success(), "{text}");
    let directory = the_run(target.path())?.join("copy/boots");
    let record = read_record(&directory.join("run.json"))?;
    ensure!(record.passed == Some(true), "{record:?}");
    let machine = record.machine.context("the machine is known")?;
    ensure!(machine.cmdline.contains("panic=-1") && !machine.kernel.version.is_empty());
    ensure!(record.timings.body.is_some() && record.artifacts.is_some_and(|a| a.files.is_empty()));
    ensure!(fs::read_dir(&directory)?.count() == 1, "{} has other files", directory.display());
    Ok(())
}

#[test]
fn record_identifies_a_kernel_given_by_path_by_its_hash() -> Result<()> {
    let target = tempfile::tempdir()?;
    let given = kernel::resolve(&Cache::from_env()?, Some("debian:trixie"))?.image;
    let mut command = Command::new(copy_into_target(target.path())?);
    command.args(["--exact", "boots", "--include-ignored"]).env("KTSTR_KERNEL", &given);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let record = read_record(&the_run(target.path())?.join("copy/boots/run.json"))?;
    let machine = record.machine.context("the machine is known")?;
    let ImageId::File { path, sha256 } = machine.kernel.image else { bail!("{machine:?}") };
    ensure!((path, sha256.len()) == (given.clone(), 64), "{sha256} of {}", given.display());
    ensure!(machine.spec.kernel.as_deref() == given.to_str(), "{:?}", machine.spec);
    Ok(())
}

#[test]
fn run_id_is_the_same_in_all_processes_of_one_cargo() -> Result<()> {
    let target = tempfile::tempdir()?;
    copy_into_target(target.path())?;
    // The name of the parent's program is what makes it a cargo.
    let cargo = target.path().join("cargo");
    fs::copy("/bin/sh", &cargo)?;
    let script = "./copy --exact copy_3_fails --ignored; cp copy other; \
                  ./other --exact copy_3_fails --ignored; true";
    let mut command = Command::new(&cargo);
    let output = command.args(["-c", script]).current_dir(target.path()).output()?;
    let run = the_run(target.path())?;
    let records =
        ["copy", "other"].map(|name| read_record(&run.join(name).join("copy_3_fails/run.json")));
    let [first, second] = records.map(|record| record.map(|record| record.run));
    let (first, second) = (first?, second?);
    ensure!(first == second && run.ends_with(&first), "{first} {second}: {output:?}");
    Ok(())
}

/// Tools parse `test NAME ... ok`: nothing may be printed before the result on its line.
#[test]
fn report_of_a_passed_test_prints_nothing_before_its_result() -> Result<()> {
    // Fills the cache: a run that waits for it or fetches something prints a line.
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
