//! Finds the programs of a test's payloads for the guest.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ktstr_core::payload::{self, Payload};

use super::initramfs::{Foreign, GuestFiles, is_elf};
use crate::provision::{Cache, find_program, tool};

/// The directories of an unpacked package that may contain a program.
const DIRECTORIES: [&str; 2] = ["usr/bin", "usr/sbin"];

/// Finds the programs of payloads, on the host before in packages, and returns them with their paths in the guest.
///
/// # Errors
///
/// If a payload is invalid, its program does not exist, or its package cannot be fetched.
pub(super) fn contents(payloads: &[&Payload]) -> Result<GuestFiles> {
    let fetch = |package: &str| tool::root(&Cache::from_env()?, package);
    gather(payloads, find_program, fetch)
}

fn gather(
    payloads: &[&Payload],
    find: impl Fn(&str) -> Option<PathBuf>,
    fetch: impl Fn(&str) -> Result<PathBuf>,
) -> Result<GuestFiles> {
    let mut contents = GuestFiles::default();
    let mut there: Vec<&Payload> = Vec::new();
    for payload in payloads {
        payload.validate()?;
        let name = payload.name();
        if let Some(other) = there.iter().find(|other| other.name() == name) {
            let same = (other.program, other.package) == (payload.program, payload.package);
            ensure!(same, "two payloads name different programs `{name}`");
            continue;
        }
        there.push(payload);
        let dir = format!("{}/{name}", payload::DIRECTORY);
        let place = format!("{dir}/{name}");
        match find(payload.program) {
            Some(program) if is_elf(&program) => {
                contents.programs.push((program, place));
                continue;
            }
            Some(script) if payload.package.is_none() => bail!(
                "{} is not an ELF program, and the guest would lack the interpreter of a script; name the \
                 program itself, or the Debian package that contains it (`Payload::package`)",
                script.display()
            ),
            _ => {}
        }
        let Some(package) = payload.package else {
            let program = payload.program;
            let place = if program.contains('/') { "on this host" } else { "in PATH" };
            bail!(
                "there is no program `{program}` {place}: install it, or name the Debian package \
                 that contains it (`Payload::package`)"
            );
        };
        let root = fetch(package)
            .with_context(|| format!("there is no `{}` on this host", payload.program))?;
        let program = in_root(&root, name).with_context(|| {
            let (suite, dirs) = (tool::SUITE, DIRECTORIES.join(" and "));
            format!("package {package} of Debian {suite} has no program `{name}` in {dirs}")
        })?;
        let libraries = format!("{dir}/{}", payload::LIBRARIES);
        contents.foreign.push(Foreign { root, program, name: place, libraries });
    }
    Ok(contents)
}

fn in_root(root: &Path, name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|dir| root.join(dir).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Payload = Payload::new("load");

    fn gathered(payloads: &[&Payload], root: &Path) -> Result<GuestFiles> {
        let find = |program: &str| match program {
            "here" => Some(PathBuf::from("/proc/self/exe")),
            "script" => Some(root.join("script")),
            _ => None,
        };
        gather(payloads, find, |package| match package {
            "pack" => Ok(root.to_owned()),
            other => bail!("no package {other}"),
        })
    }

    #[test]
    fn gather_takes_programs_of_the_host_before_packages() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        for name in ["load", "script"] {
            std::fs::write(root.path().join("usr/sbin").join(name), "").unwrap();
        }
        std::fs::write(root.path().join("script"), "#!/bin/sh").unwrap();
        let script = Payload::new("script").package("pack");
        let here = Payload::new("here").package("none");
        let packed = LOAD.package("pack");
        let contents = gathered(&[&here, &packed, &here, &script], root.path()).unwrap();
        let place = "/ktstr/payloads/here/here".to_owned();
        assert_eq!(contents.programs, [(PathBuf::from("/proc/self/exe"), place)]);
        let [foreign, script] = &contents.foreign[..] else { panic!("{contents:?}") };
        assert_eq!(foreign.program, root.path().join("usr/sbin/load"));
        assert_eq!(script.program, root.path().join("usr/sbin/script"));
        assert_eq!(foreign.name, "/ktstr/payloads/load/load");
        assert_eq!(foreign.libraries, "/ktstr/payloads/load/lib");
    }

    #[test]
    fn gather_explains_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        const PATTERN: Payload = LOAD.metrics(&[ktstr_core::payload::Metric::regex("m", "(")]);
        for (payloads, why) in [
            (&[LOAD][..], "no program `load` in PATH: install it, or name the Debian package"),
            (&[Payload::new("script")], "script is not an ELF program"),
            (&[Payload::new("/opt/load")], "no program `/opt/load` on this host"),
            (&[LOAD.package("other")], "no `load` on this host: no package other"),
            (&[LOAD.package("pack")], "package pack of Debian trixie has no program `load`"),
            (&[PATTERN], "payload `load`: metric `m`: invalid regular expression `(`"),
            (
                &[Payload::new("here"), Payload::new("/bin/here")],
                "two payloads name different programs `here`",
            ),
        ] {
            let payloads: Vec<_> = payloads.iter().collect();
            let error = format!("{:#}", gathered(&payloads, root.path()).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
