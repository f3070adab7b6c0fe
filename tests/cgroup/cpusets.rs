//! Emptying the cpuset of a cgroup that contains processes.

use std::fs;

use ktstr::prelude::*;

use crate::children::{Child, pause};

/// Linux up to 6.12 rejects an empty `cpuset.cpus` there.
#[ktstr_test(cores = 2)]
fn clear_cpuset_works_with_processes(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    let read = |file: &str| fs::read_to_string(cgroups.parent_path().join(file));
    let cpus = |name: &str| read(&format!("{name}/cpuset.cpus"));
    let effective = |name: &str| read(&format!("{name}/cpuset.cpus.effective"));
    cgroups.setup(&[Controller::Cpuset].into())?;
    cgroups.create_cgroup("a/b")?;
    let _child = Child::fork_in(cgroups, "a/b", pause)?;
    for name in ["a/b", "a"] {
        cgroups.set_cpuset(name, &[1].into())?;
        cgroups.set_cpuset_mems(name, &[0].into())?;
        cgroups.clear_cpuset(name).with_context(|| name.to_owned())?;
        cgroups.clear_cpuset_mems(name).with_context(|| name.to_owned())?;
        ensure!(["\n", "0-1\n"].contains(&&*cpus(name)?), "{name}: `{}`", cpus(name)?);
        ensure!(effective(name)? == "0-1\n", "{name}: {}", effective(name)?);
    }
    // The child follows the parent, also when that loses CPUs later.
    cgroups.set_cpuset("a", &[0].into())?;
    ensure!(effective("a/b")? == "0\n", "{}", effective("a/b")?);
    cgroups.set_cpuset("a", &[1].into())?;
    cgroups.clear_cpuset("a/b")?;
    ensure!(effective("a/b")? == "1\n", "{}", effective("a/b")?);
    cgroups.set_cpuset("a", &[0].into())?;
    ensure!(effective("a/b")? == "0\n", "no CPU of the copy is left: {}", effective("a/b")?);
    Ok(AssertResult::pass())
}
