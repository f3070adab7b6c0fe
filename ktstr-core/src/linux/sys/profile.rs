//! LLVM's profiling runtime.

use std::ffi::CStr;

/// The functions of LLVM's profiling runtime, which only instrumented programs contain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProfileRuntime {
    set_filename: unsafe extern "C" fn(*const libc::c_char),
    write_file: unsafe extern "C" fn() -> libc::c_int,
}

impl ProfileRuntime {
    /// Returns the runtime of this program; `None` if the program is not instrumented.
    ///
    /// Source: LLVM, compiler-rt/lib/profile/InstrProfiling.h.
    pub(crate) fn linked() -> Option<Self> {
        type SetFilename = unsafe extern "C" fn(*const libc::c_char);
        type WriteFile = unsafe extern "C" fn() -> libc::c_int;
        let (set_filename, write_file): (*const (), *const ());
        // Stable Rust has no weak symbols. The linker sets undefined ones to zero.
        // SAFETY: the code only reads two words that it defines itself.
        unsafe {
            std::arch::asm!(
                ".weak __llvm_profile_set_filename",
                ".weak __llvm_profile_write_file",
                ".pushsection .data.rel.ro.ktstr,\"aw\",@progbits",
                ".balign 8",
                "2:",
                ".quad __llvm_profile_set_filename",
                ".quad __llvm_profile_write_file",
                ".popsection",
                "mov {0}, qword ptr [rip + 2b]",
                "mov {1}, qword ptr [rip + 2b + 8]",
                out(reg) set_filename,
                out(reg) write_file,
                options(nostack, readonly, preserves_flags),
            );
        }
        // SAFETY: each word is zero, which is `None`, or the address of a function of that type.
        let (set_filename, write_file) = unsafe {
            (
                std::mem::transmute::<*const (), Option<SetFilename>>(set_filename),
                std::mem::transmute::<*const (), Option<WriteFile>>(write_file),
            )
        };
        Some(Self { set_filename: set_filename?, write_file: write_file? })
    }

    /// Writes the counters of this process to a file; returns 0 or an error number.
    pub(crate) fn write(self, path: &'static CStr) -> i32 {
        // SAFETY: the runtime keeps the pointer, which is `'static`, and has no other requirement.
        unsafe {
            (self.set_filename)(path.as_ptr());
            (self.write_file)()
        }
    }
}
