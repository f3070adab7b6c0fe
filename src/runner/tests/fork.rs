//! Saves a guest that has booted and restores it: each copy carries out a request of its own.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ktstr::prelude::*;
use ktstr_core::machine::MachineSpec;
use ktstr_core::wire::{Decoder, Encoder, End, GuestMessage, Request, Restored, RunRequest};
use ktstr_vmm::{Error, Event, ExitReason, Vm};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};

use super::super::Prepared;

/// The environment variable with the text that a copy has in its memory.
const MARK: &str = "KTSTR_FORK_MARK";
/// The environment variable with what the body does at its end.
const THEN: &str = "KTSTR_FORK_THEN";

/// The timeout of any step, on the slowest host.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Parts of messages of a kernel that noticed that its clock jumped or its CPUs were stopped.
const COMPLAINTS: [&str; 8] =
    ["lockup", "unstable", "skew", "long readout", "stall", "hung", "blocked for", "time warp"];

#[ktstr_test(numa_nodes = 2, llcs = 2, cores = 1)]
fn copied(_: &Ctx) -> Result<AssertResult> {
    let mark = std::env::var(MARK).unwrap_or_default();
    let monotonic = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
    let mut facts = format!("mark {mark}\nmonotonic {}\n", monotonic.as_nanos());
    if !mark.is_empty() {
        writeln!(facts, "gpa {}", physical_address(mark.as_ptr() as u64)?)?;
    }
    println!("{facts}ready");
    match std::env::var(THEN).as_deref() {
        Ok("crash") => {
            // Output that PID 1 has not yet sent is lost in the crash. The console prints at once.
            for fact in facts.lines() {
                fs::write("/dev/kmsg", fact)?;
            }
            fs::write("/proc/sysrq-trigger", "c")?;
        }
        Ok("stay") => loop {
            std::thread::park();
        },
        _ => {}
    }
    Ok(AssertResult::pass())
}

/// Writes what copies of a guest must not have in common, and what they and a booted guest must.
#[ktstr_test(cores = 1)]
fn distinct(_: &Ctx) -> Result<AssertResult> {
    let mut random = [0_u8; 16];
    getrandom(&mut random, GetRandomFlags::empty())?;
    println!("random {random:?}");
    println!("order {:?}", HashSet::<u8>::from_iter(0..64));
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH)?;
    println!("wall-clock {}", since_epoch.as_nanos());
    let maps = fs::read_to_string("/proc/self/maps")?;
    let own = maps.lines().filter(|line| !line.ends_with("[vsyscall]"));
    let addresses: Vec<_> = own.filter_map(|line| line.split('-').next()).collect();
    println!("addresses {}", addresses.join(" "));
    println!("environment {:?}", environment()?);
    println!("ready");
    Ok(AssertResult::pass())
}

/// Returns what a process can see of its own state, except for what is random or has a number of its own.
fn environment() -> Result<Vec<String>> {
    let mut facts: Vec<_> = std::env::vars_os().map(|variable| format!("{variable:?}")).collect();
    facts.sort();
    for file in ["cmdline", "comm", "limits", "cgroup", "personality", "oom_score_adj"] {
        facts.push(fs::read_to_string(Path::new("/proc/self").join(file))?);
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let names = "Umask PPid Threads SigBlk SigIgn SigCgt CapEff NoNewPrivs Seccomp Cpus_allowed";
    for name in names.split(' ') {
        let line = status.lines().find(|line| line.split(':').next() == Some(name));
        facts.push(line.with_context(|| format!("no {name} in {status}"))?.to_owned());
    }
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit_once(") ").context("no name in stat")?.1.split(' ').collect();
    // proc_pid_stat(5): priority, nice, rt_priority, policy; the first after the name is field 3.
    facts.extend([18, 19, 40, 41].map(|number| fields[number - 3].to_owned()));
    let pid = rustix::process::getpid();
    facts.push(format!("leads its session: {}", rustix::process::getsid(None)? == pid));
    facts.push(std::env::current_dir()?.display().to_string());
    for number in 0..100 {
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        let flags = info.lines().find(|line| line.starts_with("flags:")).context("no flags")?;
        let target = target.display().to_string();
        // Pipes and sockets have numbers.
        facts.push(format!("{number} {} {flags}", target.split('[').next().unwrap_or_default()));
    }
    Ok(facts)
}

/// Returns the guest-physical address of a byte of this process.
///
/// Source: Linux 6.12, admin-guide/mm/pagemap.rst.
fn physical_address(address: u64) -> Result<u64> {
    const PAGE: u64 = 4096;
    let mut entry = [0; 8];
    fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE * 8)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry >> 63 == 1, "page {address:#x} is not in memory");
    Ok((entry & ((1 << 55) - 1)) * PAGE + address % PAGE)
}

/// A guest that carries out one request.
struct Guest {
    vm: Box<dyn Vm>,
    decoder: Decoder,
    is_restored: bool,
    text: String,
    console: String,
    has_greeted: bool,
    end: Option<End>,
    exited: Option<ExitReason>,
}

impl Guest {
    fn new(vm: Box<dyn Vm>, decoder: Decoder, is_restored: bool) -> Self {
        let (text, console) = (String::new(), String::new());
        Self {
            vm,
            decoder,
            is_restored,
            text,
            console,
            has_greeted: false,
            end: None,
            exited: None,
        }
    }

    /// Requests `copied`.
    fn request(&mut self, spec: &MachineSpec, mark: &str, then: &str) {
        let test = super::test_name(concat!(module_path!(), "::copied"));
        let env = vec![(MARK.into(), mark.into()), (THEN.into(), then.into())];
        let restored = self.is_restored.then(restored);
        self.send(RunRequest { test, machine: spec.clone(), env, restored });
    }

    /// Sends the request, the first that the guest receives.
    fn send(&mut self, request: RunRequest) {
        let request = Encoder::default().encode(&Request::Run(request)).unwrap();
        self.vm.send(0, &request).unwrap();
    }

    /// Handles the next event. Returns whether there was one.
    fn step(&mut self, deadline: Instant) -> bool {
        match self.vm.next_event(deadline).unwrap() {
            Event::Console(bytes) => self.console += &String::from_utf8_lossy(&bytes),
            Event::Port { bytes, .. } => self.decoder.push(&bytes),
            Event::Exited(reason) => self.exited = Some(reason),
            Event::Deadline => return false,
        }
        while let Some(message) = self.decoder.next().unwrap() {
            match message {
                GuestMessage::Hello(_) => self.has_greeted = true,
                GuestMessage::Log { bytes, .. } => self.text += &String::from_utf8_lossy(&bytes),
                GuestMessage::End(end) => self.end = Some(end),
                _ => {}
            }
        }
        true
    }

    fn run_until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_done(self) {
            let is_in_time = self.step(deadline);
            assert!(is_in_time, "not {what} in time: {}\n{}", self.text, self.console);
        }
    }

    /// Waits until the body has printed all that it prints.
    fn run_until_ready(&mut self) {
        self.run_until("ready", |guest| guest.text.contains("ready\n") || guest.exited.is_some());
    }

    fn value(&self, name: &str) -> &str {
        let printed = self.console.lines().filter_map(|line| Some(line.split_once("] ")?.1));
        let mut lines = self.text.lines().chain(printed);
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}: {}\n{}", self.text, self.console))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.value("monotonic").parse().unwrap())
    }

    /// Reads the text at the place of the mark.
    fn mark_in_memory(&mut self) -> Result<String, Error> {
        let gpa = self.value("gpa").parse().unwrap();
        let mut bytes = vec![0; self.value("mark").len()];
        self.vm.read_memory(gpa, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn assert_no_complaints(&self) {
        let console = self.console.to_lowercase();
        for complaint in COMPLAINTS {
            assert!(!console.contains(complaint), "{console}");
        }
    }
}

/// Returns what a copy needs now.
fn restored() -> Restored {
    let mut entropy = vec![0; Restored::ENTROPY];
    getrandom(&mut *entropy, GetRandomFlags::empty()).unwrap();
    Restored { wall_clock: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(), entropy }
}

/// A guest that was booted and then saved while it waited for a request.
struct Template {
    prepared: Prepared,
    dir: tempfile::TempDir,
    guest: Guest,
}

impl Template {
    /// Boots and saves a guest.
    fn new() -> Self {
        let prepared = super::prepare(concat!(module_path!(), "::copied"));
        let vm = prepared.choice.engine.boot(&prepared.config).unwrap();
        let mut guest = Guest::new(vm, Decoder::default(), false);
        guest.run_until("booted", |guest| guest.has_greeted || guest.exited.is_some());
        assert_eq!(guest.exited, None, "{}", guest.console);
        // Read what it has sent, so that its copies continue the stream from here.
        guest.vm.pause().unwrap();
        while guest.step(Instant::now()) {}
        // A boot can complain of an emulated CPU; what is checked is the time from here on.
        let booted = std::mem::take(&mut guest.console);
        eprintln!("{booted}");
        let dir = tempfile::tempdir().unwrap();
        guest.vm.save(dir.path()).unwrap();
        guest.vm.resume().unwrap();
        Self { prepared, dir, guest }
    }

    fn restore(&self) -> Guest {
        self.restore_with(&self.guest.decoder)
    }

    fn restore_with(&self, decoder: &Decoder) -> Guest {
        let engine = &self.prepared.choice.engine;
        let vm = engine.restore(&self.prepared.config, self.dir.path()).unwrap();
        Guest::new(vm, decoder.clone(), true)
    }
}

#[test]
fn restored_guests_carry_out_their_own_requests() {
    let mut template = Template::new();
    let saved = template.guest.decoder.clone();
    let spec = template.prepared.spec.clone();
    let began = Instant::now();

    // The saved guest continues, and what it writes is not in its copies.
    template.guest.request(&spec, "original", "");
    template.guest.run_until("ended", |guest| guest.end.is_some());
    assert!(matches!(&template.guest.end, Some(End::Verdict(verdict)) if verdict.is_pass()));
    template.guest.vm.stop().unwrap();
    template.guest.assert_no_complaints();
    let original = template.guest.monotonic();

    // One after another.
    for mark in ["first copy", "second copy"] {
        let mut copy = template.restore_with(&saved);
        let restored = Instant::now();
        copy.request(&spec, mark, "stay");
        copy.run_until_ready();
        assert_eq!(copy.value("mark"), mark);
        // Its clock has counted the time since it was restored, not since the save.
        let limit = original + restored.elapsed();
        let clock = copy.monotonic();
        assert!(clock < limit, "{clock:?} after {original:?} and {:?}", restored.elapsed());
        assert!(clock + began.elapsed() > original, "{clock:?} after {original:?}");

        copy.vm.pause().unwrap();
        assert_eq!(copy.mark_in_memory().unwrap(), mark);
        copy.vm.resume().unwrap();
        let delays = copy.vm.run_delays().unwrap();
        assert_eq!(delays.len(), 2);
        let again = copy.vm.save(tempfile::tempdir().unwrap().path());
        copy.vm.stop().unwrap();
        let after = copy.mark_in_memory();
        if template.prepared.choice.is_emulated() {
            assert!(matches!(again, Err(Error::Unsupported { .. })), "{again:?}");
            assert!(matches!(after, Err(Error::Gone { .. })), "{after:?}");
        } else {
            again.unwrap();
            assert_eq!(after.unwrap(), mark);
        }
        copy.assert_no_complaints();
    }

    // At the same time, without the directory.
    let marks = ["copy A", "copy B", "copy C"];
    let mut copies = marks.map(|_| template.restore_with(&saved));
    drop(template);
    for (copy, mark) in copies.iter_mut().zip(marks) {
        copy.request(&spec, mark, "stay");
    }
    for (copy, mark) in copies.iter_mut().zip(marks) {
        copy.run_until_ready();
        assert_eq!(copy.mark_in_memory().unwrap(), mark);
        copy.assert_no_complaints();
    }
}

#[test]
fn restored_guest_is_readable_after_its_end() {
    let template = Template::new();
    let mut copy = template.restore();
    copy.request(&template.prepared.spec, "last words", "crash");
    copy.run_until("exited", |guest| guest.exited.is_some());
    assert_eq!(copy.exited, Some(ExitReason::Reset), "{}", copy.console);
    assert!(copy.console.contains("sysrq"), "{}", copy.console);
    assert_eq!(copy.mark_in_memory().unwrap(), "last words");
    copy.vm.stop().unwrap();
    if template.prepared.choice.is_emulated() {
        assert!(matches!(copy.mark_in_memory(), Err(Error::Gone { .. })));
    }
    let end = copy.vm.next_event(Instant::now()).unwrap();
    assert_eq!(end, Event::Exited(ExitReason::Reset));

    // Of another machine, or damaged, it is not restored.
    let engine = &template.prepared.choice.engine;
    let mut other = template.prepared.config.clone();
    other.cmdline.push_str(" quiet");
    let error = engine.restore(&other, template.dir.path()).unwrap_err();
    assert!(matches!(error, Error::OtherMachine { .. }), "{error}");
    // Of QEMU, the memory of each node; of KVM, that of the machine.
    let is_emulated = template.prepared.choice.is_emulated();
    truncate(&template.dir.path().join(if is_emulated { "memory1" } else { "memory" }));
    let error = engine.restore(&template.prepared.config, template.dir.path()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn restored_guests_share_nothing_random_and_the_wall_clock_is_right() {
    let mut template = Template::new();
    let test = super::test_name(concat!(module_path!(), "::distinct"));
    let machine = template.prepared.spec.clone();
    let request = |restored| RunRequest {
        test: test.clone(),
        machine: machine.clone(),
        env: vec![(MARK.into(), "set".into())],
        restored,
    };
    let mut copies = [template.restore(), template.restore()];
    let mut unseeded = template.restore();
    template.guest.send(request(None));
    template.guest.run_until_ready();
    for copy in &mut copies {
        let sent = Instant::now();
        let restored = restored();
        let earliest = restored.wall_clock;
        copy.send(request(Some(restored)));
        copy.run_until_ready();
        let clock = Duration::from_nanos(copy.value("wall-clock").parse().unwrap());
        let latest = earliest + sent.elapsed() + Duration::from_secs(1);
        assert!((earliest..latest).contains(&clock), "{earliest:?} {clock:?} {latest:?}");
        // In all else, the body cannot see that its guest was restored.
        assert_eq!(copy.value("environment"), template.guest.value("environment"));
        copy.assert_no_complaints();
    }
    let [first, second] = copies;
    for name in ["random", "order"] {
        assert_ne!(first.value(name), second.value(name));
    }
    for (one, other) in [(&first, &second), (&template.guest, &first), (&template.guest, &second)] {
        let addresses: HashSet<_> = one.value("addresses").split(' ').collect();
        let shared: Vec<_> =
            other.value("addresses").split(' ').filter(|found| addresses.contains(found)).collect();
        assert_eq!(shared, [""; 0], "{}\n{}", one.text, other.text);
    }

    unseeded.send(request(Some(Restored { entropy: vec![1; 3], ..restored() })));
    unseeded.run_until("ended", |guest| guest.end.is_some());
    let Some(End::Refused(why)) = &unseeded.end else { panic!("{:?}", unseeded.end) };
    assert_eq!(why, "the guest cannot be restored: the host sent 3 bytes of entropy");
}

fn truncate(path: &Path) {
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, owner).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
}
