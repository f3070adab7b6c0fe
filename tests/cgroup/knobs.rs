//! Every knob is written and read back.

use std::collections::BTreeSet;
use std::fs;

use ktstr::cgroup::{CgroupManager, Error, MOUNT};
use ktstr::prelude::*;

use crate::children::all;

fn knob(ctx: &Ctx, path: &str) -> Result<String> {
    let path = ctx.cgroups.parent_path().join(path);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

#[ktstr_test(cores = 2)]
fn knobs_read_back_as_written(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&all())?;
    ctx.cgroups.create_cgroup("cg")?;
    let (cgroups, set) = (ctx.cgroups, |numbers: &[usize]| numbers.iter().copied().collect());
    let mut checked = 0;
    let mut check = |written: Result<(), Error>, file: &str, want: &str| -> Result<()> {
        written?;
        let got = knob(ctx, &format!("cg/{file}"))?;
        ensure!(got == want, "{file} is `{got}`, not `{want}`");
        checked += 1;
        Ok(())
    };
    check(cgroups.set_cpuset("cg", &set(&[0, 1])), "cpuset.cpus", "0-1")?;
    check(cgroups.set_cpuset("cg", &set(&[1])), "cpuset.cpus.effective", "1")?;
    check(cgroups.clear_cpuset("cg"), "cpuset.cpus", "")?;
    check(cgroups.clear_cpuset("cg"), "cpuset.cpus.effective", "0-1")?;
    check(cgroups.set_cpuset_mems("cg", &set(&[0])), "cpuset.mems", "0")?;
    check(cgroups.clear_cpuset_mems("cg"), "cpuset.mems", "")?;
    check(cgroups.set_cpu_max("cg", Some(20_000), 100_000), "cpu.max", "20000 100000")?;
    check(cgroups.set_cpu_max("cg", Some((1 << 44) - 1), 1_000), "cpu.max", "17592186044415 1000")?;
    check(cgroups.set_cpu_max("cg", Some(1_000), 1_000_000), "cpu.max", "1000 1000000")?;
    check(cgroups.set_cpu_max("cg", None, 100_000), "cpu.max", "max 100000")?;
    check(cgroups.set_cpu_weight("cg", 1), "cpu.weight", "1")?;
    check(cgroups.set_cpu_weight("cg", 10_000), "cpu.weight", "10000")?;
    check(cgroups.set_memory_max("cg", Some(64 << 20)), "memory.max", "67108864")?;
    check(cgroups.set_memory_max("cg", None), "memory.max", "max")?;
    check(cgroups.set_memory_max("cg", Some(i64::MAX as u64)), "memory.max", "max")?;
    check(cgroups.set_memory_high("cg", Some(4097)), "memory.high", "4096")?;
    check(cgroups.set_memory_high("cg", None), "memory.high", "max")?;
    check(cgroups.set_memory_low("cg", Some(4096)), "memory.low", "4096")?;
    check(cgroups.set_memory_low("cg", None), "memory.low", "0")?;
    check(cgroups.set_memory_swap_max("cg", Some(0)), "memory.swap.max", "0")?;
    check(cgroups.set_memory_swap_max("cg", None), "memory.swap.max", "max")?;
    check(cgroups.set_pids_max("cg", Some(0)), "pids.max", "0")?;
    check(cgroups.set_pids_max("cg", Some(4_194_304)), "pids.max", "4194304")?;
    check(cgroups.set_pids_max("cg", None), "pids.max", "max")?;
    check(cgroups.set_freeze("cg", true), "cgroup.freeze", "1")?;
    check(cgroups.set_freeze("cg", false), "cgroup.freeze", "0")?;
    ensure!(checked == 26);
    io_weight(ctx)?;
    cgroups.remove_cgroup("cg")?;
    cgroups.cleanup_all()?;
    ensure!(!cgroups.parent_path().exists(), "cleanup_all removes the parent as well");
    cgroups.create_cgroup("a/again").context("it is created again")?;
    cgroups.set_pids_max("a/again", Some(9)).context("with the controllers of setup")?;
    Ok(AssertResult::pass())
}

/// Not every kernel has `io.weight`; the error must not blame a missing controller.
fn io_weight(ctx: &Ctx) -> Result<()> {
    match ctx.cgroups.set_io_weight("cg", 300) {
        Ok(()) => {
            let got = knob(ctx, "cg/io.weight")?;
            ensure!(got == "default 300", "io.weight is `{got}`");
        }
        Err(error) => {
            ensure!(!ctx.cgroups.parent_path().join("cg/io.weight").exists(), "{error}");
            let text = error.to_string();
            ensure!(
                text.contains("controller `io` is enabled, but this kernel has no io.weight"),
                "{text}"
            );
            println!("this kernel has no io.weight");
        }
    }
    Ok(())
}

#[ktstr_test(cores = 1)]
fn errors_contain_advice(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&BTreeSet::from([Controller::Cpuset, Controller::Cpu]))?;
    ctx.cgroups.create_cgroup("cg")?;
    let text = |result: Result<(), Error>| match result {
        Ok(()) => Ok::<_, anyhow::Error>("no error".to_owned()),
        Err(error) => {
            println!("{error}");
            Ok(error.to_string())
        }
    };
    let missing = text(ctx.cgroups.set_memory_max("cg", Some(4096)))?;
    ensure!(
        missing.contains("`4096` to `/sys/fs/cgroup/ktstr/cg/memory.max`: ENOENT"),
        "{missing}"
    );
    ensure!(missing.contains("controller `memory` is not enabled for this cgroup"), "{missing}");
    ensure!(missing.contains("`cpu cpuset`") || missing.contains("`cpuset cpu`"), "{missing}");
    let range = text(ctx.cgroups.set_cpuset("cg", &BTreeSet::from([0, 99])))?;
    ensure!(range.contains("write `0,99` to") && range.contains("ERANGE"), "{range}");
    ensure!(range.contains("cpuset.cpus.effective: 0"), "no snapshot: {range}");
    let gone = text(ctx.cgroups.move_task("cg", 4_194_303))?;
    ensure!(gone.contains("[4194303]") && gone.contains("ESRCH"), "{gone}");
    let none = text(ctx.cgroups.set_cpu_weight("cg_typo", 1))?;
    ensure!(none.contains("there is no such cgroup"), "{none}");
    let file = text(ctx.cgroups.create_cgroup("cgroup.procs"))?;
    ensure!(file.contains("EEXIST"), "{file}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn create_cgroup_enables_controllers_at_every_level(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&BTreeSet::from([Controller::Memory, Controller::Pids]))?;
    ctx.cgroups.create_cgroup("a/b/leaf")?;
    ctx.cgroups.create_cgroup("a/b/leaf")?;
    ctx.cgroups.set_memory_max("a/b/leaf", Some(8 << 20))?;
    ctx.cgroups.set_pids_max("a/b/leaf", Some(7))?;
    ensure!(knob(ctx, "a/b/leaf/memory.max")? == "8388608");
    ensure!(knob(ctx, "a/b/leaf/pids.max")? == "7");
    ensure!(knob(ctx, "a/cgroup.subtree_control")? == "memory pids");
    let stats = ctx.cgroups.stats("a/b/leaf")?;
    ensure!(stats.memory.is_some() && stats.pids.is_some() && !stats.populated, "{stats:?}");
    let error = ctx.cgroups.remove_cgroup("a").unwrap_err().to_string();
    ensure!(error.contains("it has children [\"b\"]"), "{error}");
    let error = ctx.cgroups.add_parent_subtree_controller(Controller::Cpu).unwrap_err().to_string();
    ensure!(
        error.contains("ENOENT") && error.contains("(cgroup.controllers: `memory pids`)"),
        "{error}"
    );
    fs::write(ctx.cgroups.walk_root().join("cgroup.subtree_control"), "+cpu")?;
    ctx.cgroups.add_parent_subtree_controller(Controller::Cpu)?;
    ctx.cgroups.create_cgroup("c/leaf")?;
    ctx.cgroups.set_cpu_weight("c/leaf", 50)?;
    ctx.cgroups.cleanup_all()?;
    ensure!(!ctx.cgroups.parent_path().exists());
    ensure!(ctx.cgroups.outstanding_removes() == 0);
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn clear_subtree_control_disables_controllers(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&BTreeSet::from([Controller::Pids]))?;
    ctx.cgroups.create_cgroup("a/leaf")?;
    ctx.cgroups.clear_subtree_control("a")?;
    ensure!(knob(ctx, "a/cgroup.subtree_control")?.is_empty());
    let error = ctx.cgroups.set_pids_max("a/leaf", Some(1)).unwrap_err().to_string();
    ensure!(error.contains("controller `pids` is not enabled"), "{error}");
    let elsewhere = CgroupManager::new(format!("{MOUNT}/elsewhere"));
    elsewhere.create_cgroup("cg")?;
    ensure!(elsewhere.read_procs("cg")?.is_empty());
    elsewhere.cleanup_all()?;
    Ok(AssertResult::pass())
}
