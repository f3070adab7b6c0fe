//! Cgroups are created and removed many times, and some cannot be removed.

use ktstr::cgroup::Error;
use ktstr::prelude::*;

use crate::children::{Child, all};

#[ktstr_test(cores = 2, duration_s = 300)]
fn churn_of_2000_cycles_leaves_nothing(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&all())?;
    for cycle in 0..2000 {
        let name = format!("cg{cycle}");
        ctx.cgroups.create_cgroup(&name)?;
        let child = Child::fork_in(ctx.cgroups, &name, || 0)?;
        ctx.cgroups.remove_cgroup(&name)?;
        let status = child.wait()?;
        ensure!(status.exit_status() == Some(0), "cycle {cycle}: {status:?}");
    }
    let left = std::fs::read_dir(ctx.cgroups.parent_path())?.flatten();
    let left: Vec<_> = left.filter(|entry| entry.path().is_dir()).collect();
    ensure!(left.is_empty() && ctx.cgroups.outstanding_removes() == 0, "{left:?}");
    ctx.cgroups.cleanup_all()?;
    ensure!(!ctx.cgroups.parent_path().exists());
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn remove_cgroup_refuses_after_eleven_failures(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    for number in 0..12 {
        cgroups.create_cgroup(&format!("cg{number}/below"))?;
    }
    for number in 0..11 {
        let error = cgroups.remove_cgroup(&format!("cg{number}")).unwrap_err();
        ensure!(matches!(error, Error::HasChildren { .. }), "{error}");
        ensure!(cgroups.outstanding_removes() == number + 1);
    }
    let error = cgroups.remove_cgroup("cg11").unwrap_err();
    ensure!(matches!(error, Error::TooManyOutstanding { .. }), "{error}");
    cgroups.remove_cgroup("missing")?;
    cgroups.remove_cgroup("cg0/below").context("a child of a counted cgroup is removed")?;
    cgroups.remove_cgroup("cg0").context("a counted cgroup is tried again")?;
    ensure!(cgroups.outstanding_removes() == 10);
    cgroups.remove_cgroup("cg11/below").context("other cgroups are removed again")?;
    cgroups.remove_cgroup("cg11")?;
    cgroups.cleanup_all()?;
    ensure!(cgroups.outstanding_removes() == 0);
    ensure!(!cgroups.parent_path().exists());
    Ok(AssertResult::pass())
}
