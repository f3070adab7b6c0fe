//! Frames: a 12-byte header (payload length, frame number, CRC-32; little endian), then the
//! payload, a message in postcard encoding whose first byte tells its kind.
//!
//! The checksum covers length, number and payload. Numbers start at 0 and count up, so that a
//! frame lost or doubled on the way is noticed.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest payload of a frame in bytes; a longer one is refused by both sides.
pub const MAX_PAYLOAD: usize = 1 << 20;

const HEADER: usize = 12;

/// Why a stream cannot be read on. None of these can be recovered from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length field is beyond [`MAX_PAYLOAD`].
    #[error("frame {number} claims {length} bytes, the most is {MAX_PAYLOAD}")]
    TooLong {
        /// Number of the frame, as counted by the reader.
        number: u32,
        /// The length it claims.
        length: usize,
    },
    /// A frame was lost, doubled or made up.
    #[error("frame {found} arrived where frame {expected} was due")]
    OutOfOrder {
        /// The number that was due.
        expected: u32,
        /// The number it carries.
        found: u32,
    },
    /// The checksum does not match.
    #[error(
        "frame {number} is damaged: its CRC-32 is {computed:#010x}, the header says {stated:#010x}"
    )]
    Damaged {
        /// Number of the frame.
        number: u32,
        /// Of the bytes that arrived.
        computed: u32,
        /// In the header.
        stated: u32,
    },
    /// The bytes are whole, but no message of this build.
    #[error("frame {number} is no message of this build: {cause}")]
    NoMessage {
        /// Number of the frame.
        number: u32,
        /// What the decoder says.
        cause: String,
    },
}

/// Writes messages as frames.
#[derive(Debug, Default)]
pub struct Encoder {
    number: u32,
}

impl Encoder {
    /// The frame of `message`.
    ///
    /// # Errors
    ///
    /// If the message is larger than [`MAX_PAYLOAD`]; nothing was counted then, and a smaller one
    /// may follow.
    pub fn encode(&mut self, message: &impl Serialize) -> Result<Vec<u8>, Error> {
        let number = self.number;
        let mut frame = postcard::to_extend(message, vec![0; HEADER])
            .map_err(|error| Error::NoMessage { number, cause: error.to_string() })?;
        let length = frame.len() - HEADER;
        if length > MAX_PAYLOAD {
            return Err(Error::TooLong { number, length });
        }
        frame[0..4].copy_from_slice(&(length as u32).to_le_bytes());
        frame[4..8].copy_from_slice(&number.to_le_bytes());
        let crc = checksum(&frame[0..8], &frame[HEADER..]);
        frame[8..12].copy_from_slice(&crc.to_le_bytes());
        self.number = number.wrapping_add(1);
        Ok(frame)
    }
}

/// Reads messages from a stream that arrives in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    number: u32,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.consumed));
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive.
    ///
    /// # Errors
    ///
    /// Whatever breaks the stream; the reader gives up on it then.
    #[allow(clippy::should_implement_trait)] // an iterator would hide that `None` is not the end
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let unread = &self.buffer[self.consumed..];
        let Some((header, rest)) = unread.split_at_checked(HEADER) else { return Ok(None) };
        let field = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, found, stated) = (field(0) as usize, field(4), field(8));
        let number = self.number;
        if length > MAX_PAYLOAD {
            return Err(Error::TooLong { number, length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let computed = checksum(&header[0..8], payload);
        if computed != stated {
            return Err(Error::Damaged { number, computed, stated });
        }
        if found != number {
            return Err(Error::OutOfOrder { expected: number, found });
        }
        let no_message = |cause| Error::NoMessage { number, cause };
        let (message, rest) =
            postcard::take_from_bytes(payload).map_err(|error| no_message(error.to_string()))?;
        if !rest.is_empty() {
            return Err(no_message(format!("{} bytes follow it", rest.len())));
        }
        self.number = number.wrapping_add(1);
        self.consumed += HEADER + length;
        Ok(Some(message))
    }

    /// Bytes that belong to a frame which never became whole.
    pub fn unread(&self) -> usize {
        self.buffer.len() - self.consumed
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(messages: &[&str]) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::default();
        messages.iter().map(|message| encoder.encode(message).unwrap()).collect()
    }

    fn decode(bytes: &[u8]) -> Result<Vec<String>, Error> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        let mut messages = Vec::new();
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn a_frame_is_what_the_module_says() {
        // CRC-32 (IEEE) of 03 00 00 00 00 00 00 00 02 68 69.
        let frame = frames(&["hi"]).remove(0);
        assert_eq!(frame[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(frame[12..], [2, b'h', b'i']);
        assert_eq!(frame[8..12], 0x68ab3bd0_u32.to_le_bytes());
    }

    #[test]
    fn messages_survive_any_split() {
        let bytes = frames(&["one", "", "three"]).concat();
        for split in 0..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut messages = Vec::<String>::new();
            for piece in [&bytes[..split], &bytes[split..]] {
                decoder.push(piece);
                while let Some(message) = decoder.next().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, ["one", "", "three"]);
            assert_eq!(decoder.unread(), 0);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = frames(&["verdict", "end"]).concat();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A length that grew beyond what arrived reads as an unfinished frame, not as a message.
            let messages = decode(&damaged).unwrap_or_default();
            assert!(messages.len() < 2, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn lost_and_doubled_frames_are_noticed() {
        let f = frames(&["a", "b", "c"]);
        let lost = [&f[0][..], &f[2]].concat();
        let doubled = [&f[0][..], &f[0]].concat();
        assert_eq!(decode(&lost), Err(Error::OutOfOrder { expected: 1, found: 2 }));
        assert_eq!(decode(&doubled), Err(Error::OutOfOrder { expected: 1, found: 0 }));
    }

    #[test]
    fn a_payload_is_one_message_and_nothing_else() {
        let two = Encoder::default().encode(&("hi", 1_u8)).unwrap();
        let cause = "1 bytes follow it".to_owned();
        assert_eq!(decode(&two), Err(Error::NoMessage { number: 0, cause }));
    }

    #[test]
    fn lengths_are_bounded_on_both_sides() {
        let long = "x".repeat(MAX_PAYLOAD);
        let mut encoder = Encoder::default();
        assert!(matches!(encoder.encode(&long), Err(Error::TooLong { number: 0, .. })));
        assert_eq!(decode(&encoder.encode(&"short").unwrap()).unwrap(), ["short"]);
        let header = [0xff; HEADER];
        assert_eq!(decode(&header), Err(Error::TooLong { number: 0, length: u32::MAX as usize }));
    }
}
