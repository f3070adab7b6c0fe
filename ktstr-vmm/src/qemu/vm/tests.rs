//! The machine's side of the wires, against shell scripts that play QEMU.

use super::*;

/// `$qmp` and `$port` are the descriptors QEMU would use; `ok` answers one command, and what
/// follows the two `ok` of the boot is the machine's life.
const PRELUDE: &str = r#"
for arg in "$@"; do
    case $arg in
        socket,id=qmp,fd=*) qmp=${arg##*=} ;;
        socket,id=port0,fd=*) port=${arg##*=} ;;
    esac
done
say() { echo "$1" >&"$qmp"; }
hear() { read -r command <&"$qmp"; id=${command//[^0-9]/}; }
ok() { hear; say "{\"return\": {}, \"id\": $id}"; }
say '{"QMP": {}}'
"#;

/// Boots a bash script in QEMU's place: dash has no descriptors above 9.
fn boot(script: &str) -> Result<QemuVm, Error> {
    let argv = ["bash", "-c", &format!("{PRELUDE}{script}"), "qemu"].map(OsString::from);
    let config = VmConfig {
        kernel: "/k".into(),
        initramfs: "/i".into(),
        cmdline: String::new(),
        topology: [1, 1, 1, 1].into(),
        memory_mib: 1,
        ports: vec!["wire".into()],
    };
    QemuVm::boot(&argv, CpuModel::Intel, &config)
}

/// All events to the end, neighbours of one source joined.
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
fn a_bad_option_fails_the_boot_in_qemus_words() {
    let error = boot("echo 'qemu: -cpu oops: no such model' >&2; exit 1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the engine ended before the machine ran (exit status: 1): \
         qemu: -cpu oops: no such model"
    );
}

#[test]
fn a_death_carries_the_status_and_the_last_words() {
    let mut vm = boot("ok; ok; echo booting; echo 'tcg: fatal' >&2; exit 3").unwrap();
    let died = Event::Exited(ExitReason::EngineDied {
        status: "exit status: 3".into(),
        stderr: "tcg: fatal\n".into(),
    });
    assert_eq!(events(&mut vm), [Event::Console(b"booting\n".to_vec()), died.clone()]);
    assert_eq!(events(&mut vm), [died], "it stays dead");
    assert!(matches!(vm.send(0, b"x"), Err(Error::Gone { .. })));
    assert!(matches!(vm.pause(), Err(Error::Gone { .. })));
}

#[test]
fn the_guests_end_waits_for_what_the_guest_wrote() {
    // The first answer after the end comes with data: QEMU was still emptying the guest's rings.
    let mut vm = boot(
        r#"ok; ok
        say '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}'
        hear; printf late >&"$port"; say "{\"return\": {}, \"id\": $id}"
        ok; ok; exec sleep 60"#,
    )
    .unwrap();
    let late = Event::Port { port: 0, bytes: b"late".to_vec() };
    assert_eq!(events(&mut vm), [late, Event::Exited(ExitReason::Reset)]);
}

#[test]
fn stop_ends_what_ignores_everything() {
    let mut vm = boot("ok; ok; trap '' TERM INT; echo on; exec sleep 60").unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    assert_eq!(vm.next_event(deadline).unwrap(), Event::Console(b"on\n".to_vec()));
    vm.stop().unwrap();
    vm.stop().unwrap();
    assert_eq!(vm.next_event(deadline).unwrap(), Event::Exited(ExitReason::Stopped));
    assert!(Instant::now() < deadline);
}

#[test]
fn a_port_carries_bytes_both_ways() {
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
fn a_silent_machine_reaches_the_deadline() {
    let mut vm = boot("ok; ok; exec sleep 60").unwrap();
    let start = Instant::now();
    let event = vm.next_event(start + Duration::from_millis(50)).unwrap();
    assert_eq!(event, Event::Deadline);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(vm.next_event(start).unwrap(), Event::Deadline);
}

#[test]
fn a_refused_command_says_why() {
    let mut vm = boot(
        r#"ok; ok; hear; say "{\"error\": {\"desc\": \"not now\"}, \"id\": $id}"; exec sleep 60"#,
    )
    .unwrap();
    let error = vm.pause().unwrap_err();
    assert_eq!(error.to_string(), "the engine refused `stop`: not now");
}

#[test]
fn a_program_that_speaks_no_qmp_is_no_qemu() {
    let error = boot("say 'hello, I am vi'; exec sleep 60").unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[test]
fn a_console_flood_comes_in_bounded_pieces() {
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
