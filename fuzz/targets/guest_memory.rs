//! Memory of a guest that the host interprets: page tables, and the kernel's type information.
//!
//! The first byte selects one of them. Page tables are in a memory of these bytes, from address 0 on.

#![no_main]

use std::time::{Duration, Instant};

use ktstr_vmm::btf::Btf;
use ktstr_vmm::paging::read_virtual;
use ktstr_vmm::{Error, Event, Registers, Vm};
use libfuzzer_sys::fuzz_target;

/// As many bytes as there are of BTF take a few steps each.
const BUFFER: usize = 3 << 12;

fuzz_target!(|data: &[u8]| {
    let [kind, data @ ..] = data else { return };
    match kind & 1 {
        0 => paging(data),
        _ => btf(data),
    }
});

fn btf(data: &[u8]) {
    // Two names of up to four bytes, then the types.
    let Some((names, bytes)) = data.split_at_checked(8) else { return };
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.member_offset(&name(&names[..4]), &name(&names[4..]));
    }
}

fn paging(data: &[u8]) {
    let Some((head, memory)) = data.split_first_chunk::<40>() else { return };
    let word = |at: usize| u64::from_le_bytes(head[at * 8..][..8].try_into().expect("8 bytes"));
    let registers = Registers {
        cr0: word(0),
        cr3: word(1),
        cr4: word(2),
        efer: word(3),
        ..Registers::default()
    };
    let mut vm = Memory(memory.to_vec());
    let mut buffer = vec![0; BUFFER];
    let read = read_virtual(&mut vm, &registers, word(4), &mut buffer);
    assert!(
        matches!(read, Ok(()) | Err(Error::NotMapped { .. } | Error::Unsupported { .. })),
        "{read:?}"
    );
}

/// A machine of memory alone. Addresses repeat, so that page tables can refer to each other.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl Vm for Memory {
    fn read_memory(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        let length = self.0.len().max(1) as u64;
        for (at, byte) in (0..).zip(buf) {
            *byte = self.0.get((gpa.wrapping_add(at) % length) as usize).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn next_event(&mut self, _: Instant) -> Result<Event, Error> {
        Ok(Event::Deadline)
    }

    fn send(&mut self, _: usize, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn registers(&mut self, _: usize) -> Result<Registers, Error> {
        Ok(Registers::default())
    }

    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        Ok(Vec::new())
    }

    fn stop(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
