//! The directory that a run leaves behind: `target/ktstr/<run>/<program>/<test>/`.
//!
//! `run.json` is the [`RunRecord`]; a run that failed has `console.log` and `body.log` as well, and one that failed in
//! a forked guest and was repeated has `forked-console.log` and `forked-body.log`.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ktstr_core::record::{Artifacts, RunRecord};

use crate::gate::{self, IfMissing, Trusted};
use crate::this_program;

/// Runs older than this are removed when another one begins.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest name of a test's directory. File systems take 255 bytes.
const LONGEST_NAME: usize = 200;

/// The largest `run.json` in bytes.
const LARGEST_RECORD: usize = 64 << 20;

/// Creates the directory of a run and writes its record.
pub(super) fn begin(record: &mut RunRecord) {
    let root = target_directory().join("ktstr");
    static PRUNE: Once = Once::new();
    PRUNE.call_once(|| prune(&root));
    begin_in(&root, record);
}

/// As [`begin`], in the directory `root`.
pub(super) fn begin_in(root: &Path, record: &mut RunRecord) {
    let program = this_program::own_name().map(|name| name.path).unwrap_or_default();
    let program = program.file_name().unwrap_or_default();
    let parent = root.join(&record.run).join(program);
    let name = directory_name(&record.test);
    let (directory, created) = match check(root, &parent, IfMissing::Create) {
        Ok(()) => {
            let (directory, created) = create_new(&parent, &name);
            (directory, created.map_err(anyhow::Error::from))
        }
        Err(error) => (parent.join(name), Err(error)),
    };
    let created = created.with_context(|| format!("failed to create {}", directory.display()));
    record.artifacts = Some(Artifacts { directory, files: Vec::new(), errors: Vec::new() });
    note_error(record, created);
    save(record);
}

/// Checks the directories from `root` to `path`, so that no other user can lead artifacts elsewhere by a link.
///
/// The owner of Cargo's target directory is trusted: that user can also replace the test program.
fn check(root: &Path, path: &Path, if_missing: IfMissing) -> Result<()> {
    let base = root.parent().context("the directory of artifacts has no parent directory")?;
    if if_missing == IfMissing::Create {
        fs::create_dir_all(base)?;
    }
    let trusted = Trusted::own().and_owner_of(base);
    Ok(gate::check_below(base, path.strip_prefix(base)?, trusted, if_missing)?)
}

/// Creates the directory `name` in `parent`, or `name.2` and so on if earlier runs of the test have
/// these: nextest retries a test that failed. Returns its path, and whether it was created.
fn create_new(parent: &Path, name: &str) -> (PathBuf, io::Result<()>) {
    let mut directory = parent.join(name);
    let mut created = fs::create_dir(&directory);
    for number in 2_u32.. {
        if !created.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
        directory = parent.join(format!("{name}.{number}"));
        created = fs::create_dir(&directory);
    }
    (directory, created)
}

/// Replaces the written record. A reader finds the old one or the new one, even if the writer is killed.
pub(super) fn save(record: &mut RunRecord) {
    let written = (|| {
        let Some(artifacts) = &record.artifacts else { return Ok(()) };
        let (new, path) =
            (artifacts.directory.join("run.json.new"), artifacts.directory.join("run.json"));
        let json = to_json(record, LARGEST_RECORD)?;
        // A file that a failed attempt has left.
        let _ = fs::remove_file(&new);
        write_new(&new, &json)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("failed to write {}", path.display()))
    })();
    note_error(record, written);
}

/// Returns the record as JSON. One that is larger than `limit` loses what a guest can send in bulk.
fn to_json(record: &RunRecord, limit: usize) -> Result<Vec<u8>> {
    let mut json = Bounded { bytes: Vec::new(), limit };
    let error = match serde_json::to_writer(&mut json, record) {
        Ok(()) => return Ok(json.bytes),
        Err(error) if error.is_io() => error,
        Err(error) => return Err(error.into()),
    };
    let mut rest = without_bulk(record);
    note_error(
        &mut rest,
        Err(anyhow!("captures, snapshots, events and measurements are missing: {error}")),
    );
    let mut json = Bounded { bytes: Vec::new(), limit };
    serde_json::to_writer(&mut json, &rest)?;
    Ok(json.bytes)
}

/// Returns the record without what a guest can send in bulk.
fn without_bulk(record: &RunRecord) -> RunRecord {
    let (captures, snapshots, events, measurements) = Default::default();
    let forked = record.forked.as_deref().map(|forked| Box::new(without_bulk(forked)));
    RunRecord { captures, snapshots, events, measurements, forked, ..record.clone() }
}

/// A buffer that refuses to grow beyond a limit: texts in JSON have up to six times their bytes.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            let mib = self.limit >> 20;
            return Err(io::Error::other(format!("the record is larger than {mib} MiB")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what is known at the end of a run: of one that failed, the console and the log too, also if it failed in
/// a forked guest and passed when it was repeated.
pub(super) fn finish(record: &mut RunRecord) {
    let mut files = Vec::new();
    if record.passed == Some(false) {
        files.extend([("console.log", &record.console), ("body.log", &record.log)]);
    }
    if let Some(forked) = &record.forked {
        files.extend([("forked-console.log", &forked.console), ("forked-body.log", &forked.log)]);
    }
    for (name, content) in files {
        let Some(artifacts) = &mut record.artifacts else { return };
        let path = artifacts.directory.join(name);
        match write_new(&path, content.as_bytes()) {
            Ok(()) => artifacts.files.push(name.to_owned()),
            Err(error) => {
                artifacts.errors.push(format!("failed to write {}: {error}", path.display()));
            }
        }
    }
    save(record);
}

/// Writes a file that does not exist yet. A link in its place is an error.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(content)
}

/// Adds the error to the record. An artifact that cannot be written changes no verdict.
fn note_error(record: &mut RunRecord, written: Result<()>) {
    let (Some(artifacts), Err(error)) = (&mut record.artifacts, written) else { return };
    let error = format!("{error:#}");
    // The record is written several times, and may fail each time.
    if !artifacts.errors.contains(&error) {
        artifacts.errors.push(error);
    }
}

/// Returns the name of a test's directory: the test's own, shortened if a file system refused it.
fn directory_name(test: &str) -> String {
    let mut name = test.replace("::", "--");
    if name.len() > LONGEST_NAME {
        // Two long names may begin with the same bytes.
        let mut hasher = DefaultHasher::new();
        test.hash(&mut hasher);
        name.truncate(name.floor_char_boundary(LONGEST_NAME));
        name = format!("{name}-{:016x}", hasher.finish());
    }
    name
}

/// Returns Cargo's target directory: the ancestor of this program that Cargo has marked as a cache.
fn target_directory() -> PathBuf {
    let program = this_program::own_name().map(|name| name.path).unwrap_or_default();
    let marked = program.ancestors().skip(1).find(|path| path.join("CACHEDIR.TAG").exists());
    match marked {
        Some(directory) => directory.to_owned(),
        // Relative if the working directory was removed.
        None => std::env::current_dir().unwrap_or_default().join("target"),
    }
}

/// Removes old runs of this user. A link is neither followed nor removed.
fn prune(root: &Path) {
    if check(root, root, IfMissing::Stop).is_err() {
        return;
    }
    let own = rustix::process::geteuid().as_raw();
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let meta = entry.metadata();
        let is_own = meta.as_ref().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        let age = meta.and_then(|meta| meta.modified()).map(|time| time.elapsed());
        if is_own && matches!(age, Ok(Ok(age)) if age > KEEP) {
            // Another process may be pruning, too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use ktstr_core::registry::TestEntry;
    use ktstr_core::result::RunEnd;
    use ktstr_core::wire::ScenarioEvent;

    use super::*;

    fn record(test: &'static str) -> RunRecord {
        let entry = TestEntry { name: test, ..TestEntry::DEFAULT };
        let record = super::super::record::begin(&entry);
        RunRecord { console: "the console".to_owned(), log: "the log".to_owned(), ..record }
    }

    fn directory(record: &RunRecord) -> &Path {
        &record.artifacts.as_ref().unwrap().directory
    }

    fn read(record: &RunRecord) -> RunRecord {
        let json = fs::read_to_string(directory(record).join("run.json")).unwrap();
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn record_beyond_its_limit_loses_what_a_guest_sends_in_bulk() {
        let mut record = record("test");
        let event = |at_ns| ScenarioEvent { at_ns, phase: String::new(), what: "\0".repeat(1000) };
        record.events = (0..1000).map(event).collect();
        let root = tempfile::tempdir().unwrap();
        begin_in(root.path(), &mut record);
        let whole = serde_json::to_vec(&record).unwrap();
        assert_eq!(to_json(&record, whole.len()).unwrap(), whole);
        let json = to_json(&record, 5 << 20).unwrap();
        let read: RunRecord = serde_json::from_slice(&json).unwrap();
        assert_eq!((read.events.len(), &read.test), (0, &record.test));
        let errors = read.artifacts.unwrap().errors;
        assert!(errors[0].ends_with("the record is larger than 5 MiB"), "{errors:?}");
    }

    #[test]
    fn record_is_running_before_it_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let mut record = record("test");
        begin_in(root.path(), &mut record);
        assert_eq!((read(&record).end, read(&record).passed), (RunEnd::Running, None));
        record.end = RunEnd::BodyError("why".to_owned());
        record.passed = Some(false);
        finish(&mut record);
        let RunRecord { console, log, .. } = read(&record);
        let read =
            RunRecord { console: record.console.clone(), log: record.log.clone(), ..read(&record) };
        assert_eq!((read, console, log), (record, String::new(), String::new()));
    }

    #[test]
    fn runs_of_one_test_have_directories_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let mut runs = [(); 3].map(|()| record("test"));
        for run in &mut runs {
            begin_in(root.path(), run);
            run.passed = Some(false);
            finish(run);
        }
        let names = runs.each_ref().map(|run| directory(run).file_name().unwrap());
        assert_eq!(names, ["test", "test.2", "test.3"]);
        assert!(runs.iter().all(|run| read(run).artifacts == run.artifacts));
    }

    #[test]
    fn directory_that_cannot_be_created_is_an_error_of_the_record() {
        let root = tempfile::NamedTempFile::new().unwrap();
        let mut record = record("test");
        begin_in(root.path(), &mut record);
        finish(&mut record);
        let errors = &record.artifacts.as_ref().unwrap().errors;
        assert!(errors[0].starts_with("failed to create "), "{errors:?}");
        // Each error once, although the record was written twice.
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[test]
    fn passed_run_keeps_its_record_only() {
        let root = tempfile::tempdir().unwrap();
        let mut record = record("test");
        begin_in(root.path(), &mut record);
        record.passed = Some(true);
        finish(&mut record);
        let names = fs::read_dir(directory(&record)).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["run.json"]);
    }

    #[test]
    fn run_that_failed_in_a_forked_guest_keeps_that_console() {
        let root = tempfile::tempdir().unwrap();
        let mut record = record("test");
        begin_in(root.path(), &mut record);
        record.forked = Some(Box::new(record.clone()));
        record.passed = Some(true);
        finish(&mut record);
        let files = &record.artifacts.as_ref().unwrap().files;
        assert_eq!(files, &["forked-console.log", "forked-body.log"]);
        let console = fs::read_to_string(directory(&record).join("forked-console.log")).unwrap();
        assert_eq!(console, "the console");
    }

    #[test]
    fn artifacts_are_written_for_any_name_and_path() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join(OsStr::from_bytes(b"root \xff"));
        let long = &*"é".repeat(300).leak();
        for test in ["module::test", long] {
            let mut record = record(test);
            begin_in(&root, &mut record);
            record.passed = Some(false);
            finish(&mut record);
            let artifacts = record.artifacts.as_ref().unwrap();
            assert_eq!(artifacts.errors, [""; 0]);
            assert_eq!(artifacts.files, ["console.log", "body.log"]);
            assert_eq!(
                fs::read_to_string(artifacts.directory.join("body.log")).unwrap(),
                "the log"
            );
            assert_eq!(read(&record).test, record.test);
        }
        assert_ne!(directory_name(&format!("{long}a")), directory_name(&format!("{long}b")));
    }

    #[test]
    fn artifacts_are_not_written_through_links() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("crontab");
        let root = home.path().join("target/ktstr");
        let mut run = record("test");
        begin_in(&root, &mut run);
        for name in ["console.log", "body.log", "run.json.new"] {
            symlink(&target, directory(&run).join(name)).unwrap();
        }
        run.passed = Some(false);
        finish(&mut run);
        assert_eq!(run.artifacts.as_ref().unwrap().files, [""; 0]);
        assert_eq!(run.artifacts.as_ref().unwrap().errors.len(), 2);
        assert_eq!(read(&run).passed, Some(false));
        assert!(!target.exists(), "an artifact was written through a link");

        // A link in the place of a directory.
        fs::rename(&root, home.path().join("elsewhere")).unwrap();
        symlink(home.path().join("elsewhere"), &root).unwrap();
        let mut run = record("other");
        begin_in(&root, &mut run);
        let errors = &run.artifacts.as_ref().unwrap().errors;
        assert!(errors[0].contains("ktstr` is a symbolic link"), "{errors:?}");
    }

    #[test]
    fn prune_removes_old_runs_and_follows_no_link() {
        let home = tempfile::tempdir().unwrap();
        let old = |path: &Path| {
            fs::create_dir_all(path.join("content")).unwrap();
            let modified = std::time::SystemTime::now() - 2 * KEEP;
            File::open(path).unwrap().set_modified(modified).unwrap();
            path.to_owned()
        };
        let (foreign, root) = (home.path().join("home"), home.path().join("ktstr"));
        let precious = old(&foreign.join("work"));
        symlink(&foreign, &root).unwrap();
        prune(&root);
        assert!(precious.join("content").exists(), "a link was followed");
        fs::remove_file(&root).unwrap();
        let run = old(&root.join("run"));
        fs::create_dir(root.join("new")).unwrap();
        symlink(&precious, root.join("link")).unwrap();
        prune(&root);
        let exists = [run, root.join("new"), root.join("link"), precious].map(|path| path.exists());
        assert_eq!(exists, [false, true, true, true]);
    }

    #[test]
    fn artifact_that_cannot_be_written_leaves_the_others() {
        let root = tempfile::tempdir().unwrap();
        let mut record = record("test");
        begin_in(root.path(), &mut record);
        fs::create_dir_all(directory(&record).join("console.log")).unwrap();
        record.passed = Some(false);
        finish(&mut record);
        let artifacts = record.artifacts.as_ref().unwrap();
        let [error] = &artifacts.errors[..] else { panic!("{:?}", artifacts.errors) };
        assert!(error.contains("console.log: "), "{error}");
        assert_eq!(artifacts.files, ["body.log"]);
    }
}
