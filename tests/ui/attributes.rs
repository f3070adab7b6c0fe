//! Attributes that contradict `#[ktstr_test]`.

use ktstr::prelude::*;

#[ktstr_test]
#[test]
fn is_a_test_already(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
#[tokio::test]
fn is_a_test_of_another_framework(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
#[rstest]
#[case(1)]
fn has_cases(_ctx: &Ctx, #[case] _n: u32) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
#[should_panic(expected = "no memory")]
fn panics(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2)]
#[ktstr_test(cores = 4)]
fn two_tests_at_once(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(core = 2)]
#[test]
#[should_panic]
async fn all_at_once(_ctx: Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
