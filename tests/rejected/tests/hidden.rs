//! libtest does not see what is inside a function or a constant.

use ktstr::prelude::*;

#[ktstr_test]
fn good(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

const _: () = {
    #[ktstr_test]
    fn in_a_constant(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }
};

#[allow(dead_code)]
fn function() {
    #[ktstr_test]
    fn good(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }
}

mod module {
    use super::*;

    #[ktstr_test]
    fn good(_: &Ctx) -> Result<AssertResult> {
        Ok(AssertResult::pass())
    }
}
