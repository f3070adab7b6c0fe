//! Machines with a shell script instead of QEMU.

use super::*;

/// `$qmp` and `$port` are the descriptors that QEMU would use. `ok` answers one command; a script
/// answers the two commands of the boot first.
const PRELUDE: &str = r#"
for arg in "$@"; do
    case $arg in
        socket,id=qmp,fd=*) qmp=${arg##*=} ;;
        socket,id=port0,fd=*) port=${arg##*=} ;;
    esac
done
send() { echo "$1" >&"$qmp"; }
receive() { read -r command <&"$qmp"; id=${command##*'"id":'}; id=${id%%[^0-9]*}; }
ok() { receive; send "{\"return\": {}, \"id\": $id}"; }
send '{"QMP": {}}'
"#;

/// Boots a bash script instead of QEMU. Not dash: it has no descriptors above 9.
fn boot(script: &str) -> Result<QemuVm, Error> {
    QemuVm::boot(&qemu(script), &config())
}

fn qemu(script: &str) -> Qemu {
    let argv = ["bash", "-c", &format!("{PRELUDE}{script}"), "qemu"].map(Into::into);
    Qemu::new(argv.to_vec(), "0")
}

fn config() -> VmConfig {
    VmConfig {
        kernel: "/k".into(),
        initramfs: "/i".into(),
        cmdline: String::new(),
        kaslr: true,
        topology: crate::config::even([1, 1, 1, 1]),
        memory_mib: 1,
        ports: vec!["wire".into()],
    }
}

/// Returns all events to the end, with adjacent ones of the console merged.
fn events(vm: &mut QemuVm) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut events = Vec::new();
    loop {
        let event = vm.next_event(deadline).unwrap();
        let is_last = matches!(event, Event::Exited(_) | Event::Deadline);
        match (events.last_mut(), event) {
            (Some(Event::Console(all)), Event::Console(more)) => all.extend(more),
            (_, event) => events.push(event),
        }
        if is_last {
            return events;
        }
    }
}

#[test]
fn boot_reports_the_error_of_qemu() {
    let error = boot("echo 'qemu: -cpu oops: no such model' >&2; exit 1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the engine exited before the machine ran (exit status: 1): \
         qemu: -cpu oops: no such model"
    );
}

#[test]
fn next_event_reports_status_and_stderr_of_a_dead_qemu() {
    let mut vm = boot("ok; ok; echo booting; echo 'tcg: fatal' >&2; exit 3").unwrap();
    let died = Event::Exited(ExitReason::EngineDied {
        status: "exit status: 3".into(),
        stderr: "tcg: fatal\n".into(),
    });
    assert_eq!(events(&mut vm), [Event::Console(b"booting\n".to_vec()), died.clone()]);
    assert_eq!(events(&mut vm), [died], "the last event is repeated");
    assert!(matches!(vm.send(0, b"x"), Err(Error::Gone { .. })));
    assert!(matches!(vm.pause(), Err(Error::Gone { .. })));
}

#[test]
fn next_event_returns_late_output_before_the_exit() {
    // The first answer after the end comes with data: QEMU was still emptying the guest's rings.
    let mut vm = boot(
        r#"ok; ok
        send '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}'
        receive; printf late >&"$port"; send "{\"return\": {}, \"id\": $id}"
        ok; ok; exec sleep 60"#,
    )
    .unwrap();
    let late = Event::Port { port: 0, bytes: b"late".to_vec() };
    assert_eq!(events(&mut vm), [late, Event::Exited(ExitReason::Reset)]);
}

#[test]
fn next_event_limits_output_after_the_end_of_the_guest() {
    // Each answer comes after more output, without end.
    let mut vm = boot(
        r#"ok; ok
        send '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}'
        while receive; do
            head -c 1000000 /dev/zero >&"$port"
            send "{\"return\": {}, \"id\": $id}"
        done"#,
    )
    .unwrap();
    let mut received = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    let end = loop {
        match vm.next_event(deadline).unwrap() {
            Event::Port { bytes, .. } => received += bytes.len(),
            event => break event,
        }
    };
    assert_eq!(end, Event::Exited(ExitReason::Reset));
    let most = MAX_FLUSHED as usize + 2 * MAX_DRAINED;
    assert!((MAX_FLUSHED as usize..most).contains(&received), "{received}");
}

#[test]
fn drain_ends_while_a_process_goes_on_writing() {
    let mut vm = boot("ok; ok; exec cat /dev/zero >&2").unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    assert_eq!(vm.next_event(deadline).unwrap(), Event::Deadline);
    vm.drain().unwrap();
    assert_eq!(vm.inbox.stderr().len(), 16 << 10);
    vm.stop().unwrap();
}

#[test]
fn stop_kills_qemu_that_ignores_signals() {
    let mut vm = boot("ok; ok; trap '' TERM INT; echo on; exec sleep 60").unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    assert_eq!(vm.next_event(deadline).unwrap(), Event::Console(b"on\n".to_vec()));
    vm.stop().unwrap();
    vm.stop().unwrap();
    assert_eq!(vm.next_event(deadline).unwrap(), Event::Exited(ExitReason::Stopped));
    assert!(Instant::now() < deadline);
}

#[test]
fn port_transfers_bytes_in_both_directions() {
    let mut vm =
        boot(r#"ok; ok; read -r line <&"$port"; printf "$line!" >&"$port"; exec sleep 60"#);
    let vm = vm.as_mut().unwrap();
    vm.send(0, b"hello\n").unwrap();
    assert!(matches!(vm.send(1, b"x"), Err(Error::NoPort(1))));
    let deadline = Instant::now() + Duration::from_secs(30);
    let want = Event::Port { port: 0, bytes: b"hello!".to_vec() };
    assert_eq!(vm.next_event(deadline).unwrap(), want);
}

#[test]
fn next_event_returns_at_the_deadline() {
    let mut vm = boot("ok; ok; exec sleep 60").unwrap();
    let start = Instant::now();
    let event = vm.next_event(start + Duration::from_millis(50)).unwrap();
    assert_eq!(event, Event::Deadline);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(vm.next_event(start).unwrap(), Event::Deadline);
}

#[test]
fn pause_reports_why_qemu_refused() {
    let mut vm = boot(
        r#"ok; ok; receive
        send "{\"error\": {\"desc\": \"not now\"}, \"id\": $id}"; exec sleep 60"#,
    )
    .unwrap();
    let error = vm.pause().unwrap_err();
    assert_eq!(error.to_string(), "the engine refused `stop`: not now");
}

#[test]
fn boot_fails_if_the_program_does_not_use_qmp() {
    let error = boot("send 'hello, I am vi'; exec sleep 60").unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[test]
fn next_event_limits_console_pieces() {
    let mut vm = boot("ok; ok; head -c 1000000 /dev/zero; exec sleep 1").unwrap();
    let (mut bytes, mut largest) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Event::Console(piece) = vm.next_event(deadline).unwrap() {
        bytes += piece.len();
        largest = largest.max(piece.len());
    }
    assert_eq!(bytes, 1_000_000);
    assert!(largest <= 64 << 10, "{largest}");
}

/// Answers `query-status`, `stop` and `migrate-set-capabilities`, and then reads `migrate`.
const SAVING: &str = r#"
    receive; send "{\"return\": {\"running\": true}, \"id\": $id}"
    ok; ok
    receive; state=${command#*file:}; state=${state%%\"*}
"#;
/// Answers all commands as a QEMU that still ends a migration at the first one, and writes to the port
/// after `cont`, which it refuses until then.
const CONTINUED: &str = r#"
    state=finish-migrate
    while receive; do
        case "$command $state" in
        *'"cont"'*finish-migrate) send "{\"error\": {\"desc\": \"not finalized\"}, \"id\": $id}" ;;
        *'"cont"'*) send "{\"return\": {}, \"id\": $id}"; printf on >&"$port" ;;
        *) send "{\"return\": {\"status\": \"$state\"}, \"id\": $id}"; state=postmigrate ;;
        esac
    done
"#;

/// Returns the names of the files in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_continues(vm: &mut QemuVm) {
    let on = Event::Port { port: 0, bytes: b"on".to_vec() };
    assert_eq!(vm.next_event(Instant::now() + Duration::from_secs(30)).unwrap(), on);
}

#[test]
fn save_writes_all_files_and_continues() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = boot(&format!(
        r#"ok; ok; {SAVING} printf 'the state' > "$state"
        send "{{\"return\": {{}}, \"id\": $id}}"
        send '{{"event": "MIGRATION", "data": {{"status": "active"}}}}'
        send '{{"event": "MIGRATION", "data": {{"status": "completed"}}}}'
        {CONTINUED}"#
    ))
    .unwrap();
    vm.save(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["manifest.json", "memory0", "state"]);
    assert_continues(&mut vm);
    let files = SavedFiles::open(dir.path(), &vm.identity, [1 << 20].into_iter()).unwrap();
    assert_eq!(files.state.metadata().unwrap().len(), 9);
}

#[test]
fn save_leaves_a_paused_machine_that_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = boot(&format!(
        r#"ok; ok; {} send "{{\"error\": {{\"desc\": \"disk full\"}}, \"id\": $id}}"
        {CONTINUED}"#,
        SAVING.replace("true", "false")
    ))
    .unwrap();
    vm.save(dir.path()).unwrap_err();
    vm.resume().unwrap();
    assert_continues(&mut vm);
}

#[test]
fn save_reports_a_failed_migration_and_continues() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = boot(&format!(
        r#"ok; ok; {SAVING} send "{{\"return\": {{}}, \"id\": $id}}"
        send '{{"event": "MIGRATION", "data": {{"status": "failed"}}}}'
        receive; send "{{\"return\": {{\"error-desc\": \"disk full\"}}, \"id\": $id}}"
        {CONTINUED}"#
    ))
    .unwrap();
    let error = vm.save(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), "the engine failed to save the machine: disk full");
    assert_eq!(names(dir.path()), [""; 0]);
    assert_continues(&mut vm);
}

#[test]
fn save_reports_a_refused_migration_and_continues() {
    // As a QEMU that cannot migrate to a file does.
    let dir = tempfile::tempdir().unwrap();
    let mut vm = boot(&format!(
        r#"ok; ok; {SAVING} send "{{\"error\": {{\"desc\": \"no file:\"}}, \"id\": $id}}"
        {CONTINUED}"#
    ))
    .unwrap();
    let error = vm.save(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), "the engine refused `migrate`: no file:");
    assert_eq!(names(dir.path()), [""; 0]);
    assert_continues(&mut vm);
}

#[test]
fn migrate_cancels_a_migration_that_takes_too_long() {
    let mut vm = boot(
        r#"ok; ok; ok; receive
        case $command in *'"migrate_cancel"'*) printf cancelled >&"$port" ;; esac
        send "{\"return\": {}, \"id\": $id}"
        exec sleep 60"#,
    )
    .unwrap();
    let error = vm.migrate("save", "migrate", "file:/state", Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::Timeout { command: "migrate", .. }), "{error}");
    let cancelled = Event::Port { port: 0, bytes: b"cancelled".to_vec() };
    assert_eq!(vm.next_event(Instant::now() + Duration::from_secs(30)).unwrap(), cancelled);
}

#[test]
fn save_reports_an_engine_that_dies() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = boot(&format!("ok; ok; {SAVING} exit 3")).unwrap();
    assert!(matches!(vm.save(dir.path()), Err(Error::Gone { .. })));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn save_fails_without_a_directory_and_continues() {
    let mut vm = boot(&format!(
        r#"ok; ok; receive; send "{{\"return\": {{\"running\": true}}, \"id\": $id}}"; ok
        {CONTINUED}"#
    ))
    .unwrap();
    let error = vm.save(Path::new("/no/such/directory")).unwrap_err().to_string();
    assert!(error.starts_with("failed to create `/no/such/directory/state`: "), "{error}");
    assert_continues(&mut vm);
}

/// Restores a machine whose QEMU is a script, from a save by another script.
fn restore(script: &str) -> Result<QemuVm, Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut save = SaveWriter::new(dir.path()).unwrap();
    std::fs::write(save.create_state().unwrap(), "the state").unwrap();
    let memory = GuestMemory::new(&config()).unwrap();
    for (memory, size) in memory.files() {
        save.add_memory(memory, size).unwrap();
    }
    save.finish(&args::identity(&config(), "0", args::CpuModel::Intel)).unwrap();
    QemuVm::restore(&qemu(script), &config(), dir.path())
}

#[test]
fn restore_reports_the_error_of_qemu() {
    let error = restore(
        r#"ok; ok; ok; send '{"event": "MIGRATION", "data": {"status": "failed"}}'
        echo 'load of migration failed' >&2; exit 1"#,
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "the engine exited before the machine ran (exit status: 1): load of migration failed"
    );
}

#[test]
fn restore_fails_if_the_memory_of_qemu_cannot_be_found() {
    // The thread is this script itself, which maps no memory of a guest.
    let error = restore(
        r#"ok; ok; ok; send '{"event": "MIGRATION", "data": {"status": "completed"}}'
        receive
        send "{\"return\": [{\"cpu-index\": 0, \"thread-id\": $$}], \"id\": $id}"
        exec sleep 60"#,
    );
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::Protocol(why) if why.contains("has not mapped")), "{error}");
}
