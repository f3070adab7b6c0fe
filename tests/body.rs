//! The environment of a test body in its guest, and the effects of its end.

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ktstr::prelude::*;
use ktstr::record::{MachineFacts, Timing};

#[ktstr_test(cores = 1)]
fn guest_has_the_file_systems_that_a_test_expects(_: &Ctx) -> Result<AssertResult> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for (target, kind) in [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/dev/hugepages", "hugetlbfs"),
        ("/tmp", "tmpfs"),
        ("/run", "tmpfs"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/sys/kernel/debug", "debugfs"),
        ("/sys/kernel/tracing", "tracefs"),
        ("/sys/fs/bpf", "bpf"),
    ] {
        let found = mounts.lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            words.next() == Some(target) && words.next() == Some(kind)
        });
        ensure!(found, "no {kind} at {target}:\n{mounts}");
    }
    ensure!(rustix::process::geteuid().is_root(), "the body is root");
    ensure!(std::process::id() != 1, "the body is not PID 1");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn loopback_connects_by_name_and_by_address(_: &Ctx) -> Result<AssertResult> {
    for host in ["127.0.0.1", "::1", "localhost", "ktstr"] {
        let listener = TcpListener::bind((host, 0)).context(host)?;
        let client = TcpStream::connect(listener.local_addr()?).context(host)?;
        ensure!(client.peer_addr()?.ip().is_loopback(), "{host}");
    }
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn guest_has_the_links_and_files_of_an_init(_: &Ctx) -> Result<AssertResult> {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/etc/mtab", "../proc/self/mounts"),
        ("/var/run", "/run"),
    ] {
        let found = fs::read_link(link).context(link)?;
        ensure!(found == Path::new(target), "{link} points to {}", found.display());
    }
    for (file, line) in [
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh"),
        ("/etc/passwd", "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"),
        ("/etc/group", "root:x:0:"),
        ("/etc/nsswitch.conf", "hosts: files"),
        ("/etc/hostname", "ktstr"),
        ("/proc/sys/kernel/hostname", "ktstr"),
    ] {
        let content = fs::read_to_string(file).context(file)?;
        ensure!(content.lines().any(|found| found == line), "no `{line}` in {file}:\n{content}");
    }
    for (directory, mode) in
        [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/run", 0o755), ("/root", 0o700)]
    {
        let found = fs::metadata(directory).context(directory)?.permissions().mode() & 0o7777;
        ensure!(found == mode, "mode of {directory}: {found:o}");
    }
    for (name, value) in [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")] {
        ensure!(std::env::var(name).as_deref() == Ok(value), "{name}: {:?}", std::env::var(name));
    }
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    ensure!(umask.bits() == 0o022, "umask {umask:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, env = ["KTSTR_TEST_SEED=7=8", "KTSTR_TEST_EMPTY=", "KTSTR_TEST_MISSING"])]
fn environment_has_what_the_test_declares(_: &Ctx) -> Result<AssertResult> {
    let value = |name: &str| std::env::var(name).ok();
    ensure!(value("KTSTR_TEST_SEED").as_deref() == Some("7=8"), "{:?}", std::env::vars_os());
    ensure!(value("KTSTR_TEST_EMPTY").as_deref() == Some(""), "{:?}", std::env::vars_os());
    ensure!(value("KTSTR_TEST_MISSING").is_none(), "{:?}", std::env::vars_os());
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, ignore = "run by named_variables_reach_the_body")]
fn environment_has_what_the_host_names(_: &Ctx) -> Result<AssertResult> {
    let value = |name: &str| std::env::var_os(name).unwrap_or_default().into_vec();
    ensure!(value("KTSTR_TEST_BYTES") == b"a\xff=b", "{:?}", std::env::vars_os());
    ensure!(value("PROPTEST_CASES") == b"9", "{:?}", std::env::vars_os());
    ensure!(std::env::var_os("KTSTR_TEST_OTHER").is_none(), "{:?}", std::env::vars_os());
    Ok(AssertResult::pass())
}

#[test]
fn named_variables_reach_the_body() -> Result<()> {
    let output = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "environment_has_what_the_host_names", "--include-ignored"])
        .env("KTSTR_ENV", "KTSTR_TEST_MISSING,KTSTR_TEST_BYTES")
        .env("KTSTR_TEST_BYTES", OsStr::from_bytes(b"a\xff=b"))
        .env("KTSTR_TEST_OTHER", "1")
        .env("PROPTEST_CASES", "9")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("1 passed"), "{text}");
    Ok(())
}

/// Its input is that of PID 1; further descriptors of its own do not reach programs that it executes.
#[ktstr_test(cores = 1)]
fn body_has_no_descriptors_of_pid_1(_: &Ctx) -> Result<AssertResult> {
    let mut files = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name()))?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
        let flags = i32::from_str_radix(flags.context("no flags in fdinfo")?, 8)?;
        let kind = target.split('[').next().unwrap_or_default().to_owned();
        files.push((kind, flags & libc::O_CLOEXEC != 0));
    }
    files.sort();
    let own = [
        // The directory that is listed.
        (format!("/proc/{}/fd", std::process::id()), true),
        ("/dev/console".to_owned(), false),
        ("pipe:".to_owned(), false),
        ("pipe:".to_owned(), false),
        // Panics and messages.
        ("pipe:".to_owned(), true),
        ("socket:".to_owned(), true),
    ];
    let mut wanted = own.to_vec();
    wanted.sort();
    ensure!(files == wanted, "{files:?}");
    Ok(AssertResult::pass())
}

/// `hackbench -T -g 30` has 1,200 sockets in one process.
#[ktstr_test(cores = 1)]
fn process_opens_thousands_of_descriptors(_: &Ctx) -> Result<AssertResult> {
    let null = fs::File::open("/dev/null")?;
    let copies = (0..10_000).map(|_| null.try_clone()).collect::<Result<Vec<_>, _>>()?;
    ensure!(copies.len() == 10_000);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    ensure!((limit.current, limit.maximum) == (Some(65_536), Some(524_288)), "{limit:?}");
    Ok(AssertResult::pass())
}

/// A zombie keeps its directory in /proc until it is reaped; the test times out if that never happens.
#[ktstr_test(cores = 1)]
fn pid_1_reaps_orphans(_: &Ctx) -> Result<AssertResult> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let child = fork(|| {
        let orphan = fork(|| {
            while rustix::process::getppid() != Some(rustix::process::Pid::INIT) {
                rustix::thread::sched_yield();
            }
        });
        let _ = rustix::io::write(&writer, &orphan.to_le_bytes());
    });
    let child = rustix::process::Pid::from_raw(child).context("the fork failed")?;
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    let mut orphan = [0; 4];
    ensure!(rustix::io::read(&reader, &mut orphan)? == 4);
    let dir = format!("/proc/{}", i32::from_le_bytes(orphan));
    while Path::new(&dir).exists() {
        rustix::thread::sched_yield();
    }
    Ok(AssertResult::pass())
}

/// Runs `child` in a process that ends with it, and returns its pid.
fn fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the child only makes system calls before it ends.
    match unsafe { libc::fork() } {
        0 => {
            child();
            // SAFETY: ends the child without running anything of its parent's.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

#[ktstr_test(cores = 1, post_vm = output_is_in_the_log)]
fn output_reaches_the_host(_: &Ctx) -> Result<AssertResult> {
    println!("to standard output");
    eprintln!("to standard error");
    print!("and without a line break");
    Ok(AssertResult::pass())
}

fn output_is_in_the_log(result: &VmResult) -> Result<()> {
    for text in ["to standard output\n", "to standard error\n", "and without a line break"] {
        ensure!(result.log.contains(text), "{text:?} is missing in {:?}", result.log);
    }
    Ok(())
}

/// The output is larger than all buffers on its way.
#[ktstr_test(cores = 1, duration_s = 60, post_vm = all_output_arrived)]
fn output_larger_than_all_buffers_arrives_complete(_: &Ctx) -> Result<AssertResult> {
    for number in 0..LINES {
        println!("line {number:>90}");
    }
    Ok(AssertResult::pass())
}

/// A body that floods its output must not starve its workers, so its reader has no priority over them.
#[ktstr_test(cores = 1)]
fn output_is_read_by_an_ordinary_task(_: &Ctx) -> Result<AssertResult> {
    let mut readers = 0;
    for task in fs::read_dir("/proc/1/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim_end() == "ktstr-output" {
            let stat = fs::read_to_string(task.join("stat"))?;
            // proc_pid_stat(5): `policy` is field 41, the first after the name is field 3.
            let fields = stat.rsplit_once(") ").context("no name in stat")?.1;
            let policy = fields.split(' ').nth(41 - 3).context("no policy in stat")?;
            ensure!(policy == "0", "the reader of the output has policy {policy}");
            readers += 1;
        }
    }
    ensure!(readers == 1, "{readers} tasks of PID 1 read the output");
    Ok(AssertResult::pass())
}

const LINES: usize = 20_000;

fn all_output_arrived(result: &VmResult) -> Result<()> {
    let mut lines = result.log.lines();
    for number in 0..LINES {
        let line = lines.next().with_context(|| format!("the log ends at line {number}"))?;
        ensure!(line == format!("line {number:>90}"), "line {number} is {line:?}");
    }
    ensure!(lines.next().is_none());
    Ok(())
}

#[ktstr_test(cores = 1, fresh, kaslr = false, post_vm = kaslr_was_off)]
fn kaslr_false_disables_kaslr(_: &Ctx) -> Result<AssertResult> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    ensure!(cmdline.split(' ').any(|word| word == "nokaslr"), "{cmdline}");
    Ok(AssertResult::pass())
}

/// Returns the machine of a run that was booted.
fn machine(result: &VmResult) -> Result<&MachineFacts> {
    result.machine.as_ref().context("the run had no machine")
}

fn kaslr_was_off(result: &VmResult) -> Result<()> {
    let cmdline = &machine(result)?.cmdline;
    ensure!(cmdline.contains(" nokaslr "), "{cmdline}");
    Ok(())
}

#[ktstr_test(cores = 1, fresh, post_vm = pti_is_disabled_if_emulated)]
fn page_table_isolation_is_disabled_if_emulated(_: &Ctx) -> Result<AssertResult> {
    let meltdown = fs::read_to_string(MELTDOWN)?;
    ensure!(!has_pti_off()? || meltdown == "Vulnerable\n", "{meltdown}");
    Ok(AssertResult::pass())
}

fn pti_is_disabled_if_emulated(result: &VmResult) -> Result<()> {
    let machine = machine(result)?;
    ensure!(machine.pti_disabled == (machine.engine.timing == Timing::Emulated), "{machine:?}");
    ensure!(machine.pti_disabled == machine.cmdline.contains(" pti=off "), "{machine:?}");
    Ok(())
}

#[ktstr_test(cores = 1, fresh, mitigations = true, post_vm = pti_is_not_disabled)]
fn mitigations_keep_page_table_isolation(_: &Ctx) -> Result<AssertResult> {
    let meltdown = fs::read_to_string(MELTDOWN)?;
    ensure!(!has_pti_off()? && meltdown != "Vulnerable\n", "{meltdown}");
    Ok(AssertResult::pass())
}

fn pti_is_not_disabled(result: &VmResult) -> Result<()> {
    ensure!(!machine(result)?.pti_disabled, "{:?}", result.machine);
    Ok(())
}

#[ktstr_test(cores = 1, fresh, post_vm = kernel_took_the_rate)]
fn emulated_guests_have_the_rate_of_the_tsc(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn kernel_took_the_rate(result: &VmResult) -> Result<()> {
    let console = &result.console;
    let given = console.split_once(" tsc_early_khz=").and_then(|(_, rest)| rest.split_once(' '));
    ensure!(given.is_none() || machine(result)?.engine.timing == Timing::Emulated, "{console}");
    // It is not passed either if the host's rate cannot be measured.
    let Some((khz, _)) = given else { return Ok(()) };
    let (mhz, fraction) = khz.split_at_checked(khz.len() - 3).context("less than 1 MHz")?;
    ensure!(console.contains(&format!("tsc: Detected {mhz}.{fraction} MHz")), "{console}");
    Ok(())
}

const MELTDOWN: &str = "/sys/devices/system/cpu/vulnerabilities/meltdown";

fn has_pti_off() -> Result<bool> {
    Ok(fs::read_to_string("/proc/cmdline")?.split(' ').any(|word| word == "pti=off"))
}

/// A channel that the body has closed must not keep PID 1 busy, which has priority over all other tasks.
#[ktstr_test(cores = 1)]
fn pid_1_does_not_spin_on_a_closed_channel(_: &Ctx) -> Result<AssertResult> {
    std::panic::set_hook(Box::new(|_| ()));
    let ticks = || -> Result<u64> {
        let stat = fs::read_to_string("/proc/1/stat")?;
        let fields = stat.rsplit_once(") ").context("malformed stat")?.1;
        // utime and stime, proc_pid_stat(5) fields 14 and 15, in hundredths of a second.
        fields.split(' ').skip(11).take(2).map(|field| Ok(field.parse::<u64>()?)).sum()
    };
    let (before, began) = (ticks()?, std::time::Instant::now());
    while began.elapsed() < std::time::Duration::from_secs(1) {
        std::hint::spin_loop();
    }
    let used = ticks()? - before;
    ensure!(used < 50, "PID 1 took {used} of the last 100 ticks");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, post_vm = last_panic_is_reported_beside_the_abort, expect_err)]
fn body_aborts_after_a_caught_panic(_: &Ctx) -> Result<AssertResult> {
    ensure!(std::panic::catch_unwind(|| panic!("harmless")).is_err());
    std::process::abort()
}

fn last_panic_is_reported_beside_the_abort(result: &VmResult) -> Result<()> {
    let RunEnd::BodyExited { kind: ExitKind::Signaled(libc::SIGABRT), last_panic } = &result.end
    else {
        bail!("{}", result.end)
    };
    ensure!(last_panic.as_ref().is_some_and(|panic| panic.starts_with("harmless")));
    Ok(())
}

/// A process that the body leaves running may write for ever; the verdict does not wait for it.
#[ktstr_test(cores = 2, duration_s = 60)]
fn verdict_does_not_wait_for_an_orphan_that_writes(_: &Ctx) -> Result<AssertResult> {
    fork(|| {
        loop {
            let _ = rustix::io::write(rustix::stdio::stdout(), &[b'x'; 512]);
        }
    });
    Ok(AssertResult::pass())
}

/// A scheduler test that changes its own process has to change the thread that runs its body.
#[ktstr_test(cores = 2)]
fn body_is_the_main_thread_of_its_process(_: &Ctx) -> Result<AssertResult> {
    ensure!(rustix::thread::gettid() == rustix::process::getpid());
    let tasks = fs::read_dir("/proc/self/task")?.count();
    ensure!(tasks == 1, "the process has {tasks} threads");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, env = ["LD_PRELOAD=/nothing/here.so"], post_vm = log_has_only_the_loader)]
fn loader_takes_the_variables_of_the_body(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

/// A static program has no loader. In both cases, libtest's output is missing.
fn log_has_only_the_loader(result: &VmResult) -> Result<()> {
    let log = &result.log;
    ensure!(log.lines().all(|line| line.starts_with("ERROR: ld.so: object '/nothing/")), "{log}");
    Ok(())
}

#[ktstr_test(cores = 1, expect_err, post_vm = log_names_the_test)]
fn panic_names_its_test(_: &Ctx) -> Result<AssertResult> {
    panic!("here")
}

fn log_names_the_test(result: &VmResult) -> Result<()> {
    ensure!(result.log.contains("thread 'panic_names_its_test'"), "{}", result.log);
    Ok(())
}

#[ktstr_test(host_only)]
fn host_only_body_runs_on_the_host(ctx: &Ctx) -> Result<AssertResult> {
    // In a guest, this program is PID 1, too.
    let pid_1 = std::fs::read_link("/proc/1/exe").ok();
    ensure!(pid_1 != Some(std::env::current_exe()?), "this is a guest");
    ensure!(!ctx.topo.cpus.is_empty());
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn verdict_does_not_depend_on_a_profile(_: &Ctx) -> Result<AssertResult> {
    // PID 1 opens the profile of an instrumented body at this path, which fails for a link to itself.
    std::os::unix::fs::symlink("body.profraw", "/ktstr/body.profraw")?;
    Ok(AssertResult::pass())
}
