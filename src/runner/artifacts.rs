//! The folder a run leaves behind: `target/ktstr/<run>/<test>/`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use ktstr_core::result::VmResult;
use serde::Serialize;

use crate::report::{Passed, Reasons};
use crate::this_program;

/// Runs older than this are removed when a new one begins.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Held to make a test's folder, and to remove the run's when a test's was its last.
static FOLDERS: Mutex<()> = Mutex::new(());

/// The longest name of a test's directory. File systems take 255 bytes.
const LONGEST_NAME: usize = 200;

/// The artefacts of one test.
#[derive(Debug)]
pub(crate) struct Artifacts {
    folder: PathBuf,
    /// Why some of them are missing.
    errors: Vec<anyhow::Error>,
}

/// What `result.json` holds.
#[derive(Serialize)]
struct Record<'a> {
    passed: bool,
    /// Why not, the weightiest reason first.
    reasons: &'a [String],
    #[serde(flatten)]
    facts: &'a VmResult,
}

impl Artifacts {
    /// Writes what is known of a run. A later run of the same test in this process replaces it.
    ///
    /// What cannot be written is listed by [`Artifacts::errors`], and keeps nothing else from being
    /// written.
    pub(crate) fn write(result: &VmResult, verdict: &Result<Passed, Reasons>) -> Self {
        Self::write_to(&run_folder(), result, verdict)
    }

    fn write_to(run: &Path, result: &VmResult, verdict: &Result<Passed, Reasons>) -> Self {
        let folder = run.join(folder_name(&result.test));
        let mut artifacts = Self { folder, errors: Vec::new() };
        {
            let _other_tests = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = fs::create_dir_all(&artifacts.folder) {
                let context = format!("failed to create {}", artifacts.folder.display());
                artifacts.errors.push(anyhow::Error::new(error).context(context));
                return artifacts;
            }
        }
        let record = Record {
            passed: verdict.is_ok(),
            reasons: verdict.as_ref().err().map_or(&[], Vec::as_slice),
            facts: result,
        };
        for (name, content) in [
            ("console.log", Ok(result.console.clone().into_bytes())),
            ("body.log", Ok(result.log.clone().into_bytes())),
            ("captures.json", serde_json::to_vec_pretty(&result.captures)),
            ("result.json", serde_json::to_vec_pretty(&record)),
            ("cmdline", Ok(result.machine.cmdline.clone().into_bytes())),
        ] {
            let path = artifacts.folder.join(name);
            let written = content.map_err(anyhow::Error::new).and_then(|content| {
                fs::write(&path, content)?;
                Ok(())
            });
            let context = || format!("failed to write {}", path.display());
            artifacts.errors.extend(written.with_context(context).err());
        }
        artifacts
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns why something is missing in the directory.
    pub(crate) fn errors(&self) -> &[anyhow::Error] {
        &self.errors
    }

    /// Removes the folder, and the run's if this was its last.
    pub(crate) fn discard(self) {
        let _other_tests = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be removed now is removed when it is old.
        let _ = fs::remove_dir_all(&self.folder);
        if let Some(run) = self.folder.parent() {
            let _ = fs::remove_dir(run);
        }
    }
}

/// Returns the name of a test's directory: the test's own, shortened if a file system refused it.
fn folder_name(test: &str) -> String {
    let mut name = test.replace("::", "--");
    if name.len() > LONGEST_NAME {
        // Two long names may begin alike.
        let mut hasher = DefaultHasher::new();
        test.hash(&mut hasher);
        name.truncate(name.floor_char_boundary(LONGEST_NAME));
        name = format!("{name}-{:016x}", hasher.finish());
    }
    name
}

/// The folder of this run, which is this process.
fn run_folder() -> PathBuf {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let root = target_folder().join("ktstr");
        prune(&root);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        root.join(format!("{}-{}", now.as_secs(), std::process::id()))
    };
    RUN.get_or_init(make).clone()
}

/// Cargo's target folder: the one above this program that Cargo has marked as a cache.
fn target_folder() -> PathBuf {
    let program = this_program::own_name().map(|name| name.path).unwrap_or_default();
    let marked = program.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").exists());
    match marked {
        Some(folder) => folder.to_owned(),
        // Relative if even this directory has no name any more.
        None => std::env::current_dir().unwrap_or_default().join("target"),
    }
}

fn prune(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
        if matches!(age, Ok(Ok(age)) if age > KEEP) {
            // Another process may be pruning, too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use ktstr_core::result::{Machine, RunEnd, Timings};

    use super::*;

    fn result(test: &str) -> VmResult {
        let initramfs = PathBuf::from(OsStr::from_bytes(b"/cache/\xff/1.cpio"));
        VmResult {
            test: test.to_owned(),
            console: "the console".to_owned(),
            log: "the log".to_owned(),
            machine: Machine { initramfs, ..Machine::default() },
            end: RunEnd::BodyError("why".to_owned()),
            kernel_events: Vec::new(),
            captures: Vec::new(),
            snapshots: Vec::new(),
            events: Vec::new(),
            timings: Timings::default(),
            stolen: Vec::new(),
        }
    }

    #[test]
    fn artifacts_are_written_for_any_name_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join(OsStr::from_bytes(b"run \xff"));
        let long = "é".repeat(300);
        for test in ["module::test", &long] {
            let artifacts = Artifacts::write_to(&run, &result(test), &Err(vec!["why".to_owned()]));
            assert!(artifacts.errors().is_empty(), "{:?}", artifacts.errors());
            let read = |name| fs::read_to_string(artifacts.folder().join(name)).unwrap();
            assert_eq!(
                (read("console.log"), read("body.log")),
                ("the console".into(), "the log".into())
            );
            assert!(read("result.json").contains("1.cpio"));
        }
        assert_ne!(folder_name(&format!("{long}a")), folder_name(&format!("{long}b")));
    }

    #[test]
    fn artifact_that_cannot_be_written_leaves_the_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("test/console.log")).unwrap();
        let artifacts = Artifacts::write_to(dir.path(), &result("test"), &Ok(Passed::AsExpected));
        let [error] = artifacts.errors() else { panic!("{:?}", artifacts.errors()) };
        assert!(format!("{error:#}").contains("console.log: "), "{error:#}");
        assert_eq!(fs::read_to_string(artifacts.folder().join("body.log")).unwrap(), "the log");
    }
}
