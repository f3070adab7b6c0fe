//! The process that runs a test's body.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::process::Pid;

use super::child::Child;
use super::handover::{self, Handover, Received};
use super::pipe::{output_pipe, set_nonblocking};
use super::{profile, system};
use crate::guest::registry::{self, TestEntry};
use crate::guest::scenario::Ctx;
use crate::guest::topology::TestTopology;
use crate::guest::{chain, measured};
use crate::linux::cgroup::CgroupManager;
use crate::linux::sys;
use crate::model::pid1::{BODY, LIBTEST_OPTIONS, PROGRAM};
use crate::model::wire::{Encoder, End, GuestMessage, Stream};

/// The most bytes that a pipe takes atomically: a message and its final NUL. Longer messages are cut.
///
/// Source: pipe(7), PIPE_BUF.
const PANIC_MESSAGE: usize = 4096;

/// The caller of the test functions in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harness {
    /// libtest, each in a thread with the name of the test.
    Libtest,
    /// The program's `main`.
    Main,
}

/// Starts a program that forks the body of `entry`, and returns it as the child of PID 1. The body has the variables
/// `env`. Its last message is [`GuestMessage::End`].
///
/// The program is this one, executed again: after an exec, the addresses and hash keys of a process are random,
/// also in copies of one guest, where a fork of PID 1 would have those of PID 1.
///
/// # Errors
///
/// If the program cannot be executed, or the guest lacks memory or descriptors.
pub(super) fn start(
    entry: &TestEntry,
    topo: &TestTopology,
    env: Vec<(OsString, OsString)>,
    harness: Harness,
) -> Result<Child> {
    let (stdout, stdout_writer) = output_pipe()?;
    let (stderr, stderr_writer) = output_pipe()?;
    let (panics, panic_writer) = output_pipe()?;
    set_nonblocking(&panic_writer)?;
    let (handover, link) = Handover::new(topo, stdout_writer, panic_writer)?;
    let test = entry.test_name();
    let mut program = Command::new(PROGRAM);
    if harness == Harness::Libtest {
        program.args(LIBTEST_OPTIONS).arg(&test);
    }
    program.envs(system::VARIABLES).envs(env).env(BODY, test);
    // Drops the output of libtest, but shows errors of the loader.
    program.stdin(link).stdout(Stdio::null()).stderr(stderr_writer);
    let started = program.spawn().with_context(|| format!("failed to execute {PROGRAM}"))?;
    let pid = Pid::from_child(&started);
    let mut child =
        Child::new(pid, None, vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)])?;
    child.handover = Some(handover);
    child.panics = Some(panics);
    Ok(child)
}

/// Forks the body of `test` in the program that [`start`] has executed, and ends this process.
///
/// The body is the only thread of its process. It is a copy of a thread as libtest starts it, with the name
/// of the test and a stack of `RUST_MIN_STACK` bytes. So panics, stack overflows and `comm` have the name of
/// this test. The end of this process makes PID 1, which never ends, the body's parent (PR_SET_PDEATHSIG).
pub(super) fn fork(test: &OsStr, harness: Harness) -> ! {
    let forked = registry::find(&test.to_string_lossy())
        .with_context(|| format!("unknown test {}", test.display()))
        .and_then(|entry| match harness {
            Harness::Libtest => fork_this_thread(entry),
            Harness::Main => fork_named_thread(entry),
        });
    if let Err(error) = forked {
        eprintln!("ktstr: failed to start the test body: {error:#}");
        std::process::exit(1);
    }
    sys::exit_now()
}

fn fork_named_thread(entry: &'static TestEntry) -> Result<()> {
    let thread = thread::Builder::new().name(entry.test_name()).spawn(|| fork_this_thread(entry));
    let thread = thread.context("failed to start the thread of the test body")?;
    thread.join().unwrap_or_else(|panic| bail!("{}", panic_message(&*panic)))
}

fn fork_this_thread(entry: &TestEntry) -> Result<()> {
    // SAFETY: this process has one other thread, that of `main`. It waits for this one, in libtest or in `fork`,
    // and holds no lock.
    let body = unsafe { sys::fork(|| become_body(entry)) }.context("failed to fork")?;
    handover::announce(rustix::stdio::stdin(), body).context("failed to send the pid to PID 1")
}

/// Runs the body in this process once PID 1 lets it start; returns the exit status.
fn become_body(entry: &TestEntry) -> i32 {
    match enter() {
        Ok((topology, link)) => run_and_send(entry, &topology, link),
        Err(error) => {
            eprintln!("ktstr: failed to start the test body: {error:#}");
            return 1;
        }
    }
    0
}

/// Makes this process that of the body. Returns the topology, and the link for its messages.
fn enter() -> Result<(TestTopology, UnixStream)> {
    let link = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map(UnixStream::from)
        .context("failed to copy a descriptor")?;
    let Received { topology, stdin, stdout, panics } = handover::receive(&link)?;
    // Drops the output of libtest that is still in the buffer, too.
    let _ = std::io::stdout().flush();
    rustix::stdio::dup2_stdin(&stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(&stdout))
        .context("failed to replace a descriptor")?;
    rustix::process::setsid().context("failed to create a session")?;
    // SAFETY: a forked process has one thread, and this one has not started another.
    unsafe { std::env::remove_var(BODY) };
    report_panics(panics);
    crate::guest::logging::init();
    Ok((topology, link))
}

fn run_and_send(entry: &TestEntry, topo: &TestTopology, link: UnixStream) {
    let link = RefCell::new((link, Encoder::default()));
    let body = rustix::process::getpid();
    let send_message: Rc<dyn Fn(GuestMessage)> = Rc::new(move |message| {
        // Processes that the body forks inherit the link, and would number their frames from the same
        // number on.
        if rustix::process::getpid() == body {
            send(&mut link.borrow_mut(), &message);
        }
    });
    let mut end = run(entry, topo, &send_message);
    end.shorten();
    // Standard output is line-buffered: the last line may lack its line break.
    let _ = std::io::stdout().flush();
    send_message(GuestMessage::End(end));
    if rustix::process::getpid() == body {
        profile::write();
    }
}

/// Runs a body in this process, passes its messages to `send`, and returns its end. All measurements
/// are among the messages.
pub fn run(entry: &TestEntry, topo: &TestTopology, send: &Rc<dyn Fn(GuestMessage)>) -> End {
    let cgroups = match CgroupManager::for_test(entry.workload_root_cgroup) {
        Ok(cgroups) if entry.host_only => cgroups,
        Ok(cgroups) => cgroups.running_first(),
        Err(error) => return End::Error(error.to_string()),
    };
    let test_name = entry.test_name();
    let ctx = Ctx {
        cgroups: &cgroups,
        topo,
        test_name: &test_name,
        duration: entry.duration,
        settle: entry.settle,
        workers_per_cgroup: entry.workers_per_cgroup,
        assert: entry.assert,
        payloads: entry.payloads,
        is_on_host: entry.host_only,
        send: &**send,
    };
    let _guard = measured::send_by(send.clone());
    match catch_unwind(AssertUnwindSafe(|| (entry.body)(&ctx))) {
        Ok(Ok(mut verdict)) => {
            measured::send_rest(std::mem::take(&mut verdict.measurements));
            End::Verdict(verdict)
        }
        Ok(Err(error)) => End::Error(chain::describe(&error)),
        Err(payload) => End::Panicked(panic_message(&*payload).to_owned()),
    }
}

/// Sends a message to PID 1.
///
/// If that fails, the body exits without a verdict, with the reason on its standard error: a run must not
/// pass without one of its messages.
fn send((link, encoder): &mut (UnixStream, Encoder), message: &GuestMessage) {
    let sent = encoder
        .encode(message)
        .map_err(anyhow::Error::from)
        .and_then(|frame| Ok(link.write_all(&frame)?));
    if let Err(error) = sent {
        eprintln!("ktstr: failed to send a message to PID 1: {error:#}");
        std::process::exit(1);
    }
}

/// Installs a panic hook that first writes the message to PID 1, in one write that cannot block, so that
/// it arrives even if the process aborts.
fn report_panics(pipe: OwnedFd) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = panic_message(info.payload());
        let mut text = format!("{message}, {place}").replace('\0', " ");
        text.truncate(text.floor_char_boundary(PANIC_MESSAGE - 1));
        text.push('\0');
        let _ = rustix::io::write(&pipe, text.as_bytes());
        default(info);
    }));
}

/// Returns the text of a panic's payload, which `panic!` makes in one of two forms.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a payload that is not text)")
}
