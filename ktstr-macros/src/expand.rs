//! The expansion of a test.

use proc_macro2::{Literal, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{FnArg, Ident, ReturnType, Signature, Type};

use crate::args::{self, Arg, Args, Value};
use crate::errors::Errors;
use crate::keys::Target;
use crate::signature::{self, TestFn};

/// Expands `#[ktstr_test(attr)] item` to a test, or to all of its errors.
pub(crate) fn ktstr_test(attr: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let args = args::parse(attr, &mut errors);
    let function = match syn::parse2::<TestFn>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            errors.add(signature::not_a_function(error.span()));
            return report(errors, item);
        }
    };
    function.check(&mut errors);
    if let (Some(_), Some(attr)) = (args.get("ignore"), function.ignore_attribute()) {
        errors.on(attr, "remove `#[ignore]` or the key `ignore`: one of them is enough");
    }
    if errors.is_empty() {
        test(&args, &function)
    } else {
        report(errors, function.to_plain_function())
    }
}

fn report(errors: Errors, item: TokenStream) -> TokenStream {
    let errors = errors.into_compile_error();
    quote!(#errors #item)
}

fn test(args: &Args, function: &TestFn) -> TokenStream {
    let TestFn { attrs, vis, sig, body } = function;
    let name = &sig.ident;
    let ignore = ignore(args);
    let private = private(args);
    let has_harness = has_harness(&private, name);
    let is_visible = is_visible(&private, name);
    let entry = entry(&private, args, sig);
    let sig = with_quiet_context(sig);
    // The checks and the entry have blocks of their own: their names are not visible in the author's
    // body, and the author's function is visible in the entry only. The allowed lints are those that
    // the required signature and a test with all keys would trigger.
    quote! {
        #has_harness
        #[::core::prelude::v1::test]
        #ignore
        #(#attrs)*
        #vis fn #name() -> #private::TestResult {
            #is_visible
            {
                #[allow(clippy::unnecessary_wraps)]
                #sig #body
                {
                    #[#private::linkme::distributed_slice(#private::TESTS)]
                    #[linkme(crate = #private::linkme)]
                    #[allow(clippy::needless_update)]
                    static ENTRY: #private::TestEntry = #entry;
                    #private::run(&ENTRY)
                }
            }
        }
    }
}

/// Returns the signature with the context's type marked as generated, so that the lint
/// `elided_lifetimes_in_paths` of `rust_2018_idioms` accepts the documented `&Ctx`.
///
/// `#[allow]` would apply to the author's body too. Only the last component is marked: an earlier one
/// may be `$crate`, which is resolved by its span.
fn with_quiet_context(sig: &Signature) -> Signature {
    let mut sig = sig.clone();
    if let Some(FnArg::Typed(context)) = sig.inputs.first_mut()
        && let Type::Reference(reference) = &mut *context.ty
        && let Type::Path(path) = &mut *reference.elem
        && let Some(name) = path.path.segments.last_mut()
    {
        name.ident.set_span(generated_at(name.ident.span()));
    }
    sig
}

/// Returns the path of the module with everything that an expansion uses.
///
/// Without the key `crate`, the path is relative. It resolves to the dependency `ktstr`, or to the
/// prelude's import of this name if the dependency is renamed or indirect.
fn private(args: &Args) -> TokenStream {
    match args.get("crate") {
        Some(Value::Path(path)) => quote!(#path::__private),
        _ => quote!(ktstr::__private),
    }
}

/// Writes an item that does not compile in a target with `harness = false`, where tests are never run.
///
/// Without a harness, cargo passes `--cfg test` but not `--test`, and the compiler removes each
/// `#[test]`. So the name `harness` is the inner function with a harness, and the constant without one.
fn has_harness(private: &TokenStream, name: &Ident) -> TokenStream {
    let harness = Ident::new("harness", Span::call_site().located_at(name.span()));
    quote! {
        #[cfg(test)]
        #[allow(unnameable_test_items, non_upper_case_globals)]
        const _: fn() = || {
            const harness: #private::NoHarness = #private::NoHarness;
            {
                #[::core::prelude::v1::test]
                fn harness() {}
                #private::requires_harness(#harness);
            }
        };
    }
}

/// Writes an item that does not compile if libtest cannot find the test: it finds tests in modules, not
/// inside functions and constants.
///
/// A name is resolved from the inside out. The glob imports the module's item `name`, if there is one,
/// and that must be the item that `name` resolves to here.
fn is_visible(private: &TokenStream, name: &Ident) -> TokenStream {
    // The compiler reports an error at the argument.
    let of_module = quote_spanned! {Span::call_site().located_at(name.span())=>
        {
            const #name: #private::Hidden = #private::Hidden;
            {
                use self::*;
                #name
            }
        }
    };
    // Not a local variable: the glob may import a test of that name.
    quote! {
        #[allow(non_upper_case_globals)]
        const _: fn() = || #private::requires_visible(#name, #of_module);
    }
}

fn ignore(args: &Args) -> TokenStream {
    match args.get("ignore") {
        Some(Value::Text(reason)) => quote!(#[ignore = #reason]),
        Some(_) => quote!(#[ignore]),
        None => TokenStream::new(),
    }
}

/// Writes the `TestEntry`: the keys that were given, and the defaults of all others.
fn entry(private: &TokenStream, args: &Args, sig: &Signature) -> TokenStream {
    let name = libtest_name(private, &sig.ident);
    let body = body(sig);
    let machine = machine(private, args);
    let assert = assert(private, args);
    let fields = args.given.iter().filter_map(|arg| field(private, arg));
    quote! {
        #private::TestEntry {
            name: #name,
            module_path: ::core::module_path!(),
            body: #body,
            #machine
            #assert
            #(#fields,)*
            ..#private::TestEntry::DEFAULT
        }
    }
}

/// Writes the name as libtest shows it, with `r#` or without.
///
/// The edition of the token decides which names are keywords. The compiler prints the last component
/// of a module's path in the same way as the name of a test.
fn libtest_name(private: &TokenStream, name: &Ident) -> TokenStream {
    quote! {
        #private::last_component({
            #[allow(non_snake_case)]
            mod #name {
                pub(super) const PATH: &str = ::core::module_path!();
            }
            #name::PATH
        })
    }
}

/// Writes a closure that calls the author's function, with the spans of the function's types.
///
/// With them, the compiler reports a wrong context at the parameter's type and a wrong result at the
/// return type, instead of both at the attribute.
fn body(sig: &Signature) -> TokenStream {
    let context = match sig.inputs.first() {
        Some(FnArg::Typed(context)) => referent(&context.ty).span(),
        _ => Span::call_site(),
    };
    let output = match &sig.output {
        ReturnType::Type(_, ty) => ty.span(),
        ReturnType::Default => Span::call_site(),
    };
    let ctx = Ident::new("ctx", generated_at(context));
    // The name keeps its hygiene: otherwise a test called `ctx` would resolve to the parameter.
    let mut name = sig.ident.clone();
    name.set_span(name.span().located_at(output));
    quote_spanned!(generated_at(output)=> |#ctx| #name(#ctx))
}

fn referent(ty: &Type) -> &Type {
    match ty {
        Type::Reference(reference) => &reference.elem,
        _ => ty,
    }
}

/// Writes the field `machine`, if a key about the machine was given.
fn machine(private: &TokenStream, args: &Args) -> TokenStream {
    let field = |arg: &Arg| {
        let value = tokens(arg);
        let (field, value) = match arg.key.target {
            Target::Machine(field) => (field, value),
            Target::MachineText(field) => (field, quote!(#private::Cow::Borrowed(#value))),
            Target::Kernel => {
                let text = quote!(#private::Cow::Borrowed(#value));
                ("kernel", quote!(::core::option::Option::Some(#text)))
            }
            _ => return None,
        };
        let field = Ident::new(field, Span::call_site());
        Some(quote!(#field: #value,))
    };
    let topology = topology(private, args);
    let fields: Vec<_> = args.given.iter().filter_map(field).collect();
    if topology.is_empty() && fields.is_empty() {
        return TokenStream::new();
    }
    quote! {
        machine: #private::MachineSpec {
            #topology
            #(#fields)*
            ..#private::MachineSpec::DEFAULT
        },
    }
}

/// Writes the field `topology` of the machine, if a key about it was given.
fn topology(private: &TokenStream, args: &Args) -> TokenStream {
    let field = |arg: &Arg| match arg.key.target {
        Target::Topology(field) => {
            let (field, value) = (Ident::new(field, Span::call_site()), tokens(arg));
            Some(quote!(#field: #value,))
        }
        _ => None,
    };
    let mut fields: Vec<_> = args.given.iter().filter_map(field).collect();
    fields.extend(llcs(private, args).map(|llcs| quote!(llcs: #llcs,)));
    if fields.is_empty() {
        return TokenStream::new();
    }
    quote! {
        topology: #private::Topology {
            #(#fields)*
            ..#private::Topology::DEFAULT
        },
    }
}

/// Writes the last-level caches, if a key about them was given. The other key has its default.
fn llcs(private: &TokenStream, args: &Args) -> Option<TokenStream> {
    let number = |value: &Value| match value {
        Value::Integer(value, _) => Some(literal(*value)),
        _ => None,
    };
    let default = quote!(#private::Topology::DEFAULT.llcs);
    let (count, cores) = match (args.get("llcs"), args.get("cores")) {
        (None, None) => return None,
        (_, Some(Value::Integers(cores, _))) => {
            let cores = cores.iter().map(|cores| literal(*cores));
            return Some(quote!(#private::Llcs::of(&[#(#cores),*])));
        }
        (count, cores) => (count.and_then(number), cores.and_then(number)),
    };
    let count = count.unwrap_or_else(|| quote!(#default.count()));
    let cores = cores.unwrap_or_else(|| quote!(#default.nr_cores() / #default.count()));
    Some(quote!(#private::Llcs::even(#count, #cores)))
}

/// Writes the checks, if a key about them was given: the defaults, changed by one method per key.
fn assert(private: &TokenStream, args: &Args) -> TokenStream {
    let calls =
        args.given.iter().filter(|arg| matches!(arg.key.target, Target::Check)).map(|arg| {
            let (method, value) = (Ident::new(arg.key.name, Span::call_site()), tokens(arg));
            quote!(.#method(#value))
        });
    let calls: Vec<_> = calls.collect();
    if calls.is_empty() {
        return TokenStream::new();
    }
    quote!(assert: #private::Assert::DEFAULT #(#calls)*,)
}

/// Writes the field of `TestEntry` that `arg` alone sets, if there is one.
fn field(private: &TokenStream, arg: &Arg) -> Option<TokenStream> {
    let value = tokens(arg);
    let (field, value) = match arg.key.target {
        Target::Field(field) => (field, value),
        Target::Seconds(field) => (field, quote!(::core::time::Duration::from_secs(#value))),
        Target::Millis(field) => (field, quote!(::core::time::Duration::from_millis(#value))),
        Target::Optional(field) => (field, optional(&arg.value, &value)),
        Target::References(field) => (field, references(&arg.value)),
        Target::ExpectErr => ("expect_err", expect_err(private, &arg.value)),
        Target::Crate
        | Target::Machine(_)
        | Target::MachineText(_)
        | Target::Kernel
        | Target::Topology(_)
        | Target::Llcs
        | Target::Check
        | Target::IgnoreAttribute => {
            return None;
        }
    };
    let field = Ident::new(field, Span::call_site());
    Some(quote!(#field: #value))
}

fn expect_err(private: &TokenStream, value: &Value) -> TokenStream {
    let variant = match value {
        Value::Text(text) => quote!(Containing(#text)),
        Value::Regex(pattern) => quote!(Matching(#pattern)),
        Value::Bool(true) => quote!(Any),
        _ => quote!(No),
    };
    quote!(#private::ExpectErr::#variant)
}

/// Writes `&[&A, &B]` with the spans of the paths, where the compiler reports a wrong type.
fn references(value: &Value) -> TokenStream {
    let Value::Paths(paths) = value else { return quote!(&[]) };
    let reference = |path: &syn::ExprPath| quote_spanned!(generated_at(path.span())=> &#path);
    let references = paths.iter().map(reference);
    quote!(&[#(#references),*])
}

/// Writes `Some(value)` with the span of the value, where the compiler reports a wrong type.
fn optional(value: &Value, tokens: &TokenStream) -> TokenStream {
    let span = match value {
        Value::Function(path) => generated_at(path.span()),
        _ => Span::mixed_site(),
    };
    quote_spanned!(span=> ::core::option::Option::Some(#tokens))
}

fn tokens(arg: &Arg) -> TokenStream {
    match &arg.value {
        Value::Integer(value, _) => literal(*value),
        Value::Integers(values, _) => {
            let values = values.iter().map(|value| literal(*value));
            quote!([#(#values),*])
        }
        Value::Number(value) => Literal::f64_unsuffixed(*value).into_token_stream(),
        Value::Bool(value) => value.into_token_stream(),
        Value::Text(text) | Value::Regex(text) => text.into_token_stream(),
        Value::Function(path) => path.into_token_stream(),
        Value::Path(path) => path.into_token_stream(),
        Value::Paths(paths) => quote!([#(#paths),*]),
        Value::Texts(texts) => quote!(&[#(#texts),*]),
        Value::Nothing => TokenStream::new(),
    }
}

fn literal(value: u32) -> TokenStream {
    // Without the author's span: with it, lints would apply to the digits.
    Literal::u32_unsuffixed(value).into_token_stream()
}

/// Returns a span for generated tokens that represent the author's tokens at `span`.
///
/// Errors are reported there; lints treat the tokens as generated.
fn generated_at(span: Span) -> Span {
    Span::mixed_site().located_at(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_args(attr: &str) -> Args {
        let mut errors = Errors::default();
        let args = args::parse(attr.parse().expect("tokens"), &mut errors);
        assert_eq!(errors.into_texts(), []);
        args
    }

    fn path() -> TokenStream {
        quote!(ktstr::__private)
    }

    fn assert_same(tokens: &TokenStream, want: &TokenStream) {
        assert_eq!(tokens.to_string(), want.to_string());
    }

    #[test]
    fn field_writes_only_given_keys() {
        for (attr, want) in [
            ("", quote!()),
            ("ignore, cores = 2", quote!()),
            ("settle_ms = 0", quote!(settle: ::core::time::Duration::from_millis(0))),
            ("duration_s = 1_0", quote!(duration: ::core::time::Duration::from_secs(10))),
            (
                "watchdog_timeout_s = 3",
                quote!(watchdog_timeout: ::core::time::Duration::from_secs(3)),
            ),
            ("workload_root_cgroup = \"/a\"", quote!(workload_root_cgroup: "/a")),
            (
                "expect_err, host_only = false",
                quote!(expect_err: ktstr::__private::ExpectErr::Any, host_only: false),
            ),
            ("expect_err = false", quote!(expect_err: ktstr::__private::ExpectErr::No)),
            (
                "expect_err = \"disk\", max_gap_ms = 5",
                quote!(expect_err: ktstr::__private::ExpectErr::Containing("disk")),
            ),
            (
                "expect_err = regex(\"a+\")",
                quote!(expect_err: ktstr::__private::ExpectErr::Matching("a+")),
            ),
            ("auto_repro = false, kaslr = true", quote!(auto_repro: false)),
            ("fresh", quote!(fresh: true)),
            ("payloads = [A, b::C,]", quote!(payloads: &[&A, &b::C])),
            ("env = [\"A=b\", \"C\",]", quote!(env: &["A=b", "C"])),
            ("post_vm = self::check", quote!(post_vm: ::core::option::Option::Some(self::check))),
        ] {
            let args = parse_args(attr);
            let fields: Vec<_> = args.given.iter().filter_map(|arg| field(&path(), arg)).collect();
            assert_same(&quote!(#(#fields),*), &want);
        }
    }

    #[test]
    fn machine_is_written_once() {
        assert_same(&machine(&path(), &parse_args("duration_s = 64")), &quote!());
        assert_same(
            &machine(
                &path(),
                &parse_args("threads = 2, kaslr, numa_nodes = 2, llcs = 4, cores = 3"),
            ),
            &quote! {
                machine: ktstr::__private::MachineSpec {
                    topology: ktstr::__private::Topology {
                        threads_per_core: 2,
                        numa_nodes: 2,
                        llcs: ktstr::__private::Llcs::even(4, 3),
                        ..ktstr::__private::Topology::DEFAULT
                    },
                    kaslr: true,
                    ..ktstr::__private::MachineSpec::DEFAULT
                },
            },
        );
        assert_same(
            &machine(
                &path(),
                &parse_args("memory_mib = 0x200u64, kernel = \"6.12\", kargs = \"a=1 b\""),
            ),
            &quote! {
                machine: ktstr::__private::MachineSpec {
                    memory_mib: 512,
                    kernel: ::core::option::Option::Some(ktstr::__private::Cow::Borrowed("6.12")),
                    kargs: ktstr::__private::Cow::Borrowed("a=1 b"),
                    ..ktstr::__private::MachineSpec::DEFAULT
                },
            },
        );
    }

    #[test]
    fn llcs_uses_defaults_for_missing_keys() {
        let default = quote!(ktstr::__private::Topology::DEFAULT.llcs);
        for (attr, want) in [
            ("llcs = 2, cores = 3", quote!(even(2, 3))),
            ("llcs = 2", quote!(even(2, #default.nr_cores() / #default.count()))),
            ("cores = 3", quote!(even(#default.count(), 3))),
            ("cores = [4, 2]", quote!(of(&[4, 2]))),
            ("cores = [4, 0x2,], llcs = 2", quote!(of(&[4, 2]))),
        ] {
            let llcs = llcs(&path(), &parse_args(attr)).expect("a key about them was given");
            assert_same(&llcs, &quote!(ktstr::__private::Llcs::#want));
        }
        assert!(llcs(&path(), &parse_args("threads = 2")).is_none());
    }

    #[test]
    fn assert_is_written_once() {
        assert_same(&assert(&path(), &parse_args("memory_mib = 64, expect_err")), &quote!());
        assert_same(
            &assert(
                &path(),
                &parse_args(
                    "not_stuck = false, kaslr, max_gap_ms = 0x32u8, max_spread_pct = 5, isolation, \
                 max_wake_latency_cv = 1_0.5e-1",
                ),
            ),
            &quote! {
                assert: ktstr::__private::Assert::DEFAULT
                    .not_stuck(false)
                    .max_gap_ms(50)
                    .max_spread_pct(5.0)
                    .isolation(true)
                    .max_wake_latency_cv(1.05),
            },
        );
    }

    #[test]
    fn ignore_writes_the_attribute() {
        for (attr, want) in [
            ("", quote!()),
            ("ignore", quote!(#[ignore])),
            ("ignore = \"slow\"", quote!(#[ignore = "slow"])),
        ] {
            assert_same(&ignore(&parse_args(attr)), &want);
        }
    }

    #[test]
    fn private_uses_the_key_crate() {
        for (attr, want) in [
            ("", quote!(ktstr::__private)),
            ("crate = kt", quote!(kt::__private)),
            ("cores = 1, crate = ::a::b", quote!(::a::b::__private)),
        ] {
            let args = parse_args(attr);
            assert_same(&private(&args), &want);
            let function = syn::parse_str("fn f(c: &Ctx) -> R {}").expect("a function");
            let (all, want) = (test(&args, &function).to_string(), want.to_string());
            assert!(all.matches("__private").count() > 10, "{all}");
            assert_eq!(all.matches("__private").count(), all.matches(&want).count(), "{all}");
        }
    }

    #[test]
    fn body_has_the_spans_of_its_types() {
        let sig = syn::parse_str("fn f(c: &Context) -> Outcome<u8>").expect("a signature");
        let texts: Vec<_> = body(&sig)
            .into_iter()
            .map(|token| (token.to_string(), token.span().source_text().unwrap_or_default()))
            .collect();
        let at = |token: &str, text: &str| (token.to_owned(), text.to_owned());
        assert!(texts.contains(&at("ctx", "Context")), "{texts:?}");
        assert!(texts.contains(&at("f", "Outcome<u8>")), "{texts:?}");
    }

    #[test]
    fn ktstr_test_reports_all_errors() {
        let (attr, item) = ("core = 1, cores = 0, ignore", "#[ignore] unsafe fn f(c: Ctx) -> R {}");
        let tokens = ktstr_test(attr.parse().expect("tokens"), item.parse().expect("tokens"));
        let text = tokens.to_string();
        assert_eq!(text.matches("compile_error").count(), 5, "{text}");
        assert!(text.ends_with("unsafe fn f (c : Ctx) -> R { }"), "{text}");
    }

    #[test]
    fn ktstr_test_keeps_other_items() {
        let tokens = ktstr_test(
            quote!(cores = 0),
            quote!(
                struct S;
            ),
        );
        let text = tokens.to_string();
        assert_eq!(text.matches("compile_error").count(), 2, "{text}");
        assert!(text.ends_with("struct S ;"), "{text}");
    }
}
