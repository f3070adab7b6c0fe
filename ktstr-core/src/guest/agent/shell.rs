//! Runs a program in the guest with its input and output on the wire.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, WaitIdStatus, kill_process};
use rustix::termios::Winsize;

use super::child::Child;
use super::pipe::set_nonblocking;
use super::{machine, system};
use crate::linux::sys;
use crate::model::wire::{End, Request, ShellRequest, Stream};

/// Starts the program if the machine is the requested one.
pub(super) fn start(request: &ShellRequest) -> Result<Result<Child, End>> {
    if let Err(end) = machine::check(&request.machine)? {
        return Ok(Err(end));
    }
    Ok(spawn(request).map_err(|error| End::Refused(format!("{error:#}"))))
}

/// Starts the program as leader of a new session.
fn spawn(request: &ShellRequest) -> Result<Child> {
    ensure!(!request.argv.is_empty(), "the request names no program");
    match request.terminal {
        Some((rows, columns)) => spawn_on_terminal(request, rows, columns),
        None => spawn_on_pipes(request),
    }
}

fn spawn_on_pipes(request: &ShellRequest) -> Result<Child> {
    let (stdin, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("failed to create a pipe")?;
    let mut child = Child::fork(|| match rustix::stdio::dup2_stdin(&stdin) {
        Ok(()) => exec(request),
        Err(_) => 1,
    })?;
    set_nonblocking(&writer)?;
    child.stdin = Some(writer);
    Ok(child)
}

fn spawn_on_terminal(request: &ShellRequest, rows: u16, columns: u16) -> Result<Child> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).context("failed to create a terminal (CONFIG_UNIX98_PTYS)")?;
    grantpt(&ours).and_then(|()| unlockpt(&ours)).context("failed to unlock the terminal")?;
    let theirs = ioctl_tiocgptpeer(&ours, flags).context("failed to open the terminal")?;
    resize(&ours, rows, columns)?;
    let child = || {
        let wired = rustix::process::setsid().is_ok()
            && sys::take_terminal(theirs.as_fd()).is_ok()
            && rustix::stdio::dup2_stdin(&theirs).is_ok()
            && rustix::stdio::dup2_stdout(&theirs).is_ok()
            && rustix::stdio::dup2_stderr(&theirs).is_ok();
        if wired { exec(request) } else { 1 }
    };
    // SAFETY: the only other thread of PID 1 is libtest's, which waits and holds no lock.
    let pid = unsafe { sys::fork(child) }.context("failed to fork")?;
    set_nonblocking(&ours)?;
    let input: OwnedFd = ours.try_clone().context("failed to copy a descriptor")?;
    Child::new(pid, Some(input), vec![(Stream::Stdout, ours)])
}

/// Executes the program. Returns only if that fails, with the exit status that a shell would return.
fn exec(request: &ShellRequest) -> i32 {
    let (program, arguments) = request.argv.split_first().expect("checked by spawn");
    let mut command = Command::new(program);
    command.args(arguments).envs(system::VARIABLES).envs(request.env.iter().cloned());
    let error = command.exec();
    eprintln!("{program}: {error}");
    if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Carries out a request for the running program.
pub(super) fn attend(child: &mut Child, request: &Request) -> Result<()> {
    match request {
        Request::Input(bytes) => feed(child, bytes),
        // Ignored without a terminal.
        Request::Resize(rows, columns) => {
            if let Some(terminal) = child.stdin.as_ref().filter(|fd| rustix::termios::isatty(fd)) {
                resize(terminal, *rows, *columns)?;
            }
        }
        // It is not reaped before its end is sent, so the pid is its own.
        Request::Kill => {
            kill_process(child.pid, Signal::KILL).context("failed to kill the program")?;
        }
        Request::Run(_) | Request::Shell(_) => bail!("the host sent a second request"),
    }
    Ok(())
}

fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).context("failed to resize the terminal")
}

/// Queues input for the program; empty input is the end of its standard input.
fn feed(child: &mut Child, bytes: &[u8]) {
    match bytes {
        [] if child.input.is_empty() => child.stdin = None,
        [] => child.input_ends = true,
        bytes => child.input.extend(bytes),
    }
}

/// Returns the exit status as a shell does: 128 plus the number of a signal.
pub(super) fn status(status: &WaitIdStatus) -> u8 {
    let status = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
    status.and_then(|status| u8::try_from(status).ok()).unwrap_or(255)
}
