//! The QEMU process: started with the descriptors it needs and no others, never left behind.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use ktstr_core::linux::process::{self, Child, Job, Limits};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::channel::Channel;
use crate::error::Error;

/// Descriptors for a child, at the numbers they will have there.
///
/// They are close-on-exec in this process, so that programs other threads start meanwhile cannot
/// inherit them, and lose that flag only in the child that they are meant for.
#[derive(Debug, Default)]
pub(super) struct Inherit(Vec<OwnedFd>);

impl Inherit {
    /// Adds a descriptor; returns its number in the child.
    pub(super) fn add(&mut self, fd: impl AsFd) -> Result<RawFd, Error> {
        // Not below 3, where the child's standard streams go.
        let fd = fcntl_dupfd_cloexec(fd, 3).map_err(Error::io("duplicate a descriptor"))?;
        let number = fd.as_raw_fd();
        self.0.push(fd);
        Ok(number)
    }
}

/// A child process and all it starts, killed and waited for when dropped.
#[derive(Debug)]
pub(super) struct QemuProcess {
    job: Job,
    child: Child,
}

/// What a child says.
#[derive(Debug)]
pub(super) struct QemuOutput {
    pub(super) stdout: Channel,
    pub(super) stderr: Channel,
}

impl QemuProcess {
    /// Starts a program. It dies with the calling thread.
    pub(super) fn spawn(
        argv: &[OsString],
        args: &[OsString],
        inherit: Inherit,
    ) -> Result<(Self, QemuOutput), Error> {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec the closure only makes system calls, on descriptors that it
        // owns and on its own signal mask; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || keep_open(&inherit).and_then(|()| block_signals())) };
        let job = Job::new(Limits::none())?;
        // Closes this process's copies of the child's descriptors, which the command has.
        let mut child = job.spawn(command).map_err(|error| match error {
            process::Error::Spawn { .. } => Error::Spawn(error),
            other => Error::Contain(other),
        })?;
        let streams = child.stdout.take().zip(child.stderr.take());
        let (stdout, stderr) = streams.expect("both streams were asked for");
        let stdout = Channel::reader(stdout.into())?;
        let stderr = Channel::reader(stderr.into())?;
        Ok((Self { job, child }, QemuOutput { stdout, stderr }))
    }

    /// Readable once the process has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Kills the process, if it still runs, and waits for it: `signal: 9 (SIGKILL)`.
    pub(super) fn kill(&mut self) -> Result<String, Error> {
        self.job.kill_all()?;
        self.wait()
    }

    /// Waits for the end of the process and returns how it ended: `exit status: 1`.
    pub(super) fn wait(&mut self) -> Result<String, Error> {
        match self.child.wait() {
            Ok(status) => Ok(status.to_string()),
            // It has ended, but another thread has waited for it or ignores SIGCHLD: that must not
            // cost the verdict that came before.
            Err(process::Error::System { source, .. })
                if source.raw_os_error() == Some(Errno::CHILD.raw_os_error()) =>
            {
                Ok("unknown exit status, another part of this process has taken it".to_owned())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Runs in the child before exec.
fn keep_open(inherit: &Inherit) -> io::Result<()> {
    // Same number, so nothing is overwritten: neither another source nor std's own error pipe.
    for fd in &inherit.0 {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// Blocks the signals that QEMU ends at, in the child before exec.
///
/// A terminal sends them to each process of a job (Ctrl-C, a hang-up), and QEMU handles them even if
/// the runner was started to ignore them, as by a script's `&` or by `nohup`. It is for the runner to
/// end at them, and QEMU ends with the runner. QEMU adds to the mask that it inherits
/// (util/main-loop.c, `qemu_signal_init`). In a process group of its own it would run on
/// while Ctrl-Z has stopped the runner.
fn block_signals() -> io::Result<()> {
    // SAFETY: `sigemptyset` initialises the set, and the calls read and write nothing else.
    let result = unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};
    use std::time::{Duration, Instant};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn shell(script: &str, inherit: Inherit) -> (QemuProcess, QemuOutput) {
        let argv = ["sh", "-c", script].map(OsString::from);
        QemuProcess::spawn(&argv, &[], inherit).unwrap()
    }

    #[test]
    fn a_child_has_what_it_inherits_under_the_same_number() {
        let mut files = Vec::new();
        let mut inherit = Inherit::default();
        let mut script = String::new();
        for index in 0..5 {
            let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            // dash knows only one digit; by path any number will do.
            let number = inherit.add(&file).unwrap();
            script += &format!("echo file {index} > /proc/self/fd/{number}; ");
            files.push(file);
        }
        let (mut child, _output) = shell(&script, inherit);
        assert_eq!(child.wait().unwrap(), "exit status: 0");
        for (index, mut file) in files.into_iter().enumerate() {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("file {index}\n"));
        }
    }

    #[test]
    fn nothing_else_is_inherited() {
        let mut inherit = Inherit::default();
        let number = inherit.add(memfd_create("test", MemfdFlags::CLOEXEC).unwrap()).unwrap();
        // Another child, started while this one's descriptors are open.
        let (mut child, _output) =
            shell(&format!("test ! -e /proc/self/fd/{number}"), Inherit::default());
        assert_eq!(child.wait().unwrap(), "exit status: 0");
    }

    #[test]
    fn a_dropped_process_is_gone_at_once() {
        let start = Instant::now();
        let (child, _output) = shell("exec sleep 60", Inherit::default());
        let pid = child.child.pid();
        drop(child);
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "not even a zombie");
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let spawn = || {
            let (child, _output) = shell("exec sleep 60", Inherit::default());
            child
        };
        let mut child = std::thread::spawn(spawn).join().unwrap();
        assert!(child.wait().unwrap().starts_with("signal: 9"));
    }

    #[test]
    fn wait_succeeds_after_another_has_waited() {
        let (mut child, _output) = shell("exit 3", Inherit::default());
        let pid = rustix::process::Pid::from_raw(child.child.pid());
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
        assert!(child.wait().unwrap().starts_with("unknown exit status"));
        assert!(child.kill().is_ok());
    }

    #[test]
    fn signals_of_a_terminal_have_no_effect() {
        let (mut child, _output) =
            shell("kill -INT $$; kill -HUP $$; kill -TERM $$; exit 7", Inherit::default());
        assert_eq!(child.wait().unwrap(), "exit status: 7");
    }

    #[test]
    fn a_missing_program_is_named() {
        let argv = [OsString::from("/no/such/qemu")];
        let error = QemuProcess::spawn(&argv, &[], Inherit::default()).unwrap_err();
        assert!(error.to_string().starts_with("failed to run `/no/such/qemu`: "), "{error}");
    }
}
