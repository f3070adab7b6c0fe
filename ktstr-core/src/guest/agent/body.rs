//! The process that runs a test's body.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result};

use super::child::Child;
use super::pipe::{output_pipe, set_nonblocking};
use super::{profile, system};
use crate::guest::registry::TestEntry;
use crate::guest::scenario::Ctx;
use crate::guest::topology::TestTopology;
use crate::guest::{chain, measured};
use crate::linux::cgroup::CgroupManager;
use crate::model::wire::{Decoder, Encoder, End, GuestMessage};

/// The most bytes that a pipe takes atomically: a message and its final NUL. Longer messages are cut.
///
/// Source: pipe(7), PIPE_BUF.
const PANIC_MESSAGE: usize = 4096;

/// Starts the process that runs the body of `entry` with `env` set. Its last message is
/// [`GuestMessage::End`].
///
/// The body is the only thread of its process. PID 1 starts a thread for it, as libtest does: with the
/// name of the test and a stack of `RUST_MIN_STACK` bytes, and forks that thread. So panics, stack
/// overflows and `comm` have the name of this test.
pub(super) fn start(
    entry: &'static TestEntry,
    topo: TestTopology,
    env: Vec<(OsString, OsString)>,
) -> Result<Child> {
    let (sender, receiver) = sync_channel(1);
    let parent = thread::Builder::new().name(entry.test_name());
    let started = parent.spawn(move || {
        // The receiver exists: the agent waits for this one message.
        let _ = sender.send(fork(entry, &topo, &env));
        // This thread must not end: it is the body's parent, and PR_SET_PDEATHSIG of the body refers to
        // the thread that forked it.
        loop {
            thread::park();
        }
    });
    started.context("failed to start the thread of the body")?;
    receiver.recv().context("the thread of the body has ended")?
}

/// Forks the body's process, in which the calling thread is the only one.
fn fork(entry: &TestEntry, topo: &TestTopology, env: &[(OsString, OsString)]) -> Result<Child> {
    let (ours, theirs) = UnixStream::pair().context("failed to create a socket pair")?;
    let (panics, panic_writer) = output_pipe()?;
    set_nonblocking(&panic_writer)?;
    let mut child = Child::fork(|| {
        let login = system::VARIABLES.map(|(name, value)| (name.as_ref(), value.as_ref()));
        let given = env.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        for (name, value) in login.into_iter().chain(given) {
            // SAFETY: a forked process has one thread, and this one has not started another.
            unsafe { std::env::set_var(name, value) };
        }
        report_panics(panic_writer);
        crate::guest::logging::init();
        run_and_send(entry, topo, theirs);
        0
    })?;
    ours.set_nonblocking(true).context("failed to set socket flags")?;
    child.messages = Some((ours, Decoder::default()));
    child.panics = Some(panics);
    Ok(child)
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
