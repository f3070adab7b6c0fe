//! The function below the attribute: its parser and the rules for its signature.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream, Parser};
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, ReturnType, Safety, Signature, Type, TypeReference, Visibility};

use crate::errors::Errors;

/// A function with an unparsed body.
///
/// Not `syn::ItemFn`: the compiler parses the body, and its syntax may be newer than that of syn.
pub(crate) struct TestFn {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// The block, or `;` of a function without one.
    pub(crate) body: TokenTree,
}

impl Parse for TestFn {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        Ok(Self {
            attrs: input.call(Attribute::parse_outer)?,
            vis: input.parse()?,
            sig: input.parse()?,
            body: input.parse()?,
        })
    }
}

impl TestFn {
    /// Reports everything that a test's signature lacks or must not have.
    pub(crate) fn check(&self, errors: &mut Errors) {
        // Such a macro has rewritten the function, so other errors would not be about the author's code.
        if let Some((span, attr)) = self.macro_above() {
            return errors.at(span, remove_test_macro(&attr));
        }
        self.check_attributes(errors);
        self.check_qualifiers(errors);
        self.check_generics(errors);
        self.check_parameters(errors);
        let (sig, form) = (&self.sig, self.form());
        if let ReturnType::Default = sig.output {
            errors.at(sig.ident.span(), format!("add the return type: `{form}`"));
        }
        if !self.has_block() {
            errors.at(self.body.span(), format!("add the body: `{form} {{ .. }}`"));
        }
    }

    /// Returns the plain function, which replaces a test that has errors.
    ///
    /// With it, the compiler does not report that the function is missing or that its imports are
    /// unused. Returns nothing if the compiler would reject the function itself; an `async fn` may not
    /// elide the lifetime of `Ctx`.
    pub(crate) fn to_plain_function(&self) -> TokenStream {
        let Self { attrs, vis, sig, body } = self;
        let is_refused = !self.has_block()
            || sig.asyncness.is_some()
            || sig.receiver().is_some()
            || sig.variadic.is_some();
        if is_refused {
            return TokenStream::new();
        }
        // An attribute macro would report errors of its own, and `#[case]` is unknown without
        // `#[rstest]`.
        let attrs = attrs.iter().filter(|attr| is_inert(attr));
        // The compiler would report everything in the body that is not `const`.
        let mut sig = Signature { constness: None, ..sig.clone() };
        for input in &mut sig.inputs {
            if let FnArg::Typed(parameter) = input {
                parameter.attrs.retain(is_inert);
            }
        }
        quote!(#(#attrs)* #[allow(dead_code)] #vis #sig #body)
    }

    pub(crate) fn ignore_attribute(&self) -> Option<&Attribute> {
        self.attrs.iter().find(|attr| attr.path().is_ident("ignore"))
    }

    /// Returns the attribute of another macro that has made the function a test before, and its span.
    ///
    /// Such a macro adds `#[test]` or removes the parameters. The tokens that it adds have the span of
    /// its attribute.
    fn macro_above(&self) -> Option<(Span, String)> {
        let tests = self.attrs.iter().filter(|attr| last_segment(attr) == "test");
        let spans = tests.map(Spanned::span).chain([self.sig.paren_token.span.join()]);
        let mut attributes = spans.filter_map(|span| Some((span, span.source_text()?)));
        attributes.find(|(_, text)| {
            let attr = Attribute::parse_outer.parse_str(text);
            // A token with the span of `#[tokio::test]` may come from it.
            let is_authors =
                |attr: &Attribute| self.attrs.iter().any(|own| path(own) == path(attr));
            attr.is_ok_and(|attr| attr.first().is_some_and(|attr| !is_authors(attr)))
        })
    }

    fn check_attributes(&self, errors: &mut Errors) {
        for attr in &self.attrs {
            let path = path(attr);
            match last_segment(attr).as_str() {
                "test" | "bench" => errors.on(
                    attr,
                    format!("remove `#[{path}]`: `#[ktstr_test]` makes the function a test"),
                ),
                name if TEST_MACROS.contains(&name) => {
                    errors.on(attr, remove_test_macro(&format!("#[{path}]")));
                }
                "should_panic" => errors.on(
                    attr,
                    "replace `#[should_panic]` by `#[ktstr_test(expect_err)]`: it takes a panic \
                     in the guest, and an error, for success",
                ),
                "ktstr_test" => errors
                    .on(attr, format!("join `#[{path}]` with the first: a function is one test")),
                _ => {}
            }
        }
    }

    fn check_qualifiers(&self, errors: &mut Errors) {
        let Signature { constness, asyncness, safety, abi, .. } = &self.sig;
        let form = self.form();
        let mut refuse = |token: &dyn ToTokens, name: &str| {
            errors.on(token.to_token_stream(), format!("remove `{name}`: a test is `{form}`"));
        };
        if let Some(token) = constness {
            refuse(token, "const");
        }
        if let Some(token) = asyncness {
            refuse(token, "async");
        }
        match safety {
            Safety::Unsafe(token) => refuse(token, "unsafe"),
            Safety::Safe(token) => refuse(token, "safe"),
            Safety::Default => {}
        }
        if let Some(abi) = abi {
            refuse(abi, "extern");
        }
    }

    fn check_generics(&self, errors: &mut Errors) {
        let generics = &self.sig.generics;
        if generics.lt_token.is_some() {
            errors.on(generics, "remove the generics: a test is not called with type arguments");
        }
        if let Some(clause) = &generics.where_clause {
            errors.on(clause, "remove the `where` clause: the function has no generics to bound");
        }
    }

    fn check_parameters(&self, errors: &mut Errors) {
        let Signature { inputs, variadic, paren_token, .. } = &self.sig;
        let form = self.form();
        match inputs.first() {
            Some(FnArg::Receiver(receiver)) => errors.on(
                receiver,
                format!("replace `self` by the context: a test is a free function, `{form}`"),
            ),
            Some(FnArg::Typed(context)) => check_context(&context.ty, errors),
            None => errors.at(paren_token.span.join(), format!("add the context: `{form}`")),
        }
        for extra in inputs.iter().skip(1) {
            errors.on(extra, format!("remove the parameter: a test is `{form}`"));
        }
        if let Some(variadic) = variadic {
            errors.on(variadic, format!("remove `...`: a test is `{form}`"));
        }
    }

    fn has_block(&self) -> bool {
        matches!(self.body, TokenTree::Group(_))
    }

    fn form(&self) -> String {
        format!("fn {}(ctx: &Ctx) -> Result<AssertResult>", self.sig.ident)
    }
}

pub(crate) fn not_a_function(span: Span) -> syn::Error {
    let message = "`#[ktstr_test]` goes on a free function: \
                   `fn name(ctx: &Ctx) -> Result<AssertResult>`";
    syn::Error::new(span, message)
}

/// Checks that the context is a `&Type`. The compiler checks the type.
fn check_context(ty: &Type, errors: &mut Errors) {
    match ty {
        Type::Group(group) => check_context(&group.elem, errors),
        Type::Paren(paren) => check_context(&paren.elem, errors),
        Type::Reference(TypeReference { lifetime, mutability, .. }) => {
            if let Some(lifetime) = lifetime
                && lifetime.ident != "_"
            {
                errors.on(lifetime, "remove the lifetime: the context lives as long as the call");
            }
            if let Some(token) = mutability {
                errors.on(token, "remove `mut`: the context is shared, `ctx: &Ctx`");
            }
        }
        _ => errors.on(ty, "take the context by reference: `ctx: &Ctx`"),
    }
}

/// Attributes of well-known crates that turn a function with parameters into tests.
const TEST_MACROS: [&str; 5] = ["rstest", "test_case", "test_matrix", "quickcheck", "proptest"];

fn remove_test_macro(attr: &str) -> String {
    format!(
        "remove `{attr}`: `#[ktstr_test]` makes the function a test, whose only parameter is the \
         context; to run several cases, loop over them in the body"
    )
}

/// Returns whether the attribute is built into the compiler and valid on a function that is not a test.
fn is_inert(attr: &Attribute) -> bool {
    let names = ["allow", "cfg", "deny", "deprecated", "doc", "expect", "forbid", "warn"];
    names.iter().any(|name| attr.path().is_ident(name))
}

fn path(attr: &Attribute) -> String {
    attr.path().to_token_stream().to_string().replace(' ', "")
}

fn last_segment(attr: &Attribute) -> String {
    attr.path().segments.last().map_or_else(String::new, |segment| segment.ident.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_accepts_valid_signatures() {
        for function in [
            "fn f(ctx: &Ctx) -> Result<AssertResult> {}",
            "pub(crate) fn f(_: &'_ ktstr::prelude::Ctx) -> anyhow::Result<AssertResult> {}",
            "#[cfg(x)] #[ignore] /** doc */ fn r#move(#[allow(x)] c: &(Ctx),) -> R {}",
        ] {
            let function: TestFn = syn::parse_str(function).expect("a function");
            let mut errors = Errors::default();
            function.check(&mut errors);
            assert_eq!(errors.into_texts(), [], "{}", function.sig.ident);
        }
    }

    #[test]
    fn check_marks_the_token_of_every_error() {
        for (function, want) in [
            ("#[test] fn f(c: &Ctx) -> R {}", &["#[test]"][..]),
            (
                "#[a::test(x)] #[should_panic] fn f(c: &Ctx) -> R {}",
                &["#[a::test(x)]", "#[should_panic]"],
            ),
            (
                "#[rstest] #[case(1)] fn f(c: &Ctx, #[case] n: u8) -> R {}",
                &["#[rstest]", "#[case] n: u8"],
            ),
            (
                "const async unsafe extern \"C\" fn f(c: &Ctx) -> R {}",
                &["const", "async", "unsafe", "extern \"C\""],
            ),
            ("fn f<'a, T>(c: &'a Ctx) -> R where T: X {}", &["<'a, T>", "where T: X", "'a"]),
            ("fn f(self: &Ctx, n: u8, ...) {}", &["self: &Ctx", "n: u8", "...", "f"]),
            ("fn f() -> R;", &["()", ";"]),
            ("fn f(c: (&Ctx)) -> R {}", &[]),
            ("fn f(c: Arc<Ctx>) -> R {}", &["Arc<Ctx>"]),
        ] {
            let function: TestFn = syn::parse_str(function).expect("a function");
            let mut errors = Errors::default();
            function.check(&mut errors);
            let errors = errors.into_texts();
            let tokens: Vec<_> = errors.iter().map(|(token, _)| token.as_str()).collect();
            assert_eq!(tokens, want, "{errors:?}");
        }
    }

    #[test]
    fn to_plain_function_removes_the_test_attributes() {
        for (function, want) in [
            ("#[test] #[cfg(x)] const fn f() {}", "#[cfg(x)] #[allow(dead_code)] fn f() {}"),
            ("#[ignore] pub fn f<T>(n: u8) {}", "#[allow(dead_code)] pub fn f<T>(n: u8) {}"),
            (
                "#[rstest] #[case(1)] #[doc = \"x\"] fn f(#[case] n: u8, #[allow(x)] m: u8) {}",
                "#[doc = \"x\"] #[allow(dead_code)] fn f(n: u8, #[allow(x)] m: u8) {}",
            ),
            ("async fn f() {}", ""),
            ("fn f(&self) {}", ""),
            ("fn f();", ""),
        ] {
            let function: TestFn = syn::parse_str(function).expect("a function");
            let want: TokenStream = want.parse().expect("tokens");
            assert_eq!(function.to_plain_function().to_string(), want.to_string());
        }
    }
}
