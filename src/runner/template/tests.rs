//! Templates of a machine that does not exist.

use std::io::{BufRead, BufReader, Seek};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::thread;

use super::*;

/// Names the cache of [`saver_process`].
const CACHE: &str = "KTSTR_TEST_TEMPLATE_CACHE";

const MINUTE: Duration = Duration::from_secs(60);

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path().join("cache"));
    (dir, cache)
}

fn template(cache: &Cache) -> Template {
    Template::new(cache.clone(), "a machine".to_owned(), u64::MAX)
}

fn boot_state() -> BootState {
    let hello = Hello { release: "6.12".to_owned(), init_ns: 1, ready_ns: 2 };
    BootState { ran: MINUTE, next_frame: 1, hello, console: "Linux\n".to_owned() }
}

fn write_machine(directory: &Path) -> Result<(), Error> {
    fs::write(directory.join("memory"), "its memory").unwrap();
    Ok(())
}

fn plan(template: &Template) -> Plan {
    template.plan().0
}

fn saver(plan: Plan) -> Saver {
    match plan {
        Plan::Boot(Some(saver)) => saver,
        other => panic!("{other:?}"),
    }
}

fn fork(plan: Plan) -> Fork {
    match plan {
        Plan::Fork(fork) => fork,
        other => panic!("{other:?}"),
    }
}

/// Returns a cache with a template that was saved.
fn saved() -> (tempfile::TempDir, Cache, Template) {
    let (dir, cache) = cache();
    let template = template(&cache);
    saver(plan(&template)).save(boot_state(), write_machine).unwrap();
    (dir, cache, template)
}

fn unfinished(cache: &Cache) -> usize {
    fs::read_dir(cache.entry("tmp")).map_or(0, Iterator::count)
}

#[test]
fn plan_forks_what_was_saved() {
    let (_dir, cache) = cache();
    let first = template(&cache);
    let in_save = first.clone();
    let save = |directory: &Path| {
        assert!(!in_save.exists(), "a template appears when it is complete");
        write_machine(directory)
    };
    saver(plan(&first)).save(boot_state(), save).unwrap();
    assert_eq!(unfinished(&cache), 0);
    let mode = fs::metadata(first.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    for uses in 0..3 {
        // As in another process.
        let found = fork(plan(&template(&cache)));
        assert_eq!((&found.facts.boot, found.uses), (&boot_state(), uses));
        count_use(&found.template.path().join(USES));
    }
    let other = Template::new(cache.clone(), "another machine".to_owned(), u64::MAX);
    assert_ne!(other.name, first.name);
    drop(saver(plan(&other)));
}

#[test]
fn plan_waits_for_a_guest_that_is_saved() {
    let (_dir, cache) = cache();
    let first = saver(plan(&template(&cache)));
    thread::scope(|scope| {
        let waiting = [(); 3].map(|()| scope.spawn(|| template(&cache).plan()));
        await_waiter(&cache);
        first.save(boot_state(), write_machine).unwrap();
        // No fork waits until another one is dropped.
        let plans = waiting.map(|waiting| waiting.join().unwrap());
        assert!(plans.iter().any(|(_, waited)| waited.is_some()), "{plans:?}");
        let _forks = plans.map(|(plan, _)| fork(plan));
    });
}

#[test]
fn plan_boots_after_waiting_for_a_guest_that_was_not_saved() {
    let (_dir, cache) = cache();
    let first = saver(plan(&template(&cache)));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| template(&cache).plan());
        await_waiter(&cache);
        let error = first.save(boot_state(), |directory| {
            write_machine(directory)?;
            Err(Error::Unsupported { operation: "be saved" })
        });
        assert!(format!("{:#}", error.unwrap_err()).ends_with("this machine cannot be saved"));
        let (plan, waited) = waiting.join().unwrap();
        assert!(matches!(plan, Plan::Boot(None)) && waited.is_some(), "{plan:?}");
    });
    assert_eq!(unfinished(&cache), 0, "nothing stays on a full disk");
    // The next test tries again.
    drop(saver(plan(&template(&cache))));
}

/// Waits until a process waits for the lock of the template.
fn await_waiter(cache: &Cache) {
    let lock = cache.entry("locks").join(template(cache).name.replace('/', ","));
    let inode = format!(":{} ", fs::metadata(lock).unwrap().ino());
    let is_waiter = |line: &str| line.contains("->") && line.contains(&inode);
    while !fs::read_to_string("/proc/locks").unwrap().lines().any(is_waiter) {
        thread::yield_now();
    }
}

fn set_facts(template: &Template, change: impl FnOnce(&mut Facts)) {
    let path = template.path().join(FACTS);
    let mut facts = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut facts);
    fs::write(&path, serde_json::to_vec(&facts).unwrap()).unwrap();
}

#[test]
fn plan_replaces_what_cannot_be_used() {
    type Spoil = fn(&Template);
    let spoils: [(&str, Spoil); 8] = [
        ("old", |template| set_facts(template, |facts| facts.saved -= MAX_AGE)),
        ("from the future", |template| set_facts(template, |facts| facts.saved += MAX_AGE)),
        ("of another key", |template| set_facts(template, |facts| facts.key.push('2'))),
        ("used up", |template| {
            fs::write(template.path().join(USES), vec![b'.'; MAX_USES as usize]).unwrap();
        }),
        ("without uses", |template| fs::remove_file(template.path().join(USES)).unwrap()),
        ("without facts", |template| fs::remove_file(template.path().join(FACTS)).unwrap()),
        ("truncated", |template| {
            let file = OpenOptions::new().write(true).open(template.path().join(FACTS)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("empty", |template| {
            fs::remove_dir_all(template.path()).unwrap();
            fs::create_dir(template.path()).unwrap();
        }),
    ];
    for (what, spoil) in spoils {
        let (_dir, _cache, template) = saved();
        spoil(&template);
        let Plan::Boot(Some(saver)) = plan(&template) else { panic!("{what}") };
        assert!(!template.exists(), "{what}");
        saver.save(boot_state(), write_machine).unwrap();
        drop(fork(plan(&template)));
    }
    // Shortly before.
    let (_dir, _cache, template) = saved();
    set_facts(&template, |facts| facts.saved -= MAX_AGE - MINUTE);
    fs::write(template.path().join(USES), vec![b'.'; MAX_USES as usize - 1]).unwrap();
    drop(fork(plan(&template)));
}

#[test]
fn plan_keeps_a_template_in_use() {
    let (_dir, cache, template) = saved();
    let used = fork(plan(&template));
    set_facts(&template, |facts| facts.saved -= MAX_AGE);
    let decided = plan(&template);
    assert!(matches!(decided, Plan::Boot(None)), "{decided:?}");
    prune::prune(&cache, 0);
    assert!(template.exists());
    drop(used);
    drop(saver(plan(&template)));
}

#[test]
fn remove_keeps_the_successor_of_a_damaged_template() {
    let (_dir, _cache, template) = saved();
    let damaged = fork(plan(&template)).facts.saved;
    drop(template.remove(Some(damaged)).unwrap().expect("it is removed"));
    saver(plan(&template)).save(boot_state(), write_machine).unwrap();
    assert!(template.remove(Some(damaged)).unwrap().is_none());
    drop(fork(plan(&template)));
}

#[test]
fn save_removes_what_a_killed_process_has_left() {
    let (_dir, cache) = cache();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("{}::saver_process", module_path!().split_once("::").unwrap().1);
    command.args(["--exact", &name, "--ignored", "--nocapture"]);
    command.env(CACHE, cache.root()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("saving")));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| template(&cache).plan());
        await_waiter(&cache);
        process.kill().unwrap();
        // Its lock is free. The guest of this test is not saved, because it has waited.
        assert!(matches!(waiting.join().unwrap().0, Plan::Boot(None)));
    });
    process.wait().unwrap();
    assert_eq!(unfinished(&cache), 1);
    saver(plan(&template(&cache))).save(boot_state(), write_machine).unwrap();
    assert_eq!(unfinished(&cache), 0);
    drop(fork(plan(&template(&cache))));
}

#[test]
#[ignore = "a process of another test"]
fn saver_process() {
    let Ok(cache) = std::env::var(CACHE) else { return };
    let save = |directory: &Path| {
        write_machine(directory)?;
        println!("saving");
        let _ = std::io::stdin().read(&mut [0]);
        Ok(())
    };
    saver(plan(&template(&Cache::at(cache)))).save(boot_state(), save).unwrap();
}

#[test]
fn plan_boots_without_a_usable_cache() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().rewind().unwrap();
    let decided = plan(&template(&Cache::at(file.path().join("cache"))));
    assert!(matches!(decided, Plan::Boot(None)), "{decided:?}");
}
