//! Extra words of the kernel command line, from a test's key `kargs` or from `KTSTR_KARGS`.
//!
//! ktstr-macros has this file too, by a symbolic link: the attribute checks at compile time what
//! the runner checks of the variable. It uses nothing of either crate.

/// Parameters that belong to the runner or to another key of the attribute, with what to do instead.
const RESERVED: &[(&str, &str)] = &[
    ("nokaslr", "use the key `kaslr = false`"),
    ("pti", "use the key `mitigations`"),
    ("nopti", "use the key `mitigations`"),
    ("maxcpus", "use the keys `llcs`, `cores` and `threads`"),
    ("nr_cpus", "use the keys `llcs`, `cores` and `threads`"),
    ("possible_cpus", "use the keys `llcs`, `cores` and `threads`"),
    ("nosmp", "use the keys `llcs`, `cores` and `threads`"),
    ("nosmt", "use the key `threads`"),
    ("mem", "use the key `memory_mib`"),
    ("memmap", "use the key `memory_mib`"),
    ("numa", "use the key `numa_nodes`"),
    ("panic", "the runner sets it to notice a panic"),
    ("oops", "the runner sets it to notice an oops"),
    ("init", "the guest's PID 1 is the test binary"),
    ("rdinit", "the guest's PID 1 is the test binary"),
    ("initrd", "the guest's file system is the runner's initramfs"),
    ("noinitrd", "the guest's file system is the runner's initramfs"),
    ("root", "the guest's file system is the runner's initramfs"),
    ("console", "the runner reads the serial console"),
    ("quiet", "the runner reads the kernel's messages"),
    ("loglevel", "the runner reads the kernel's messages"),
    ("printk.time", "the runner reads the time stamps of the kernel's messages"),
    ("KTSTR_GUEST", "the runner sets it for PID 1"),
    ("LD_LIBRARY_PATH", "the runner sets it for PID 1"),
    ("PATH", "the runner sets it for PID 1"),
    ("RUST_MIN_STACK", "use the key `env`"),
];

/// The most bytes of the words: the kernel's command line has 2048, and the runner's own words
/// need some of them.
///
/// Source: Linux 6.12, arch/x86/include/asm/setup.h (`COMMAND_LINE_SIZE`).
const MAX_BYTES: usize = 1024;

/// Checks that `words` cannot break the runner's own arguments.
///
/// # Errors
///
/// Names the first word that is refused, and what to do instead.
pub fn check(words: &str) -> Result<(), String> {
    if words.len() > MAX_BYTES {
        return Err(format!(
            "shorten the kernel arguments: {} bytes (limit {MAX_BYTES})",
            words.len()
        ));
    }
    if let Some(bad) = words.chars().find(|char| !matches!(char, ' '..='~') || *char == '"') {
        return Err(format!(
            "remove {bad:?}: kernel arguments are words of printable ASCII without quotes, separated by spaces"
        ));
    }
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        if word == "--" {
            return Err("remove `--`: the kernel passes the words behind it to PID 1".to_owned());
        }
        // The kernel treats `-` and `_` in the name of a parameter alike.
        let name = word.split('=').next().unwrap_or_default().replace('-', "_");
        if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            return Err(format!("remove `{word}`: {instead}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn check_accepts_words_that_the_runner_does_not_use() {
        for words in
            ["", "isolcpus=1", " nohz_full=1-3  rcu_nocbs=1-3 ", "panic_on_warn=1", "a,b=c"]
        {
            assert_eq!(check(words), Ok(()), "{words}");
        }
    }

    #[test]
    fn check_rejects_reserved_and_malformed_words() {
        for (words, want) in [
            ("isolcpus=1 nokaslr", "remove `nokaslr`: use the key `kaslr = false`"),
            ("nr-cpus=2", "remove `nr-cpus=2`: use the keys `llcs`, `cores` and `threads`"),
            ("isolcpus=1 -- x", "remove `--`: the kernel passes the words behind it to PID 1"),
            ("a=\"b\"", "remove '\"': "),
            ("a\tb", "remove '\\t': "),
            ("ä", "remove 'ä': "),
        ] {
            let error = check(words).unwrap_err();
            assert!(error.starts_with(want), "{words}: {error}");
        }
        assert!(check(&"x".repeat(1025)).unwrap_err().contains("1025 bytes (limit 1024)"));
    }
}
