//! The program that becomes PID 1.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use ktstr_core::model::pid1;
use ktstr_core::registry;

use crate::this_program::THIS_PROGRAM;

/// The program that becomes PID 1, and its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its file on the host.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Program {
    /// Returns this libtest binary, with every test of its registry as a filter.
    ///
    /// In the guest, the first test that libtest runs calls [`run`](super::run), which never returns in PID 1.
    /// The arguments are the same for every test of the binary, so that all of them boot the same initramfs.
    /// A body has the name of its own test instead.
    pub(crate) fn this_test_binary() -> Result<Self> {
        let names = registry::names();
        ensure!(!names.is_empty(), "this binary has no #[ktstr_test]");
        let options = pid1::LIBTEST_OPTIONS.map(str::to_owned);
        let arguments = options.into_iter().chain(names).collect();
        Ok(Self { arguments, ..Self::this_program() })
    }

    /// Returns this program without arguments. Its `main` must call [`init_if_guest`](super::init_if_guest).
    pub fn this_program() -> Self {
        Self { path: THIS_PROGRAM.into(), arguments: Vec::new() }
    }
}
