//! Names that are keywords of another edition: libtest writes them as this one does.

use kt::prelude::*;

#[ktstr_test(cores = 1)]
fn gen(_: &Ctx) -> Result<AssertResult> {
    has_name("gen")
}

#[ktstr_test(cores = 1)]
fn r#async(_: &Ctx) -> Result<AssertResult> {
    has_name("r#async")
}

fn has_name(name: &str) -> Result<AssertResult> {
    let thread = std::thread::current();
    ensure!(thread.name() == Some(name), "{thread:?}");
    Ok(AssertResult::pass())
}
