//! Attributes that make tests the way that rstest, test_case and tokio make them.

use proc_macro::{TokenStream, TokenTree};

/// Makes a test without parameters that has the attributes of the function.
#[proc_macro_attribute]
pub fn cases(_: TokenStream, item: TokenStream) -> TokenStream {
    // As those of `quote!`, tokens that are parsed here are where the attribute is.
    let test: TokenStream = "fn case_1() { panic!() }".parse().unwrap();
    attributes(item).chain(test).collect()
}

/// Makes a test of a function that is `async` and has other attributes.
#[proc_macro_attribute]
pub fn test(_: TokenStream, item: TokenStream) -> TokenStream {
    let test: TokenStream = "#[::core::prelude::v1::test]".parse().unwrap();
    let function = item.clone().into_iter().skip_while(is_no_word).skip(1);
    attributes(item).chain(test).chain(function).collect()
}

fn attributes(item: TokenStream) -> impl Iterator<Item = TokenTree> {
    item.into_iter().take_while(is_no_word)
}

fn is_no_word(tree: &TokenTree) -> bool {
    !matches!(tree, TokenTree::Ident(_))
}
