//! The folder a run leaves behind: `target/ktstr/<run>/<test>/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use ktstr_core::result::VmResult;
use serde::Serialize;

use crate::report::{Passed, Reasons};

/// Runs older than this are removed when a new one begins.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Held to make a test's folder, and to remove the run's when a test's was its last.
static FOLDERS: Mutex<()> = Mutex::new(());

/// The artefacts of one test.
#[derive(Debug)]
pub(crate) struct Artifacts {
    folder: PathBuf,
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
    pub(crate) fn write(result: &VmResult, verdict: &Result<Passed, Reasons>) -> Result<Self> {
        let folder = run_folder()?.join(result.test.replace("::", "--"));
        {
            let _other_tests = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let artifacts = Self { folder };
        let record = Record {
            passed: verdict.is_ok(),
            reasons: verdict.as_ref().err().map_or(&[], Vec::as_slice),
            facts: result,
        };
        artifacts.file("console.log", result.console.as_bytes())?;
        artifacts.file("body.log", result.log.as_bytes())?;
        artifacts.file("captures.json", &serde_json::to_vec_pretty(&result.captures)?)?;
        artifacts.file("result.json", &serde_json::to_vec_pretty(&record)?)?;
        artifacts.file("cmdline", result.machine.cmdline.as_bytes())?;
        Ok(artifacts)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
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

    fn file(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The folder of this run, which is this process.
fn run_folder() -> Result<PathBuf> {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    if let Some(folder) = RUN.get() {
        return Ok(folder.clone());
    }
    let root = target_folder()?.join("ktstr");
    prune(&root);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run = format!("{}-{}", now.as_secs(), std::process::id());
    Ok(RUN.get_or_init(|| root.join(run)).clone())
}

/// Cargo's target folder: the one above this program that Cargo has marked as a cache.
fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    let marked = program.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").exists());
    match marked {
        Some(folder) => Ok(folder.to_owned()),
        None => Ok(std::env::current_dir().context("there is no current folder")?.join("target")),
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
