//! What one side of the wire makes of the other's bytes.
//!
//! The first byte selects the reading side, the second the size of the pieces of the stream,
//! and whether the frames are to be made up around their payloads: a checksum is not guessed.

#![no_main]

use std::fmt::Debug;

use ktstr_core::wire::{Decoder, Encoder, Request, GuestMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [side, pieces, stream @ ..] = data else { return };
    let stream = if pieces & 1 == 0 { framed(stream) } else { stream.to_vec() };
    let piece = usize::from(pieces >> 1) + 1;
    match side & 1 {
        0 => read(&stream, piece, |decoder| decoder.next::<GuestMessage>()),
        _ => read(&stream, piece, |decoder| decoder.next::<Request>()),
    }
});

/// Frames payloads; the first byte of each is its length.
fn framed(mut payloads: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut number = 0_u32;
    while let [len, rest @ ..] = payloads {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        let mut header = (payload.len() as u32).to_le_bytes().to_vec();
        header.extend(number.to_le_bytes());
        header.extend(checksum(payload).to_le_bytes());
        header.extend(checksum(&header).to_le_bytes());
        frames.extend([&header, payload].concat());
        (payloads, number) = (rest, number + 1);
    }
    frames
}

/// Returns the checksum of the wire, as `frame.rs` describes it.
fn checksum(bytes: &[u8]) -> u32 {
    let mut padded = bytes.to_vec();
    padded.resize((bytes.len() / 8 + 1) * 8, 0);
    padded.extend([0; 8]);
    let words = padded.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let sum = words.fold(bytes.len() as u64, |sum, word| {
        let product = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    });
    sum as u32
}

/// Reads all messages: each has to survive being sent again, and the pieces must not matter.
fn read<T, E>(stream: &[u8], piece: usize, next: impl Fn(&mut Decoder) -> Result<Option<T>, E>)
where
    T: Debug + Sendable,
    E: Debug,
{
    let collect = |size: usize| {
        let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
        for bytes in stream.chunks(size) {
            decoder.push(bytes);
            loop {
                match next(&mut decoder) {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(error) => return (messages, Some(error)),
                }
            }
        }
        assert!(decoder.unread() <= stream.len());
        (messages, None)
    };
    let whole = collect(stream.len().max(1));
    assert_same(&whole, &collect(piece));
    let mut encoder = Encoder::default();
    let again: Vec<u8> = whole.0.iter().flat_map(|message| message.send(&mut encoder)).collect();
    let mut decoder = Decoder::default();
    decoder.push(&again);
    for message in &whole.0 {
        let read = next(&mut decoder).expect("what was encoded is sound");
        assert_same(&read.as_ref(), &Some(message));
    }
    assert_eq!(decoder.unread(), 0);
    if whole.1.is_none() {
        assert!(again.len() <= stream.len(), "the encoder takes more than there was");
    }
}

/// Compares the texts of two values, because a measurement may be NaN, which does not equal itself.
fn assert_same(one: &impl Debug, other: &impl Debug) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

trait Sendable {
    fn send(&self, encoder: &mut Encoder) -> Vec<u8>;
}

impl Sendable for GuestMessage {
    fn send(&self, encoder: &mut Encoder) -> Vec<u8> {
        encoder.encode(self).expect("it fitted into a frame")
    }
}

impl Sendable for Request {
    fn send(&self, encoder: &mut Encoder) -> Vec<u8> {
        encoder.encode(self).expect("it fitted into a frame")
    }
}
