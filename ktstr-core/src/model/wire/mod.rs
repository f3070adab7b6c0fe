//! The wire between guest and host: messages in checked frames over a byte stream.
//!
//! The stream is a virtio-console port. It is trusted to deliver bytes in order and for nothing
//! else: every frame carries its length, its number and a checksum, and a stream without
//! [`Report::End`] never reads as a pass.

mod frame;
mod message;

pub use frame::{Decoder, Encoder, Error, MAX_PAYLOAD, Payload};
pub use message::{
    End, FileKind, Hello, Order, Report, RunOrder, ScenarioEvent, ShellOrder, Stream,
};

/// The name of the virtio-console port that carries the wire.
pub const PORT: &str = "ktstr.wire";
