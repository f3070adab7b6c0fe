//! Encoding and decoding a state, and bytes that are not one.

use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use super::*;
use crate::config::{even, uneven};

fn config() -> VmConfig {
    VmConfig {
        kernel: "kernel".into(),
        initramfs: "initramfs".into(),
        cmdline: String::new(),
        kaslr: true,
        topology: uneven(1, &[1, 2], 1),
        memory_mib: 256,
        ports: vec!["ktstr.wire".to_owned(), "shell".to_owned()],
    }
}

fn sample() -> MachineState {
    let chip = |chip_id| ChipState { chip_id, registers: Box::new([chip_id as i8 + 1; 512]) };
    MachineState {
        identity: Identity::new(&config(), "0123-4567".to_owned()),
        time: TimeState::sample(),
        memory: MemoryFile { len: 256 << 20, modified_s: 1_700_000_000, modified_ns: 7 },
        vcpus: vec![VcpuState::sample()],
        chips: vec![chip(0), chip(1), chip(2)],
        devices: Devices::new(&config().ports).save(),
    }
}

/// Returns the encoding of a state with this body.
fn with_body(body: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    VERSION.put(&mut bytes);
    (body.len() as u64).put(&mut bytes);
    checksum(body).put(&mut bytes);
    bytes.extend(body);
    bytes
}

#[test]
fn decode_returns_what_was_encoded() {
    let state = sample();
    let bytes = state.encode();
    assert_eq!(MachineState::decode(&bytes).unwrap(), state);
    assert_eq!(with_body(body(&bytes).unwrap()), bytes);
}

#[test]
fn decode_names_what_is_wrong_with_the_header() {
    let bytes = sample().encode();
    let changed = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        MachineState::decode(&bytes).unwrap_err()
    };
    let len = (bytes.len() - HEADER) as u64;
    for at in 0..8 {
        assert_eq!(changed(at), StateError::NoState);
    }
    assert_eq!(changed(8), StateError::Version { found: VERSION ^ 1, supported: VERSION });
    assert_eq!(changed(12), StateError::Length { found: len, expected: len ^ 1 });
    for at in 20..HEADER {
        assert!(matches!(changed(at), StateError::Damaged { .. }));
    }
    for kept in 0..HEADER {
        assert_eq!(MachineState::decode(&bytes[..kept]), Err(StateError::NoState));
    }
    for kept in HEADER..bytes.len() {
        let found = (kept - HEADER) as u64;
        let error = MachineState::decode(&bytes[..kept]).unwrap_err();
        assert_eq!(error, StateError::Length { found, expected: len });
    }
}

#[test]
fn decode_notices_any_changed_byte() {
    let mut bytes = sample().encode();
    for at in HEADER..bytes.len() {
        for bit in [0x01, 0x80] {
            bytes[at] ^= bit;
            let error = MachineState::decode(&bytes).unwrap_err();
            assert!(matches!(error, StateError::Damaged { .. }), "byte {at}: {error}");
            bytes[at] ^= bit;
        }
    }
    MachineState::decode(&bytes).unwrap();
}

/// A checksum does not protect from a file that was written on purpose.
#[test]
fn decode_survives_any_body() {
    let bytes = sample().encode();
    let original = body(&bytes).unwrap();
    // Every truncated one is refused, and one with a byte too many.
    for len in 0..original.len() {
        MachineState::decode(&with_body(&original[..len])).unwrap_err();
    }
    MachineState::decode(&with_body(&[original, &[0]].concat())).unwrap_err();
    let mut accepted = 0;
    for at in 0..original.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = original.to_vec();
            changed[at] = value;
            let changed = with_body(&changed);
            // What is accepted has one encoding, and devices can be created from it or refuse it.
            let Ok(state) = MachineState::decode(&changed) else { continue };
            assert!(state.encode() == changed, "byte {at} is {value}");
            let _ = Devices::restore(&config().ports, &state.devices);
            accepted += 1;
        }
    }
    assert!(accepted > original.len(), "most bytes are those of registers: {accepted}");
}

#[test]
fn difference_names_the_first_difference() {
    let saved = Identity::new(&config(), "0123-4567".to_owned());
    assert_eq!(saved.difference(&Identity::new(&config(), "0123-4567".to_owned())), None);
    let with = |change: &dyn Fn(&mut VmConfig)| {
        let mut config = config();
        change(&mut config);
        saved.difference(&Identity::new(&config, "0123-4567".to_owned())).unwrap()
    };
    let other = with(&|config| config.cmdline = "quiet".to_owned());
    assert!(other.ends_with("expected (\"kernel\", \"initramfs\", \"quiet\", true)"), "{other}");
    // The same number of CPUs, with other caches.
    let other = with(&|config| config.topology = even([1, 3, 1, 1]));
    assert!(other.ends_with("are (1, [1, 2], 1), expected (1, [1, 1, 1], 1)"), "{other}");
    let other = with(&|config| config.memory_mib = 257);
    assert_eq!(other, "it has 256 MiB of memory, expected 257 MiB");
    let other = with(&|config| config.ports.reverse());
    assert!(other.starts_with("its ports are"), "{other}");
    let other = saved.difference(&Identity::new(&config(), "89ab".to_owned())).unwrap();
    assert_eq!(other, "it was saved in boot 0123-4567 of a host, this is boot 89ab");
}

#[test]
fn memory_file_notices_a_later_write_and_another_length() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let saved = MemoryFile::new(&file.metadata().unwrap());
    let check = |file: &std::fs::File| saved.check(&file.metadata().unwrap(), 8192);
    check(&file).unwrap();
    // Time stamps have the resolution of the kernel's tick: wait until it has passed.
    let is_later = |file: &std::fs::File| {
        let modified = file.metadata().unwrap().modified().unwrap();
        let before = Duration::new(saved.modified_s as u64, saved.modified_ns as u32);
        modified > SystemTime::UNIX_EPOCH + before
    };
    while !is_later(&file) {
        file.write_all_at(b"x", 0).unwrap();
    }
    assert_eq!(check(&file).unwrap_err(), "was changed after it was saved");
    for len in [4096, 8193] {
        file.set_len(len).unwrap();
        assert_eq!(check(&file).unwrap_err(), format!("has {len} bytes (expected: 8192)"));
    }
}
