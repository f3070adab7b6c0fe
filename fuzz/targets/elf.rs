//! ELF files that the host reads and never executes: payloads and their libraries, and modules of kernels.
//!
//! The first byte selects the reader.

#![no_main]

#[allow(dead_code, reason = "these files are not of a machine")]
mod machine;

use ktstr::provision::modules::depends_of;
use ktstr::runner::fuzzing::read_elf;
use libfuzzer_sys::fuzz_target;
use machine::File;

fuzz_target!(|data: &[u8]| {
    let [kind, file @ ..] = data else { return };
    match kind & 1 {
        0 => drop(read_elf(&File::new(file).path())),
        _ => {
            if let Ok(names) = depends_of(file) {
                assert!(names.iter().map(String::len).sum::<usize>() <= file.len());
            }
        }
    }
});
