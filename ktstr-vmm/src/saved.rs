//! What the saved machines of both engines have in common: read-only files that are valid until the
//! host reboots.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::Error;

/// Makes a finished file read-only, for its owner only: a guest may have secrets.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o400))
}

/// Opens a file of a saved machine. One that is missing, or anything else than a file, is damage.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    let damaged =
        |reason: &str| Error::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let mut options = OpenOptions::new();
    // Without this flag, to open a pipe would wait for its writer.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged("is missing"),
        _ => Error::file("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(Error::file("read the size of", path))?;
    if metadata.is_file() { Ok(file) } else { Err(damaged("is not a file")) }
}

/// Returns the ID of the host's boot, which changes with each reboot.
///
/// Source: Linux 6.12, admin-guide/sysctl/kernel.rst (`random`).
pub(crate) fn host_boot() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(text.trim_end().to_owned())
}

/// Returns the FNV-1a hash of the bytes, which changes with any change of one byte.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_rejects_what_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for (path, want) in [
            (pipe.as_path(), "is not a file"),
            (dir.path(), "is not a file"),
            (&dir.path().join("nothing"), "is missing"),
        ] {
            let error = open(path).unwrap_err();
            assert!(matches!(&error, Error::Damaged { reason, .. } if reason == want), "{error}");
        }
    }

    #[test]
    fn checksum_is_that_of_the_specification() {
        // Source: draft-eastlake-fnv, "FNV Constants" and its vectors for "" and "foobar".
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
