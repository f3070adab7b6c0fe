//! Nothing: only the tests matter.
