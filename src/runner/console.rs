//! Finds the error messages of the guest kernel in its console.

use ktstr_core::model::pid1::FAILURE_PREFIX;
use ktstr_core::model::text::cut;
use ktstr_core::result::{KernelEvent, KernelEventKind};

/// Texts of kernel messages, and their meaning. The first match counts.
///
/// Source: Linux 6.1, 6.12 and 7.2: kernel/panic.c, kernel/watchdog.c, kernel/hung_task.c,
/// kernel/rcu/tree_stall.h, mm/oom_kill.c, arch/x86/mm/fault.c, arch/x86/kernel/traps.c.
const PATTERNS: [(&str, KernelEventKind); 15] = [
    ("Kernel panic - not syncing", KernelEventKind::Panic),
    ("BUG: soft lockup", KernelEventKind::Lockup),
    ("Watchdog detected hard LOCKUP", KernelEventKind::Lockup),
    ("kernel BUG at ", KernelEventKind::Oops),
    ("BUG: ", KernelEventKind::Oops),
    ("Oops: ", KernelEventKind::Oops),
    ("general protection fault", KernelEventKind::Oops),
    ("WARNING: CPU: ", KernelEventKind::Warning),
    ("WARNING: ", KernelEventKind::Warning),
    (" blocked for more than ", KernelEventKind::HungTask),
    (" self-detected stall", KernelEventKind::RcuStall),
    (" detected stalls", KernelEventKind::RcuStall),
    (" detected expedited stalls", KernelEventKind::RcuStall),
    ("ut of memory: Killed process", KernelEventKind::OomKill),
    ("System is deadlocked on memory", KernelEventKind::OomKill),
];

/// A time stamp has up to 20 digits, `.`, six digits, and with CONFIG_PRINTK_CALLER `][` and a task or CPU.
const LONGEST_STAMP: usize = 64;

/// The number of kernel messages that are kept.
const MAX_EVENTS: usize = 100;

/// The most bytes of a kernel message that are kept. The kernel's own limit is 1,024 bytes with the time stamp.
///
/// Source: Linux 6.12, kernel/printk/internal.h, PRINTKRB_RECORD_MAX.
const LONGEST_EVENT: usize = 1 << 10;

/// Returns the first warnings and errors of the kernel, in order, and the number of the others.
pub(super) fn kernel_events(console: &str) -> (Vec<KernelEvent>, usize) {
    let mut all = find_events(console);
    let kept = all.by_ref().take(MAX_EVENTS).map(|(kind, line)| {
        let mut line = line.to_owned();
        cut(&mut line, LONGEST_EVENT);
        KernelEvent { kind, line }
    });
    (kept.collect(), all.count())
}

fn find_events(console: &str) -> impl Iterator<Item = (KernelEventKind, &str)> {
    console.lines().filter_map(kernel_line).filter_map(|line| Some((kind_of(line)?, line)))
}

fn kind_of(line: &str) -> Option<KernelEventKind> {
    let (_, kind) = PATTERNS.iter().find(|(text, _)| line.contains(text))?;
    // A warning names its place; other lines that start with `WARNING: ` are ordinary messages.
    if *kind == KernelEventKind::Warning && !line.contains(" at ") {
        return None;
    }
    Some(*kind)
}

/// Returns the text of a kernel message: what follows its time stamp.
///
/// Lines without a time stamp come from programs. A program may also have begun the line, before the
/// kernel wrote its message.
fn kernel_line(line: &str) -> Option<&str> {
    line.match_indices('[').find_map(|(at, _)| {
        // No further than the longest stamp: a guest may print a line of eight million brackets.
        let rest = &line[at + 1..];
        let (stamp, _) = rest[..rest.floor_char_boundary(LONGEST_STAMP)].split_once("] ")?;
        let text = &rest[stamp.len() + 2..];
        let (seconds, micros) = stamp.trim_start().split_once('.')?;
        seconds.parse::<u64>().ok()?;
        // CONFIG_PRINTK_CALLER adds the task or CPU behind the time.
        micros.get(..6)?.parse::<u64>().ok()?;
        Some(text.trim_end())
    })
}

/// Returns the message of the kernel's panic, if it panicked.
pub(super) fn panic_message(console: &str) -> Option<String> {
    let (_, line) = find_events(console).find(|(kind, _)| *kind == KernelEventKind::Panic)?;
    let (_, message) = line.split_once("not syncing")?;
    Some(bounded(message.trim_start_matches(':')))
}

/// Returns whether PID 1 exited with status 0, which the guest agent never does.
pub(super) fn init_succeeded(console: &str) -> bool {
    panic_message(console)
        .is_some_and(|panic| panic.contains("Attempted to kill init! exitcode=0x00000000"))
}

/// Returns why PID 1 could not become ready, if the console shows it.
pub(super) fn init_failure(console: &str) -> Option<String> {
    for line in console.lines() {
        if let Some((_, why)) = line.split_once(FAILURE_PREFIX) {
            return Some(bounded(why));
        }
        // The message of the dynamic loader. PID 1 exits after it, and the kernel panics.
        if line.contains("error while loading shared libraries") {
            return Some(bounded(line));
        }
    }
    let panic = panic_message(console)?;
    let advice = if panic.contains("memory") {
        "; give the guest more memory (`memory_mib`)"
    } else if panic.contains("No working init found") || panic.contains("Unable to mount root fs") {
        "; the initramfs was not unpacked: it is damaged, or larger than the guest's memory"
    } else if panic.contains("Attempted to kill init") {
        "; PID 1 ended without another message"
    } else {
        return None;
    };
    Some(format!("{panic}{advice}"))
}

fn bounded(message: &str) -> String {
    let mut message = message.trim().to_owned();
    cut(&mut message, LONGEST_EVENT);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_events_finds_each_kind() {
        let console = "\
            [    0.000000] Linux version 6.12.107+deb13-cloud-amd64\r\n\
            [    1.000000] WARNING: You are running an unsupported configuration\n\
            [    2.100000] WARNING: CPU: 0 PID: 77 at kernel/sched/core.c:1234 foo+0x1/0x2\n\
            [    2.200000][  T77] WARNING: kernel/sched/core.c:1234 at foo+0x1/0x2, CPU#0: sh/77\n\
            [  123.456789] INFO: task kworker:12 blocked for more than 120 seconds.\n\
            [   21.000000] rcu: INFO: rcu_preempt self-detected stall on CPU\n\
            [   21.000001] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n\
            [   25.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [spin:99]\n\
            [   26.000000] Memory cgroup out of memory: Killed process 42 (hog)\n\
            [   27.000000] Out of memory: Killed process 43 (hog)\n\
            [   28.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\n\
            [   28.000001] Oops: Oops: 0002 [#1] PREEMPT SMP\n\
            test case ...[   29.000000] Kernel panic - not syncing: sysrq triggered crash\n\
            Kernel panic - not syncing: printed by a program\n";
        use KernelEventKind::*;
        let kinds: Vec<_> = find_events(console).map(|(kind, _)| kind).collect();
        let expected = [
            Warning, Warning, HungTask, RcuStall, RcuStall, Lockup, OomKill, OomKill, Oops, Oops,
            Panic,
        ];
        assert_eq!(kinds, expected);
        assert_eq!(panic_message(console).as_deref(), Some("sysrq triggered crash"));
        assert_eq!(init_failure(console), None);
    }

    #[test]
    fn kernel_events_are_bounded_in_number_and_length() {
        let line = format!("[    1.000000] BUG: {}\n", "x".repeat(10_000));
        let (kept, dropped) = kernel_events(&line.repeat(1000));
        assert_eq!((kept.len(), dropped), (MAX_EVENTS, 1000 - MAX_EVENTS));
        assert!(kept.iter().all(|event| event.line.len() < LONGEST_EVENT + 10));
        let panic = line.repeat(1000) + "[    2.000000] Kernel panic - not syncing: why";
        assert_eq!(panic_message(&panic).as_deref(), Some("why"));
    }

    #[test]
    fn panic_message_is_found_behind_a_long_line() {
        let line = "[".repeat(1 << 20) + "[    1.000000] Kernel panic - not syncing: why";
        assert_eq!(panic_message(&line).as_deref(), Some("why"));
    }

    #[test]
    fn init_failure_finds_the_reason() {
        for (console, why) in [
            ("ktstr-init: PID 1 failed: no cgroup2\n", "no cgroup2"),
            (
                "/init: error while loading shared libraries: libz.so: none\n[    1.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n",
                "libz.so",
            ),
            (
                "[    1.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000\n",
                "PID 1 ended without",
            ),
            (
                "[    1.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n",
                "PID 1 ended without",
            ),
            (
                "[    1.000000] Kernel panic - not syncing: System is deadlocked on memory\n",
                "memory_mib",
            ),
            (
                "[    1.000000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n",
                "initramfs",
            ),
        ] {
            assert!(init_failure(console).is_some_and(|found| found.contains(why)), "{console}");
        }
    }
}
