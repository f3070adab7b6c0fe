//! Checks the engine and the kernel, which tests may have to fetch.

use anyhow::{Context, Result};
use clap::ValueEnum;
use ktstr::provision::{Cache, Kernel, KernelSpec, KernelStatus, QemuProgram, kernel, qemu};
use ktstr::runner::probe;

use super::{Finding, Mark};
use crate::cli::EngineName;

/// Whether the tools for fetching are installed, or which of them is missing.
type Tools = Result<(), String>;

/// Checks QEMU and the engine that tests use.
pub(super) fn engines(cache: &Cache, tools: &Tools) -> Vec<Finding> {
    let found = qemu::find(cache);
    let wanted = std::env::var_os("KTSTR_ENGINE");
    let wanted = wanted.as_deref().map(|name| name.to_string_lossy());
    let needs_qemu = match wanted.as_deref() {
        Some("kvm") => false,
        Some("qemu") => true,
        _ => probe::kvm().is_err(),
    };
    // Selecting the engine fetches a missing QEMU if it can, which the doctor must not do.
    let may_select = !needs_qemu || !matches!(found, Ok(Err(_))) || tools.is_err();
    let engine = match wanted {
        Some(name) if !is_engine(&name) => {
            let names = EngineName::value_variants().iter().map(|name| name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            Finding::new(
                Mark::Problem,
                "engine",
                format!("unknown engine KTSTR_ENGINE={name}; known: {names}"),
            )
            .fix("unset KTSTR_ENGINE")
        }
        _ if !may_select => {
            Finding::new(Mark::Note, "engine", "selected when QEMU has been fetched")
        }
        _ => match ktstr::runner::engine() {
            Ok((engine, why)) => Finding::new(Mark::Ok, "engine", format!("{engine}: {why}")),
            Err(error) => {
                let command = remedy(|name| std::env::var_os(name).is_some(), tools, has_program);
                Finding::new(Mark::Problem, "engine", format!("{error:#}")).fix(command)
            }
        },
    };
    vec![judge_qemu(found, tools), engine]
}

fn is_engine(name: &str) -> bool {
    name.is_empty() || EngineName::from_str(name, false).is_ok()
}

/// Returns the command that provides an engine.
fn remedy(
    is_set: impl Fn(&str) -> bool,
    tools: &Tools,
    has: impl Fn(&str) -> bool,
) -> &'static str {
    match ["KTSTR_QEMU", "KTSTR_ENGINE"].map(is_set) {
        [true, _] => return "unset KTSTR_QEMU",
        [_, true] => return "unset KTSTR_ENGINE",
        _ => {}
    }
    if tools.is_ok() {
        return "rm -r \"${KTSTR_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ktstr}\"/qemu-*";
    }
    let commands = [
        ("apt-get", "sudo apt-get install debian-archive-keyring"),
        ("dnf", "sudo dnf install qemu-system-x86"),
        ("pacman", "sudo pacman -S qemu-system-x86"),
        ("zypper", "sudo zypper install qemu-x86"),
        ("apk", "sudo apk add qemu-system-x86_64"),
    ];
    let found = commands.into_iter().find(|(program, _)| has(program));
    found.map_or("export KTSTR_QEMU=/path/to/qemu-system-x86_64", |(_, command)| command)
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

fn judge_qemu(found: Result<Result<QemuProgram, String>>, tools: &Tools) -> Finding {
    match (found, tools) {
        (Ok(Ok(program)), _) => {
            let mark = if program.is_known_good() { Mark::Ok } else { Mark::Note };
            Finding::new(mark, "QEMU", format!("{}: {}", program.version, program.note))
        }
        (Ok(Err(why)), Ok(())) => {
            let text = format!("{why}; fetched when first needed");
            Finding::new(Mark::Note, "QEMU", text).fix("cargo ktstr demo")
        }
        // The finding of the engine shows whether that is a problem.
        (Ok(Err(why)), Err(_)) => {
            Finding::new(Mark::Note, "QEMU", format!("{why}, and it cannot be fetched"))
        }
        (Err(error), _) => Finding::new(Mark::Note, "QEMU", format!("{error:#}")),
    }
}

/// Checks the kernel that tests use, and all known ones.
pub(super) fn kernels(cache: &Cache, tools: &Tools) -> Result<Vec<Finding>> {
    let known = kernel::list(cache)?;
    let wanted = std::env::var_os("KTSTR_KERNEL").filter(|text| !text.is_empty());
    let wanted = match wanted.as_deref().map(KernelSpec::try_from).transpose() {
        Ok(wanted) => wanted,
        Err(error) => {
            let finding = Finding::new(Mark::Problem, "kernel", format!("KTSTR_KERNEL: {error}"));
            return Ok(vec![finding.fix("unset KTSTR_KERNEL")]);
        }
    };
    let spec = wanted.clone().unwrap_or_else(KernelSpec::default_kernel);
    let why = if wanted.is_some() { "selected by KTSTR_KERNEL" } else { "the default" };
    let mut findings = vec![judge_wanted(cache, &spec, why, &known, tools)];
    let others = known.iter().filter(|status| KernelSpec::Known(status.known) != spec);
    findings.extend(others.map(judge_other));
    Ok(findings)
}

/// Checks the kernel of tests that do not name one.
fn judge_wanted(
    cache: &Cache,
    spec: &KernelSpec,
    why: &str,
    known: &[KernelStatus],
    tools: &Tools,
) -> Finding {
    let missing = |status: &&KernelStatus| {
        KernelSpec::Known(status.known) == *spec && status.cached.is_none()
    };
    if let Some(status) = known.iter().find(missing) {
        return not_cached(status, why, tools);
    }
    match kernel::resolve_spec(cache, spec).with_context(|| format!("cannot find kernel `{spec}`"))
    {
        Ok(kernel) => Finding::new(Mark::Ok, "kernel", format!("{}; {why}", describe(&kernel))),
        Err(error) => {
            Finding::new(Mark::Problem, "kernel", format!("{error:#}; {why}")).fix(match spec {
                KernelSpec::Known(known) => {
                    format!("cargo ktstr kernel fetch {} --refresh", known.name)
                }
                KernelSpec::Path(_) | KernelSpec::Host => "unset KTSTR_KERNEL".to_owned(),
            })
        }
    }
}

fn not_cached(status: &KernelStatus, why: &str, tools: &Tools) -> Finding {
    let name = &status.known.name;
    match tools {
        Ok(()) => Finding::new(
            Mark::Note,
            "kernel",
            format!("{name} is not cached; {why}, fetched when first needed"),
        )
        .fix(format!("cargo ktstr kernel fetch {name}")),
        Err(_) => Finding::new(
            Mark::Problem,
            "kernel",
            format!("{name} is not cached and cannot be fetched; {why}"),
        )
        .fix("export KTSTR_KERNEL=host  # or the path of a kernel"),
    }
}

fn judge_other(status: &KernelStatus) -> Finding {
    match &status.cached {
        Some(kernel) => Finding::new(Mark::Ok, "kernels", describe(kernel)),
        None => Finding::new(
            Mark::Note,
            "kernels",
            format!("{} ({}) is not cached", status.known.name, status.known.series),
        )
        .fix(format!("cargo ktstr kernel fetch {}", status.known.name)),
    }
}

fn describe(kernel: &Kernel) -> String {
    format!("{} {} at {}", kernel.spec, kernel.version, kernel.boot.path.display())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn judge_wanted_accepts_a_kernel_that_can_be_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let known = kernel::list(&cache).unwrap();
        let lacking = Err("no apt-get".to_owned());
        for (spec, tools, mark, command) in [
            ("debian:sid", &Ok(()), Mark::Note, "cargo ktstr kernel fetch debian:sid"),
            ("debian:sid", &lacking, Mark::Problem, "export KTSTR_KERNEL=host"),
            ("/nonexistent/bzImage", &Ok(()), Mark::Problem, "unset KTSTR_KERNEL"),
        ] {
            let finding = judge_wanted(&cache, &spec.parse().unwrap(), "why", &known, tools);
            assert_eq!(finding.mark, mark, "{finding:?}");
            assert!(finding.command.as_deref().unwrap().starts_with(command), "{finding:?}");
            assert!(finding.text.ends_with("; why") || mark == Mark::Note, "{finding:?}");
        }
    }

    #[test]
    fn remedy_fits_the_cause() {
        let lacking = Err("no keys".to_owned());
        for (set, tools, program, command) in [
            ("KTSTR_QEMU", &lacking, "apt-get", "unset KTSTR_QEMU"),
            ("KTSTR_ENGINE", &Ok(()), "apt-get", "unset KTSTR_ENGINE"),
            ("", &Ok(()), "apt-get", "rm -r "),
            ("", &lacking, "apt-get", "sudo apt-get install debian-archive-keyring"),
            ("", &lacking, "pacman", "sudo pacman -S qemu-system-x86"),
            ("", &lacking, "nix", "export KTSTR_QEMU="),
        ] {
            let found = remedy(|name| name == set, tools, |name| name == program);
            assert!(found.starts_with(command), "{set} {program}: {found}");
        }
    }

    #[test]
    fn judge_qemu_shows_how_to_get_it() {
        let lacking = Err("no apt-get".to_owned());
        let absent = || Ok(Err("no qemu-system-x86_64 in PATH".to_owned()));
        let fetchable = judge_qemu(absent(), &Ok(()));
        assert_eq!(fetchable.command.as_deref(), Some("cargo ktstr demo"));
        assert!(judge_qemu(absent(), &lacking).text.contains("it cannot be fetched"));
        let broken = judge_qemu(Err(anyhow!("does not run").context("KTSTR_QEMU")), &lacking);
        assert_eq!(broken.text, "KTSTR_QEMU: does not run");
    }

    #[test]
    fn is_engine_accepts_the_values_of_ktstr_engine() {
        for (name, known) in [("", true), ("auto", true), ("qemu", true), ("xen", false)] {
            assert_eq!(is_engine(name), known, "{name}");
        }
    }
}
