//! The files of a saved machine.
//!
//! | file | contents |
//! |---|---|
//! | `memory0`, `memory1`, ... | the memory of each node; pages of zeros are holes |
//! | `state` | QEMU's migration stream, without the memory |
//! | `manifest.json` | what was saved, and the size and modification time of each file |
//!
//! The manifest is written last: a save that was interrupted has none. The memory has no checksum,
//! because reading all of it would cost a restore more than everything else. Instead the files are
//! read-only, a file that was written later has another modification time, and a save is valid only
//! until the host reboots, because a crash of the host can leave files with holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::error::Error;
use crate::saved;

/// The version of the format. It changes with the meaning of the files.
const FORMAT: u64 = 1;
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
/// The size limit of a manifest in bytes. It has the arguments of QEMU; the longest one is a kernel's
/// command line of up to 2 KiB.
const MAX_MANIFEST: u64 = 1 << 20;
/// The size limit of a state in bytes. It has some 350 KB, and 10 KB for each CPU.
const MAX_STATE: u64 = 64 << 20;

/// Memory is written in pages, and read in pieces of this size.
const PAGE: usize = 4 << 10;
const PIECE: usize = 1 << 20;

/// Writes the files of a save. If it is dropped before [`SaveWriter::finish`], it deletes them.
#[derive(Debug)]
pub(super) struct SaveWriter {
    dir: PathBuf,
    /// The files so far, with their names.
    files: Vec<(String, File)>,
    is_finished: bool,
}

impl SaveWriter {
    /// Starts a save in a directory, which must exist and be without one.
    pub(super) fn new(dir: &Path) -> Result<Self, Error> {
        // QEMU opens the state by this path.
        let dir = std::path::absolute(dir).map_err(Error::file("find", dir))?;
        Ok(Self { dir, files: Vec::new(), is_finished: false })
    }

    /// Creates the file that QEMU overwrites with the state, and returns its path.
    pub(super) fn create_state(&mut self) -> Result<String, Error> {
        self.create(STATE.to_owned())?;
        let path = self.dir.join(STATE);
        let not_text = |path| Error::Config(format!("the path {path:?} is not UTF-8"));
        path.into_os_string().into_string().map_err(not_text)
    }

    /// Copies `size` bytes of a node's memory.
    pub(super) fn add_memory(&mut self, memory: impl AsFd, size: u64) -> Result<(), Error> {
        // The state is the first file.
        let name = memory_name(self.files.len() - 1);
        let path = self.dir.join(&name);
        let file = self.create(name)?;
        copy_memory(memory, file, size).map_err(Error::file("write", path))
    }

    /// Seals the files and writes the manifest, which makes the save valid.
    pub(super) fn finish(mut self, machine: &[String]) -> Result<(), Error> {
        let mut files = Vec::new();
        for (name, file) in &self.files {
            let path = self.dir.join(name);
            let checksum =
                if name == STATE { Some(saved::checksum(&read_state(file, &path)?)) } else { None };
            let record = FileRecord::seal(name, file, checksum);
            files.push(record.map_err(Error::file("seal", path))?);
        }
        let manifest =
            Manifest { host_boot: saved::host_boot()?, machine: machine.to_vec(), files };
        let path = self.dir.join(MANIFEST);
        let bytes = manifest.encode();
        let file = self.create(MANIFEST.to_owned())?;
        let seal = || {
            file.write_all_at(bytes.as_bytes(), 0)?;
            saved::seal(file)
        };
        seal().map_err(Error::file("write", path))?;
        self.is_finished = true;
        Ok(())
    }

    /// Creates a file, which must not exist.
    fn create(&mut self, name: String) -> Result<&File, Error> {
        let path = self.dir.join(&name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(Error::file("create", path))?;
        self.files.push((name, file));
        Ok(&self.files.last().expect("it was just added").1)
    }
}

impl Drop for SaveWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            for (name, _) in &self.files {
                // If a file cannot be deleted, it is not restored: its manifest is missing or incomplete.
                let _ = std::fs::remove_file(self.dir.join(name));
            }
        }
    }
}

/// The open files of a save that is complete and fits the machine.
#[derive(Debug)]
pub(super) struct SavedFiles {
    pub(super) state: File,
    /// One for each node.
    pub(super) memory: Vec<File>,
}

impl SavedFiles {
    /// Opens the files in `dir` and checks that they are unchanged and belong to this machine with
    /// nodes of these sizes.
    pub(super) fn open(
        dir: &Path,
        machine: &[String],
        node_sizes: impl Iterator<Item = u64>,
    ) -> Result<Self, Error> {
        let path = dir.join(MANIFEST);
        let manifest = read_manifest(&path)?;
        if manifest.host_boot != saved::host_boot()? {
            let reason = "was written before the host rebooted".to_owned();
            return Err(Error::Damaged { path, reason });
        }
        if let Some(difference) = difference(&manifest.machine, machine) {
            return Err(Error::OtherMachine { dir: dir.to_owned(), difference });
        }
        let records = &manifest.files;
        let (state, _) = open_file(dir, STATE, records)?;
        let memory = node_sizes.enumerate().map(|(node, wanted)| {
            let name = memory_name(node);
            let (file, size) = open_file(dir, &name, records)?;
            if size == wanted {
                return Ok(file);
            }
            let reason = format!("has {size} bytes instead of {wanted}");
            Err(Error::Damaged { path: dir.join(name), reason })
        });
        Ok(Self { state, memory: memory.collect::<Result<_, _>>()? })
    }
}

fn memory_name(node: usize) -> String {
    format!("memory{node}")
}

/// Describes a save to the processes that restore it.
#[derive(Debug, PartialEq, Eq)]
struct Manifest {
    /// The boot of the host that saved the machine.
    host_boot: String,
    /// What a machine must have in common with the saved one.
    machine: Vec<String>,
    files: Vec<FileRecord>,
}

/// A file of a save, as it was when it was complete.
#[derive(Debug, PartialEq, Eq)]
struct FileRecord {
    name: String,
    bytes: u64,
    modified_ns: i64,
    /// Of the state only.
    checksum: Option<u64>,
}

impl Manifest {
    fn encode(&self) -> String {
        let Self { host_boot, machine, files } = self;
        let files: Vec<_> = files.iter().map(FileRecord::encode).collect();
        json!({ "format": FORMAT, "host_boot": host_boot, "machine": machine, "files": files })
            .to_string()
    }

    /// Decodes a manifest. An error is the rest of a sentence that begins with the name of the manifest.
    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let value: Value = serde_json::from_slice(bytes).map_err(|_| "is not JSON")?;
        if value["format"] != FORMAT {
            return Err("has an unknown format");
        }
        let [_, host_boot, machine, files] =
            fields(&value, ["format", "host_boot", "machine", "files"])
                .ok_or("has other fields")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let machine = machine.as_array().and_then(|words| words.iter().map(text).collect());
        let files =
            files.as_array().and_then(|files| files.iter().map(FileRecord::decode).collect());
        Ok(Self {
            host_boot: text(host_boot).ok_or("does not name a boot of the host")?,
            machine: machine.ok_or("does not describe a machine")?,
            files: files.ok_or("does not list files")?,
        })
    }
}

impl FileRecord {
    /// Makes a file read-only and returns its record.
    fn seal(name: &str, file: &File, checksum: Option<u64>) -> io::Result<Self> {
        saved::seal(file)?;
        let metadata = file.metadata()?;
        let (bytes, modified_ns) = (metadata.len(), modified_ns(&metadata));
        Ok(Self { name: name.to_owned(), bytes, modified_ns, checksum })
    }

    fn encode(&self) -> Value {
        let Self { name, bytes, modified_ns, checksum } = self;
        json!({ "name": name, "bytes": bytes, "modified_ns": modified_ns, "checksum": checksum })
    }

    fn decode(value: &Value) -> Option<Self> {
        let [name, bytes, modified_ns, checksum] =
            fields(value, ["name", "bytes", "modified_ns", "checksum"])?;
        Some(Self {
            name: name.as_str()?.to_owned(),
            bytes: bytes.as_u64()?,
            modified_ns: modified_ns.as_i64()?,
            checksum: if checksum.is_null() { None } else { Some(checksum.as_u64()?) },
        })
    }
}

/// Returns the values of an object that has these fields and no others.
fn fields<'a, const N: usize>(value: &'a Value, names: [&str; N]) -> Option<[&'a Value; N]> {
    let object = value.as_object().filter(|object| object.len() == N)?;
    let has_all = names.iter().all(|name| object.contains_key(*name));
    has_all.then(|| names.map(|name| &object[name]))
}

/// Decodes a manifest and encodes it again. The fuzzer calls this.
#[doc(hidden)]
pub fn reencode_manifest(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    Ok(Manifest::decode(bytes)?.encode().into_bytes())
}

fn read_manifest(path: &Path) -> Result<Manifest, Error> {
    let damaged =
        |reason: &str| Error::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let file = saved::open(path)?;
    let bytes = read_all(&file, MAX_MANIFEST).map_err(Error::file("read", path))?;
    Manifest::decode(&bytes.ok_or_else(|| damaged("is too large"))?).map_err(damaged)
}

/// Opens a file and checks that it matches its record. Returns its size, too.
fn open_file(dir: &Path, name: &str, records: &[FileRecord]) -> Result<(File, u64), Error> {
    let path = dir.join(name);
    let damaged = |reason: &str| Error::Damaged { path: path.clone(), reason: reason.to_owned() };
    let wanted = records.iter().find(|record| record.name == name);
    let wanted = wanted.ok_or_else(|| damaged("is not in the manifest"))?;
    let file = saved::open(&path)?;
    let metadata = file.metadata().map_err(Error::file("read", &path))?;
    let (found, bytes) = (metadata.len(), wanted.bytes);
    if found != bytes {
        return Err(damaged(&format!("has {found} bytes instead of {bytes}")));
    }
    if wanted.modified_ns != modified_ns(&metadata) {
        return Err(damaged("was modified after it was saved"));
    }
    if name == STATE && wanted.checksum != Some(saved::checksum(&read_state(&file, &path)?)) {
        return Err(damaged("has a wrong checksum"));
    }
    Ok((file, metadata.len()))
}

fn modified_ns(metadata: &std::fs::Metadata) -> i64 {
    metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec())
}

/// Returns the first difference between two machines.
fn difference(saved: &[String], wanted: &[String]) -> Option<String> {
    let count = saved.len().max(wanted.len());
    (0..count).find_map(|index| {
        let [was, is] = [saved, wanted].map(|words| words.get(index).map(String::as_str));
        let quoted =
            |word: Option<&str>| word.map_or("nothing".to_owned(), |word| format!("`{word}`"));
        (was != is).then(|| format!("{} was saved, not {}", quoted(was), quoted(is)))
    })
}

fn read_state(file: &File, path: &Path) -> Result<Vec<u8>, Error> {
    let too_large = || Error::Damaged { path: path.to_owned(), reason: "is too large".to_owned() };
    read_all(file, MAX_STATE).map_err(Error::file("read", path))?.ok_or_else(too_large)
}

/// Reads a file from its beginning; `None` if it has more than `limit` bytes.
fn read_all(file: &File, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let len = file.metadata()?.len();
    if len > limit {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Copies memory into an empty file, except for pages of zeros.
fn copy_memory(memory: impl AsFd, file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)?;
    let memory = File::from(memory.as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < size {
        // Pages that the guest has never written are holes.
        let start = match seek(&memory, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(&memory, SeekFrom::Hole(start))?.min(size);
        offset = start;
        while offset < end {
            let len = (end - offset).min(PIECE as u64) as usize;
            let piece = &mut buffer[..len];
            memory.read_exact_at(piece, offset)?;
            write_pages(piece, file, offset)?;
            offset += len as u64;
        }
    }
    Ok(())
}

/// Writes the runs of pages that are not all zeros.
fn write_pages(piece: &[u8], file: &File, offset: u64) -> io::Result<()> {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let is_zero = |page: &[u8]| page == &ZEROS[..page.len()];
    let mut start = 0;
    let mut end = 0;
    for page in piece.chunks(PAGE) {
        if is_zero(page) {
            file.write_all_at(&piece[start..end], offset + start as u64)?;
            start = end + page.len();
        }
        end += page.len();
    }
    file.write_all_at(&piece[start..end], offset + start as u64)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn machine(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Saves a machine with two nodes of 2 MiB each.
    fn save(dir: &Path) {
        let mut save = SaveWriter::new(dir).unwrap();
        fs::write(save.create_state().unwrap(), "the state").unwrap();
        for node in 0..2 {
            save.add_memory(memory(node), 2 * MIB).unwrap();
        }
        save.finish(&machine(&["QEMU 1", "-smp", "1"])).unwrap();
    }

    /// Returns memory with two pages of data around one of zeros, at the border of two pieces.
    fn memory(node: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * MIB).unwrap();
        file.write_all_at(&[7 + node; PAGE], MIB - PAGE as u64).unwrap();
        file.write_all_at(&[0; PAGE], MIB).unwrap();
        file.write_all_at(&[9; PAGE], MIB + PAGE as u64).unwrap();
        file
    }

    fn open(dir: &Path) -> Result<SavedFiles, Error> {
        SavedFiles::open(dir, &machine(&["QEMU 1", "-smp", "1"]), [2 * MIB; 2].into_iter())
    }

    fn contents(file: &File) -> Vec<u8> {
        read_all(file, 4 * MIB).unwrap().unwrap()
    }

    #[test]
    fn open_returns_what_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path());
        let files = open(dir.path()).unwrap();
        assert_eq!(contents(&files.state), b"the state");
        for (node, file) in (0..).zip(&files.memory) {
            assert!(contents(file) == contents(&memory(node)), "node {node}");
            assert!(file.metadata().unwrap().blocks() * 512 < MIB, "zeros are holes");
        }
    }

    #[test]
    fn open_rejects_damage_of_each_file() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 4] = [
            ("removed", |path| fs::remove_file(path).unwrap()),
            ("truncated", |path| {
                let len = fs::metadata(path).unwrap().len();
                OpenOptions::new().write(true).open(path).unwrap().set_len(len / 2).unwrap();
            }),
            ("extended", |path| {
                let len = fs::metadata(path).unwrap().len();
                OpenOptions::new().write(true).open(path).unwrap().set_len(len + 1).unwrap();
            }),
            ("changed", |path| {
                let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, 2).unwrap();
                file.write_all_at(&[!byte[0]], 2).unwrap();
                // The clock of the file system can be coarser than this test is fast.
                let later = file.metadata().unwrap().modified().unwrap()
                    + std::time::Duration::from_millis(10);
                file.set_modified(later).unwrap();
            }),
        ];
        for name in [MANIFEST, STATE, "memory0", "memory1"] {
            for (what, damage) in damages {
                let dir = tempfile::tempdir().unwrap();
                save(dir.path());
                let path = dir.path().join(name);
                fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
                damage(&path);
                match open(dir.path()) {
                    Err(Error::Damaged { path: damaged, .. }) => {
                        assert_eq!(damaged, path, "{what}")
                    }
                    other => panic!("{name} was {what}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn open_rejects_a_manifest_that_was_cut_or_changed_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path());
        let path = dir.path().join(MANIFEST);
        let whole = fs::read(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let open_with = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            open(dir.path())
        };
        for len in 0..whole.len() {
            let error = open_with(&whole[..len]).unwrap_err().to_string();
            assert!(error.contains("is not JSON"), "{len} bytes: {error}");
        }
        for at in 0..whole.len() {
            for bits in [0x01, 0x02, 0x20, 0x80] {
                let mut changed = whole.clone();
                changed[at] ^= bits;
                match open_with(&changed) {
                    Err(Error::Damaged { .. } | Error::OtherMachine { .. }) => {}
                    other => panic!("byte {at} is {}: {other:?}", changed[at]),
                }
            }
        }
        open_with(&whole).unwrap();
    }

    #[test]
    fn decode_returns_what_was_encoded() {
        let file = |name: &str, checksum| FileRecord {
            name: name.to_owned(),
            bytes: u64::MAX,
            modified_ns: i64::MIN,
            checksum,
        };
        let manifest = Manifest {
            host_boot: "0123-4567".to_owned(),
            machine: machine(&["QEMU 1", "", "quote \" and line\n"]),
            files: vec![file(STATE, Some(u64::MAX)), file("memory0", None)],
        };
        assert_eq!(Manifest::decode(manifest.encode().as_bytes()), Ok(manifest));
    }

    #[test]
    fn decode_names_what_is_wrong() {
        for (text, want) in [
            ("", "is not JSON"),
            ("[1]", "has an unknown format"),
            (r#"{"format": 2}"#, "has an unknown format"),
            (r#"{"format": 1, "host_boot": "", "machine": []}"#, "has other fields"),
            (
                r#"{"format": 1, "host_boot": 1, "machine": [], "files": []}"#,
                "does not name a boot of the host",
            ),
            (
                r#"{"format": 1, "host_boot": "", "machine": [1], "files": []}"#,
                "does not describe a machine",
            ),
            (
                r#"{"format": 1, "host_boot": "", "machine": [], "files": [{"name": "state"}]}"#,
                "does not list files",
            ),
        ] {
            assert_eq!(Manifest::decode(text.as_bytes()), Err(want), "{text}");
        }
        // Nested deeper than any stack.
        assert_eq!(Manifest::decode(&[b'['; 1 << 20]), Err("is not JSON"));
    }

    #[test]
    fn open_finds_a_changed_state_without_a_new_time() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path());
        let path = dir.path().join(STATE);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "the  tate").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("has a wrong checksum"), "{error}");
    }

    #[test]
    fn open_rejects_a_save_from_before_a_reboot() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path());
        let path = dir.path().join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let boot = saved::host_boot().unwrap();
        assert!(text.contains(&boot));
        fs::write(&path, text.replace(&boot, "another")).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("was written before the host rebooted"), "{error}");
    }

    #[test]
    fn open_names_the_difference_between_machines() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path());
        for (wanted, difference) in [
            (&["QEMU 2", "-smp", "1"][..], "`QEMU 1` was saved, not `QEMU 2`"),
            (&["QEMU 1", "-smp", "4"], "`1` was saved, not `4`"),
            (&["QEMU 1", "-smp"], "`1` was saved, not nothing"),
            (&["QEMU 1", "-smp", "1", "-x"], "nothing was saved, not `-x`"),
        ] {
            let error = SavedFiles::open(dir.path(), &machine(wanted), [2 * MIB; 2].into_iter());
            let error = error.unwrap_err();
            assert!(matches!(error, Error::OtherMachine { .. }), "{error}");
            assert!(error.to_string().ends_with(difference), "{error}");
        }
    }

    #[test]
    fn drop_deletes_an_unfinished_save() {
        let dir = tempfile::tempdir().unwrap();
        let mut save = SaveWriter::new(dir.path()).unwrap();
        save.create_state().unwrap();
        save.add_memory(memory(0), 2 * MIB).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(save);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn create_state_keeps_an_existing_save() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path());
        let error = SaveWriter::new(dir.path()).unwrap().create_state().unwrap_err();
        assert!(matches!(error, Error::File { operation: "create", .. }), "{error}");
        open(dir.path()).unwrap();
    }
}
