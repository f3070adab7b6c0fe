//! The prelude of a crate that re-exports ktstr is enough; so is the key `crate`.

mod by_prelude {
    use support::ktstr::prelude::*;

    #[ktstr_test(cores = 1)]
    fn boots(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }
}

mod by_key {
    use support::ktstr::ktstr_test;
    use support::ktstr::prelude::{AssertResult, Ctx, Result};

    #[ktstr_test(crate = support::ktstr, cores = 1)]
    fn boots(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }
}
