//! The wire between guest and host: messages in checked frames over a byte stream.
//!
//! The stream is a virtio-console port. Only the order of its bytes is trusted: every frame carries
//! its length, its number and a checksum, and a stream without [`GuestMessage::End`] never reads as a
//! pass.

mod frame;
mod message;

pub use frame::{Decoder, Encoder, Error, MAX_PAYLOAD, Payload};
pub use message::{
    End, FileKind, GuestMessage, Hello, Request, Restored, RunRequest, ScenarioEvent, ShellRequest,
    Stream,
};

/// The name of the virtio-console port that carries the wire.
pub const PORT: &str = "ktstr.wire";
