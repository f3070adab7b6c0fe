//! Sessions with guests that are saved and forked.

use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::provision::Cache;
use crate::runner::template::Template;

/// Boots and restores scripted machines.
#[derive(Debug, Default)]
struct ForkEngine {
    boots: Mutex<VecDeque<ScriptedVm>>,
    forks: Mutex<VecDeque<Result<ScriptedVm, Error>>>,
}

impl Engine for ForkEngine {
    fn describe(&self) -> String {
        "scripts".to_owned()
    }

    fn timing(&self) -> ktstr_core::machine::Timing {
        ktstr_core::machine::Timing::Native
    }

    fn boot(&self, _: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(self.boots.lock().unwrap().pop_front().expect("it is to be booted")))
    }

    fn restore(&self, _: &VmConfig, directory: &Path) -> Result<Box<dyn Vm>, Error> {
        assert_eq!(std::fs::read_to_string(directory.join("memory")).unwrap(), "its memory");
        let vm = self.forks.lock().unwrap().pop_front().expect("it is to be restored")?;
        Ok(Box::new(vm))
    }
}

/// A test with an engine and a cache of its own.
struct Bench {
    _dir: tempfile::TempDir,
    cache: Cache,
    template: Template,
    engine: ForkEngine,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let template = Template::new(cache.clone(), "a machine".to_owned(), u64::MAX);
        Self { _dir: dir, cache, template, engine: ForkEngine::default() }
    }

    /// Lets the next guest that boots do this after a line of the console.
    fn boots(&self, save: OnSave, actions: impl IntoIterator<Item = Action>) {
        let line = Action::Console("[    0.1] Linux\n");
        let vm = ScriptedVm { save, ..ScriptedVm::new([line].into_iter().chain(actions)) };
        self.engine.boots.lock().unwrap().push_back(vm);
    }

    /// Lets the next guest that is restored do this. Returns what it will have received.
    fn forks(&self, actions: impl IntoIterator<Item = Action>) -> Sent {
        let mut vm = ScriptedVm::new(actions);
        // The frame of `Hello` was sent before the save.
        vm.encoder.encode(&hello()).unwrap();
        let sent = vm.sent.clone();
        self.engine.forks.lock().unwrap().push_back(Ok(vm));
        sent
    }

    fn fails_to_restore(&self, error: Error) {
        self.engine.forks.lock().unwrap().push_back(Err(error));
    }

    fn run(&self) -> RunOutcome {
        run_on(&self.engine, self.template.plan().0, Duration::from_secs(10))
    }

    /// Boots and saves a guest.
    fn saved() -> Self {
        let bench = Self::new();
        bench.boots(write_memory, [greeting(), body(), passing()]);
        let outcome = bench.run();
        assert!(matches!(outcome.start, Start::Booted { saved_in: Some(_) }), "{outcome:?}");
        bench
    }
}

fn write_memory(directory: &Path) -> Result<(), Error> {
    std::fs::write(directory.join("memory"), "its memory").unwrap();
    Ok(())
}

fn greeting() -> Action {
    Action::Send(vec![hello()])
}

fn body() -> Action {
    Action::Send(vec![GuestMessage::BodyStarted { at_ns: 3 }])
}

fn passing() -> Action {
    Action::Send(vec![pass()])
}

fn is_pass(outcome: &RunOutcome) -> bool {
    outcome.end == RunEnd::Verdict(AssertResult::pass())
}

/// Returns what PID 1 has received for a restored guest.
fn restored(sent: &Sent) -> Option<Restored> {
    let mut decoder = Decoder::default();
    decoder.push(&sent.lock().unwrap());
    match decoder.next().unwrap() {
        Some(Request::Run(request)) => request.restored,
        other => panic!("{other:?}"),
    }
}

#[test]
fn run_saves_a_guest_and_forks_others() {
    let bench = Bench::new();
    // The guest is paused after its greeting: bytes that are under way then are in every console, once.
    let late = || Action::Console("[    0.2] late\n");
    bench.boots(write_memory, [greeting(), late(), body(), passing()]);
    let outcome = bench.run();
    assert!(is_pass(&outcome), "{outcome:?}");
    assert!(matches!(outcome.start, Start::Booted { saved_in: Some(_) }));
    assert_eq!(outcome.console, "[    0.1] Linux\n[    0.2] late\n");
    let mut all_entropy = Vec::new();
    for uses in 0..3 {
        let sent = bench.forks([body(), Action::Console("[    0.3] fork\n"), passing()]);
        let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let outcome = bench.run();
        assert!(is_pass(&outcome), "{outcome:?}");
        assert!(
            matches!(outcome.start, Start::Forked { uses: found, .. } if found == uses),
            "{outcome:?}"
        );
        assert_eq!(outcome.console, "[    0.1] Linux\n[    0.2] late\n[    0.3] fork\n");
        let Timings { boot, restore, ready, uptime_at_init, slowness, .. } = outcome.timings;
        assert!(boot.is_none() && restore.is_some() && ready.is_some() && slowness >= 1.0);
        assert_eq!(uptime_at_init, Some(Duration::from_nanos(1)));
        let Restored { wall_clock, entropy } = restored(&sent).expect("it was restored");
        assert!(wall_clock >= before);
        assert_eq!(entropy.len(), Restored::ENTROPY);
        assert!(!all_entropy.contains(&entropy), "two guests have the same random numbers");
        all_entropy.push(entropy);
    }
}

#[test]
fn run_does_not_tell_a_booted_guest_that_it_was_restored() {
    let bench = Bench::new();
    bench.boots(write_memory, [greeting(), body(), passing()]);
    let sent = bench.engine.boots.lock().unwrap()[0].sent.clone();
    assert!(is_pass(&bench.run()));
    assert_eq!(restored(&sent), None);
}

#[test]
fn run_that_cannot_be_saved_continues() {
    for save in [(|_| Err(Error::Unsupported { operation: "be saved" })) as OnSave, |directory| {
        write_memory(directory)?;
        let (path, source) = (directory.to_owned(), rustix::io::Errno::NOSPC.into());
        Err(Error::File { operation: "write", path, source })
    }] {
        let bench = Bench::new();
        bench.boots(save, [greeting(), body(), passing()]);
        let outcome = bench.run();
        assert!(is_pass(&outcome), "{outcome:?}");
        assert_eq!(outcome.start, Start::Booted { saved_in: None });
        assert_eq!(std::fs::read_dir(bench.cache.entry("tmp")).unwrap().count(), 0);
        // The next test boots, too.
        bench.boots(write_memory, [greeting(), body(), passing()]);
        assert!(matches!(bench.run().start, Start::Booted { saved_in: Some(_) }));
    }
}

#[test]
fn run_does_not_save_a_guest_that_does_not_wait() {
    let panic = Action::Console("[    0.200000] Kernel panic - not syncing: no timer\n");
    let (partial, gone) = (Action::Partial(pass()), Action::Exit(ExitReason::Reset));
    for (actions, passes) in [
        (vec![greeting(), panic, body(), passing()], true),
        (vec![greeting(), partial, Action::Stall(Duration::ZERO), gone], false),
        // It has begun a body on its own account.
        (
            vec![Action::Send(vec![hello(), GuestMessage::BodyStarted { at_ns: 3 }]), passing()],
            true,
        ),
    ] {
        let bench = Bench::new();
        bench.boots(|_| panic!("it is saved"), actions);
        let outcome = run_on(&bench.engine, bench.template.plan().0, Duration::from_secs(1));
        assert_eq!(is_pass(&outcome), passes, "{outcome:?}");
        assert_eq!(outcome.start, Start::Booted { saved_in: None });
    }
}

#[test]
fn run_that_ends_before_the_save_is_not_saved() {
    let bench = Bench::new();
    let exit = Action::Exit(ExitReason::Reset);
    bench.boots(|_| panic!("it is saved"), [greeting(), exit]);
    let outcome = bench.run();
    assert!(matches!(outcome.end, RunEnd::InitFailed(_)), "{outcome:?}");
}

#[test]
fn run_replaces_a_damaged_template() {
    let path = || "memory".into();
    for (error, is_replaced) in [
        (Error::Damaged { path: path(), reason: "is truncated".to_owned() }, true),
        (Error::OtherMachine { dir: path(), difference: "its CPU".to_owned() }, true),
        (Error::Migrate { operation: "restore", reason: "no memory".to_owned() }, false),
    ] {
        let bench = Bench::saved();
        bench.fails_to_restore(error);
        bench.boots(write_memory, [greeting(), body(), passing()]);
        let outcome = bench.run();
        assert!(is_pass(&outcome), "{outcome:?}");
        let Start::Booted { saved_in } = outcome.start else { panic!("{outcome:?}") };
        assert_eq!(saved_in.is_some(), is_replaced);
        bench.forks([body(), passing()]);
        assert!(matches!(bench.run().start, Start::Forked { uses: 0, .. }));
    }
}

#[test]
fn run_continues_the_numbers_of_a_forked_guest() {
    let bench = Bench::saved();
    bench.engine.forks.lock().unwrap().push_back(Ok(ScriptedVm::new([body(), passing()])));
    let end = bench.run().end;
    let want = RunEnd::WireBroken("received frame 0, expected frame 1".to_owned());
    assert_eq!(end, want);
}

#[test]
fn run_checks_the_clock_of_a_forked_guest() {
    let bench = Bench::saved();
    let hour_ns = 3_600_000_000_000;
    bench.forks([Action::Send(vec![GuestMessage::BodyStarted { at_ns: hour_ns }]), passing()]);
    let end = bench.run().end;
    assert!(matches!(end, RunEnd::WrongClock { span: ClockSpan::Boot, .. }), "{end:?}");
}
