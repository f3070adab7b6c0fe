//! The parser of `#[ktstr_test(...)]`.
//!
//! An error does not end the parse: it is recorded at its token, and the parser continues after the
//! next comma, so that one build reports all errors.

use std::fmt::Display;
use std::ops::RangeInclusive;

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::ParseStream;
use syn::{
    Expr, ExprArray, ExprCall, ExprLit, ExprPath, ExprUnary, Ident, Lit, LitBool, LitInt, LitStr,
    Path, Token, UnOp,
};

use crate::errors::Errors;
use crate::keys::{self, KEYS, Key, Takes};

/// The most CPUs of a guest: `Topology::MAX_CPUS` of ktstr-core.
const MAX_CPUS: u32 = 255;

/// The least memory of a NUMA node.
const MIN_MIB_PER_NODE: u32 = 32;

const INTEGER_TYPES: [&str; 12] =
    ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize"];

const FLOAT_TYPES: [&str; 2] = ["f32", "f64"];

/// The keys of an attribute, checked alone and together.
#[derive(Default)]
pub(crate) struct Args {
    /// In the order of the attribute, each key once.
    pub(crate) given: Vec<Arg>,
}

pub(crate) struct Arg {
    pub(crate) key: &'static Key,
    pub(crate) value: Value,
}

/// A value of the type that its key takes.
pub(crate) enum Value {
    Integer(u32, Span),
    /// Finite and in range.
    Number(f64),
    /// At least one, and the span of the brackets.
    Integers(Vec<u32>, Span),
    Bool(bool),
    Text(LitStr),
    /// A valid regular expression.
    Regex(LitStr),
    Function(ExprPath),
    /// At least one.
    Paths(Vec<ExprPath>),
    /// At least one.
    Texts(Vec<LitStr>),
    /// A path without type arguments.
    Path(Path),
    /// `ignore` alone.
    Nothing,
}

impl Args {
    /// Returns the value of key `name`, if it was given.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.given.iter().find(|arg| arg.key.name == name).map(|arg| &arg.value)
    }
}

/// Parses the attribute's arguments and records all errors.
///
/// The result has the keys with valid values.
pub(crate) fn parse(attr: TokenStream, errors: &mut Errors) -> Args {
    let mut parser = Parser { args: Args::default(), seen: Vec::new(), errors };
    let rest = syn::parse::Parser::parse2(|input: ParseStream<'_>| parser.parse(input), attr);
    let Parser { args, errors, .. } = parser;
    // `parse` returns no error and leaves no input.
    errors.take(rest);
    args
}

struct Parser<'a> {
    args: Args,
    /// Every known key with its token, whether or not its value is valid.
    seen: Vec<(&'static Key, Ident)>,
    errors: &'a mut Errors,
}

impl Parser<'_> {
    /// Consumes all of the input. Records every error and returns none.
    fn parse(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        while !input.is_empty() {
            if let Err(error) = self.parse_arg(input) {
                self.errors.add(error);
                skip_past_comma(input);
            }
        }
        self.check_host_only();
        self.check_topology();
        Ok(())
    }

    /// Parses `key` or `key = value`, and the comma after it.
    ///
    /// After an error that is returned instead of recorded, the input is inside the argument.
    fn parse_arg(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error("expected a key, such as `cores = 2`"));
        }
        let ident = input.call(Ident::parse_any)?;
        let Some(key) = keys::find(&ident.to_string()) else {
            self.errors.at(ident.span(), unknown_key(&ident));
            skip_past_comma(input);
            return Ok(());
        };
        let is_first = self.record_key(key, &ident);
        let value = parse_value(key, &ident, input)?;
        if let Some(value) = self.errors.take(value)
            && is_first
        {
            self.args.given.push(Arg { key, value });
        }
        self.parse_comma(input)
    }

    /// Records the key and returns whether this is its first occurrence.
    fn record_key(&mut self, key: &'static Key, ident: &Ident) -> bool {
        let is_first = !self.seen.iter().any(|(seen, _)| seen.name == key.name);
        if !is_first {
            self.errors.at(ident.span(), format!("remove `{ident}`: the key is given twice"));
        }
        self.seen.push((key, ident.clone()));
        is_first
    }

    fn parse_comma(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        if input.is_empty() || input.parse::<Option<Token![,]>>()?.is_some() {
            return Ok(());
        }
        let missing = input.error("expected `,`");
        if input.peek(Ident::peek_any) {
            // Most likely the next key. Its errors should be reported as well.
            self.errors.add(missing);
            return Ok(());
        }
        Err(missing)
    }

    fn check_host_only(&mut self) {
        if !matches!(self.args.get("host_only"), Some(Value::Bool(true))) {
            return;
        }
        for (_, ident) in self.seen.iter().filter(|(key, _)| key.is_vm) {
            let message = format!("remove `{ident}` or `host_only`: without a VM it has no effect");
            self.errors.at(ident.span(), message);
        }
    }

    /// Checks the keys of the topology together, as far as their values are valid.
    fn check_topology(&mut self) {
        let [numa_nodes, llcs, cores, threads, memory_mib] =
            ["numa_nodes", "llcs", "cores", "threads", "memory_mib"].map(|name| self.number(name));
        let list = self.list_of_cores();
        if let Some(list) = &list {
            self.check_list(list, numa_nodes.as_ref(), llcs.as_ref());
        } else if let (Some(numa_nodes), Some(llcs)) = (&numa_nodes, &llcs) {
            self.check_llcs(numa_nodes, llcs);
        }
        if let (Some(numa_nodes), Some(memory_mib)) = (&numa_nodes, &memory_mib) {
            self.check_memory(numa_nodes, memory_mib);
        }
        if let (Some(list), Some(threads)) = (&list, &threads) {
            let (cores, threads) = (list.cores.iter().sum::<u32>(), threads.value);
            let terms: Vec<_> = list.cores.iter().map(u32::to_string).collect();
            let values = format!("({}) * {threads}", terms.join(" + "));
            self.check_cpus(&["cores", "threads"], &values, cores * threads);
        } else if let (Some(llcs), Some(cores), Some(threads)) = (&llcs, &cores, &threads) {
            let (llcs, cores, threads) = (llcs.value, cores.value, threads.value);
            let values = format!("{llcs} * {cores} * {threads}");
            self.check_cpus(&["llcs", "cores", "threads"], &values, llcs * cores * threads);
        }
    }

    /// Checks a list of cores, which has one number for each last-level cache.
    fn check_list(&mut self, list: &List, numa_nodes: Option<&Number>, llcs: Option<&Number>) {
        let count = list.cores.len() as u32;
        if let Some(&Number { value: llcs, span: Some(_) }) = llcs
            && llcs != count
        {
            self.errors.at(
                list.span,
                format!(
                    "`cores` lists {count} last-level caches, but `llcs = {llcs}`: list {llcs}, \
                     or remove `llcs`"
                ),
            );
        } else if let Some(&Number { value: nodes, .. }) = numa_nodes
            && !count.is_multiple_of(nodes)
        {
            let fits = count.next_multiple_of(nodes);
            self.errors.at(
                list.span,
                format!(
                    "`cores` lists {count} last-level caches, which is not a multiple of \
                     `numa_nodes = {nodes}`: list {fits} or change `numa_nodes`"
                ),
            );
        }
    }

    fn check_llcs(&mut self, numa_nodes: &Number, llcs: &Number) {
        if let Some(span) = llcs.span.or(numa_nodes.span)
            && !llcs.value.is_multiple_of(numa_nodes.value)
        {
            let (llcs, nodes) = (llcs.value, numa_nodes.value);
            let fits = llcs.next_multiple_of(nodes);
            self.errors.at(
                span,
                format!(
                    "`llcs = {llcs}` is not a multiple of `numa_nodes = {nodes}`: \
                     write `llcs = {fits}` or change `numa_nodes`"
                ),
            );
        }
    }

    fn check_memory(&mut self, numa_nodes: &Number, memory_mib: &Number) {
        if let Some(span) = memory_mib.span.or(numa_nodes.span)
            && memory_mib.value / numa_nodes.value < MIN_MIB_PER_NODE
        {
            let (mib, nodes) = (memory_mib.value, numa_nodes.value);
            let fits = nodes * MIN_MIB_PER_NODE;
            self.errors.at(
                span,
                format!(
                    "`memory_mib = {mib}` is not enough for `numa_nodes = {nodes}` (minimum \
                     {MIN_MIB_PER_NODE} MiB per node): write `memory_mib = {fits}` or more"
                ),
            );
        }
    }

    fn check_cpus(&mut self, factors: &[&str], values: &str, nr_cpus: u32) {
        // The error is reported at the last factor: those before it may well be intended.
        let last = self.args.given.iter().rev().find_map(|arg| match arg.value {
            Value::Integer(_, span) | Value::Integers(_, span)
                if factors.contains(&arg.key.name) =>
            {
                Some(span)
            }
            _ => None,
        });
        if let Some(span) = last
            && nr_cpus > MAX_CPUS
        {
            self.errors.at(
                span,
                format!(
                    "{} = {values} = {nr_cpus} CPUs (maximum {MAX_CPUS}): lower one of them",
                    factors.join(" * ")
                ),
            );
        }
    }

    /// Returns the value of an integer key, its default if it was not given, `None` if it is invalid.
    fn number(&self, name: &str) -> Option<Number> {
        if let Some(&Value::Integer(value, span)) = self.args.get(name) {
            return Some(Number { value, span: Some(span) });
        }
        match keys::find(name)?.takes {
            Takes::Integer { default, .. } | Takes::Integers { default, .. }
                if !self.has_seen(name) =>
            {
                Some(Number { value: default, span: None })
            }
            _ => None,
        }
    }

    /// Returns the value of `cores`, if it is a list.
    fn list_of_cores(&self) -> Option<List> {
        match self.args.get("cores") {
            Some(Value::Integers(cores, span)) => Some(List { cores: cores.clone(), span: *span }),
            _ => None,
        }
    }

    fn has_seen(&self, name: &str) -> bool {
        self.seen.iter().any(|(key, _)| key.name == name)
    }
}

/// An integer of the attribute, or a default, which has no `span`.
struct Number {
    value: u32,
    span: Option<Span>,
}

/// The cores of each last-level cache, as listed in the attribute.
struct List {
    cores: Vec<u32>,
    span: Span,
}

fn unknown_key(ident: &Ident) -> String {
    match keys::closest(&ident.to_string()) {
        Some(key) => format!("unknown key `{ident}`: did you mean `{}`?", key.name),
        None => {
            let names: Vec<_> = KEYS.iter().map(|key| format!("`{}`", key.name)).collect();
            format!("unknown key `{ident}`: the keys are {}", names.join(", "))
        }
    }
}

/// Parses `= value`, or nothing for a key that may stand alone.
///
/// The outer error is a syntax error, after which the parser has to skip input; the inner one is an
/// invalid value.
fn parse_value(
    key: &Key,
    ident: &Ident,
    input: ParseStream<'_>,
) -> syn::Result<syn::Result<Value>> {
    if input.peek(syn::token::Paren) {
        return Err(input.error(format!("write `{key}`, without parentheses")));
    }
    let Some(eq) = input.parse::<Option<Token![=]>>()? else {
        if !(input.is_empty() || input.peek(Token![,]) || input.peek(Ident::peek_any)) {
            return Err(input.error(format!("expected `=` or `,` after `{ident}`")));
        }
        return Ok(match key.takes {
            Takes::Bool | Takes::BoolOrText => Ok(Value::Bool(true)),
            Takes::Reason => Ok(Value::Nothing),
            _ => Err(syn::Error::new(
                ident.span(),
                format!("`{ident}` needs a value: write `{key}`"),
            )),
        });
    };
    if input.is_empty() || input.peek(Token![,]) {
        let message = format!("expected {} after `=`", key.takes);
        return Ok(Err(syn::Error::new(eq.span, message)));
    }
    let expr = input
        .parse::<Expr>()
        .map_err(|error| syn::Error::new(error.span(), format!("expected {}", key.takes)))?;
    Ok(check_value(key, expr))
}

fn check_value(key: &Key, expr: Expr) -> syn::Result<Value> {
    match (&key.takes, expr) {
        // A value from a `macro_rules!` metavariable.
        (_, Expr::Group(group)) => check_value(key, *group.expr),
        (
            Takes::Integer { range, .. }
            | Takes::Integers { range, .. }
            | Takes::Count { range, .. },
            Expr::Lit(ExprLit { lit: Lit::Int(lit), .. }),
        ) => check_integer(key, range, &lit).map(|value| Value::Integer(value, lit.span())),
        (Takes::Integers { range, .. }, Expr::Array(list)) => check_integers(key, range, &list),
        (
            Takes::Number { min, max, .. },
            Expr::Lit(ExprLit { lit: lit @ (Lit::Int(_) | Lit::Float(_)), .. }),
        ) => check_number(key, *min..=*max, &lit).map(Value::Number),
        (
            Takes::Bool | Takes::BoolOrText,
            Expr::Lit(ExprLit { lit: Lit::Bool(LitBool { value, .. }), .. }),
        ) => Ok(Value::Bool(value)),
        (Takes::BoolOrText | Takes::Reason, Expr::Lit(ExprLit { lit: Lit::Str(lit), .. })) => {
            if lit.value().trim().is_empty() {
                let what = if matches!(key.takes, Takes::Reason) { "reason" } else { "text" };
                let message = format!("the {what} is empty: write one, or `{}` alone", key.name);
                return Err(syn::Error::new(lit.span(), message));
            }
            Ok(Value::Text(lit))
        }
        (Takes::BoolOrText, Expr::Call(call)) if is_regex(&call) => check_regex(&call),
        (Takes::Text { check, .. }, Expr::Lit(ExprLit { lit: Lit::Str(lit), .. })) => {
            check(&lit.value()).map_err(|message| syn::Error::new(lit.span(), message))?;
            Ok(Value::Text(lit))
        }
        (Takes::Function, Expr::Path(path)) => Ok(Value::Function(path)),
        (Takes::Crate, Expr::Path(path)) if is_plain(&path) => Ok(Value::Path(path.path)),
        (Takes::Crate, Expr::Path(path)) => {
            let message = format!("remove the type arguments: write `{key}`");
            Err(syn::Error::new_spanned(path, message))
        }
        (Takes::Paths, Expr::Array(list)) => check_paths(key, &list),
        (Takes::Texts { check, .. }, Expr::Array(list)) => check_texts(key, *check, &list),
        (takes, expr) => Err(unexpected(&expr, takes)),
    }
}

/// Returns whether a path may be that of a module.
fn is_plain(path: &ExprPath) -> bool {
    path.qself.is_none() && path.path.segments.iter().all(|segment| segment.arguments.is_none())
}

fn is_regex(call: &ExprCall) -> bool {
    matches!(&*call.func, Expr::Path(path) if path.path.is_ident("regex"))
}

fn check_regex(call: &ExprCall) -> syn::Result<Value> {
    let pattern = call.args.first().map(ungrouped).filter(|_| call.args.len() == 1);
    let Some(Expr::Lit(ExprLit { lit: Lit::Str(lit), .. })) = pattern else {
        let message = "expected one string literal: write `regex(\"...\")`";
        return Err(syn::Error::new_spanned(call, message));
    };
    // An empty one would match any failure.
    if lit.value().is_empty() {
        let message = "the regular expression is empty: write one, or `expect_err` alone";
        return Err(syn::Error::new(lit.span(), message));
    }
    match regex_lite::Regex::new(&lit.value()) {
        Ok(_) => Ok(Value::Regex(lit.clone())),
        Err(error) => {
            let message = format!("invalid regular expression: {error}");
            Err(syn::Error::new(lit.span(), message))
        }
    }
}

/// Checks the elements of a list with `check`, which gets the valid ones before, and reports every error.
fn check_elements<T>(
    key: &Key,
    list: &ExprArray,
    instead: &str,
    check: impl Fn(&[T], &Expr) -> syn::Result<T>,
) -> syn::Result<Vec<T>> {
    let (mut errors, mut values) = (Errors::default(), Vec::new());
    if list.elems.is_empty() {
        errors.on(list, format!("the list is empty: write `{key}`, or {instead}"));
    }
    for element in &list.elems {
        let checked = check(&values, ungrouped(element));
        values.extend(errors.take(checked));
    }
    errors.into_result()?;
    Ok(values)
}

fn check_paths(key: &Key, list: &ExprArray) -> syn::Result<Value> {
    let check = |known: &[ExprPath], element: &Expr| match element {
        Expr::Path(path) if known.iter().any(|known| written(known) == written(path)) => {
            let message = format!("remove `{}`: it is listed twice", written(path));
            Err(syn::Error::new_spanned(path, message))
        }
        Expr::Path(path) => Ok(path.clone()),
        other => Err(unexpected(other, "the path of a constant")),
    };
    check_elements(key, list, "remove the key", check).map(Value::Paths)
}

/// Returns a path as it is written, without spaces.
fn written(path: &ExprPath) -> String {
    path.to_token_stream().to_string().replace(' ', "")
}

fn check_texts(
    key: &Key,
    check: fn(&str) -> Result<(), String>,
    list: &ExprArray,
) -> syn::Result<Value> {
    let check = |known: &[LitStr], element: &Expr| match element {
        Expr::Lit(ExprLit { lit: Lit::Str(lit), .. }) => {
            let is_known = known.iter().any(|known| variable(known) == variable(lit));
            check(&lit.value())
                .and_then(|()| {
                    let message = || format!("remove `{}`: it is listed twice", variable(lit));
                    (!is_known).then(|| lit.clone()).ok_or_else(message)
                })
                .map_err(|message| syn::Error::new(lit.span(), message))
        }
        other => Err(unexpected(other, "a string literal")),
    };
    check_elements(key, list, "remove the key", check).map(Value::Texts)
}

/// Returns the name in `NAME=value` or `NAME`.
fn variable(text: &LitStr) -> String {
    text.value().split('=').next().unwrap_or_default().to_owned()
}

/// Returns the expression inside of the groups that `macro_rules!` metavariables make.
fn ungrouped(mut expr: &Expr) -> &Expr {
    while let Expr::Group(group) = expr {
        expr = &group.expr;
    }
    expr
}

fn check_integers(key: &Key, range: &RangeInclusive<u32>, list: &ExprArray) -> syn::Result<Value> {
    let check = |_: &[u32], element: &Expr| match element {
        Expr::Lit(ExprLit { lit: Lit::Int(lit), .. }) => check_integer(key, range, lit),
        other => {
            let (min, max) = (range.start(), range.end());
            Err(unexpected(other, format!("an integer literal from {min} to {max}")))
        }
    };
    let values = check_elements(key, list, "one number for each", check)?;
    Ok(Value::Integers(values, list.bracket_token.span.join()))
}

fn check_integer(key: &Key, range: &RangeInclusive<u32>, lit: &LitInt) -> syn::Result<u32> {
    let suffix = lit.suffix();
    if !(suffix.is_empty() || INTEGER_TYPES.contains(&suffix)) {
        let message = format!("remove `{suffix}`: the key takes {}", key.takes);
        return Err(syn::Error::new(lit.span(), message));
    }
    // A number that does not fit into 32 bits is out of range as well.
    match lit.base10_parse::<u32>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => {
            let (name, min, max) = (key.name, range.start(), range.end());
            let message = format!("`{name} = {lit}` is out of range: write {min} to {max}");
            Err(syn::Error::new(lit.span(), message))
        }
    }
}

fn check_number(key: &Key, range: RangeInclusive<f64>, lit: &Lit) -> syn::Result<f64> {
    let (digits, suffix) = match lit {
        Lit::Int(lit) => (lit.base10_digits(), lit.suffix()),
        Lit::Float(lit) => (lit.base10_digits(), lit.suffix()),
        _ => unreachable!("no other literal is a number"),
    };
    // `5f64` is an integer to syn.
    if !(suffix.is_empty() || INTEGER_TYPES.contains(&suffix) || FLOAT_TYPES.contains(&suffix)) {
        let message = format!("remove `{suffix}`: the key takes {}", key.takes);
        return Err(syn::Error::new(lit.span(), message));
    }
    match digits.parse::<f64>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => {
            let (name, min, max) = (key.name, range.start(), range.end());
            let lit_text = lit.to_token_stream();
            let message = format!("`{name} = {lit_text}` is out of range: write {min} to {max}");
            Err(syn::Error::new(lit.span(), message))
        }
    }
}

fn unexpected(found: &Expr, wanted: impl Display) -> syn::Error {
    let message = format!("expected {wanted}, found {}", describe(found));
    syn::Error::new_spanned(found, message)
}

/// Describes an expression that is not the expected value.
fn describe(expr: &Expr) -> &'static str {
    match expr {
        Expr::Lit(ExprLit { lit, .. }) => match lit {
            Lit::Int(_) => "an integer",
            Lit::Float(_) => "a float",
            Lit::Bool(_) => "a boolean",
            Lit::Str(_) => "a string",
            Lit::Char(_) | Lit::Byte(_) => "a character",
            _ => "another literal",
        },
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) if matches!(**expr, Expr::Lit(_)) => {
            "a negative number"
        }
        Expr::Path(_) => "a path",
        Expr::Array(_) => "a list",
        Expr::Closure(_) => "a closure",
        _ => "an expression",
    }
}

fn skip_past_comma(input: ParseStream<'_>) {
    while !input.is_empty() {
        let is_comma = input.peek(Token![,]);
        // Any token parses.
        let _ = input.parse::<TokenTree>();
        if is_comma {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(attr: &str) -> (Args, Vec<(String, String)>) {
        let mut errors = Errors::default();
        let args = parse(attr.parse().expect("tokens"), &mut errors);
        (args, errors.into_texts())
    }

    #[test]
    fn parse_accepts_valid_values() {
        for attr in [
            "",
            "cores = 1",
            "cores = 255,",
            "llcs = 0x1f, cores = 0b100, threads = 0o2",
            "numa_nodes = 64, llcs = 64, memory_mib = 2_048u64",
            "llcs = 5, cores = 51, threads = 1",
            "cores = [4,2]",
            "cores = [0x4,2u8,], llcs = 2, threads = 8",
            "numa_nodes = 2, cores = [128,127]",
            "memory_mib = 64, numa_nodes = 2, llcs = 4isize",
            "duration_s = 86400, watchdog_timeout_s = 86400",
            "expect_err, kaslr = false, auto_repro = true",
            "host_only, duration_s = 1, expect_err, ignore, workload_root_cgroup = \"/a\"",
            "host_only = false, cores = 4, kernel = r#\"6.12\"#",
            "expect_err = \"the disk is full\", not_stuck = false, isolation, max_gap_ms = 86_400_000",
            "max_spread_pct = 0, max_throughput_cv = 1.5e-1f64, min_work_rate = 0x10, max_throttled_pct = 9f32",
            "max_p99_wake_latency_ns = 4_294_967_295, host_only, min_page_locality = 1.0",
            "ignore = \"slow\", post_vm = <Host as Check>::check::<u8, u16>",
            "expect_err = regex(r\"^fail: \\d+ of\\s\"), cores = 1",
            "crate = a::ktstr",
            "host_only, crate = ::kt",
            "crate = crate::b, ignore",
            "payloads = [A,crate::b::C,<P as Load>::RUN,], cores = 2",
        ] {
            let (args, errors) = parse_text(attr);
            assert!(errors.is_empty(), "{attr}: {errors:?}");
            let keys = attr.split(", ").filter(|arg| !arg.is_empty() && !arg.starts_with("u16"));
            assert_eq!(args.given.len(), keys.count(), "{attr}");
        }
    }

    #[test]
    fn parse_marks_the_token_of_every_error() {
        for (attr, want) in [
            ("cores = 256, threads = 0", &["256", "0"][..]),
            ("core = 1, cores = 0, cores = 2.0", &["core", "0", "cores", "2.0"]),
            ("cores, llcs = , kernel", &["cores", "=", "kernel"]),
            ("cores = 2 + 2, kaslr = !x", &["2 + 2", "!x"]),
            ("= 3, cores = 0 threads = -2", &["=", "0", "threads", "-2"]),
            ("host_only, cores = 0, kaslr, duration_s = 1", &["0", "cores", "kaslr"]),
            ("numa_nodes = 2", &["2"]),
            ("numa_nodes = 32, memory_mib = 512", &["32", "512"]),
            ("threads = 8, llcs = 32, duration_s = 1", &["32"]),
            // A value that is out of range is not checked together with others.
            ("threads = 9, llcs = 255, cores = 255", &["9"]),
            ("host_only = 1, cores = 1", &["1"]),
            ("cores = [0, 4, 256, x, 2.0]", &["0", "256", "x", "2.0"]),
            ("cores = [], llcs = [2]", &["[]", "[2]"]),
            ("cores = [4; 2], threads = 9", &["[4; 2]", "9"]),
            ("llcs = 3, cores = [4, 2]", &["[4, 2]"]),
            ("cores = [4, 2, 1], numa_nodes = 2", &["[4, 2, 1]"]),
            ("llcs = 2, cores = [100, 100], threads = 2, kaslr", &["2"]),
            ("threads = 2, cores = [100, 100], numa_nodes = 2", &["[100, 100]"]),
            ("expect_err = \"\", not_stuck = 1", &["\"\"", "1"]),
            (
                "max_gap_ms = 0, max_gap_ms = 5.5, isolation = \"a\"",
                &["0", "max_gap_ms", "5.5", "\"a\""],
            ),
            ("max_spread_pct = 100.1, max_throughput_cv = -0.5", &["100.1", "-0.5"]),
            (
                "min_work_rate = 0, min_page_locality = 1e999, max_io_pressure_pct = 5s",
                &["0", "1e999", "5s"],
            ),
            ("max_spread_pct, max_wake_latency_cv =", &["max_spread_pct", "="]),
            ("host_only, judge_emulated_time", &["judge_emulated_time"]),
            ("payloads = [A, 1, \"b\", [C]], host_only", &["1", "\"b\"", "[C]", "payloads"]),
            ("payloads = [], payloads = A", &["[]", "payloads", "A"]),
            ("payloads = [A, b::C, b::A, A, b :: C], cores = 0", &["A", "b :: C", "0"]),
            ("env = [\"=1\", A, \"B\", \"B=2\"], host_only", &["\"=1\"", "A", "\"B=2\"", "env"]),
            ("env = [], env = \"A\"", &["[]", "env", "\"A\""]),
            ("expect_err = regex(\"(\"), cores = 0", &["\"(\"", "0"]),
            ("expect_err = regex(\"\")", &["\"\""]),
            ("expect_err = regex(a)", &["regex(a)"]),
            ("expect_err = regex(\"a\", \"b\")", &["regex(\"a\", \"b\")"]),
            ("expect_err = text(\"a\")", &["text(\"a\")"]),
            ("payloads", &["payloads"]),
            ("crate, crate = \"kt\"", &["crate", "crate", "\"kt\""]),
            ("crate = a::<u8>, cores = 0", &["a::<u8>", "0"]),
            ("crate = <A as B>::c", &["<A as B>::c"]),
            // Too many CPUs are not reported in addition.
            ("llcs = 0, cores = [255, 255, 0]", &["0", "0"]),
        ] {
            let (_, errors) = parse_text(attr);
            let tokens: Vec<_> = errors.iter().map(|(token, _)| token.as_str()).collect();
            assert_eq!(tokens, want, "{attr}: {errors:?}");
        }
    }

    #[test]
    fn parse_checks_combinations_up_to_the_limit() {
        for (attr, ok) in [
            ("llcs = 255, cores = 1", true),
            ("llcs = 127", true),
            ("llcs = 128", false),
            ("llcs = 255, cores = 255, threads = 8", false),
            ("cores = [254, 1]", true),
            ("cores = [254, 1, 1]", false),
            ("llcs = 2, cores = [3, 1], numa_nodes = 2", true),
            ("llcs = 1, cores = [3, 1]", false),
            ("llcs = 3, cores = [3, 1]", false),
            ("numa_nodes = 3, llcs = 9", true),
            ("numa_nodes = 3, llcs = 10", false),
            ("numa_nodes = 8, llcs = 8", true),
            ("numa_nodes = 9, llcs = 9", false),
            ("numa_nodes = 2, llcs = 2, memory_mib = 64", true),
            ("numa_nodes = 3, llcs = 3, memory_mib = 95", false),
        ] {
            let (_, errors) = parse_text(attr);
            assert_eq!(errors.is_empty(), ok, "{attr}: {errors:?}");
        }
    }
}
