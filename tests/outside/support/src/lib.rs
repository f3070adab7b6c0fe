//! Re-exports ktstr, as a crate with helpers for tests does.

pub use ktstr;
