//! Without libtest, nothing runs a test.

use ktstr::prelude::*;

#[ktstr_test]
fn never_run(_: &Ctx) -> Result<AssertResult> {
    bail!("it ran")
}

fn main() {}
