//! The profile of a body in an instrumented program, for coverage or for the optimizer.
//!
//! LLVM's runtime writes a program's counters to a file when the program exits. A body ends without running exit
//! handlers, and the guest's files are lost with the guest. So the body writes its profile after it has sent its
//! verdict, PID 1 announces the file, and sends it after the end of the run.
//!
//! Source: Clang documentation, "Source-based Code Coverage", section "Using the profiling runtime without a
//! filesystem" and those before it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;

use crate::linux::sys;

/// The profile of the body.
const PATH: &str = "/ktstr/body.profraw";

/// The profile until it is complete: a body may be killed while it writes it.
const UNFINISHED: &CStr = c"/ktstr/body.profraw.unfinished";

/// Returns whether this program is instrumented.
pub fn is_instrumented() -> bool {
    sys::ProfileRuntime::linked().is_some()
}

/// Writes the counters of this process, if it has any.
///
/// A forked copy of the process writes them, so that a failure cannot change the verdict. An incomplete profile is
/// not renamed to its final name, and the reason goes to the body's standard error.
pub(super) fn write() {
    let Some(runtime) = sys::ProfileRuntime::linked() else { return };
    // SAFETY: the copy makes system calls and reads counters, and waits for no lock.
    let written = unsafe { sys::fork(|| runtime.write(UNFINISHED)) }.and_then(sys::reap);
    let complete = written.and_then(|(status, _)| {
        if !status.success() {
            return Err(io::Error::other(status.to_string()));
        }
        fs::rename(UNFINISHED.to_str().expect("the path is ASCII"), PATH)
    });
    if let Err(error) = complete {
        eprintln!("ktstr: failed to write the profile of the test body: {error}");
    }
}

/// Opens the profile of the body and returns it with its length; `None` if there is none.
pub(super) fn open() -> io::Result<Option<(File, u64)>> {
    match File::open(PATH) {
        Ok(file) => file.metadata().map(|meta| Some((file, meta.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
