//! Programs of Debian packages in the guest, which are downloaded if the host does not have them.

use std::time::Duration;

use ktstr::prelude::*;

const HACKBENCH: Payload = Payload::new("hackbench")
    .package("rt-tests")
    .args(&["-g", "1", "-f", "2", "-l", "20"])
    .metrics(&[Metric::regex("time_s", r"Time: ([0-9.]+)").time_based()])
    .checks(&[Check::Exists("time_s"), Check::Max("time_s", 30.0)]);

const CYCLICTEST: Payload = Payload::new("cyclictest")
    .package("rt-tests")
    .args(&["-q", "-l", "20", "-i", "5000", "--json=/proc/self/fd/1"])
    .metrics(&[
        Metric::json("cycles", "/thread/0/cycles"),
        Metric::json("max_us", "/thread/0/max").time_based(),
    ])
    .checks(&[Check::Range("cycles", 20.0, 20.0), Check::Max("max_us", 1e6), Check::ExitCode(0)]);

const STRESS_NG: Payload = Payload::new("stress-ng")
    .package("stress-ng")
    .args(&["--cpu", "1", "--cpu-method", "gcd", "--cpu-ops", "3", "--metrics-brief"])
    .metrics(&[Metric::regex("bogo_ops", r"metrc: \[[0-9]+\] cpu +([0-9]+)")])
    .checks(&[Check::Range("bogo_ops", 3.0, 3.0)]);

const SYSBENCH: Payload = Payload::new("sysbench")
    .package("sysbench")
    .args(&["cpu", "--cpu-max-prime=50", "--events=20", "--time=20", "run"])
    .metrics(&[
        Metric::regex("events", r"total number of events: +([0-9]+)"),
        Metric::regex("per_s", r"events per second: +([0-9.]+)").time_based(),
    ])
    .checks(&[Check::Range("events", 20.0, 20.0), Check::Min("per_s", 0.1)]);

const NOW: HoldSpec = HoldSpec::Fixed(Duration::ZERO);
const MINUTE: Duration = Duration::from_secs(60);

fn has_note(verdict: &AssertResult, text: &str) -> bool {
    verdict.notes.iter().any(|note| note.to_string().contains(text))
}

#[ktstr_test(cores = 2, payloads = [HACKBENCH, CYCLICTEST])]
fn payload_of_rt_tests_runs_with_workers(ctx: &Ctx) -> Result<AssertResult> {
    let cg = CgroupDef::named("cg").workers(1).workload(&HACKBENCH);
    let ops = [Op::wait_payload("hackbench", MINUTE), Op::wait_payload("rt", MINUTE)];
    let step = Step::new(ops, NOW).with_defs([cg]).with_payload(CYCLICTEST.named("rt"), "cg");
    let verdict = execute_steps(ctx, [step])?;
    ensure!(has_note(&verdict, "hackbench: time_s = "), "{verdict:?}");
    ensure!(has_note(&verdict, "rt: cycles = 20"), "{verdict:?}");
    Ok(verdict)
}

#[ktstr_test(cores = 1, payloads = [STRESS_NG])]
fn payload_of_stress_ng_uses_the_libraries_of_its_package(ctx: &Ctx) -> Result<AssertResult> {
    let report = ctx.payload(&STRESS_NG).timeout(MINUTE).run()?;
    ensure!(report.metric("bogo_ops")? == 3.0, "{report:?}");
    Ok(report.verdict)
}

#[ktstr_test(cores = 1, payloads = [SYSBENCH])]
fn payload_of_sysbench_uses_the_libraries_of_its_package(ctx: &Ctx) -> Result<AssertResult> {
    let report = ctx.payload(&SYSBENCH).timeout(MINUTE).run()?;
    ensure!(report.metric("per_s")? > 0.0, "{report:?}");
    Ok(report.verdict)
}
