//! Without the prelude, the key `crate` names the crate.

use kt::assert::AssertResult;
use kt::ktstr_test;
use kt::prelude::{Ctx, Result};

/// The name of the function is that of the crate.
#[ktstr_test(crate = kt, cores = 1, threads = 2, max_gap_ms = 60_000, expect_err = "no")]
fn kt(_: &Ctx) -> Result<AssertResult> {
    assert_eq!(std::thread::available_parallelism()?.get(), 2);
    Err(std::io::Error::other("no").into())
}

mod with_its_absolute_path {
    use super::*;

    #[ktstr_test(crate = ::kt, cores = 1)]
    fn boots(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }
}
