//! Limits take effect, by the counters of the kernel.

use std::time::Instant;

use ktstr::prelude::*;
use rustix::process::Signal;

use crate::children::{Child, all, eventually, spin};

#[ktstr_test(cores = 1, duration_s = 20)]
fn cpu_max_throttles(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&all())?;
    ctx.cgroups.create_cgroup("cg")?;
    ctx.cgroups.set_cpu_max("cg", Some(20_000), 100_000)?;
    let _spinner = Child::fork_in(ctx.cgroups, "cg", spin)?;
    let began = Instant::now();
    eventually("20 periods of cpu.max", || Ok(ctx.cgroups.stats("cg")?.cpu.nr_periods >= 20))?;
    let (wall, stats) = (began.elapsed(), ctx.cgroups.stats("cg")?);
    ensure!(stats.cpu.nr_throttled >= 5 && stats.cpu.throttled_usec > 0, "{:?}", stats.cpu);
    let share = stats.cpu.usage_usec as f64 / wall.as_micros() as f64;
    ensure!(share < 0.5, "a share of {share:.2} with a quota of 20 %");
    ensure!(stats.cpu_pressure.is_some(), "the kernel of the guest has PSI");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 20)]
fn memory_max_kills(ctx: &Ctx) -> Result<AssertResult> {
    const LIMIT: u64 = 32 << 20;
    ctx.cgroups.setup(&all())?;
    ctx.cgroups.create_cgroup("cg")?;
    ctx.cgroups.set_memory_max("cg", Some(LIMIT))?;
    ctx.cgroups.set_memory_swap_max("cg", Some(0))?;
    let eater = Child::fork_in(ctx.cgroups, "cg", || {
        // Written to, because memory that is only reserved is not charged.
        let eaten = vec![1_u8; 4 * LIMIT as usize];
        i32::from(std::hint::black_box(&eaten)[0])
    })?;
    let status = eater.wait()?;
    ensure!(status.terminating_signal() == Some(Signal::KILL.as_raw()), "{status:?}");
    let memory = ctx.cgroups.stats("cg")?.memory.context("memory is enabled")?;
    ensure!(memory.events.oom >= 1 && memory.events.oom_kill >= 1, "{memory:?}");
    ensure!(memory.peak.is_some_and(|peak| peak <= LIMIT && peak > LIMIT / 2), "{memory:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn pids_max_rejects_forks(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&all())?;
    ctx.cgroups.create_cgroup("cg")?;
    ctx.cgroups.set_pids_max("cg", Some(1))?;
    let forker = Child::fork_in(ctx.cgroups, "cg", || match Child::fork(|| 0) {
        Ok(_) => 0,
        Err(error) => error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error)
            .unwrap_or(103),
    })?;
    let status = forker.wait()?;
    ensure!(status.exit_status() == Some(libc::EAGAIN), "{status:?}");
    let pids = ctx.cgroups.stats("cg")?.pids.context("pids is enabled")?;
    ensure!(pids.max_events >= 1, "{pids:?}");
    ctx.cgroups.set_pids_max("cg", None)?;
    let forker = Child::fork_in(ctx.cgroups, "cg", || i32::from(Child::fork(|| 0).is_err()))?;
    ensure!(forker.wait()?.exit_status() == Some(0), "without a limit it may fork");
    Ok(AssertResult::pass())
}
