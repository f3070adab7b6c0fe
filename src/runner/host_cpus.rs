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
//! Abstract addresses belong to a network namespace: a container with a namespace of its own counts
//! for itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;

use crate::notice::notice;

/// The variable that sets the number of CPUs.
const VARIABLE: &str = "KTSTR_HOST_CPUS";

/// A wait without any release for this long is reported: a holder may be stopped.
const NOTICE_AFTER: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };

/// The semaphore.
#[derive(Debug, Clone)]
pub(super) struct HostCpus {
    /// The prefix of the addresses.
    prefix: String,
    count: usize,
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
        Ok(count.map(|count| Self { prefix: "ktstr/host-cpus".to_owned(), count }))
    }

    /// Waits until `wanted` CPUs are free, or all if there are fewer, and takes them.
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
        let (turnstile, has_queued) = collect(turnstile, 1).with_context(fail)?;
        // A guest with more CPUs than the host takes all of them; otherwise it would wait forever.
        let wanted = usize::try_from(wanted).map_or(self.count, |wanted| wanted.min(self.count));
        let cpus = (0..self.count).map(|cpu| slot(&cpu)).collect::<Result<Vec<_>>>()?;
        let (cpus, has_waited) = collect(cpus, wanted).with_context(fail)?;
        // The CPUs are complete: the next guest may collect.
        drop(turnstile);
        let waited = (has_queued || has_waited).then(|| began.elapsed());
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
    address: SocketAddr,
    /// A connection to the process that has bound the address.
    holder: Option<UnixStream>,
}

impl Slot {
    fn new(name: &str) -> Result<Self> {
        Ok(Self { address: SocketAddr::from_abstract_name(name)?, holder: None })
    }

    /// Binds the address; returns `None` if another socket is bound to it.
    fn bind(&self) -> Result<Option<UnixListener>, Error> {
        match UnixListener::bind_addr(&self.address) {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Connects to the holder unless that is done; returns whether there is a holder.
    fn watch(&mut self) -> Result<bool, Error> {
        if self.holder.is_none() {
            self.holder = match UnixStream::connect_addr(&self.address) {
                Ok(stream) => Some(stream),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
                Err(error) => return Err(error),
            };
        }
        Ok(self.holder.is_some())
    }
}

/// Binds `wanted` of the slots, waiting if necessary; returns the sockets, and whether it waited.
fn collect(mut slots: Vec<Slot>, wanted: usize) -> Result<(Vec<UnixListener>, bool), Error> {
    let mut bound = Vec::new();
    let mut has_waited = false;
    loop {
        // Bind what is free. A bound slot stays bound, even if the others are not free yet.
        let mut rest = Vec::new();
        for slot in slots {
            let listener = if bound.len() < wanted { slot.bind()? } else { None };
            match listener {
                Some(listener) => bound.push(listener),
                None => rest.push(slot),
            }
        }
        if bound.len() == wanted {
            return Ok((bound, has_waited));
        }
        // Then wait for the release of any other slot, and try again.
        has_waited = true;
        wait_for_any(&mut rest)?;
        slots = rest;
    }
}

/// Waits until one of the slots may have been released.
fn wait_for_any(slots: &mut [Slot]) -> Result<(), Error> {
    // Connect to every holder before waiting: a release after this point breaks a connection.
    for slot in &mut *slots {
        if !slot.watch()? {
            // Released since the attempt to bind it, or bound by a process that does not listen yet.
            std::thread::yield_now();
            return Ok(());
        }
    }
    let holders = slots.iter().filter_map(|slot| slot.holder.as_ref());
    // The connections are never accepted, so the only event that they can have is their end.
    let mut fds: Vec<_> = holders.map(|holder| PollFd::new(holder, PollFlags::empty())).collect();
    let mut timeout = Some(&NOTICE_AFTER);
    loop {
        match poll(&mut fds, timeout) {
            Ok(0) => {
                notice(&waiting(slots));
                timeout = None;
            }
            Ok(_) | Err(Errno::INTR) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    // Forget the holders that are gone. Every slot has a holder here, so the order is that of `fds`.
    let ended: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for (slot, has_ended) in slots.iter_mut().zip(ended) {
        if has_ended {
            slot.holder = None;
        }
    }
    Ok(())
}

/// Returns the message about a long wait, with the pids of the holders.
fn waiting(slots: &[Slot]) -> String {
    let holders = slots.iter().filter_map(|slot| slot.holder.as_ref());
    let pids: BTreeSet<_> = holders
        .filter_map(|holder| Some(socket_peercred(holder).ok()?.pid.as_raw_nonzero().get()))
        .collect();
    let seconds = NOTICE_AFTER.tv_sec;
    format!(
        "no guest has ended for {seconds} s; waiting for CPUs of this host held by the processes \
         {pids:?}; set {VARIABLE}=off to run without waiting"
    )
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
        HostCpus { prefix: format!("ktstr/test/{}/{number}", std::process::id()), count }
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
        let (own, text) = (std::process::id(), waiting(&[slot]));
        assert!(text.contains(&format!("held by the processes {{{own}}};")), "{text}");
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
        let cpus = HostCpus { prefix, count: 2 }.take(1).unwrap();
        println!("holds a CPU");
        cpus.await_waiter();
        println!("is waited for");
        let _ = std::io::stdin().read(&mut [0]);
    }
}
