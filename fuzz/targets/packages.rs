//! The text of a mirror's index and of the machine's sources, as apt prints it.
//!
//! The first byte selects the text.

#![no_main]

use ktstr::provision::{in_list, in_sources, parse_show, parse_uri_line};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [kind, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match kind % 4 {
        0 => drop(parse_show(text)),
        1 => text.lines().for_each(|line| drop(parse_uri_line(line))),
        2 => drop(in_list(text)),
        _ => drop(in_sources(text)),
    }
});
