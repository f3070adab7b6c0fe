//! Reads rings as a kernel writes them, and damaged ones.

use super::*;
use crate::error::Error;

const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
const SLIDE: u64 = 34 << 20;
const ID: u64 = u64::MAX >> 2;

/// Guest-physical addresses: of the first ring, of the pointer, and of each ring's arrays.
const RING: u64 = 0x1000;
const POINTER: u64 = 0x1100;
const OTHER_RING: u64 = 0x1200;
const DESCS: u64 = 0x2000;
const INFOS: u64 = 0x4000;
const DATA: u64 = 0x8000;
const MEMORY: usize = 0x1_0000;

/// The layout of Linux 6.12.
const OFFSETS: PrintkOffsets = PrintkOffsets {
    ring_len: 88,
    count_bits: 0,
    descs: 8,
    infos: 16,
    head_id: 24,
    tail_id: 32,
    size_bits: 48,
    data: 56,
    head_lpos: 64,
    tail_lpos: 72,
    desc_len: 24,
    state_var: 0,
    begin: 8,
    next: 16,
    info_len: 88,
    ts_nsec: 8,
    text_len: 16,
};

fn layout() -> PrintkLayout {
    PrintkLayout {
        ring: IMAGE_BASE + RING,
        descs: IMAGE_BASE + DESCS,
        initial_id: 0u32.wrapping_sub(9).into(),
        pointer: IMAGE_BASE + POINTER,
        image_base: IMAGE_BASE,
        offsets: OFFSETS,
    }
}

/// A guest's memory with a ring of 8 descriptors and 256 bytes of text, which it writes as the kernel does.
#[derive(Clone)]
struct Guest {
    memory: Vec<u8>,
    /// The guest-physical address of the ring, and the virtual address of the memory that it is in.
    ring: u64,
    base: u64,
    count_bits: u64,
    size_bits: u64,
    tail: u64,
    head: u64,
    /// The oldest and the next position of text.
    tail_lpos: u64,
    head_lpos: u64,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self {
            memory: vec![0; MEMORY],
            ring: RING,
            base: IMAGE_BASE + SLIDE,
            count_bits: 3,
            size_bits: 8,
            tail: 0,
            head: 0,
            tail_lpos: 0,
            head_lpos: 0,
        };
        guest.clear();
        guest.set(POINTER, IMAGE_BASE + SLIDE + RING);
        guest
    }

    /// Returns a guest that uses a ring in the map of all memory, at this multiple of 1 GiB.
    fn with_many_cpus(direct_map: u64) -> Self {
        let mut guest = Self::new();
        (guest.ring, guest.base) = (OTHER_RING, direct_map);
        guest.clear();
        guest.set(POINTER, IMAGE_BASE + SLIDE + OTHER_RING);
        guest
    }

    /// Writes the initial state of a ring.
    fn clear(&mut self) {
        self.head = u64::from(0u32.wrapping_sub((1 << self.count_bits) + 1));
        self.tail = self.head;
        self.head_lpos = 0u64.wrapping_sub(1 << self.size_bits);
        self.tail_lpos = self.head_lpos;
        self.set(self.desc(self.head), 3 << 62 | self.head);
        let [descs, infos, data] = [DESCS, INFOS, DATA].map(|at| self.base + at);
        self.set(self.ring + OFFSETS.count_bits, self.count_bits);
        self.set(self.ring + OFFSETS.descs, descs);
        self.set(self.ring + OFFSETS.infos, infos);
        self.set(self.ring + OFFSETS.size_bits, self.size_bits);
        self.set(self.ring + OFFSETS.data, data);
        self.publish();
    }

    fn publish(&mut self) {
        self.set(self.ring + OFFSETS.head_id, self.head);
        self.set(self.ring + OFFSETS.tail_id, self.tail);
        self.set(self.ring + OFFSETS.head_lpos, self.head_lpos);
        self.set(self.ring + OFFSETS.tail_lpos, self.tail_lpos);
    }

    fn set(&mut self, at: u64, value: u64) {
        self.memory[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
    }

    fn desc(&self, id: u64) -> u64 {
        DESCS + id % (1 << self.count_bits) * OFFSETS.desc_len
    }

    fn info(&self, id: u64) -> u64 {
        INFOS + id % (1 << self.count_bits) * OFFSETS.info_len
    }

    /// Writes a message, and returns its ID. Overwrites the oldest ones.
    fn print(&mut self, time: u64, text: &str) -> u64 {
        let size = 1 << self.size_bits;
        let id = self.head.wrapping_add(1) & ID;
        let (mut begin, mut next) = (3, 3);
        let mut at = 0;
        if !text.is_empty() {
            let len = (8 + text.len() as u64).next_multiple_of(8);
            begin = self.head_lpos;
            next = begin.wrapping_add(len);
            at = begin % size;
            if begin / size != next.wrapping_sub(1) / size {
                next = (next / size * size).wrapping_add(len);
                at = 0;
            }
        }
        // As in the kernel, a descriptor is freed before its text is overwritten.
        while (id.wrapping_sub(self.tail) & ID) >= 1 << self.count_bits
            || next.wrapping_sub(self.tail_lpos) > size && begin != 3
        {
            let tail = self.desc(self.tail) as usize;
            let word = |at: usize| u64::from_le_bytes(self.memory[at..][..8].try_into().unwrap());
            if word(tail) >> 62 == 2 && word(tail + 8) & 1 == 0 {
                self.tail_lpos = word(tail + 16);
            }
            self.set(tail as u64, 3 << 62 | self.tail);
            self.tail = self.tail.wrapping_add(1) & ID;
        }
        self.head = id;
        if begin != 3 {
            self.head_lpos = next;
            self.set(DATA + at, id);
            let text_at = (DATA + at + 8) as usize;
            self.memory[text_at..][..text.len()].copy_from_slice(text.as_bytes());
        }
        let (desc, info) = (self.desc(id), self.info(id));
        self.set(desc, 2 << 62 | id);
        self.set(desc + 8, begin);
        self.set(desc + 16, next);
        self.set(info + OFFSETS.ts_nsec, time);
        self.set(info + OFFSETS.text_len, text.len() as u64);
        self.publish();
        id
    }

    /// Reads as an engine does.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        let outside = Error::OutsideMemory { gpa, len: buf.len() };
        let start = usize::try_from(gpa).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(buf.len());
        buf.copy_from_slice(self.memory.get(range).ok_or(outside)?);
        Ok(())
    }

    fn messages(&self) -> Result<Vec<Message>, ReadError> {
        layout().read_messages(&mut |gpa, buf| self.read(gpa, buf))
    }

    fn texts(&self) -> Vec<String> {
        self.messages().unwrap().into_iter().map(|message| message.text).collect()
    }
}

#[test]
fn read_messages_returns_times_and_texts_in_order() {
    let mut guest = Guest::new();
    assert_eq!(guest.messages().unwrap(), []);
    guest.print(0, "Linux version 6.12");
    guest.print(1_234_567_000, "");
    guest.print(2_000_000_000, "two\nlines");
    let messages = guest.messages().unwrap();
    let [(0, "Linux version 6.12"), (1_234_567_000, ""), (2_000_000_000, "two\nlines")] =
        messages.iter().map(|m| (m.time.as_nanos(), &*m.text)).collect::<Vec<_>>()[..]
    else {
        panic!("{messages:?}");
    };
}

#[test]
fn read_messages_returns_the_newest_after_a_wrap() {
    let mut guest = Guest::new();
    let texts: Vec<_> = (0..100_usize).map(|n| format!("{n} {}", "x".repeat(n % 50))).collect();
    for (number, text) in texts.iter().enumerate() {
        guest.print(number as u64, text);
        let read = guest.texts();
        let first = number + 1 - read.len();
        // Four of the longest texts fit, but not if the fourth crosses the end.
        assert!(read.len() >= 3.min(number + 1), "{number}: {read:?}");
        assert_eq!(read, texts[first..=number], "after {number}");
    }
}

#[test]
fn read_messages_finds_a_ring_in_the_map_of_all_memory() {
    for direct_map in [0xffff_8880_0000_0000, 0xffff_9a7a_c000_0000] {
        let mut guest = Guest::with_many_cpus(direct_map);
        guest.print(1, "many CPUs");
        assert_eq!(guest.texts(), ["many CPUs"]);
        // In the second gigabyte; the first has zeros there.
        let read = |gpa: u64, buf: &mut [u8]| match gpa.checked_sub(1 << 30) {
            Some(gpa) => guest.read(gpa, buf),
            None if gpa >= DESCS => {
                buf.fill(0);
                Ok(())
            }
            None => guest.read(gpa, buf),
        };
        assert_eq!(layout().read_messages(&mut { read }).unwrap().len(), 1);
    }
}

#[test]
fn position_changes_with_each_message() {
    let mut guest = Guest::new();
    let position = |guest: &Guest| layout().position(&mut |gpa, buf| guest.read(gpa, buf)).unwrap();
    assert_eq!(position(&guest), layout().initial_position());
    guest.print(1, "one");
    let after_one = position(&guest);
    assert_ne!(after_one, layout().initial_position());
    guest.print(1, "one");
    assert_ne!(position(&guest), after_one);
    assert_ne!(position(&Guest::with_many_cpus(0)), layout().initial_position());
}

/// A CPU may stop between any two steps of writing a message, and other CPUs continue.
#[test]
fn read_messages_leaves_incomplete_records_out() {
    let mut guest = Guest::new();
    let ids = ["one", "two", "three"].map(|text| guest.print(1, text));
    type Damage = fn(&mut Guest, u64);
    let cases: [(&str, Damage); 9] = [
        ("reserved", |guest, id| guest.set(guest.desc(id), id)),
        ("reusable", |guest, id| guest.set(guest.desc(id), 3 << 62 | id)),
        ("of another ID", |guest, id| guest.set(guest.desc(id), 2 << 62 | (id + 8))),
        ("lost its text", |guest, id| {
            guest.set(guest.desc(id) + 8, 1);
            guest.set(guest.desc(id) + 16, 1);
        }),
        ("block of another ID", |guest, id| guest.set(DATA + 16, id + 1)),
        ("ends before it begins", |guest, id| {
            guest.set(guest.desc(id) + 16, 8u64.wrapping_sub(256));
        }),
        ("is empty", |guest, id| guest.set(guest.desc(id) + 16, 16)),
        ("begins at the end", |guest, id| guest.set(guest.desc(id) + 8, 248)),
        ("has no header", |guest, id| guest.set(guest.desc(id) + 16, 20u64.wrapping_sub(256))),
    ];
    for (name, damage) in cases {
        let mut guest = guest.clone();
        damage(&mut guest, ids[1]);
        assert_eq!(guest.texts(), ["one", "three"], "{name}");
    }
    guest.set(guest.desc(ids[1]), 1 << 62 | ids[1]);
    assert_eq!(guest.texts(), ["one", "two", "three"], "committed");
    guest.set(guest.info(ids[2]) + OFFSETS.text_len, u64::MAX);
    assert_eq!(guest.texts()[2], "three\0\0\0", "a length beyond the block");
}

/// The guest overwrites the second of three messages while they are read.
#[test]
fn read_messages_leaves_records_out_that_change_meanwhile() {
    let mut guest = Guest::new();
    let ids = ["one", "two", "three"].map(|text| guest.print(1, text));
    let messages = layout().read_messages(&mut |gpa, buf| {
        guest.read(gpa, buf)?;
        if gpa == DATA {
            guest.set(guest.desc(ids[1]), 2 << 62 | (ids[1] + 8));
        }
        Ok(())
    });
    let texts: Vec<_> = messages.unwrap().into_iter().map(|message| message.text).collect();
    assert_eq!(texts, ["one", "three"]);
}

#[test]
fn read_messages_rejects_impossible_rings() {
    for (at, value, want) in [
        (RING + OFFSETS.descs, 0, "image moved by"),
        (RING + OFFSETS.count_bits, 25, "2^25 descriptors and 2^8 bytes"),
        (RING + OFFSETS.size_bits, 0xffff_ffff, "2^4294967295 bytes"),
        (RING + OFFSETS.tail_id, 7, "of its 8 descriptors are in use"),
        (RING + OFFSETS.count_bits, 20, "is not memory"),
        (RING + OFFSETS.data, 0, "is not memory"),
        (RING + OFFSETS.infos, u64::MAX, "is not memory"),
        (POINTER, 0, "is not memory"),
        (POINTER, u64::MAX, "is not memory"),
    ] {
        let mut guest = Guest::new();
        guest.print(1, "text");
        guest.set(at, value);
        let error = guest.messages().unwrap_err().to_string();
        assert!(error.contains(want), "{at:#x} = {value:#x}: {error}");
    }
    let mut guest = Guest::with_many_cpus(0xffff_8880_0000_0000);
    guest.set(OTHER_RING + OFFSETS.descs, 0xffff_8880_0000_0000);
    let error = guest.messages().unwrap_err().to_string();
    assert!(error.contains("its descriptors at 0xffff888000000000 are not in memory"), "{error}");
}

/// All records of a large ring have the same long text.
#[test]
fn read_messages_bounds_the_text_of_overlapping_blocks() {
    let (descs, infos, data) = (1 << 24, 1 << 26, 1 << 28);
    let (head, size) = (0xffff_u64, 1_u64 << 20);
    let mut asked = 0;
    let messages = layout().read_messages(&mut |gpa, buf| {
        asked += buf.len();
        let ring = [
            (OFFSETS.count_bits, 16),
            (OFFSETS.descs, IMAGE_BASE + descs),
            (OFFSETS.infos, IMAGE_BASE + infos),
            (OFFSETS.head_id, head),
            (OFFSETS.size_bits, 20),
            (OFFSETS.data, IMAGE_BASE + data),
        ];
        match gpa {
            POINTER => buf.copy_from_slice(&(IMAGE_BASE + OTHER_RING).to_le_bytes()),
            OTHER_RING => ring.iter().for_each(|(at, value): &(u64, u64)| {
                buf[*at as usize..][..8].copy_from_slice(&value.to_le_bytes());
            }),
            // Each block begins a word after the previous one and is as long as half the ring.
            at if at == descs => {
                for (id, desc) in buf.chunks_exact_mut(24).enumerate() {
                    let words = [2 << 62 | id as u64, id as u64 * 8, id as u64 * 8 + size / 2];
                    desc.copy_from_slice(&words.map(u64::to_le_bytes).concat());
                }
            }
            at if at == data => {
                for (id, word) in buf.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&(id as u64).to_le_bytes());
                }
            }
            at if at == infos => buf.fill(0xff),
            at if at == RING + OFFSETS.descs => {
                buf.copy_from_slice(&layout().descs.to_le_bytes());
            }
            at => panic!("reads {at:#x}"),
        }
        Ok(())
    });
    let total: usize = messages.unwrap().iter().map(|message| message.text.len()).sum();
    assert!((1 << 19..=1 << 20).contains(&total), "{total}");
    assert!(asked < 16 << 20, "{asked}");
}

/// Each word of the structures in turn has values of which a pointer, an ID or a length can be made.
#[test]
fn read_messages_ends_whatever_the_words_are() {
    let mut guest = Guest::new();
    for number in 0..20 {
        guest.print(number, "some text");
    }
    let ranges = [RING..RING + 88, POINTER..POINTER + 8, DESCS..DESCS + 192, INFOS..INFOS + 704];
    for at in ranges.into_iter().flat_map(|range| range.step_by(8)) {
        for value in [0, 1, 7, 0x7fff_ffff, 1 << 62, 3 << 62, u64::MAX, IMAGE_BASE, 1 << 63] {
            let mut guest = guest.clone();
            guest.set(at, value);
            let _ = guest.messages();
            let _ = layout().position(&mut |gpa, buf| guest.read(gpa, buf));
        }
    }
}

mod vmlinux {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Returns the BTF of the structures, with lengths and members as in [`OFFSETS`].
    fn btf() -> Vec<u8> {
        let mut strings = vec![0];
        let mut types = Vec::new();
        let mut structure = |name: &str, len: u32, members: &[(&str, u32)]| {
            let mut text = |text: &str| {
                strings.extend(text.bytes().chain([0]));
                (strings.len() - text.len() - 1) as u32
            };
            types.extend([text(name), 4 << 24 | members.len() as u32, len]);
            for (member, at) in members {
                types.extend([text(member), 0, at * 8]);
            }
        };
        structure("printk_ringbuffer", 88, &[("desc_ring", 0), ("text_data_ring", 48)]);
        let ids =
            [("count_bits", 0), ("descs", 8), ("infos", 16), ("head_id", 24), ("tail_id", 32)];
        structure("prb_desc_ring", 48, &ids);
        let data = [("size_bits", 0), ("data", 8), ("head_lpos", 16), ("tail_lpos", 24)];
        structure("prb_data_ring", 32, &data);
        structure("prb_desc", 24, &[("state_var", 0), ("text_blk_lpos", 8)]);
        structure("prb_data_blk_lpos", 16, &[("begin", 0), ("next", 8)]);
        structure("printk_info", 88, &[("ts_nsec", 8), ("text_len", 16)]);
        let (types, strings_len) = (words(&types), strings.len() as u32);
        let header =
            words(&[0x0001_eb9f, 24, 0, types.len() as u32, types.len() as u32, strings_len]);
        [header, types, strings].concat()
    }

    /// Returns a stripped vmlinux with these contents of its data segment.
    fn elf(data: &[u8], btf: &[u8]) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.BTF\0.names\0";
        let data_at = 64 + 56;
        let btf_at = data_at + data.len();
        let names_at = btf_at + btf.len();
        let sections_at = names_at + NAMES.len();
        let long = |value: u64| value.to_le_bytes().to_vec();
        let section = |name: u32, kind: u32, at: usize, len: usize| {
            [words(&[name, kind]), vec![0; 16], long(at as u64), long(len as u64), vec![0; 24]]
                .concat()
        };
        [
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
            words(&[2 | 62 << 16, 1]),
            [0, 64, sections_at as u64].map(u64::to_le_bytes).concat(),
            words(&[0, 64 | 56 << 16, 1 | 64 << 16, 3 | 2 << 16]),
            // A segment that is loaded and writable.
            words(&[1, 6]),
            [data_at as u64, IMAGE_BASE + RING, RING].map(u64::to_le_bytes).concat(),
            [data.len() as u64, data.len() as u64, 8].map(u64::to_le_bytes).concat(),
            data.to_vec(),
            btf.to_vec(),
            NAMES.to_vec(),
            section(0, 0, 0, 0),
            section(1, 1, btf_at, btf.len()),
            section(6, 3, names_at, NAMES.len()),
        ]
        .concat()
    }

    /// Returns the data of a kernel as it is linked: the ring at its start, and the pointer.
    fn linked() -> Vec<u8> {
        let mut guest = Guest::new();
        guest.base = IMAGE_BASE;
        guest.clear();
        guest.set(POINTER, IMAGE_BASE + RING);
        guest.memory[RING as usize..][..0x200].to_vec()
    }

    #[test]
    fn find_recognizes_the_ring_by_its_initial_state() {
        let found = PrintkLayout::find(&*elf(&linked(), &btf())).unwrap();
        assert_eq!(found, layout());
        // As newer kernels compute the first ID.
        let mut newer = linked();
        for at in [OFFSETS.head_id, OFFSETS.tail_id] {
            newer[at as usize..][..8].copy_from_slice(&(9_u64.wrapping_neg() & ID).to_le_bytes());
        }
        let found = PrintkLayout::find(&*elf(&newer, &btf())).unwrap();
        assert_eq!(found.initial_id, 9_u64.wrapping_neg() & ID);
    }

    #[test]
    fn find_explains_what_is_missing() {
        let changed = |at: u64| {
            let mut data = linked();
            data[at as usize] ^= 1;
            data
        };
        let twice = [linked(), vec![0; 8], (IMAGE_BASE + RING).to_le_bytes().to_vec()].concat();
        let pointer = "0 candidates for the pointer to the ring";
        let mut cases = vec![
            (elf(&changed(POINTER - RING), &btf()), pointer),
            (elf(&twice, &btf()), "2 candidates for the pointer"),
            (elf(&[], &btf()), "0 candidates for the ring"),
            (elf(&linked(), b"BTF"), "the BTF is damaged"),
            (b"not ELF".to_vec(), "the vmlinux is damaged"),
        ];
        let offsets = OFFSETS;
        for at in [offsets.count_bits, offsets.head_id, offsets.tail_id, offsets.size_bits] {
            cases.push((elf(&changed(at), &btf()), "0 candidates for the ring"));
        }
        for (vmlinux, want) in cases {
            let error = PrintkLayout::find(&*vmlinux).unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
    }

    #[test]
    fn find_ends_with_damaged_files() {
        let good = elf(&linked(), &btf());
        for at in 0..good.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = good.clone();
                damaged[at] = value;
                let _ = PrintkLayout::find(&*damaged);
            }
            let _ = PrintkLayout::find(&good[..at]);
        }
    }
}
