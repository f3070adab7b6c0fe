//! The profile of a body whose program is instrumented, for coverage or for the optimizer.
//!
//! LLVM's runtime writes a program's counters to a file when the program exits. A body ends without that, and the
//! guest's files end with the guest. So the body writes its profile when it has sent its verdict, PID 1 announces
//! the file, and it follows the end of the run.
//!
//! Source: Clang documentation, "Source-based Code Coverage", section "Using the profiling runtime without a
//! filesystem" and those before it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;

use crate::linux::sys;

/// Where the body leaves its profile.
const PATH: &str = "/ktstr/body.profraw";

/// Where the profile is until it is complete: a body may be killed meanwhile.
const UNFINISHED: &CStr = c"/ktstr/body.profraw.unfinished";

/// Returns whether this program is instrumented.
pub fn is_instrumented() -> bool {
    sys::ProfileRuntime::linked().is_some()
}

/// Writes the counters of this process, if it has any.
///
/// A copy of the process does it: whatever becomes of the profile, the verdict stays what it is. A profile that
/// cannot be written whole does not get its name, and the reason is on the body's standard error.
pub(super) fn write() {
    let Some(runtime) = sys::ProfileRuntime::linked() else { return };
    // SAFETY: the copy makes system calls and reads counters, for which it waits for nothing.
    let written = unsafe { sys::fork(|| runtime.write(UNFINISHED)) }.and_then(sys::reap);
    let complete = written.and_then(|(status, _)| match status.success() {
        true => fs::rename(UNFINISHED.to_str().expect("the path is ASCII"), PATH),
        false => Err(io::Error::other(status.to_string())),
    });
    if let Err(error) = complete {
        eprintln!("ktstr: cannot write the profile of the test body: {error}");
    }
}

/// Opens the profile that the body left, if it did; with its length.
pub(super) fn open() -> io::Result<Option<(File, u64)>> {
    match File::open(PATH) {
        Ok(file) => file.metadata().map(|meta| Some((file, meta.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
