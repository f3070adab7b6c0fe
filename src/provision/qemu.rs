//! A QEMU that can be trusted with a guest.
//!
//! QEMU before 11.0 is not: the multi-threaded TCG of 7.2 patches code under running CPUs and
//! breaks cmpxchg16b, which ends in oopses of a healthy kernel, and 10.0 may abort when one CPU sets PCI
//! devices up while another writes to its APIC (docs/decisions/0002). So the machine's own is used from
//! 11.0 on, and otherwise one is fetched with all its libraries and the dynamic loader, which runs on
//! any x86-64 Linux and leaves the machine as it is.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::apt::{self, Package, Suite};
use super::cache::{self, Cache};
use super::image;
use super::tool;
use super::units::{megabytes, seconds};
use super::versions::Versions;
use crate::notice::notice;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const SUITE: &str = "trixie-backports";
const SOUND_SINCE: u32 = 11;
/// Raised when the layout of these entries changes, or those that were fetched will not do any more.
const KIND: &str = "qemu-2";
const RECORD: &str = "qemu.json";

/// How to run QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProgram {
    /// The program and the arguments that come before all others.
    pub argv: Vec<OsString>,
    /// Its version: `11.1.3`.
    pub version: String,
    /// Where it came from.
    pub origin: Origin,
    /// Why this one, and what to mind.
    pub note: String,
}

impl QemuProgram {
    /// Returns whether its version is known not to abort or to corrupt guests.
    pub fn is_known_good(&self) -> bool {
        is_sound(&self.version)
    }
}

/// Where a QEMU came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Installed on the machine.
    System,
    /// Fetched into the cache.
    Fetched,
    /// Named by `KTSTR_QEMU`.
    Env,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: String,
    packages: Vec<Package>,
}

/// Finds QEMU: `KTSTR_QEMU`, else the machine's if it is sound, else a fetched one.
///
/// # Errors
///
/// `KTSTR_QEMU` does not run, or there is no sound QEMU and none can be fetched.
pub fn resolve(cache: &Cache) -> Result<QemuProgram> {
    match find(cache)? {
        Ok(program) => Ok(program),
        Err(why) => fetch_as(cache, false, &why),
    }
}

/// Finds QEMU as [`resolve`] does but fetches none: instead, says why it would have to.
pub fn find(cache: &Cache) -> Result<Result<QemuProgram, String>> {
    if let Some(path) = env::var_os("KTSTR_QEMU").filter(|path| !path.is_empty()) {
        return from_env(cache, Path::new(&path)).map(Ok);
    }
    let why = match apt::find_program(PROGRAM) {
        None => format!("no {PROGRAM} in PATH"),
        Some(path) => match version_of(cache, &path) {
            Ok(version) if is_sound(&version) => {
                let note = format!("{} in PATH", path.display());
                return Ok(Ok(installed(path, version, Origin::System, note)));
            }
            Ok(version) => {
                let path = path.display();
                format!("{path}: {}", unsound(&version))
            }
            Err(error) => format!("{} does not run: {error:#}", path.display()),
        },
    };
    Ok(current(cache, &why)?.ok_or(why))
}

/// Fetches QEMU into the cache; with `refresh`, the newest version again.
pub fn fetch(cache: &Cache, refresh: bool) -> Result<QemuProgram> {
    fetch_as(cache, refresh, "asked for")
}

fn fetch_as(cache: &Cache, refresh: bool, why: &str) -> Result<QemuProgram> {
    let context = || {
        format!(
            "failed to fetch QEMU ({why}); install {PROGRAM} {SOUND_SINCE}.0 or later, or set \
             KTSTR_QEMU to the one to use whatever its version"
        )
    };
    let mut suite = Suite::open(cache, SUITE, refresh).with_context(context)?;
    if !refresh && let Some(program) = current(cache, why)? {
        return Ok(program);
    }
    suite.with_fresh_lists(|suite| fetch_from(cache, suite)).with_context(context)?;
    current(cache, why)?.context("QEMU was fetched, but the cache does not have it")
}

fn fetch_from(cache: &Cache, suite: &Suite) -> Result<()> {
    let (qemu, _) = suite.show(PACKAGE)?;
    // Any character that a folder's name may not have is in front of the upstream version.
    let version = qemu.version.rsplit(':').next().unwrap_or_default();
    cache.check_exec()?;
    let versions = Versions::new(cache, KIND);
    versions.build(version, |folder| {
        let started = Instant::now();
        let packages = suite.closure(PACKAGE)?;
        notice(&format!(
            "fetching QEMU {version} ({} packages, {}) from {} ...",
            packages.len(),
            megabytes(packages.iter().map(|package| package.size).sum()),
            suite.host()
        ));
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        suite.unpack(&packages, &root)?;
        prune(&root)?;
        let version = probe(&command_line(folder))?;
        ensure!(is_sound(&version), "{SUITE} of {} has: {}", suite.host(), unsound(&version));
        let record = serde_json::to_vec_pretty(&Record { version, packages })?;
        fs::write(folder.join(RECORD), record)?;
        notice(&format!("fetched QEMU in {}", seconds(started.elapsed())));
        Ok(())
    })?;
    versions.set_current(version)
}

fn current(cache: &Cache, why: &str) -> Result<Option<QemuProgram>> {
    let Some(folder) = Versions::new(cache, KIND).current()? else { return Ok(None) };
    let record = || -> Result<Record> {
        let argv = command_line(&folder);
        ensure!(Path::new(&argv[0]).exists(), "the loader is missing");
        Ok(serde_json::from_slice(&fs::read(folder.join(RECORD))?)?)
    };
    let version = record()
        .with_context(|| {
            format!("the cached QEMU `{}` is damaged; remove that folder", folder.display())
        })?
        .version;
    cache.check_exec().context("the fetched QEMU cannot run")?;
    let note = format!("fetched from Debian {SUITE}: {why}");
    Ok(Some(QemuProgram { argv: command_line(&folder), version, origin: Origin::Fetched, note }))
}

/// Runs QEMU with its own files of firmware.
fn command_line(folder: &Path) -> Vec<OsString> {
    let root = folder.join("root");
    let mut argv = tool::command_line(&root, PROGRAM);
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        argv.extend(["-L".into(), root.join(data).into_os_string()]);
    }
    argv
}

/// Keeps what [`command_line`] names, about half of what is unpacked.
fn prune(root: &Path) -> Result<()> {
    let keep: [(&str, &[&str]); 5] = [
        ("", &["usr"]),
        ("usr", &["bin", "lib", "lib64", "share"]),
        ("usr/bin", &[PROGRAM]),
        ("usr/lib", &["x86_64-linux-gnu"]),
        ("usr/share", &["qemu", "seabios"]),
    ];
    for (folder, names) in keep {
        let folder = root.join(folder);
        let context = || format!("the packages of QEMU hold no `{}`", folder.display());
        for entry in folder.read_dir().with_context(context)? {
            let entry = entry?;
            if !names.iter().any(|name| entry.file_name() == *name) {
                cache::remove(&entry.path())?;
            }
        }
    }
    cache::remove(&root.join("usr/lib/x86_64-linux-gnu/gconv"))
}

fn from_env(cache: &Cache, path: &Path) -> Result<QemuProgram> {
    let path = match path.components().count() {
        // A bare name is looked up, as a shell would.
        1 => path.to_str().and_then(apt::find_program).unwrap_or_else(|| path.to_owned()),
        _ => std::path::absolute(path)?,
    };
    let version = version_of(cache, &path)
        .with_context(|| format!("KTSTR_QEMU names `{}`, which does not run", path.display()))?;
    let note = match is_sound(&version) {
        true => "KTSTR_QEMU names it".to_owned(),
        false => format!("KTSTR_QEMU names it; {}", unsound(&version)),
    };
    Ok(installed(path, version, Origin::Env, note))
}

fn installed(path: PathBuf, version: String, origin: Origin, note: String) -> QemuProgram {
    QemuProgram { argv: vec![path.into_os_string()], version, origin, note }
}

/// The version of an installed QEMU, asked once per state of the file.
fn version_of(cache: &Cache, path: &Path) -> Result<String> {
    let meta = fs::metadata(path).with_context(|| format!("no file `{}`", path.display()))?;
    let name = format!("{KIND}-versions/{}", image::identity(&meta));
    let ask = || probe(&[path.as_os_str().to_owned()]);
    if !cache.entry(&name).exists() && cache.check_writable().is_err() {
        return ask();
    }
    let record = cache.build_once(&name, |file| Ok(fs::write(file, ask()?)?))?;
    Ok(fs::read_to_string(record)?)
}

fn probe(argv: &[OsString]) -> Result<String> {
    let said = apt::run(Command::new(&argv[0]).args(&argv[1..]).arg("--version"))?;
    parse_version(&said).with_context(|| format!("`--version` printed: {said}"))
}

/// Reads `QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)`.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.trim_start().strip_prefix("QEMU emulator version ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn is_sound(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= SOUND_SINCE)
}

/// What is to be said of a version that is not sound.
fn unsound(version: &str) -> String {
    format!("QEMU {version} may abort or corrupt guests, it takes {SOUND_SINCE}.0 or later")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn judges_versions() {
        for (text, version, sound) in [
            ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds)\nCopyright", "11.1.3", true),
            ("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds)\nCopyright", "10.0.13", false),
            ("QEMU emulator version 7.2.22 (Debian)", "7.2.22", false),
            ("QEMU emulator version 9.2.50", "9.2.50", false),
            ("QEMU emulator version 11.0.0", "11.0.0", true),
        ] {
            assert_eq!(parse_version(text).as_deref(), Some(version));
            assert_eq!(is_sound(version), sound, "{version}");
        }
        assert_eq!(parse_version("bash: qemu: not found"), None);
        assert!(!is_sound("unknown"));
    }

    #[test]
    fn asks_an_installed_program_once() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        let program = dir.path().join("qemu");
        let script = "#!/bin/sh\necho run >> \"$0.log\"\necho QEMU emulator version 7.2.1\n";
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        for _ in 0..2 {
            let qemu = from_env(&cache, &program)?;
            assert_eq!((qemu.version.as_str(), qemu.origin), ("7.2.1", Origin::Env));
            assert!(qemu.note.contains("corrupt") && !qemu.is_known_good(), "{}", qemu.note);
        }
        assert_eq!(fs::read_to_string(dir.path().join("qemu.log"))?, "run\n");
        assert!(from_env(&cache, &dir.path().join("gone")).is_err());
        Ok(())
    }

    #[test]
    fn keeps_what_the_command_line_names() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("root");
        let argv = command_line(dir.path());
        for index in [0, 3] {
            let path = Path::new(&argv[index]);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, "")?;
        }
        for folder in ["usr/lib/x86_64-linux-gnu/gconv", "usr/share/qemu", "usr/share/doc", "etc"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::create_dir_all(&argv[7])?;
        prune(&root)?;
        for index in [0, 2, 3, 5, 7] {
            assert!(Path::new(&argv[index]).exists(), "{:?}", argv[index]);
        }
        for gone in ["etc", "usr/share/doc", "usr/lib/x86_64-linux-gnu/gconv"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        Ok(())
    }
}
