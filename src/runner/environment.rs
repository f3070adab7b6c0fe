//! The environment variables that the programs of the guest have from this host.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Result, anyhow, bail, ensure};

/// The variable that names more variables to pass on, separated by commas.
pub(crate) const KTSTR_ENV: &str = "KTSTR_ENV";

/// The variable with extra words for the kernel command line of every guest.
pub(crate) const KTSTR_KARGS: &str = "KTSTR_KARGS";

/// The variable that decides whether guests are forked.
const KTSTR_FORK: &str = "KTSTR_FORK";

/// Variables that are always passed on: they change what Rust programs print or the stack size of their
/// threads, and do not contain paths of this host.
const NAMES: [&str; 4] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE", "RUST_LOG", "RUST_MIN_STACK"];

/// Prefixes of variables that are always passed on: the settings of property tests.
const PREFIXES: [&str; 2] = ["PROPTEST_", "QUICKCHECK_"];

/// The limit of the total size of names and values in bytes: they travel in one message.
const MAX_BYTES: usize = 256 << 10;

type Variable = (OsString, OsString);

/// Returns the variables for the guest of a test with `declared` in its key `env`.
///
/// These are the variables that are always passed on, those that `KTSTR_ENV` names, and those that the
/// test declares, which replace the others. A name without a value on this host is omitted.
///
/// # Errors
///
/// If `KTSTR_ENV` is not a list of names, or the variables are too long in total.
pub(crate) fn passed_on(declared: &[&str]) -> Result<Vec<Variable>> {
    select(env::vars_os().collect(), env::var_os(KTSTR_ENV).as_deref(), declared)
}

/// Returns the value of [`KTSTR_KARGS`], empty if it is not set.
///
/// # Errors
///
/// If it is not UTF-8.
pub(crate) fn kargs() -> Result<String> {
    env::var_os(KTSTR_KARGS)
        .unwrap_or_default()
        .into_string()
        .map_err(|value| anyhow!("{KTSTR_KARGS} is not UTF-8: `{}`", value.display()))
}

/// Returns whether guests may be forked: unless `KTSTR_FORK=0`.
///
/// # Errors
///
/// If the variable has another value than `0` and `1`.
pub(crate) fn forks() -> Result<bool> {
    parse_forks(env::var_os(KTSTR_FORK).as_deref())
}

fn parse_forks(value: Option<&OsStr>) -> Result<bool> {
    match value.map(OsStr::as_bytes) {
        None | Some(b"" | b"1") => Ok(true),
        Some(b"0") => Ok(false),
        Some(_) => bail!(
            "{KTSTR_FORK}={}: expected 0 to boot the guest of each test, or 1",
            value.unwrap_or_default().display()
        ),
    }
}

/// Returns the variables that run a test again as it was run here: [`KTSTR_ENV`], [`KTSTR_KARGS`],
/// [`KTSTR_FORK`] and those that are always passed on. Not those that `KTSTR_ENV` names: they may be secret.
pub(crate) fn to_run_again() -> Vec<Variable> {
    const OWN: [&str; 3] = [KTSTR_ENV, KTSTR_KARGS, KTSTR_FORK];
    let is_kept = |name: &OsString| OWN.iter().any(|own| name == own) || is_always_passed_on(name);
    env::vars_os().filter(|(name, _)| is_kept(name)).collect()
}

fn is_always_passed_on(name: &OsStr) -> bool {
    NAMES.iter().any(|known| name == *known)
        || PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

fn select(host: Vec<Variable>, named: Option<&OsStr>, declared: &[&str]) -> Result<Vec<Variable>> {
    let named = named.map(names).transpose()?.unwrap_or_default();
    let mut selected: Vec<Variable> = Vec::new();
    for (name, value) in &host {
        if is_always_passed_on(name) || named.contains(name) {
            selected.push((name.clone(), value.clone()));
        }
    }
    for variable in declared {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => {
                let value = host.iter().find(|(name, _)| name == variable);
                (*variable, value.map(|(_, value)| value.clone()))
            }
        };
        selected.retain(|(known, _)| known != name);
        selected.extend(value.map(|value| (OsString::from(name), value)));
    }
    let bytes: usize = selected.iter().map(|(name, value)| name.len() + value.len()).sum();
    ensure!(
        bytes <= MAX_BYTES,
        "the environment variables for the guest take {bytes} bytes (limit {MAX_BYTES}): name fewer \
         in {KTSTR_ENV} or in the key `env`"
    );
    Ok(selected)
}

/// Splits the value of `KTSTR_ENV`.
fn names(list: &OsStr) -> Result<Vec<OsString>> {
    let names = list.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let names: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    for name in &names {
        ensure!(
            !name.as_bytes().contains(&b'='),
            "invalid name `{}` in {KTSTR_ENV}: list names only, as in `{KTSTR_ENV}=SEED,LIMIT`, and \
             set the variables separately",
            name.display()
        );
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(host: &[(&str, &str)], named: Option<&str>, declared: &[&str]) -> Vec<String> {
        let host = host.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let selected = select(host, named.map(OsStr::new), declared).unwrap();
        let text = |(name, value): &Variable| format!("{}={}", name.display(), value.display());
        selected.iter().map(text).collect()
    }

    #[test]
    fn forks_unless_the_variable_is_0() {
        let parse = |value: &str| parse_forks(Some(OsStr::new(value)));
        assert!(parse_forks(None).unwrap() && parse("").unwrap() && parse("1").unwrap());
        assert!(!parse("0").unwrap());
        let error = parse("off").unwrap_err().to_string();
        assert_eq!(error, "KTSTR_FORK=off: expected 0 to boot the guest of each test, or 1");
    }

    #[test]
    fn select_takes_defaults_then_named_then_declared() {
        let host = [
            ("HOME", "/home/user"),
            ("PROPTEST_CASES", "9"),
            ("RUST_LOG", "debug"),
            ("RUST_LOGGING", "1"),
            ("SEED", "7"),
        ];
        let defaults = ["PROPTEST_CASES=9", "RUST_LOG=debug"];
        for (named, declared, more) in [
            (None, &[][..], &[][..]),
            (Some("SEED"), &[], &["SEED=7"]),
            (Some(" SEED,, MISSING, "), &[], &["SEED=7"]),
            (None, &["SEED", "MISSING"], &["SEED=7"]),
            (None, &["A=", "B==c=", "SEED=8"], &["A=", "B==c=", "SEED=8"]),
            (Some("SEED"), &["SEED=8"], &["SEED=8"]),
        ] {
            let found = selected(&host, named, declared);
            assert_eq!(found, [&defaults[..], more].concat(), "{named:?} {declared:?}");
        }
        assert_eq!(
            selected(&host, None, &["RUST_LOG=trace"]),
            ["PROPTEST_CASES=9", "RUST_LOG=trace"]
        );
    }

    #[test]
    fn select_keeps_bytes_that_are_not_utf8() {
        let variable =
            (OsString::from_vec(b"N\xff".to_vec()), OsString::from_vec(b"\xfe".to_vec()));
        let found = select(vec![variable.clone()], Some(&variable.0), &[]).unwrap();
        assert_eq!(found, [variable]);
    }

    #[test]
    fn select_rejects_values_in_the_list_and_too_many_bytes() {
        let error = select(Vec::new(), Some(OsStr::new("A,B=1")), &[]).unwrap_err().to_string();
        assert!(error.contains("invalid name `B=1` in KTSTR_ENV: list names"), "{error}");
        let long = "x".repeat(MAX_BYTES);
        let host = vec![("LONG".into(), long.into())];
        let error = select(host, Some(OsStr::new("LONG")), &[]).unwrap_err().to_string();
        assert!(error.contains("take 262148 bytes (limit 262144)"), "{error}");
    }
}
