//! The programs that the jobs of this suite run: this test binary, in one of several roles.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use ktstr::prelude::*;
use ktstr::process::{Child, Job};
use rustix::process::{Signal, getpid, kill_process, setsid};

use crate::children::{self, pause};

const ROLE: &str = "KTSTR_ROLE";

thread_local! {
    /// The environment variable of the programs of this test, and not of concurrent tests. A fork of
    /// the test has it as well.
    pub(crate) static MARK: String = format!(
        "KTSTR_TESTED_BY={}.{}",
        std::process::id(),
        rustix::thread::gettid()
    );
}

/// The behavior of a program after it has reported that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Waits for ever.
    Waits,
    /// Its child leaves the session.
    LeavesSession,
    /// Its child leaves the session and has a command name that is not UTF-8.
    NamedByBytes,
    /// Exits and leaves a daemon: forked twice, in a session of its own.
    Daemon,
    /// Ignores SIGTERM.
    Deaf,
    /// Stops itself.
    Stops,
    /// Its child waits in the kernel, state D, until a child ends, which never does.
    WaitsInKernel,
    /// The first thread of its child ends, the second waits for ever.
    LosesFirstThread,
    /// Its child changes to another user.
    ChangesUser,
    /// Forks until the kernel rejects it, and so do its children.
    ForkBomb,
    /// A chain of twenty processes, each the parent of the next.
    Tree,
    /// Spins in user space.
    Spins,
    /// Touches 64 MiB and waits.
    Eats,
    /// Exits with status 7.
    Ends,
}

/// The roles that wait for ever, and work in every environment.
pub(crate) const STUBBORN: [Role; 9] = [
    Role::Waits,
    Role::LeavesSession,
    Role::NamedByBytes,
    Role::Daemon,
    Role::Deaf,
    Role::Stops,
    Role::WaitsInKernel,
    Role::LosesFirstThread,
    Role::Tree,
];

const OTHERS: [Role; 5] = [Role::ChangesUser, Role::ForkBomb, Role::Spins, Role::Eats, Role::Ends];

impl Role {
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "programs::program", "--include-ignored", "--nocapture"]);
        command.args(["--test-threads", "1"]);
        let mark = MARK.with(Clone::clone);
        let (name, value) = mark.split_once('=').expect("it has a value");
        command.env(name, value);
        command.env(ROLE, format!("{self:?}")).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Starts this program in a job; returns once it is ready.
    pub(crate) fn start_in(self, job: &Job) -> Result<Child> {
        let mut child = job.spawn(self.command())?;
        let mut output = BufReader::new(child.stdout.take().context("it was piped")?);
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            ensure!(output.read_line(&mut line)? > 0, "{self:?} ended before it was ready");
        }
        Ok(child)
    }
}

#[test]
#[ignore = "the program that the tests of this suite run"]
fn program() {
    let Ok(name) = env::var(ROLE) else { return };
    let mut roles = STUBBORN.into_iter().chain(OTHERS);
    let role = roles.find(|role| format!("{role:?}") == name).expect("a known role");
    match role {
        Role::Waits => ready(),
        Role::LeavesSession => fork(|| {
            setsid().unwrap();
            ready();
        }),
        Role::NamedByBytes => fork(|| {
            setsid().unwrap();
            rustix::thread::set_name(c"t\xc3\xb6\xc3").unwrap();
            ready();
        }),
        Role::Daemon => {
            fork(|| {
                setsid().unwrap();
                fork(ready);
                std::process::exit(0);
            });
            std::process::exit(0);
        }
        Role::Deaf => {
            ignore_sigterm();
            ready();
        }
        Role::Stops => {
            ready();
            kill_process(getpid(), Signal::STOP).unwrap();
        }
        Role::WaitsInKernel => fork(|| fork_and_wait_in_kernel(ready)),
        Role::LosesFirstThread => fork(|| {
            std::thread::spawn(|| {
                ready();
                pause();
            });
            // SAFETY: ends this thread; the other one does not use its stack.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }),
        // In a process with one thread, because the call changes one thread.
        Role::ChangesUser => fork(|| {
            let user = rustix::process::Uid::from_raw(2000);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            ready();
        }),
        Role::ForkBomb => explode(),
        Role::Tree => grow(20),
        Role::Spins => {
            ready();
            children::spin();
        }
        Role::Eats => {
            std::hint::black_box(&mut vec![1_u8; 64 << 20]);
            ready();
        }
        Role::Ends => {
            ready();
            std::process::exit(7);
        }
    }
    pause();
}

/// Prints that the program is ready, in one write: the processes of a fork bomb all do.
fn ready() {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(b"ready\n").and_then(|()| stdout.flush());
}

/// Runs `child` in a forked process, which then waits for ever.
fn fork(child: impl FnOnce()) {
    // SAFETY: libtest has one other thread, which waits for this test and holds no lock.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            child();
            pause();
        }
        _ => {}
    }
}

/// Forks like vfork but without shared memory: the parent waits in state D for the child to end.
fn fork_and_wait_in_kernel(child: impl FnOnce()) {
    let flags = libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork, of a process of one thread.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            child();
            pause();
        }
        _ => {}
    }
}

fn grow(left: u32) {
    match left {
        1 => ready(),
        left => fork(|| grow(left - 1)),
    }
}

fn explode() {
    loop {
        // SAFETY: as in `fork`.
        if unsafe { libc::fork() } == -1 {
            ready();
            std::thread::yield_now();
        }
    }
}

fn ignore_sigterm() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

/// Fails unless the process was killed by `signal`.
pub(crate) fn ensure_killed(status: std::process::ExitStatus, signal: Signal) -> Result<()> {
    ensure!(status.signal() == Some(signal.as_raw()), "expected {signal:?}, got {status}");
    Ok(())
}
