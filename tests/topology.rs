//! The guest has the requested topology and kernel arguments.
//!
//! PID 1 compares sysfs with the request before the body runs; these bodies read sysfs themselves.

use ktstr::prelude::*;
use ktstr::topology::TestTopology;

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

#[ktstr_test(llcs = 2, cores = 4, threads = 2, memory_mib = 512)]
fn sixteen_cpus_with_smt(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 1, 2, 8, 16)
}

#[ktstr_test(
    numa_nodes = 2,
    llcs = 4,
    cores = 4,
    threads = 2,
    memory_mib = 1024,
    ignore = "a race in QEMU crashes guests with this many CPUs while the kernel patches itself: cargo xtask nested"
)]
fn thirty_two_cpus_with_smt_on_two_nodes(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 2, 4, 16, 32)
}

#[ktstr_test(numa_nodes = 4, llcs = 8, cores = 2, threads = 1, memory_mib = 1024)]
fn four_nodes_with_two_llcs_each(ctx: &Ctx) -> Result<AssertResult> {
    shape(ctx, 4, 8, 16, 16)
}

#[ktstr_test(cores = [3, 1], threads = 2, memory_mib = 384)]
fn second_llc_is_smaller(ctx: &Ctx) -> Result<AssertResult> {
    let TestTopology { llcs, cores, .. } = ctx.topo;
    ensure!(*llcs == [vec![0, 1, 2, 3, 4, 5], vec![6, 7]], "{llcs:?}");
    ensure!(*cores == [[0, 1], [2, 3], [4, 5], [6, 7]], "{cores:?}");
    shape(ctx, 1, 2, 4, 8)
}

#[ktstr_test(numa_nodes = 2, cores = [1, 3, 2, 1], memory_mib = 384)]
fn every_llc_and_node_differs(ctx: &Ctx) -> Result<AssertResult> {
    let TestTopology { nodes, llcs, .. } = ctx.topo;
    ensure!(*nodes == [vec![0, 1, 2, 3], vec![4, 5, 6]], "{nodes:?}");
    ensure!(*llcs == [vec![0], vec![1, 2, 3], vec![4, 5], vec![6]], "{llcs:?}");
    shape(ctx, 2, 4, 7, 7)
}

#[ktstr_test(cores = 2, fresh, kargs = "isolcpus=1 ktstr_word=7")]
fn kargs_reach_the_kernel(_: &Ctx) -> Result<AssertResult> {
    let cmdline = std::fs::read_to_string("/proc/cmdline")?;
    for word in ["isolcpus=1", "ktstr_word=7"] {
        ensure!(cmdline.split_whitespace().any(|found| found == word), "{word}: {cmdline}");
    }
    let isolated = std::fs::read_to_string("/sys/devices/system/cpu/isolated")?;
    ensure!(isolated.trim() == "1", "isolated CPUs: {isolated}");
    Ok(AssertResult::pass())
}

fn shape(ctx: &Ctx, nodes: usize, llcs: usize, cores: usize, cpus: usize) -> Result<AssertResult> {
    let topo = ctx.topo;
    let seen = (topo.nodes.len(), topo.llcs.len(), topo.cores.len(), topo.cpus.len());
    ensure!(seen == (nodes, llcs, cores, cpus), "{topo:?}");
    let online = std::thread::available_parallelism()?.get();
    ensure!(online == cpus, "{online} CPUs are usable");
    // Only the online CPUs are possible: per-CPU memory of others would be wasted.
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible.trim().rsplit('-').next().unwrap_or_default();
    ensure!(last.parse() == Ok(cpus - 1), "the CPUs {possible} are possible");
    Ok(AssertResult::pass())
}
