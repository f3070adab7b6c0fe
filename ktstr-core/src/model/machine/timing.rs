//! How the durations of a machine are to be read.

use serde::{Deserialize, Serialize};

/// What executes the instructions of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// CPUs of the host: durations in the guest are those of hardware.
    Native,
    /// Software: code runs many times slower, and unevenly so.
    Emulated,
}
