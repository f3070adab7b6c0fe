//! The keys of `#[ktstr_test(...)]`, with their values and their targets in the expansion.
//!
//! The parser, its messages and the expansion use the table [`KEYS`]; a test compares the attribute's
//! documentation with it.

use std::fmt;
use std::ops::RangeInclusive;

use crate::kargs;

pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) takes: Takes,
    pub(crate) target: Target,
    /// Describes the virtual machine, so it contradicts `host_only`.
    pub(crate) is_vm: bool,
}

/// The values that a key takes.
pub(crate) enum Takes {
    /// An integer literal.
    ///
    /// `default` repeats `TestEntry::DEFAULT`, only for checks that involve several keys: a key that
    /// was not given is not written to the expansion.
    Integer { range: RangeInclusive<u32>, default: u32 },
    /// An integer literal: a bound that is not set by default.
    Count { range: RangeInclusive<u32>, example: u32 },
    /// An integer or float literal: a bound that is not set by default.
    Number { min: f64, max: f64, example: f64 },
    /// An integer literal, or a list of them in brackets.
    Integers { range: RangeInclusive<u32>, default: u32 },
    /// Nothing, `true` or `false`.
    Bool,
    /// Nothing, `true`, `false`, a string literal that is not empty, or `regex("...")`.
    BoolOrText,
    /// A string literal that passes `check`; its error is the message.
    Text { example: &'static str, check: fn(&str) -> Result<(), String> },
    /// Nothing, or a string literal with a reason.
    Reason,
    /// The path of a function.
    Function,
    /// The paths of constants, in brackets.
    Paths,
    /// String literals that pass `check`, in brackets.
    Texts { example: &'static str, check: fn(&str) -> Result<(), String> },
    /// The path of the crate.
    Crate,
}

/// The place of a value in the expansion.
pub(crate) enum Target {
    /// A field of `Topology`.
    Topology(&'static str),
    /// The field `llcs` of `Topology`, which several keys share.
    Llcs,
    /// A field of `MachineSpec`.
    Machine(&'static str),
    /// A field of `MachineSpec`, a `Cow<str>`.
    MachineText(&'static str),
    /// The field `kernel` of `MachineSpec`.
    Kernel,
    /// A field of `TestEntry`.
    Field(&'static str),
    /// A field of `TestEntry`, a `Duration` in seconds.
    Seconds(&'static str),
    /// A field of `TestEntry`, a `Duration` in milliseconds.
    Millis(&'static str),
    /// A field of `TestEntry`, an `Option`.
    Optional(&'static str),
    /// A field of `TestEntry`, a slice of references.
    References(&'static str),
    /// The field `expect_err` of `TestEntry`.
    ExpectErr,
    /// The field `assert` of `TestEntry`, which several keys share: a method of `Assert` by the
    /// key's name.
    Check,
    IgnoreAttribute,
    /// The paths of the expansion.
    Crate,
}

/// Every key, in the order of the documentation.
pub(crate) const KEYS: &[Key] = &[
    Key::new("numa_nodes", integer(1..=64, 1), Target::Topology("numa_nodes")).vm(),
    Key::new("llcs", integer(1..=255, 1), Target::Llcs).vm(),
    Key::new("cores", Takes::Integers { range: 1..=255, default: 2 }, Target::Llcs).vm(),
    Key::new("threads", integer(1..=8, 1), Target::Topology("threads_per_core")).vm(),
    Key::new("memory_mib", integer(64..=1_048_576, 256), Target::Machine("memory_mib")).vm(),
    Key::new("duration_s", integer(1..=86_400, 5), Target::Seconds("duration")),
    Key::new("settle_ms", integer(0..=86_400_000, 500), Target::Millis("settle")),
    Key::new("workers_per_cgroup", integer(1..=10_000, 2), Target::Field("workers_per_cgroup")),
    Key::new("watchdog_timeout_s", integer(1..=86_400, 20), Target::Seconds("watchdog_timeout"))
        .vm(),
    Key::new("kernel", text("debian:trixie", check_kernel), Target::Kernel).vm(),
    Key::new(
        "workload_root_cgroup",
        text("/ktstr", check_cgroup),
        Target::Field("workload_root_cgroup"),
    ),
    Key::new("expect_err", Takes::BoolOrText, Target::ExpectErr),
    Key::new("allow_inconclusive", Takes::Bool, Target::Field("allow_inconclusive")),
    Key::new("host_only", Takes::Bool, Target::Field("host_only")),
    Key::new("ignore", Takes::Reason, Target::IgnoreAttribute),
    Key::new("kaslr", Takes::Bool, Target::Machine("kaslr")).vm(),
    Key::new("mitigations", Takes::Bool, Target::Machine("mitigations")).vm(),
    Key::new("kargs", text("isolcpus=1", check_kargs), Target::MachineText("kargs")).vm(),
    Key::new("fresh", Takes::Bool, Target::Field("fresh")).vm(),
    Key::new("auto_repro", Takes::Bool, Target::Field("auto_repro")).vm(),
    Key::new("post_vm", Takes::Function, Target::Optional("post_vm")).vm(),
    Key::new("post_vm_unconditional", Takes::Function, Target::Optional("post_vm_unconditional"))
        .vm(),
    Key::new("payloads", Takes::Paths, Target::References("payloads")).vm(),
    Key::new(
        "env",
        Takes::Texts { example: "SEED=7", check: check_variable },
        Target::Field("env"),
    )
    .vm(),
    Key::new("crate", Takes::Crate, Target::Crate),
    Key::new("not_stuck", Takes::Bool, Target::Check),
    Key::new("isolation", Takes::Bool, Target::Check),
    Key::new("no_oom_kill", Takes::Bool, Target::Check),
    Key::new("judge_emulated_time", Takes::Bool, Target::Check).vm(),
    Key::new("max_gap_ms", count(1..=86_400_000, 50), Target::Check),
    Key::new("max_spread_pct", number(0.0, 100.0, 10.0), Target::Check),
    Key::new("max_throughput_cv", number(0.0, 1e3, 0.2), Target::Check),
    Key::new("min_iteration_rate", number(1e-3, 1e12, 1e3), Target::Check),
    Key::new("min_work_rate", number(1e-3, 1e12, 1e3), Target::Check),
    Key::new("max_migration_ratio", number(0.0, 1.0, 0.1), Target::Check),
    Key::new("max_p99_wake_latency_ns", count(1..=u32::MAX, 100_000), Target::Check),
    Key::new("max_wake_latency_cv", number(0.0, 1e3, 2.0), Target::Check),
    Key::new("min_page_locality", number(0.0, 1.0, 0.9), Target::Check),
    Key::new("max_throttled_pct", number(0.0, 100.0, 50.0), Target::Check),
    Key::new("max_quota_error_pct", number(0.0, 100.0, 10.0), Target::Check),
    Key::new("max_weight_error_pct", number(0.0, 100.0, 10.0), Target::Check),
    Key::new("max_cpu_pressure_pct", number(0.0, 100.0, 50.0), Target::Check),
    Key::new("max_memory_pressure_pct", number(0.0, 100.0, 1.0), Target::Check),
    Key::new("max_io_pressure_pct", number(0.0, 100.0, 1.0), Target::Check),
];

pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Returns the key with the most similar name, if there is one.
pub(crate) fn closest(name: &str) -> Option<&'static Key> {
    // Up to a third of the letters may differ. With more, about half of the guesses are wrong.
    let limit = (name.chars().count() / 3).clamp(1, 3);
    let by_prefix = || KEYS.iter().find(|key| name.len() >= 4 && key.name.starts_with(name));
    KEYS.iter()
        .map(|key| (edit_distance(name, key.name), key))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
        .or_else(by_prefix)
}

impl Key {
    const fn new(name: &'static str, takes: Takes, target: Target) -> Self {
        Self { name, takes, target, is_vm: false }
    }

    const fn vm(self) -> Self {
        Self { is_vm: true, ..self }
    }
}

const fn integer(range: RangeInclusive<u32>, default: u32) -> Takes {
    Takes::Integer { range, default }
}

const fn count(range: RangeInclusive<u32>, example: u32) -> Takes {
    Takes::Count { range, example }
}

const fn number(min: f64, max: f64, example: f64) -> Takes {
    Takes::Number { min, max, example }
}

const fn text(example: &'static str, check: fn(&str) -> Result<(), String>) -> Takes {
    Takes::Text { example, check }
}

/// Writes the end of the error message "expected ...".
impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer { range, .. } | Self::Count { range, .. } => {
                write!(f, "an integer literal from {} to {}", range.start(), range.end())
            }
            Self::Integers { range, .. } => {
                let (min, max) = (range.start(), range.end());
                write!(f, "an integer literal from {min} to {max} or a list of them")
            }
            Self::Number { min, max, .. } => write!(f, "a number literal from {min} to {max}"),
            Self::Bool => f.write_str("`true` or `false`"),
            Self::BoolOrText => {
                f.write_str("`true`, `false`, a string literal or `regex(\"...\")`")
            }
            Self::Text { .. } | Self::Reason => f.write_str("a string literal"),
            Self::Function => f.write_str("the path of a function"),
            Self::Paths => f.write_str("a list of paths of constants"),
            Self::Texts { .. } => f.write_str("a list of string literals"),
            Self::Crate => f.write_str("the path of the crate `ktstr`"),
        }
    }
}

/// Writes an example: the key with a value.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, .. } = self;
        match &self.takes {
            Takes::Integer { default, .. } | Takes::Integers { default, .. } => {
                write!(f, "{name} = {default}")
            }
            Takes::Count { example, .. } => write!(f, "{name} = {example}"),
            Takes::Number { example, .. } => write!(f, "{name} = {example}"),
            Takes::Bool | Takes::BoolOrText => write!(f, "{name} = true"),
            Takes::Text { example, .. } => {
                write!(f, "{name} = {example:?}")
            }
            Takes::Reason => write!(f, "{name} = \"reason\""),
            Takes::Function => write!(f, "{name} = check_result"),
            Takes::Paths => write!(f, "{name} = [HACKBENCH]"),
            Takes::Texts { example, .. } => write!(f, "{name} = [{example:?}]"),
            Takes::Crate => write!(f, "{name} = my_support::ktstr"),
        }
    }
}

fn check_kernel(spec: &str) -> Result<(), String> {
    if spec.trim().is_empty() {
        return Err("the kernel is empty: name one as in `KTSTR_KERNEL`, or remove the key".into());
    }
    Ok(())
}

fn check_kargs(words: &str) -> Result<(), String> {
    if words.trim().is_empty() {
        return Err("the kernel arguments are empty: write some, or remove the key".into());
    }
    kargs::check(words)
}

/// The mount point of the cgroup2 file system in guests.
const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// The longest name of a directory in bytes.
///
/// Source: Linux 6.12, include/uapi/linux/limits.h.
const NAME_MAX: usize = 255;

fn check_cgroup(path: &str) -> Result<(), String> {
    let Some(components) = path.strip_prefix('/') else {
        return Err("begin the path with `/`, which stands for the cgroup2 mount".into());
    };
    if components.is_empty() {
        return Err("name a cgroup below the root: a scenario must not use the root".into());
    }
    if path.contains('\0') {
        return Err("remove the NUL character: a path must not contain one".into());
    }
    if path.contains('\n') {
        return Err(
            "remove the line break: the kernel rejects it in the name of a cgroup (EINVAL)".into(),
        );
    }
    if let Some(below) = path.strip_prefix(CGROUP_MOUNT)
        && (below.is_empty() || below.starts_with('/'))
    {
        let below = if below.len() > 1 { below } else { "/ktstr" };
        return Err(format!("write `{below}`: the path is relative to the cgroup2 mount"));
    }
    for component in components.split('/') {
        if component.is_empty() {
            return Err("remove the extra `/`: a component of the path must not be empty".into());
        }
        if component.starts_with('.') {
            return Err(format!("rename component `{component}`: it must not begin with a dot"));
        }
        if component.len() > NAME_MAX {
            let length = component.len();
            return Err(format!("shorten a component of {length} bytes to at most {NAME_MAX}"));
        }
    }
    Ok(())
}

fn check_variable(variable: &str) -> Result<(), String> {
    if variable.split('=').next().is_none_or(str::is_empty) {
        return Err("the variable has no name: write `NAME=value`, or `NAME`".into());
    }
    if variable.contains('\0') {
        return Err("remove the NUL character: an environment variable must not contain one".into());
    }
    Ok(())
}

/// Returns the least number of insertions, deletions, replacements and swaps of neighbours that turn
/// `a` into `b`.
///
/// Source: optimal string alignment, the restricted form of the Damerau-Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_the_documentation() {
        let rows: Vec<&str> =
            include_str!("lib.rs").lines().filter(|line| line.starts_with("/// | `")).collect();
        assert_eq!(rows.len(), KEYS.len());
        for (key, row) in KEYS.iter().zip(rows) {
            let start = match &key.takes {
                Takes::Integer { range, default } => {
                    format!("`{}` | {} to {} | {default} |", key.name, range.start(), range.end())
                }
                Takes::Integers { range, default } => {
                    let (min, max) = (range.start(), range.end());
                    format!("`{}` | {min} to {max}, or a list | {default} |", key.name)
                }
                Takes::Count { range, .. } => {
                    format!("`{}` | {} to {} | not checked |", key.name, range.start(), range.end())
                }
                Takes::Number { min, max, .. } => {
                    format!("`{}` | {min} to {max} | not checked |", key.name)
                }
                Takes::Bool => format!("`{}` | boolean |", key.name),
                Takes::BoolOrText => format!("`{}` | boolean, string or `regex` |", key.name),
                Takes::Text { .. } => format!("`{}` | string |", key.name),
                Takes::Reason => format!("`{}` | nothing or string |", key.name),
                Takes::Function | Takes::Crate => format!("`{}` | path |", key.name),
                Takes::Paths => format!("`{}` | list of paths |", key.name),
                Takes::Texts { .. } => format!("`{}` | list of strings |", key.name),
            };
            assert!(row.starts_with(&format!("/// | {start}")), "`{row}` should begin `{start}`");
        }
    }

    #[test]
    fn closest_finds_misspelled_keys() {
        for (typo, want) in [
            ("core", Some("cores")),
            ("llc", Some("llcs")),
            ("thread", Some("threads")),
            ("memory_mb", Some("memory_mib")),
            ("memory", Some("memory_mib")),
            ("duration", Some("duration_s")),
            ("duraiton_s", Some("duration_s")),
            ("watchdog", Some("watchdog_timeout_s")),
            ("numa_node", Some("numa_nodes")),
            ("expect_error", Some("expect_err")),
            ("hostonly", Some("host_only")),
            ("kalsr", Some("kaslr")),
            ("max_gap", Some("max_gap_ms")),
            ("max_spread", Some("max_spread_pct")),
            ("not_stuk", Some("not_stuck")),
            ("payload", Some("payloads")),
            ("vm", None),
            ("flavour", None),
            ("", None),
        ] {
            assert_eq!(closest(typo).map(|key| key.name), want, "{typo}");
        }
    }

    #[test]
    fn edit_distance_counts_swaps_once() {
        for (a, b, want) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "ba", 1),
            ("cores", "core", 1),
            ("llcs", "cores", 4),
        ] {
            assert_eq!(edit_distance(a, b), want, "{a} {b}");
            assert_eq!(edit_distance(b, a), want, "{b} {a}");
        }
    }

    #[test]
    fn check_cgroup_accepts_absolute_plain_paths() {
        for (path, ok) in [
            ("/ktstr", true),
            ("/a/b.slice/c", true),
            ("", false),
            ("/", false),
            ("ktstr", false),
            ("//a", false),
            ("/a//b", false),
            ("/a/", false),
            ("/./a", false),
            ("/a/..", false),
            ("/.hidden", false),
            ("/a\0", false),
            ("/a\nb", false),
            ("/sys/fs/cgroup", false),
            ("/sys/fs/cgroup/a", false),
            ("/sys/fs/cgroups/a", true),
            ("/sys/fs", true),
            (&format!("/{}", "a".repeat(255)), true),
            (&format!("/a/{}", "a".repeat(256)), false),
        ] {
            assert_eq!(check_cgroup(path).is_ok(), ok, "{path:?}");
        }
    }
}
