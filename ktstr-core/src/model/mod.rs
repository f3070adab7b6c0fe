//! Plain data that host and guest share, with serde: the machine, the result, the wire.

pub mod detail;
pub mod exit;
pub mod histogram;
pub mod machine;
pub mod measurement;
pub mod pid1;
pub mod record;
pub mod result;
pub mod snapshot;
pub mod text;
pub mod verdict;
pub mod wire;
pub mod worker;
