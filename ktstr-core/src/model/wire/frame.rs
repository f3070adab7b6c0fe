//! Frames: a 16-byte header (payload length, frame number, checksum of the payload, checksum of the
//! header's first 12 bytes; little endian), then the payload, a message in postcard encoding. The
//! first byte of the payload is the variant of the message.
//!
//! Numbers start at 0 and count up, so that lost and duplicated frames are detected. The payload has a
//! checksum of its own: a thread can encode a message before its number is known.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest payload of a frame in bytes; both sides refuse a longer one.
pub const MAX_PAYLOAD: usize = 1 << 20;

const HEADER: usize = 16;

/// An error of a stream, which cannot be read further, or of a message, which cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length field is beyond [`MAX_PAYLOAD`].
    #[error("frame {number} has {length} bytes (limit {MAX_PAYLOAD})")]
    TooLong {
        /// The number of the frame, as counted by the reader.
        number: u32,
        /// The length in its header.
        length: usize,
    },
    /// A frame was lost, duplicated or forged.
    #[error("received frame {found}, expected frame {expected}")]
    OutOfOrder {
        /// The expected number.
        expected: u32,
        /// The number in the frame.
        found: u32,
    },
    /// A checksum does not match.
    #[error("frame {number} is damaged: its checksum is {computed:#010x}, expected {stated:#010x}")]
    Damaged {
        /// The number of the frame.
        number: u32,
        /// The checksum of the received bytes.
        computed: u32,
        /// The checksum in the header.
        stated: u32,
    },
    /// The checksums match, but the payload is not a message of this build.
    #[error("frame {number} does not contain a message of this build: {cause}")]
    NoMessage {
        /// The number of the frame.
        number: u32,
        /// The decoder's error.
        cause: String,
    },
    /// A message to send is too long, or cannot be encoded.
    #[error("cannot send message: {cause}")]
    Unsendable {
        /// The reason.
        cause: Cow<'static, str>,
    },
}

/// An encoded message: a frame without its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The frame. Its number and the header's checksum are not set.
    frame: Vec<u8>,
}

impl Payload {
    /// Encodes `message`.
    ///
    /// # Errors
    ///
    /// If the message is longer than [`MAX_PAYLOAD`].
    pub fn encode(message: &impl Serialize) -> Result<Self, Error> {
        let output = Frame(vec![0; HEADER]);
        let frame = postcard::serialize_with_flavor(message, output)
            .map_err(|error| Error::Unsendable { cause: error.to_string().into() })?;
        let length = frame.len() - HEADER;
        if length > MAX_PAYLOAD {
            let cause = format!("it has {length} bytes (limit {MAX_PAYLOAD})").into();
            return Err(Error::Unsendable { cause });
        }
        Ok(Self::of(frame))
    }

    /// Completes a buffer that has space for the header and then a message.
    fn of(mut frame: Vec<u8>) -> Self {
        let length = frame.len() - HEADER;
        let checksum = checksum(&frame[HEADER..]);
        frame[0..4].copy_from_slice(&(length as u32).to_le_bytes());
        frame[8..12].copy_from_slice(&checksum.to_le_bytes());
        Self { frame }
    }
}

/// The output of postcard. It copies slices as a whole; postcard's own flavor for `Extend` copies byte
/// by byte, which is slow in an unoptimized build.
struct Frame(Vec<u8>);

impl postcard::ser_flavors::Flavor for Frame {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Writes messages as frames.
#[derive(Debug, Default)]
pub struct Encoder {
    number: u32,
}

impl Encoder {
    /// Returns the frame of `message`.
    ///
    /// # Errors
    ///
    /// If the message is larger than [`MAX_PAYLOAD`]. Its number is used by the next message then.
    pub fn encode(&mut self, message: &impl Serialize) -> Result<Vec<u8>, Error> {
        Ok(self.seal(Payload::encode(message)?))
    }

    /// Returns the frame of an encoded message.
    pub fn seal(&mut self, payload: Payload) -> Vec<u8> {
        let mut frame = payload.frame;
        frame[4..8].copy_from_slice(&self.number.to_le_bytes());
        let checksum = checksum(&frame[..12]);
        frame[12..HEADER].copy_from_slice(&checksum.to_le_bytes());
        self.number = self.number.wrapping_add(1);
        frame
    }
}

/// Decodes messages from a stream that arrives in pieces of any size.
///
/// A clone decodes the stream of a guest that was copied at this point.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    number: u32,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Returns a decoder of a stream that continues with frame `number`.
    pub fn starting_at(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// Returns the number of the next frame.
    pub fn next_number(&self) -> u32 {
        self.number
    }

    /// Appends the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.consumed));
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete message, or `None` if more bytes are needed.
    ///
    /// # Errors
    ///
    /// If the stream is damaged. It cannot be decoded further.
    #[allow(clippy::should_implement_trait)] // an iterator would hide that `None` is not the end
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        Ok(self.next_with_length()?.map(|(message, _)| message))
    }

    /// Returns the next complete message and the length of its frame, in bytes of the stream.
    ///
    /// # Errors
    ///
    /// As [`Decoder::next`].
    pub fn next_with_length<T: DeserializeOwned>(&mut self) -> Result<Option<(T, usize)>, Error> {
        let Some(length) = self.complete_frame()? else { return Ok(None) };
        let message = self.message(length)?;
        self.consume(length);
        Ok(Some((message, HEADER + length)))
    }

    /// Returns the next complete message and its payload, which can be forwarded.
    ///
    /// # Errors
    ///
    /// As [`Decoder::next`].
    pub fn next_with_payload<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Payload)>, Error> {
        let Some(length) = self.complete_frame()? else { return Ok(None) };
        let message = self.message(length)?;
        let payload = Payload { frame: self.buffer[self.consumed..][..HEADER + length].to_vec() };
        self.consume(length);
        Ok(Some((message, payload)))
    }

    /// Checks the next frame; returns the length of its payload if the frame is complete.
    fn complete_frame(&self) -> Result<Option<usize>, Error> {
        let unread = &self.buffer[self.consumed..];
        let Some((header, rest)) = unread.split_at_checked(HEADER) else { return Ok(None) };
        let field = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, found) = (field(0) as usize, field(4));
        let number = self.number;
        if length > MAX_PAYLOAD {
            return Err(Error::TooLong { number, length });
        }
        let check = |bytes: &[u8], stated| match checksum(bytes) {
            computed if computed == stated => Ok(()),
            computed => Err(Error::Damaged { number, computed, stated }),
        };
        check(&header[..12], field(12))?;
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        check(payload, field(8))?;
        if found != number {
            return Err(Error::OutOfOrder { expected: number, found });
        }
        Ok(Some(length))
    }

    /// Decodes the message of the next frame, which is complete.
    fn message<T: DeserializeOwned>(&self, length: usize) -> Result<T, Error> {
        let number = self.number;
        let no_message = |cause| Error::NoMessage { number, cause };
        let payload = &self.buffer[self.consumed + HEADER..][..length];
        let (message, rest) =
            postcard::take_from_bytes(payload).map_err(|error| no_message(error.to_string()))?;
        if !rest.is_empty() {
            return Err(no_message(format!("{} bytes follow it", rest.len())));
        }
        Ok(message)
    }

    fn consume(&mut self, length: usize) {
        self.number = self.number.wrapping_add(1);
        self.consumed += HEADER + length;
    }

    /// Returns the number of bytes of an incomplete frame.
    pub fn unread(&self) -> usize {
        self.buffer.len() - self.consumed
    }
}

/// Computes the checksum of a header or a payload, eight bytes at a time.
///
/// Each step is a bijection of the state, so a change within one word always changes the result; the
/// product moves a changed bit upwards, and the shift moves the upper half down again. Not a CRC-32:
/// users run unoptimized builds, in which crc32fast reaches 12 MB/s in an emulated guest, and this
/// function 150 MB/s.
fn checksum(bytes: &[u8]) -> u32 {
    // An odd number without a pattern: the golden ratio in 64 bits.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, word: u64| {
        let product = (sum ^ word).wrapping_mul(FACTOR);
        product ^ product >> 32
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // An index, because an iterator costs an unoptimized build two calls per word.
    let (mut sum, mut index) = (bytes.len() as u64, 0);
    while index < words.len() {
        sum = mix(sum, u64::from_le_bytes(words[index]));
        index += 1;
    }
    sum = mix(mix(sum, u64::from_le_bytes(last)), 0);
    sum as u32
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
    fn encode_writes_the_documented_layout() {
        let frame = frames(&["hi"]).remove(0);
        assert_eq!(frame[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(frame[8..12], checksum(&[2, b'h', b'i']).to_le_bytes());
        assert_eq!(frame[12..16], checksum(&frame[..12]).to_le_bytes());
        assert_eq!(frame[16..], [2, b'h', b'i']);
    }

    #[test]
    fn checksum_differs_after_any_two_flipped_bits() {
        let bytes = *b"0123456789abcdefghijklmnopqrs";
        for first in 0..bytes.len() * 8 {
            for second in first..bytes.len() * 8 {
                let mut changed = bytes;
                changed[first / 8] ^= 1 << (first % 8);
                if second != first {
                    changed[second / 8] ^= 1 << (second % 8);
                }
                assert_ne!(checksum(&changed), checksum(&bytes), "bits {first} and {second}");
            }
        }
        // Zeros at the end change the result, although the last word is padded with them.
        assert_ne!(checksum(&[1]), checksum(&[1, 0]));
    }

    #[test]
    fn next_with_payload_returns_what_can_be_forwarded() {
        let mut decoder = Decoder::default();
        decoder.push(&frames(&["first", "second"]).concat());
        let mut encoder = Encoder::default();
        decoder.next::<String>().unwrap();
        let (message, payload) = decoder.next_with_payload::<String>().unwrap().unwrap();
        assert_eq!((message.as_str(), decoder.unread()), ("second", 0));
        assert_eq!(decode(&encoder.seal(payload)).unwrap(), ["second"]);
    }

    #[test]
    fn next_with_length_counts_the_bytes_of_the_stream() {
        let frames = frames(&["", "a", &"b".repeat(1000)]);
        let mut decoder = Decoder::default();
        decoder.push(&frames.concat());
        for frame in &frames {
            let (_, length) = decoder.next_with_length::<String>().unwrap().unwrap();
            assert_eq!(length, frame.len());
        }
    }

    #[test]
    fn decoder_accepts_any_split() {
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
    fn decoder_detects_every_flipped_bit() {
        let bytes = frames(&["verdict", "end"]).concat();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A length beyond the received bytes reads as an incomplete frame.
            let messages = decode(&damaged).unwrap_or_default();
            assert!(messages.len() < 2, "bit {bit} was not detected");
        }
    }

    #[test]
    fn decoder_detects_lost_and_duplicated_frames() {
        let f = frames(&["a", "b", "c"]);
        let lost = [&f[0][..], &f[2]].concat();
        let duplicated = [&f[0][..], &f[0]].concat();
        assert_eq!(decode(&lost), Err(Error::OutOfOrder { expected: 1, found: 2 }));
        assert_eq!(decode(&duplicated), Err(Error::OutOfOrder { expected: 1, found: 0 }));
    }

    #[test]
    fn decoder_rejects_bytes_after_the_message() {
        let two = Encoder::default().encode(&("hi", 1_u8)).unwrap();
        let cause = "1 bytes follow it".to_owned();
        assert_eq!(decode(&two), Err(Error::NoMessage { number: 0, cause }));
    }

    #[test]
    fn lengths_are_limited_on_both_sides() {
        let long = "x".repeat(MAX_PAYLOAD);
        let mut encoder = Encoder::default();
        assert!(matches!(encoder.encode(&long), Err(Error::Unsendable { .. })));
        assert_eq!(decode(&encoder.encode(&"short").unwrap()).unwrap(), ["short"]);
        let header = [0xff; HEADER];
        assert_eq!(decode(&header), Err(Error::TooLong { number: 0, length: u32::MAX as usize }));
    }
}
