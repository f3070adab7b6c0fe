//! A counting semaphore over the CPUs of the host, shared by all processes that run guests.
//!
//! Each CPU is an address in the abstract namespace of Unix sockets (unix(7)). A guest binds one
//! address for each of its CPUs before it boots, and closes the sockets once the machine is gone.
//! The kernel frees the addresses of a process that dies, no file or directory is involved, and
//! users need no permission for one another's addresses. To wait for an address, a process connects
//! to it: the connection breaks when the socket that is bound to it is closed.
//!
//! One more address, the turnstile, is bound while a guest collects its CPUs. Later guests wait for
//! the turnstile, so small guests do not overtake a large one, and two that have collected a part
//! each do not wait for one another.
//!
//! A wait has an end, whatever the holders are: processes of any user can bind the addresses, and a
//! process may be stopped (Ctrl-Z) while its guest holds CPUs. Runs have limits, so CPUs that are in use are
//! released sooner or later. If nothing at all is released for half an hour, the guest runs without
//! all of its CPUs, as with `KTSTR_HOST_CPUS=off`. A queue of any length does not cause this, because each
//! release in it begins the half hour again. The only honest holder that does is a run of more than half an
//! hour; then there are more guests than CPUs, which slows both down and appears as steal time, but fails neither.
//!
//! Abstract addresses belong to a network namespace: a container with a namespace of its own counts
//! for itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Error;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::notice::notice;

/// The variable that sets the number of CPUs.
const VARIABLE: &str = "KTSTR_HOST_CPUS";

/// How many processes can wait for an address. The kernel reduces it to `net.core.somaxconn`, 4,096 by default.
const BACKLOG: i32 = 1 << 16;

/// How long to wait for a holder to which no connection is possible, before the next attempt.
const RETRY: Duration = Duration::from_millis(1);

/// How long to wait while nothing is released.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Then the holders are reported: one may be stopped.
    notice_after: Duration,
    /// The longest time from then on.
    give_up_after: Duration,
}

impl Patience {
    /// A run of a test with the default limits takes eleven minutes at most, including all that the watchdog
    /// excludes.
    const DEFAULT: Self = Self {
        notice_after: Duration::from_secs(120),
        give_up_after: Duration::from_secs(28 * 60),
    };
}

/// The semaphore.
#[derive(Debug, Clone)]
pub(super) struct HostCpus {
    /// The prefix of the addresses.
    prefix: String,
    count: usize,
    patience: Patience,
}

/// CPUs taken from the semaphore, until dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Taken {
    #[cfg_attr(not(test), expect(dead_code, reason = "held for their addresses"))]
    cpus: Vec<UnixListener>,
    /// The waiting time; `None` if all were free.
    pub(super) waited: Option<Duration>,
}

impl HostCpus {
    /// Returns the semaphore of this host, or `None` if `KTSTR_HOST_CPUS=off`.
    ///
    /// By default it counts the CPUs that this process may use, by its affinity and CPU quota.
    /// Processes that count differently share the addresses that all of them count.
    ///
    /// # Errors
    ///
    /// If `KTSTR_HOST_CPUS` is neither `off` nor a number from 1.
    pub(super) fn from_env() -> Result<Option<Self>> {
        let count = parse(std::env::var_os(VARIABLE).as_deref())?;
        let (prefix, patience) = ("ktstr/host-cpus".to_owned(), Patience::DEFAULT);
        Ok(count.map(|count| Self { prefix, count, patience }))
    }

    /// Waits until `wanted` CPUs are free, or all if there are fewer, and takes them. Takes fewer if none
    /// was released for half an hour.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a socket: no descriptor is left, or a security policy forbids it.
    pub(super) fn take(&self, wanted: u32) -> Result<Taken> {
        let began = Instant::now();
        let slot = |name: &dyn std::fmt::Display| Slot::new(&format!("{}/{name}", self.prefix));
        let fail = || {
            format!(
                "failed to wait for CPUs of the host; set {VARIABLE}=off to run without waiting"
            )
        };
        tracing::debug!("take {wanted} of {} CPUs of the host", self.count);
        // While this process holds the turnstile, later guests queue behind it and cannot overtake.
        let turnstile = vec![slot(&"turnstile")?];
        let (turnstile, has_queued) = collect(turnstile, 1, self.patience).with_context(fail)?;
        let waited = |has_waited: bool| (has_queued || has_waited).then(|| began.elapsed());
        if turnstile.is_empty() {
            // No guest has collected its CPUs for half an hour.
            return Ok(Taken { cpus: Vec::new(), waited: waited(true) });
        }
        // A guest with more CPUs than the host takes all of them; otherwise it would wait forever.
        let wanted = usize::try_from(wanted).map_or(self.count, |wanted| wanted.min(self.count));
        let cpus = (0..self.count).map(|cpu| slot(&cpu)).collect::<Result<Vec<_>>>()?;
        let (cpus, has_waited) = collect(cpus, wanted, self.patience).with_context(fail)?;
        // The CPUs are complete: the next guest may collect.
        drop(turnstile);
        let waited = waited(has_waited);
        tracing::debug!("took the CPUs; waited {waited:?}");
        Ok(Taken { cpus, waited })
    }
}

/// Reads the value of `KTSTR_HOST_CPUS`; `None` stands for `off`.
fn parse(value: Option<&OsStr>) -> Result<Option<usize>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(Some(std::thread::available_parallelism().map_or(1, usize::from)));
    };
    match value.to_str().map(|value| (value, value.parse())) {
        Some(("off", _)) => Ok(None),
        Some((_, Ok(count @ 1..))) => Ok(Some(count)),
        _ => bail!("{VARIABLE}={}: expected a number of CPUs from 1, or `off`", value.display()),
    }
}

/// An address that one process at a time can bind.
#[derive(Debug)]
struct Slot {
    address: SocketAddrUnix,
    /// A connection to the process that has bound the address.
    holder: Option<UnixStream>,
}

impl Slot {
    fn new(name: &str) -> Result<Self> {
        Ok(Self { address: SocketAddrUnix::new_abstract_name(name.as_bytes())?, holder: None })
    }

    /// Binds the address; returns `None` if another socket is bound to it.
    fn bind(&self) -> Result<Option<UnixListener>, Error> {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        match bind(&socket, &self.address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        listen(&socket, BACKLOG)?;
        Ok(Some(socket.into()))
    }

    /// Connects to the holder unless that is done. Returns `false` if that is not possible now: the address
    /// was released since the attempt to bind it, or its holder does not listen.
    fn watch(&mut self) -> Result<bool, Error> {
        if self.holder.is_some() {
            return Ok(true);
        }
        // A connection to a holder with a full backlog would block.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &self.address) {
            Ok(()) => self.holder = Some(socket.into()),
            Err(Errno::CONNREFUSED | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.holder.is_some())
    }
}

/// Binds `wanted` of the slots, waiting if necessary; returns the sockets, and whether it waited. The sockets
/// are fewer if no slot was released for too long.
fn collect(
    mut slots: Vec<Slot>,
    wanted: usize,
    patience: Patience,
) -> Result<(Vec<UnixListener>, bool), Error> {
    let mut bound = Vec::new();
    let mut wait = Wait::new(patience);
    loop {
        // Bind what is free. A bound slot stays bound, even if the others are not free yet.
        let mut rest = Vec::new();
        for slot in slots {
            let listener = if bound.len() < wanted { slot.bind()? } else { None };
            match listener {
                Some(listener) => {
                    bound.push(listener);
                    wait.restart();
                }
                None => rest.push(slot),
            }
        }
        // Then wait for the release of any other slot, and try again.
        if bound.len() == wanted || !wait.for_any(&mut rest)? {
            return Ok((bound, wait.has_waited));
        }
        slots = rest;
    }
}

/// A wait for slots, from the last release of one on.
#[derive(Debug)]
struct Wait {
    patience: Patience,
    since: Instant,
    is_reported: bool,
    has_waited: bool,
}

impl Wait {
    fn new(patience: Patience) -> Self {
        Self { patience, since: Instant::now(), is_reported: false, has_waited: false }
    }

    fn restart(&mut self) {
        (self.since, self.is_reported) = (Instant::now(), false);
    }

    /// Waits until one of the slots may have been released. Returns `false` if none was for too long.
    fn for_any(&mut self, slots: &mut [Slot]) -> Result<bool, Error> {
        self.has_waited = true;
        let Patience { notice_after, give_up_after } = self.patience;
        let limit = if self.is_reported { notice_after + give_up_after } else { notice_after };
        let mut time = limit.saturating_sub(self.since.elapsed());
        // Connect to every holder before waiting: a release after this point breaks a connection.
        for slot in &mut *slots {
            if !slot.watch()? {
                time = time.min(RETRY);
            }
        }
        let (mut watched, mut fds) = (Vec::new(), Vec::new());
        for (index, slot) in slots.iter().enumerate() {
            if let Some(holder) = &slot.holder {
                watched.push(index);
                // The connections are never accepted, so the only event that they can have is their end.
                fds.push(PollFd::new(holder, PollFlags::empty()));
            }
        }
        let timeout =
            Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            // A signal that stopped and continued this process, for example.
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ended: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ended.contains(&true) {
            // Forget the holders that are gone.
            let gone = watched.into_iter().zip(ended).filter(|(_, has_ended)| *has_ended);
            gone.for_each(|(index, _)| slots[index].holder = None);
            self.restart();
        } else if self.since.elapsed() >= limit {
            if self.is_reported {
                notice(&giving_up(slots));
                return Ok(false);
            }
            notice(&waiting(slots, self.patience));
            self.is_reported = true;
        }
        Ok(true)
    }
}

/// Returns the message about a long wait.
fn waiting(slots: &[Slot], patience: Patience) -> String {
    format!(
        "no guest has ended for {} s; waiting for CPUs of this host held by {}, for {} s at most; set \
         {VARIABLE}=off to run without waiting",
        patience.notice_after.as_secs(),
        holders(slots),
        patience.give_up_after.as_secs(),
    )
}

/// Returns the message about a wait that was too long.
fn giving_up(slots: &[Slot]) -> String {
    format!(
        "CPUs of this host are still held by {}; this guest runs without waiting for them",
        holders(slots)
    )
}

/// Describes the processes that have bound the slots, and their users.
fn holders(slots: &[Slot]) -> String {
    let holders = slots.iter().filter_map(|slot| slot.holder.as_ref());
    let credentials = holders.filter_map(|holder| socket_peercred(holder).ok());
    let all: BTreeSet<_> = credentials
        .map(|holder| (holder.pid.as_raw_nonzero().get(), holder.uid.as_raw()))
        .collect();
    let all: Vec<_> = all.into_iter().map(|(pid, uid)| format!("{pid} (user {uid})")).collect();
    match all.is_empty() {
        false => format!("process {}", all.join(", ")),
        true => "a process that accepts no connections (see `ss -xlp`)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, mpsc};
    use std::thread;

    use super::*;

    /// Names the semaphore of [`holder`] for its process.
    const PREFIX: &str = "KTSTR_TEST_HOST_CPUS";

    /// Returns a semaphore that no other test uses.
    fn semaphore(count: usize) -> HostCpus {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("ktstr/test/{}/{number}", std::process::id());
        HostCpus { prefix, count, patience: Patience::DEFAULT }
    }

    impl Taken {
        /// Waits until a guest waits for the first of these CPUs.
        fn await_waiter(&self) {
            // It connects again as soon as it sees the end of this connection.
            self.cpus[0].accept().unwrap();
        }
    }

    #[test]
    fn parse_takes_a_number_or_off() {
        let parse = |value: &str| parse(Some(OsStr::new(value)));
        assert_eq!(parse("off").unwrap(), None);
        assert_eq!(parse("3").unwrap(), Some(3));
        let available = thread::available_parallelism().unwrap().get();
        assert_eq!(parse("").unwrap(), Some(available));
        assert_eq!(super::parse(None).unwrap(), Some(available));
        for value in ["0", "-1", "2.5", "on", "OFF", " 2"] {
            let error = parse(value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("KTSTR_HOST_CPUS={value}: expected ")), "{error}");
        }
    }

    #[test]
    fn take_waits_only_for_cpus_that_are_taken() {
        let semaphore = semaphore(3);
        let two = semaphore.take(2).unwrap();
        let one = semaphore.take(1).unwrap();
        assert_eq!((two.waited, one.waited), (None, None));
        thread::scope(|scope| {
            let all = scope.spawn(|| semaphore.take(200).unwrap().waited);
            one.await_waiter();
            drop((two, one));
            assert!(all.join().unwrap().is_some());
        });
    }

    #[test]
    fn take_never_exceeds_the_count() {
        const COUNT: usize = 3;
        let semaphore = semaphore(COUNT);
        let taken = AtomicUsize::new(0);
        let guests = |wanted: u32| {
            for _ in 0..50 {
                let cpus = semaphore.take(wanted).unwrap();
                let own = COUNT.min(wanted as usize);
                assert!(taken.fetch_add(own, Ordering::SeqCst) + own <= COUNT);
                thread::yield_now();
                taken.fetch_sub(own, Ordering::SeqCst);
                drop(cpus);
            }
        };
        // Two guests of two CPUs would block one another without the turnstile.
        thread::scope(|scope| {
            for wanted in [1, 1, 2, 2, 3, 16] {
                scope.spawn(move || guests(wanted));
            }
        });
    }

    #[test]
    fn take_keeps_the_order_of_large_and_small_guests() {
        let semaphore = semaphore(2);
        let [first, second] = [semaphore.take(1).unwrap(), semaphore.take(1).unwrap()];
        let (order, arrived) = mpsc::channel();
        let has_begun = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let cpus = semaphore.take(16).unwrap();
                assert!(cpus.waited.is_some());
                order.send("large").unwrap();
                drop(cpus);
            });
            first.await_waiter();
            let turnstile = Slot::new(&format!("{}/turnstile", semaphore.prefix)).unwrap();
            assert!(turnstile.bind().unwrap().is_none(), "the large guest collects CPUs");
            scope.spawn(|| {
                has_begun.wait();
                let cpus = semaphore.take(1).unwrap();
                order.send("small").unwrap();
                drop(cpus);
            });
            has_begun.wait();
            drop(first);
            drop(second);
            assert_eq!([arrived.recv().unwrap(), arrived.recv().unwrap()], ["large", "small"]);
        });
    }

    #[test]
    fn take_gets_the_cpus_of_a_killed_process() {
        let semaphore = semaphore(2);
        let mut holder = spawn_holder(&semaphore);
        holder.await_line("holds a CPU");
        thread::scope(|scope| {
            let large = scope.spawn(|| semaphore.take(2).unwrap().waited);
            holder.await_line("is waited for");
            holder.process.kill().unwrap();
            assert!(large.join().unwrap().is_some());
        });
        holder.process.wait().unwrap();
    }

    #[test]
    fn waiting_names_the_holders() {
        let semaphore = semaphore(1);
        let _cpus = semaphore.take(1).unwrap();
        let mut slot = Slot::new(&format!("{}/0", semaphore.prefix)).unwrap();
        assert!(slot.watch().unwrap());
        let (own, user) = (std::process::id(), rustix::process::geteuid().as_raw());
        let held = format!("held by process {own} (user {user})");
        let text = waiting(std::slice::from_ref(&slot), Patience::DEFAULT);
        assert!(text.contains(&format!("{held}, for 1680 s at most; ")), "{text}");
        let text = giving_up(&[slot]);
        assert!(text.contains(&format!("{held}; this guest runs")), "{text}");
    }

    #[test]
    fn take_does_not_wait_forever_for_a_holder() {
        let zero = Duration::ZERO;
        let patience = Patience { notice_after: zero, give_up_after: zero };
        let semaphore = HostCpus { patience, ..semaphore(3) };
        let held = semaphore.take(2).unwrap();
        // What is free is taken.
        let rest = semaphore.take(3).unwrap();
        assert!(rest.waited.is_some());
        assert_eq!((held.cpus.len(), rest.cpus.len()), (2, 1));
        // A holder of the turnstile keeps others from collecting CPUs.
        let turnstile = Slot::new(&format!("{}/turnstile", semaphore.prefix)).unwrap();
        let _turnstile = turnstile.bind().unwrap().unwrap();
        drop(rest);
        let none = semaphore.take(1).unwrap();
        assert_eq!((none.cpus.len(), none.waited.is_some()), (0, true));
    }

    /// As another user can do it: the addresses are free for all.
    #[test]
    fn take_does_not_wait_forever_for_a_holder_without_connections() {
        let patience =
            Patience { notice_after: Duration::ZERO, give_up_after: Duration::from_millis(5) };
        for listens in [false, true] {
            let semaphore = HostCpus { patience, ..semaphore(1) };
            let slot = Slot::new(&format!("{}/0", semaphore.prefix)).unwrap();
            let socket =
                socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            let socket = socket.unwrap();
            bind(&socket, &slot.address).unwrap();
            let mut waiting = Vec::new();
            if listens {
                listen(&socket, 0).unwrap();
                // Fills the backlog.
                waiting.extend((0..2).map(|_| {
                    let mut slot = Slot::new(&format!("{}/0", semaphore.prefix)).unwrap();
                    slot.watch().unwrap();
                    slot
                }));
            }
            let taken = semaphore.take(1).unwrap();
            assert!(taken.cpus.is_empty() && taken.waited.is_some(), "listens: {listens}");
            assert!(holders(&[slot]).contains("accepts no connections"));
        }
    }

    /// In a queue of any length, CPUs are released.
    #[test]
    fn wait_begins_again_with_each_release() {
        let zero = Duration::ZERO;
        let mut wait = Wait::new(Patience { notice_after: zero, give_up_after: zero });
        let semaphore = semaphore(1);
        let mut slots = [Slot::new(&format!("{}/0", semaphore.prefix)).unwrap()];
        for _ in 0..3 {
            let cpus = semaphore.take(1).unwrap();
            assert!(wait.for_any(&mut slots).unwrap(), "the holders are reported");
            drop(cpus);
            assert!(wait.for_any(&mut slots).unwrap(), "a CPU was released");
        }
        let _cpus = semaphore.take(1).unwrap();
        assert!(wait.for_any(&mut slots).unwrap(), "the holders are reported");
        assert!(!wait.for_any(&mut slots).unwrap(), "none was released since then");
    }

    #[test]
    fn take_does_not_pass_cpus_to_children() {
        let semaphore = semaphore(1);
        let cpus = semaphore.take(1).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        drop(cpus);
        let _cpus = semaphore.take(1).unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "the child still runs");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    /// A process that holds a CPU.
    struct Holder {
        process: Child,
        stdout: BufReader<ChildStdout>,
    }

    impl Holder {
        fn await_line(&mut self, end: &str) {
            let mut lines = self.stdout.by_ref().lines().map_while(Result::ok);
            assert!(lines.any(|line| line.ends_with(end)), "{end}");
        }
    }

    fn spawn_holder(semaphore: &HostCpus) -> Holder {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("{}::holder", module_path!().split_once("::").unwrap().1);
        command.args(["--exact", &name, "--ignored", "--nocapture"]);
        command.env(PREFIX, &semaphore.prefix);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        Holder { process, stdout }
    }

    #[test]
    #[ignore = "a process of another test"]
    fn holder() {
        let Ok(prefix) = std::env::var(PREFIX) else { return };
        let cpus = HostCpus { prefix, count: 2, patience: Patience::DEFAULT }.take(1).unwrap();
        println!("holds a CPU");
        cpus.await_waiter();
        println!("is waited for");
        let _ = std::io::stdin().read(&mut [0]);
    }
}
