//! The test binaries, built by Cargo.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Excluded unless they are named: `containment` tests a killed QEMU, `macro_ui` needs Cargo and boots no
/// guest, and `packages` needs a network.
const WITHOUT_KVM: [&str; 3] = ["containment", "macro_ui", "packages"];

/// A program of libtest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binary {
    /// The name of Cargo's target: `topology`, or `ktstr_vmm` for that crate's unit tests.
    pub(super) name: String,
    /// Its file.
    pub(super) path: PathBuf,
}

/// Builds those called `names`, or all; returns them in the order of their names.
pub(super) fn build(names: &[String]) -> Result<Vec<Binary>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--no-run", "--message-format=json-render-diagnostics"])
        .args(["--package", "ktstr", "--package", "ktstr-vmm"])
        .args(targets(names))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let built = parse(&String::from_utf8_lossy(&output.stdout))?;
    chosen(built, names)
}

/// Unit tests have no option of their own for each crate, so those of both are built; Cargo takes
/// the option once.
fn targets(names: &[String]) -> Vec<&str> {
    if names.is_empty() {
        return vec!["--tests"];
    }
    let mut targets = Vec::new();
    for name in names {
        match name.as_str() {
            "ktstr" | "ktstr_vmm" if targets.contains(&"--lib") => {}
            "ktstr" | "ktstr_vmm" => targets.push("--lib"),
            name => targets.extend(["--test", name]),
        }
    }
    targets
}

/// Reads Cargo's messages, one JSON object a line.
fn parse(messages: &str) -> Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's message is not JSON")?;
        let (name, path) = (&message["target"]["name"], &message["executable"]);
        let is_test = message["profile"]["test"] == true;
        if let (Some(name), Some(path), true) = (name.as_str(), path.as_str(), is_test) {
            binaries.push(Binary { name: name.to_owned(), path: path.into() });
        }
    }
    binaries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(binaries)
}

fn chosen(built: Vec<Binary>, names: &[String]) -> Result<Vec<Binary>> {
    if let Some(missing) = names.iter().find(|name| built.iter().all(|one| one.name != **name)) {
        bail!("unknown test binary `{missing}`");
    }
    let is_chosen = |binary: &Binary| match names {
        [] => !WITHOUT_KVM.contains(&&*binary.name),
        names => names.contains(&binary.name),
    };
    Ok(built.into_iter().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"ktstr_vmm"},"profile":{"test":false},"filenames":["/t/libktstr_vmm.rlib"],"executable":null,"fresh":true}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tool"},"profile":{"test":false},"executable":"/t/tool"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"macro_ui"},"profile":{"test":true},"executable":"/t/deps/macro_ui-3"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"topology"},"profile":{"test":true},"executable":"/t/deps/topology-1"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"ktstr_vmm"},"profile":{"test":true},"executable":"/t/deps/ktstr_vmm-2"}
{"reason":"build-finished","success":true}
"#;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn test_programs_are_found_in_cargos_messages() {
        let built = parse(MESSAGES).unwrap();
        let found: Vec<_> = built.iter().map(|one| (&*one.name, one.path.to_str())).collect();
        let expected = [
            ("ktstr_vmm", Some("/t/deps/ktstr_vmm-2")),
            ("macro_ui", Some("/t/deps/macro_ui-3")),
            ("topology", Some("/t/deps/topology-1")),
        ];
        assert_eq!(found, expected);
        assert!(parse("error: no such option\n").is_err());
    }

    #[test]
    fn those_that_are_named_are_taken() {
        for (wanted, expected) in [
            (names(&[]), &["ktstr_vmm", "topology"][..]),
            (names(&["topology"]), &["topology"]),
            (names(&["macro_ui", "ktstr_vmm"]), &["ktstr_vmm", "macro_ui"]),
        ] {
            let taken = chosen(parse(MESSAGES).unwrap(), &wanted).unwrap();
            assert_eq!(taken.iter().map(|one| &*one.name).collect::<Vec<_>>(), expected);
        }
        let error = chosen(parse(MESSAGES).unwrap(), &names(&["topologie"])).unwrap_err();
        assert!(error.to_string().contains("`topologie`"), "{error}");
    }

    #[test]
    fn cargo_is_asked_for_no_more_than_is_named() {
        assert_eq!(targets(&[]), ["--tests"]);
        let wanted = names(&["ktstr_vmm", "body"]);
        assert_eq!(targets(&wanted), ["--lib", "--test", "body"]);
        assert_eq!(targets(&names(&["ktstr_vmm", "ktstr"])), ["--lib"]);
    }
}
