//! The encoding of saved state: fields in a fixed order, integers in little endian, sequences with
//! their length in front.
//!
//! A decoder gets bytes that may be damaged. It does not panic, and what it allocates is bounded by
//! the length of its input: each element of a sequence has at least one byte.

/// The reason that saved state is not usable. The text continues a sentence that begins with the name
/// of its file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It does not begin like a saved state.
    #[error("is not a saved state of this engine")]
    NoState,
    /// It has another format.
    #[error("has version {found} of the format (supported: {supported})")]
    Version {
        /// Its version.
        found: u32,
        /// The version of this crate.
        supported: u32,
    },
    /// It is truncated, or has more bytes than it should.
    #[error("has {found} bytes (expected: {expected})")]
    Length {
        /// The number of bytes.
        found: u64,
        /// The number that was saved.
        expected: u64,
    },
    /// The checksum does not match.
    #[error("is damaged: its checksum is {computed:#018x}, expected {stated:#018x}")]
    Damaged {
        /// The checksum of the content.
        computed: u64,
        /// The checksum that was saved.
        stated: u64,
    },
    /// A value has no such encoding.
    #[error("is malformed: invalid {what} before byte {offset}")]
    Invalid {
        /// The kind of the value.
        what: &'static str,
        /// The offset of the end of the value.
        offset: usize,
    },
    /// It is the state of other devices.
    #[error("does not match the devices of this machine: {what}")]
    Device {
        /// The first difference.
        what: &'static str,
    },
}

/// A value with an encoding.
pub(super) trait Encode: Sized {
    /// Appends the encoding to `out`.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes a value from the beginning of `input`.
    fn take(input: &mut Input<'_>) -> Result<Self, StateError>;
}

/// The bytes that are left to decode.
#[derive(Debug)]
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> Input<'a> {
    /// Starts to decode `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, len: bytes.len() }
    }

    /// Returns the error of a value that has no such encoding, ending before the bytes that are left.
    pub(super) fn invalid(&self, what: &'static str) -> StateError {
        StateError::Invalid { what, offset: self.len - self.bytes.len() }
    }

    /// Fails if bytes are left.
    pub(super) fn finish(self) -> Result<(), StateError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.invalid("end")) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (first, rest) = self.bytes.split_first_chunk().ok_or_else(|| self.invalid("length"))?;
        self.bytes = rest;
        Ok(*first)
    }
}

/// Implements [`Encode`] for integers.
macro_rules! integers {
    ($($integer:ty)+) => {
        $(impl Encode for $integer {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
                Ok(Self::from_le_bytes(input.array()?))
            }
        })+
    };
}

integers!(u8 i8 u16 u32 u64 i64);

/// Implements [`Encode`] for a struct by these of its fields. The others, if there are any, are
/// padding and get the values of the expression after `..`.
macro_rules! fields {
    ($type:ty { $($field:ident),+ $(,)? } $(.. $padding:expr)?) => {
        impl $crate::kvm::codec::Encode for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::kvm::codec::Encode::put(&self.$field, out);)+
            }

            fn take(
                input: &mut $crate::kvm::codec::Input<'_>,
            ) -> Result<Self, $crate::kvm::codec::StateError> {
                Ok(Self {
                    $($field: $crate::kvm::codec::Encode::take(input)?,)+
                    $(..$padding)?
                })
            }
        }
    };
}

pub(super) use fields;

impl Encode for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(input.invalid("flag")),
        }
    }
}

impl<T: Encode> Encode for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
        bool::take(input)?.then(|| T::take(input)).transpose()
    }
}

impl<T: Encode + Copy + Default, const N: usize> Encode for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|element| element.put(out));
    }

    fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
        let mut elements = [T::default(); N];
        for element in &mut elements {
            *element = T::take(input)?;
        }
        Ok(elements)
    }
}

impl<T: Encode> Encode for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put(self, out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
        T::take(input).map(Self::new)
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("a state has less than 4 GiB").put(out);
        self.iter().for_each(|element| element.put(out));
    }

    fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
        let len = u32::take(input)? as usize;
        if len > input.bytes.len() {
            return Err(input.invalid("length"));
        }
        // Not allocated in advance: an element can have many more bytes than its encoding.
        let mut elements = Self::new();
        for _ in 0..len {
            elements.push(T::take(input)?);
        }
        Ok(elements)
    }
}

impl Encode for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_bytes().to_vec().put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, StateError> {
        Self::from_utf8(Vec::take(input)?).map_err(|_| input.invalid("text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct All {
        numbers: (),
        byte: u8,
        signed: i64,
        flag: bool,
        none: Option<u16>,
        some: Option<Box<u32>>,
        array: [i8; 3],
        list: Vec<u64>,
        text: String,
    }

    fields!(All { byte, signed, flag, none, some, array, list, text }..Self::sample());

    impl All {
        fn sample() -> Self {
            Self {
                numbers: (),
                byte: 0xa5,
                signed: -2,
                flag: true,
                none: None,
                some: Some(Box::new(0x0102_0304)),
                array: [1, -1, 0],
                list: vec![1, u64::MAX],
                text: "ktstr.wire".to_owned(),
            }
        }
    }

    fn encode<T: Encode>(value: &T) -> Vec<u8> {
        let mut out = Vec::new();
        value.put(&mut out);
        out
    }

    fn decode<T: Encode>(bytes: &[u8]) -> Result<T, StateError> {
        let mut input = Input::new(bytes);
        let value = T::take(&mut input)?;
        input.finish()?;
        Ok(value)
    }

    #[test]
    fn take_returns_what_was_put() {
        let bytes = encode(&All::sample());
        let want = [0xa5, 0xfe, 255, 255, 255, 255, 255, 255, 255, 1, 0, 1, 4, 3, 2, 1, 1, 255, 0];
        assert_eq!(bytes[..want.len()], want);
        assert_eq!(decode::<All>(&bytes), Ok(All::sample()));
    }

    #[test]
    fn take_rejects_truncated_and_longer_input() {
        let mut bytes = encode(&All::sample());
        for len in 0..bytes.len() {
            decode::<All>(&bytes[..len]).unwrap_err();
        }
        let len = bytes.len();
        bytes.push(0);
        assert_eq!(decode::<All>(&bytes), Err(StateError::Invalid { what: "end", offset: len }));
    }

    #[test]
    fn take_rejects_values_without_meaning() {
        for (result, what, offset) in [
            (decode::<bool>(&[2]).map(drop), "flag", 1),
            (decode::<Option<u8>>(&[7, 1]).map(drop), "flag", 1),
            (decode::<String>(&[1, 0, 0, 0, 0xff]).map(drop), "text", 5),
            // More elements than bytes: refused before anything is allocated.
            (decode::<Vec<u64>>(&[255; 12]).map(drop), "length", 4),
            (decode::<Vec<Vec<u8>>>(&[2, 0, 0, 0, 255, 255, 255, 127]).map(drop), "length", 8),
        ] {
            assert_eq!(result, Err(StateError::Invalid { what, offset }));
        }
    }
}
