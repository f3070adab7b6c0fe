//! Offsets of the members of a kernel's structures, from its own type information (BTF).
//!
//! A kernel has its BTF in memory between `__start_BTF` and `__stop_BTF`, and exports it as
//! `/sys/kernel/btf/vmlinux`. The guest may have modified it, so it is not trusted.
//!
//! Source: Linux 6.12, Documentation/bpf/btf.rst, 2 ("BTF Type and String Encoding").

use std::collections::VecDeque;
use std::fmt;

const MAGIC: u16 = 0xeb9f;
/// Bytes of the first version of `struct btf_header`, and of `struct btf_type`.
const HEADER: usize = 24;
const TYPE: usize = 12;
/// Bytes of `struct btf_member`.
const MEMBER: usize = 12;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Why an offset is not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not BTF, or they are truncated or damaged.
    #[error("the BTF is damaged: {0}")]
    Damaged(String),
    /// No structure of this name has such a member.
    #[error("the BTF does not define `{0}`")]
    Unknown(String),
    /// The member is a bit-field, which does not have an address.
    #[error("`{0}` is a bit-field")]
    BitField(String),
}

/// The type information of a kernel.
#[derive(Clone)]
pub struct Btf<'a> {
    /// The record of each type, beginning with ID 1.
    types: Vec<&'a [u8]>,
    strings: &'a [u8],
}

impl fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("types", &self.types.len()).finish_non_exhaustive()
    }
}

impl<'a> Btf<'a> {
    /// Reads the types in `bytes`, which may be longer than the BTF.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if it is not BTF, or has a kind of type that is newer than Linux 6.12.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let truncated = |what: &str| Error::Damaged(format!("its {what} is truncated"));
        if bytes.len() < HEADER {
            return Err(truncated("header"));
        }
        if u16::from_le_bytes([bytes[0], bytes[1]]) != MAGIC || bytes[2] != 1 {
            let reason =
                format!("it begins with {:02x?}, not with a header of version 1", &bytes[..3]);
            return Err(Error::Damaged(reason));
        }
        let section = |at: usize| {
            let [start, len] = [at, at + 4].map(|at| dword(bytes, at) as usize);
            let start = start.checked_add(dword(bytes, 4) as usize)?;
            bytes.get(start..start.checked_add(len)?)
        };
        let strings = section(16).ok_or_else(|| truncated("string section"))?;
        let mut rest = section(8).ok_or_else(|| truncated("type section"))?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let id = types.len() + 1;
            if rest.len() < TYPE {
                return Err(truncated("last type"));
            }
            let len = record_len(rest)
                .ok_or_else(|| Error::Damaged(format!("type {id} is of kind {}", kind(rest))))?;
            let (record, others) =
                rest.split_at_checked(len).ok_or_else(|| truncated("last type"))?;
            types.push(record);
            rest = others;
        }
        Ok(Self { types, strings })
    }

    /// Returns the offset in bytes of `member` in `struct name` or `union name`. Members of
    /// anonymous structures and unions belong to the enclosing one, as in C.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if it does not exist, [`Error::BitField`] if it does not have an address.
    pub fn member_offset(&self, name: &str, member: &str) -> Result<u64, Error> {
        let path = || format!("{name}.{member}");
        let mut members = self.members(name);
        let found = members.find_map(|(id, place)| self.is_named(id, member).then_some(place));
        match found.ok_or_else(|| Error::Unknown(path()))? {
            MemberPlace { bits, is_bit_field: false } if bits % 8 == 0 => Ok(bits / 8),
            _ => Err(Error::BitField(path())),
        }
    }

    /// Returns the length in bytes of `struct name` or `union name`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if it does not exist.
    pub fn structure_len(&self, name: &str) -> Result<u64, Error> {
        let mut types = self.types.iter();
        let found = types
            .find(|record| is_structure(record) && self.is_named(dword(record, 0), name))
            .ok_or_else(|| Error::Unknown(name.to_owned()))?;
        Ok(dword(found, 8).into())
    }

    /// Returns the members of all structures of this name, and of the anonymous ones inside them:
    /// the offset of the member's name, and its place.
    ///
    /// Each structure of the BTF is visited at most once, however often it is nested in others or
    /// in itself: a member that an earlier visit did not find is not in a later one.
    fn members(&self, name: &str) -> impl Iterator<Item = (u32, MemberPlace)> {
        let mut is_queued = vec![false; self.types.len()];
        // Structures to visit, with their offset in bits.
        let mut queue = VecDeque::new();
        for (index, record) in self.types.iter().enumerate() {
            if is_structure(record) && self.is_named(dword(record, 0), name) {
                is_queued[index] = true;
                queue.push_back((index, 0_u64));
            }
        }
        let mut rest = [].chunks_exact(MEMBER);
        let (mut start, mut has_bit_fields) = (0, false);
        std::iter::from_fn(move || {
            let member = loop {
                if let Some(member) = rest.next() {
                    break member;
                }
                let (index, bits) = queue.pop_front()?;
                let structure = self.types[index];
                has_bit_fields = dword(structure, 4) >> 31 == 1;
                start = bits;
                rest = structure[TYPE..].chunks_exact(MEMBER);
            };
            let [name, id, offset] = [0, 4, 8].map(|at| dword(member, at));
            // With the flag set, the highest byte is the size of the bit-field, or 0 for another
            // member.
            let (bits, size) =
                if has_bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            // No overflow: at most 2^32 structures add less than 2^32 bits each.
            let place = MemberPlace { bits: start + u64::from(bits), is_bit_field: size != 0 };
            if self.is_named(name, "")
                && let Some(inner) = (id as usize).checked_sub(1)
                && self.types.get(inner).is_some_and(|record| is_structure(record))
                && !std::mem::replace(&mut is_queued[inner], true)
            {
                queue.push_back((inner, place.bits));
            }
            Some((name, place))
        })
    }

    /// Returns whether the string at this offset is `name`.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        let text = self.strings.get(offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes()).is_some_and(|end| end.first() == Some(&0))
    }
}

/// The position of a member.
#[derive(Debug)]
struct MemberPlace {
    bits: u64,
    is_bit_field: bool,
}

fn is_structure(record: &[u8]) -> bool {
    [KIND_STRUCT, KIND_UNION].contains(&kind(record))
}

fn kind(record: &[u8]) -> u32 {
    dword(record, 4) >> 24 & 0x1f
}

/// Returns the bytes of a type record by its kind, or `None` for an unknown kind.
fn record_len(record: &[u8]) -> Option<usize> {
    let vlen = (dword(record, 4) & 0xffff) as usize;
    let more = match kind(record) {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        KIND_STRUCT | KIND_UNION => MEMBER * vlen,
        // Enumerations, prototypes.
        6 | 13 => 8 * vlen,
        // Sections, enumerations of 64 bits.
        15 | 19 => 12 * vlen,
        _ => return None,
    };
    Some(TYPE + more)
}

/// Reads a field of 32 bits, which the caller has checked to be in bounds.
fn dword(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0task\0comm\0pid\0flags\0u\0";
    const TASK: u32 = 1;
    const COMM: u32 = 6;
    const PID: u32 = 11;
    const FLAGS: u32 = 15;
    const U: u32 = 21;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn blob(types: &[u8]) -> Vec<u8> {
        let (types_len, strings_len) = (types.len() as u32, STRINGS.len() as u32);
        // The magic, version 1, no flags; the strings precede the types.
        let header = words(&[0x0001_eb9f, 24, strings_len, types_len, 0, strings_len]);
        [&header, STRINGS, types].concat()
    }

    fn info(kind: u32, vlen: u32) -> u32 {
        kind << 24 | vlen
    }

    /// An int, a pointer, an enumeration, a structure with bit-fields, and one that contains it.
    fn kernel() -> Vec<u8> {
        blob(&words(
            &[
                // 1 and 2.
                &[PID, info(1, 0), 4, 0x0100_0020][..],
                &[0, info(2, 0), 1],
                // 3: enum { 2 of them }
                &[0, info(6, 2), 4, PID, 0, COMM, 1],
                // 4: union { int pid; struct task *comm; }
                &[0, info(5, 2), 8, PID, 1, 0, COMM, 2, 0],
                // 5: struct u { int flags : 3; int pid; }
                &[U, info(4, 2) | 1 << 31, 8, FLAGS, 1, 3 << 24, PID, 1, 32],
                // 6: a forward declaration of struct task
                &[TASK, info(7, 0), 0],
                // 7: struct task { struct u flags; union { .. }; }
                &[TASK, info(4, 2), 16, FLAGS, 5, 0, 0, 4, 64],
            ]
            .concat(),
        ))
    }

    #[test]
    fn member_offset_finds_members_of_anonymous_structures() {
        let bytes = kernel();
        let btf = Btf::parse(&bytes).unwrap();
        for (name, member, want) in
            [("task", "flags", 0), ("task", "pid", 8), ("task", "comm", 8), ("u", "pid", 4)]
        {
            assert_eq!(btf.member_offset(name, member), Ok(want), "{name}.{member}");
        }
        assert_eq!(btf.member_offset("u", "flags"), Err(Error::BitField("u.flags".into())));
        assert_eq!((btf.structure_len("u"), btf.structure_len("task")), (Ok(8), Ok(16)));
        assert_eq!(btf.structure_len("pid"), Err(Error::Unknown("pid".into())));
        for (name, member) in [("task", "u"), ("tas", "pid"), ("task", "pi"), ("pid", "pid")] {
            assert!(matches!(btf.member_offset(name, member), Err(Error::Unknown(_))));
        }
    }

    #[test]
    fn parse_rejects_truncated_and_unknown_types() {
        let bytes = kernel();
        for len in 0..bytes.len() {
            assert!(matches!(Btf::parse(&bytes[..len]), Err(Error::Damaged(_))), "{len} bytes");
        }
        assert!(Btf::parse(&[&bytes[..], &[0; 7]].concat()).is_ok());
        let stranger = blob(&words(&[0, info(31, 0), 0]));
        assert!(Btf::parse(&stranger).unwrap_err().to_string().ends_with("of kind 31"));
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                if let Ok(btf) = Btf::parse(&damaged) {
                    let _ = btf.member_offset("task", "comm");
                }
            }
        }
    }

    #[test]
    fn members_visits_each_structure_once() {
        // Anonymous members that lead back to the structure, or twice to the next one: the paths
        // through them are without end, or 2^40.
        let itself = [TASK, info(4, 3), 0, 0, 1, 0, 0, 1, 0, 0, 1, 0].to_vec();
        let name = |id| if id == 1 { TASK } else { 0 };
        let nested = (1..=40).flat_map(|id| [name(id), info(4, 2), 0, 0, id + 1, 0, 0, id + 1, 8]);
        let nested = nested.chain([0, info(4, 0), 0]).collect();
        for (types, members) in [(itself, 3), (nested, 80)] {
            let bytes = blob(&words(&types));
            let btf = Btf::parse(&bytes).unwrap();
            // `take` ends the test if the visits do not end.
            assert_eq!(btf.members("task").take(1000).count(), members);
            assert!(matches!(btf.member_offset("task", "pid"), Err(Error::Unknown(_))));
        }
    }
}
