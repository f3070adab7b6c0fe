//! The machine a test gets is the machine it asked for.
//!
//! PID 1 compares sysfs with the attribute before any body runs; these bodies look for themselves.

use ktstr::prelude::*;

#[ktstr_test(llcs = 1, cores = 1, threads = 1)]
fn one_cpu(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 1, 1, 1, 1)
}

#[ktstr_test(llcs = 1, cores = 2, threads = 1)]
fn two_cores(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 1, 1, 2, 2)
}

#[ktstr_test(llcs = 2, cores = 2, threads = 2)]
fn two_llcs_with_smt(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 1, 2, 4, 8)
}

#[ktstr_test(numa_nodes = 2, llcs = 4, cores = 2, threads = 1, memory_mib = 384)]
fn two_nodes_with_two_llcs_each(ctx: &Ctx) -> Result<AssertResult> {
    for node in [0, 1] {
        let path = format!("/sys/devices/system/node/node{node}/distance");
        let distances = std::fs::read_to_string(&path)?;
        let mut expected = ["20", "20"];
        expected[node] = "10";
        ensure!(distances.split_whitespace().eq(expected), "{path}: {distances}");
    }
    shape(ctx, 2, 4, 8, 8)
}

#[ktstr_test(llcs = 3, cores = 3, threads = 1)]
fn odd_numbers(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 1, 3, 9, 9)
}

fn shape(ctx: &Ctx, nodes: usize, llcs: usize, cores: usize, cpus: usize) -> Result<AssertResult> {
    let topo = ctx.topo;
    let seen = (topo.nodes.len(), topo.llcs.len(), topo.cores.len(), topo.cpus.len());
    ensure!(seen == (nodes, llcs, cores, cpus), "{topo:?}");
    let online = std::thread::available_parallelism()?.get();
    ensure!(online == cpus, "{online} CPUs may be used");
    Ok(AssertResult::pass())
}
