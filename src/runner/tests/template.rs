//! Guests that are forked from one that was booted, as tests are. Each test boots a VM.

use std::thread;

use ktstr_core::record::Start;

use super::super::template::Template;
use super::*;
use crate::provision::Cache;

#[ktstr_test(cores = 1, ignore = "of guests that are forked")]
fn forked(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

/// Returns the machine of [`forked`] with a template in the cache `dir`.
fn machine(dir: &Path) -> Prepared {
    let mut prepared = super::prepare(concat!(module_path!(), "::forked"));
    prepared.template =
        Some(Template::new(Cache::at(dir.join("cache")), "a machine".to_owned(), u64::MAX));
    prepared
}

fn run_forked(prepared: &Prepared) -> RunOutcome {
    let outcome = super::outcome(prepared, concat!(module_path!(), "::forked"));
    assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()), "{}", outcome.console);
    outcome
}

fn is_fork(outcome: &RunOutcome) -> bool {
    matches!(outcome.start, Start::Forked { .. })
}

/// Identifies the boot of a guest: in nanoseconds, no two take as long.
fn identity(outcome: &RunOutcome) -> Duration {
    outcome.timings.uptime_at_init.unwrap()
}

/// The line of the console that the kernel prints when it starts PID 1.
const RUN_INIT: &str = "Run /init as init process";

#[test]
fn run_forks_guests_one_after_another_and_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // At once, before there is a template: one boots and is saved, the others wait for that.
    let outcomes = thread::scope(|scope| {
        let runs = [(); 4].map(|()| scope.spawn(|| run_forked(&machine(dir.path()))));
        runs.map(|run| run.join().unwrap())
    });
    let (forks, boots): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| is_fork(outcome));
    let [booted] = boots[..] else { panic!("{} boots", boots.len()) };
    assert!(matches!(booted.start, Start::Booted { saved_in: Some(_) }), "{:?}", booted.start);
    assert!(booted.timings.boot.is_some() && booted.timings.restore.is_none());
    // One after another.
    let later = [(); 2].map(|()| run_forked(&machine(dir.path())));
    let mut all_uses: Vec<_> = forks
        .iter()
        .copied()
        .chain(&later)
        .map(|outcome| {
            let Start::Forked { uses, .. } = outcome.start else { panic!("{:?}", outcome.start) };
            assert!(outcome.timings.boot.is_none() && outcome.timings.restore.is_some());
            // All of the console, the part from before the fork included.
            assert_eq!(outcome.console.matches(RUN_INIT).count(), 1, "{}", outcome.console);
            assert!(outcome.console.contains("Linux version"), "{}", outcome.console);
            assert_eq!(identity(outcome), identity(booted));
            uses
        })
        .collect();
    all_uses.sort_unstable();
    // Guests that are forked at once may count one another or not.
    assert_eq!((all_uses.len(), all_uses[3], all_uses[4]), (5, 3, 4), "{all_uses:?}");
}

#[test]
fn run_boots_when_the_machine_of_a_template_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let booted = run_forked(&machine(dir.path()));
    assert!(matches!(booted.start, Start::Booted { saved_in: Some(_) }));
    let templates = dir.path().join("cache/templates");
    let template = fs::read_dir(&templates).unwrap().next().unwrap().unwrap().path();
    for file in fs::read_dir(template.join("machine")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let again = run_forked(&machine(dir.path()));
    assert!(matches!(again.start, Start::Booted { saved_in: Some(_) }), "{:?}", again.start);
    assert_ne!(identity(&again), identity(&booted));
    assert!(is_fork(&run_forked(&machine(dir.path()))));
}

#[ktstr_test(cores = 1, post_vm = refuses_forks, ignore = "fails in a forked guest")]
fn fails_in_a_fork(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn refuses_forks(record: &RunRecord) -> Result<()> {
    ensure!(matches!(record.start, Some(Start::Booted { .. })), "it is a fork");
    Ok(())
}

#[test]
fn repeat_decides_in_a_booted_guest() {
    let entry = registry::find(&test_name(concat!(module_path!(), "::fails_in_a_fork"))).unwrap();
    let program = Program::this_test_binary;
    let mut record = super::super::record::begin(entry);
    // Until the template of the user's cache exists.
    for _ in 0..3 {
        record = super::super::record::begin(entry);
        super::super::fill(entry, program, Ok(true), &mut record);
        if matches!(record.start, Some(Start::Forked { .. })) {
            break;
        }
    }
    assert_eq!(record.hook_errors.len(), 1, "{record:?}");
    let record = super::super::repeat(entry, program, record);
    assert_eq!(crate::report::judge(&record), Ok(crate::report::Passed::AsExpected));
    assert!(matches!(record.start, Some(Start::Booted { saved_in: None })), "{:?}", record.start);
    let forked = record.forked.expect("both are recorded");
    assert!(matches!(forked.start, Some(Start::Forked { .. })));
    assert_eq!(forked.hook_errors[0].message, "it is a fork");
}
