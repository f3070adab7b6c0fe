//! `cores` as a list: invalid numbers, and lists that contradict other keys.

use ktstr::prelude::*;

const CORES: u32 = 2;

#[ktstr_test(cores = [4, 0, 256, 2.0, CORES, -1, 1 + 1, [2], "2", 3i9])]
fn bad_numbers(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = [])]
fn empty(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(llcs = [4, 2], threads = [2], cores = (4, 2))]
fn not_a_list_of_cores(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = [4; 2])]
fn repeated_number(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = [4, 2], llcs = 3)]
fn too_few_for_llcs(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(llcs = 1, cores = [4, 2])]
fn too_many_for_llcs(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(numa_nodes = 2, cores = [4, 2, 1])]
fn not_the_same_for_each_node(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = [64, 32], threads = 3)]
fn too_many_cpus(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(numa_nodes = 2, llcs = 3, cores = [2, 0, 255], threads = 8)]
fn a_bad_list_is_not_combined(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
