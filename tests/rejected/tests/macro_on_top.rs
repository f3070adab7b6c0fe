//! Attributes of other crates above `#[ktstr_test]` that make tests: they are expanded first.

use ktstr::prelude::*;

#[on_top::cases(1, 2)]
#[ktstr_test]
fn with_cases(_: &Ctx, _case: u32) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[on_top::test]
#[ktstr_test]
async fn on_a_runtime(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}
