//! Writes the coverage profiles of instrumented test bodies where LLVM's runtime would write them on this host.
//!
//! The runtime of this process writes its own profile at exit, by the pattern in `LLVM_PROFILE_FILE`. Profiles of
//! bodies have the same pattern and a suffix, so that no two of them share a file.
//!
//! Source: Clang documentation, "Source-based Code Coverage", section "Running the instrumented program".

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, bail};

use super::session::ReceivedFile;

/// The pattern of rustc's instrumented programs if the variable is not set.
const DEFAULT_PATTERN: &str = "default_%m_%p.profraw";

/// Writes the profile of an instrumented run. Returns its path, or `None` if the pattern names a device.
///
/// # Errors
///
/// If the profile is incomplete, or cannot be written.
pub(super) fn keep(received: Option<&ReceivedFile>) -> Result<Option<PathBuf>> {
    let Some(file) = received else { bail!("the guest sent none") };
    if !file.is_complete() {
        bail!("{} of {} bytes arrived", file.bytes.len(), file.length);
    }
    let pattern = env::var_os("LLVM_PROFILE_FILE").filter(|pattern| !pattern.is_empty());
    let pattern = pattern.unwrap_or_else(|| DEFAULT_PATTERN.into());
    let path = expand(&pattern, &Variables::of_this_process());
    write(&path, &file.bytes)
        .with_context(|| format!("failed to write a profile next to {}", path.display()))
}

/// The values of the pattern's specifiers.
struct Variables {
    pid: String,
    host_name: Vec<u8>,
    temporary_directory: Vec<u8>,
}

impl Variables {
    fn of_this_process() -> Self {
        Self {
            pid: process::id().to_string(),
            host_name: rustix::system::uname().nodename().to_bytes().to_vec(),
            temporary_directory: env::var_os("TMPDIR").unwrap_or_default().into_vec(),
        }
    }
}

/// Replaces the specifiers of the runtime. The signature of the program, which only the runtime knows, becomes
/// `guest`; continuous mode and the size of a merge pool do not matter for a file that is written once.
fn expand(pattern: &OsStr, variables: &Variables) -> PathBuf {
    let mut rest = pattern.as_bytes();
    let mut path = Vec::new();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let specifier = if *first == b'%' { after.get(digits) } else { None };
        let replacement = match specifier {
            Some(b'm') => b"guest",
            Some(b'p') if digits == 0 => variables.pid.as_bytes(),
            Some(b'h') if digits == 0 => &variables.host_name,
            Some(b't') if digits == 0 => &variables.temporary_directory,
            Some(b'c') if digits == 0 => b"",
            _ => {
                path.push(*first);
                continue;
            }
        };
        path.extend_from_slice(replacement);
        if specifier == Some(&b't') && !path.ends_with(b"/") {
            path.push(b'/');
        }
        rest = &after[digits + 1..];
    }
    OsString::from_vec(path).into()
}

/// Writes a new file next to `path`, with a unique name.
fn write(path: &Path, bytes: &[u8]) -> Result<Option<PathBuf>> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Ok(None);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    for index in 0_u32.. {
        let mut name = path.file_stem().context("the path has no file name")?.to_owned();
        name.push(format!(".body-{}-{index}", process::id()));
        if let Some(extension) = path.extension() {
            name.push(".");
            name.push(extension);
        }
        let path = path.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                if let Err(error) = file.write_all(bytes) {
                    // A part of a profile would make `llvm-profdata merge` fail for all of them.
                    let _ = fs::remove_file(&path);
                    return Err(error.into());
                }
                return Ok(Some(path));
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("all names exist")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expand_replaces_the_specifiers_of_the_runtime() {
        let variables = Variables {
            pid: "42".to_owned(),
            host_name: b"host".to_vec(),
            temporary_directory: b"/tmp/x".to_vec(),
        };
        for (pattern, path) in [
            ("cov.profraw", "cov.profraw"),
            (DEFAULT_PATTERN, "default_guest_42.profraw"),
            ("/a/%p-%16m.profraw", "/a/42-guest.profraw"),
            ("%t%h%c%p%", "/tmp/x/host42%"),
            ("%x%4p%%", "%x%4p%%"),
        ] {
            let found = expand(OsStr::new(pattern), &variables);
            assert_eq!(found, Path::new(path), "{pattern}");
        }
    }

    #[test]
    fn write_creates_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/cov.profraw");
        let [first, second] = [b"1", b"2"].map(|bytes| write(&path, bytes).unwrap().unwrap());
        let name = format!("cov.body-{}-0.profraw", process::id());
        assert_eq!(first, path.with_file_name(name));
        assert_eq!(
            (fs::read(first).unwrap(), fs::read(second).unwrap()),
            (b"1".into(), b"2".into())
        );
        assert!(!path.exists());
        assert_eq!(write(Path::new("/dev/null"), b"3").unwrap(), None);
    }

    #[test]
    fn keep_refuses_incomplete_profiles() {
        let mut file = ReceivedFile::new(3);
        file.push(b"ab");
        for (received, why) in [(Some(&file), "2 of 3 bytes"), (None, "the guest sent none")] {
            let error = keep(received).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
