//! Composes the command that runs a test again.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ktstr_core::record::{Rerun, RerunCaveat, RunRecord};

use super::environment;
use crate::this_program::{self, LoadedFile, OwnName};

/// The prefix of the directories in which nextest unpacks archives by default. It removes them after
/// its run.
const ARCHIVE: &str = "nextest-archive-";

/// Returns the command that runs the test of `record` again: `command`, or this program in place of
/// Cargo.
pub(super) fn rerun(record: &RunRecord, command: Option<&str>) -> Rerun {
    let words = settings(record);
    if let Some(command) = command {
        let command = [words, vec![command.to_owned()]].concat().join(" ");
        return Rerun { command, caveat: None };
    }
    let name =
        this_program::own_name().unwrap_or(OwnName { path: PathBuf::new(), is_current: false });
    let here = env::current_dir().ok();
    let binary_id = env::var("NEXTEST_BINARY_ID").ok();
    let (call, caveat) = call(&record.test, &name, here.as_deref(), binary_id.as_deref());
    let change = here.map(|here| format!("cd {} && ", quoted(here.as_os_str())));
    Rerun { command: change.unwrap_or_default() + &[words, vec![call]].concat().join(" "), caveat }
}

/// Returns the variables that decide how a test is run, as a shell sets them.
fn settings(record: &RunRecord) -> Vec<String> {
    let mut settings = Vec::new();
    if let Some(machine) = &record.machine {
        settings.push(("KTSTR_ENGINE", OsString::from(&machine.engine.name)));
        let kernel = machine.spec.kernel.as_deref();
        settings.extend(kernel.map(|kernel| ("KTSTR_KERNEL", kernel.into())));
    }
    for name in ["KTSTR_QEMU", "KTSTR_CACHE_DIR"] {
        settings.extend(env::var_os(name).map(|value| (name, value)));
    }
    settings.extend(library_path().map(|path| ("LD_LIBRARY_PATH", path)));
    let settings = settings.into_iter().map(|(name, value)| (OsString::from(name), value));
    settings
        .chain(environment::to_run_again())
        .map(|(name, value)| format!("{}={}", name.display(), quoted(&value)))
        .collect()
}

/// Returns the directories of `LD_LIBRARY_PATH` that this program has libraries of. Cargo sets it, a
/// shell does not.
fn library_path() -> Option<OsString> {
    let mut loaded = this_program::loaded_files().ok()?;
    let own = this_program::own_name().ok()?;
    loaded.retain(|file| file.path != own.path);
    used_directories(&env::var_os("LD_LIBRARY_PATH")?, &loaded)
}

fn used_directories(path: &OsStr, loaded: &BTreeSet<LoadedFile>) -> Option<OsString> {
    let used: BTreeSet<&Path> = loaded.iter().filter_map(|file| file.path.parent()).collect();
    let kept: Vec<_> = env::split_paths(path).filter(|path| used.contains(&**path)).collect();
    env::join_paths(kept).ok().filter(|path| !path.is_empty())
}

/// Returns the call of the test, and what keeps it from running the same test.
fn call(
    test: &str,
    name: &OwnName,
    here: Option<&Path>,
    binary_id: Option<&str>,
) -> (String, Option<RerunCaveat>) {
    let mut parts = name.path.components();
    let is_unpacked = parts.any(|part| part.as_os_str().as_bytes().starts_with(ARCHIVE.as_bytes()));
    if let Some(binary) = binary_id.filter(|_| is_unpacked) {
        let filter = quoted(OsStr::new(&format!("binary_id(={binary}) & test(={test})")));
        let call = format!(
            "cargo nextest run --archive-file ARCHIVE --run-ignored all --no-capture -E {filter}"
        );
        return (call, Some(RerunCaveat::UnknownArchive));
    }
    // libtest panics if an argument is not UTF-8, the program's name included.
    let relative = here.filter(|_| name.path.to_str().is_none());
    let relative = relative.and_then(|here| name.path.strip_prefix(here).ok());
    let program = match relative {
        Some(relative) => quoted(Path::new(".").join(relative).as_os_str()),
        None => quoted(name.path.as_os_str()),
    };
    let test = quoted(OsStr::new(test));
    let caveat = match (name.is_current, name.path.exists()) {
        (true, _) => None,
        (false, true) => Some(RerunCaveat::ProgramReplaced),
        (false, false) => Some(RerunCaveat::ProgramRemoved),
    };
    (format!("{program} --exact {test} --include-ignored --nocapture"), caveat)
}

/// Quotes a word for a shell. Control characters and bytes that are not UTF-8 become octal escapes of
/// `printf`.
fn quoted(word: &OsStr) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    match word.to_str() {
        Some(word) if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        Some(word) if !word.contains(char::is_control) => {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
        _ => {
            let mut octal = String::new();
            for byte in word.as_bytes() {
                let _ = match byte {
                    byte if plain(char::from(*byte)) && *byte != b'%' => {
                        write!(octal, "{}", char::from(*byte))
                    }
                    byte => write!(octal, "\\{byte:03o}"),
                };
            }
            format!("\"$(printf '{octal}')\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_are_read_back_by_a_shell() {
        let words: [&[u8]; 9] = [
            b"debian:trixie",
            b"/a b/$HOME",
            b"it's",
            b"",
            b"a;b&c",
            "/über".as_bytes(),
            b"/\xff/100%",
            b"a\nb\x1b[0m'\"\\",
            b"\xff-",
        ];
        for word in words {
            let word = OsStr::from_bytes(word);
            let command = format!("printf %s {}", quoted(word));
            assert!(!command.contains(char::is_control), "{command:?}");
            let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
            assert_eq!(OsStr::from_bytes(&output.stdout), word, "{command}");
        }
    }

    #[test]
    fn library_path_is_kept_as_far_as_it_is_used() {
        let loaded = |path: &str| LoadedFile { path: path.into(), is_gone: false };
        let loaded =
            BTreeSet::from([loaded("/target/debug/deps/libplug.so"), loaded("/lib/libc.so.6")]);
        let path = |path: &str| used_directories(OsStr::new(path), &loaded);
        assert_eq!(
            path("/target/debug/build:/target/debug/deps:/a"),
            Some("/target/debug/deps".into())
        );
        assert_eq!(path("/target/debug"), None);
        assert_eq!(path(""), None);
    }

    #[test]
    fn call_names_what_can_still_be_run() {
        let own = this_program::own_name().unwrap();
        let (command, caveat) = call("a::b", &own, None, Some("pack::t"));
        assert!(command.starts_with(&quoted(own.path.as_os_str())), "{command}");
        assert!(command.ends_with(" --exact a::b --include-ignored --nocapture"), "{command}");
        assert_eq!(caveat, None);
        let (_, caveat) = call("a", &OwnName { is_current: false, ..own }, None, None);
        assert_eq!(caveat, Some(RerunCaveat::ProgramReplaced));
        let path =
            PathBuf::from("/tmp/nextest-archive-RSZmd3/target/debug/deps/t-34852bdf4f4e70cb");
        let unpacked = OwnName { path, is_current: true };
        let (command, caveat) = call("a::b", &unpacked, None, Some("pack::t"));
        let end = " --archive-file ARCHIVE --run-ignored all --no-capture -E 'binary_id(=pack::t) & test(=a::b)'";
        assert!(command.ends_with(end), "{command}");
        assert_eq!(caveat, Some(RerunCaveat::UnknownArchive));
        let gone = OwnName { is_current: false, ..unpacked };
        let (_, caveat) = call("a", &gone, None, None);
        assert_eq!(caveat, Some(RerunCaveat::ProgramRemoved));
        let bytes = OsStr::from_bytes(b"/\xff/target/t");
        let bytes = OwnName { path: bytes.into(), is_current: true };
        let (command, _) = call("a", &bytes, Some(Path::new(OsStr::from_bytes(b"/\xff"))), None);
        assert!(command.starts_with("./target/t --exact a "), "{command}");
    }
}
