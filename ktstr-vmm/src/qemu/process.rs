//! The QEMU process: started with the descriptors that it needs and no others, and never left
//! behind.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use ktstr_core::linux::process::{self, Child, Job, Limits};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::channel::Channel;
use crate::error::Error;

/// Descriptors for a child, which have the same numbers there.
///
/// They are close-on-exec in this process, so that programs that other threads start meanwhile do
/// not inherit them. They lose that flag only in the child that they are meant for.
#[derive(Debug, Default)]
pub(super) struct Inherit(Vec<OwnedFd>);

impl Inherit {
    /// Adds a descriptor and returns its number in the child.
    pub(super) fn add(&mut self, fd: impl AsFd) -> Result<RawFd, Error> {
        // Not below 3: those are the child's standard streams.
        let fd = fcntl_dupfd_cloexec(fd, 3).map_err(Error::io("duplicate a descriptor"))?;
        let number = fd.as_raw_fd();
        self.0.push(fd);
        Ok(number)
    }
}

/// A child process with its descendants, killed and waited for when dropped.
#[derive(Debug)]
pub(super) struct QemuProcess {
    job: Job,
    child: Child,
}

/// The output streams of a child.
#[derive(Debug)]
pub(super) struct QemuOutput {
    pub(super) stdout: Channel,
    pub(super) stderr: Channel,
}

impl QemuProcess {
    /// Starts a program, which is killed when the calling thread ends.
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
        // This drops the command, and with it this process's copies of the child's descriptors.
        let mut child = job.spawn(command).map_err(|error| match error {
            process::Error::Spawn { .. } => Error::Spawn(error),
            other => Error::Contain(other),
        })?;
        tracing::debug!(pid = child.pid(), "QEMU has started");
        let streams = child.stdout.take().zip(child.stderr.take());
        let (stdout, stderr) = streams.expect("both streams are piped");
        let stdout = Channel::reader(stdout.into())?;
        let stderr = Channel::reader(stderr.into())?;
        Ok((Self { job, child }, QemuOutput { stdout, stderr }))
    }

    /// Returns a descriptor that becomes readable when the process ends.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Kills the process, if it still runs, and returns how it ended: `signal: 9 (SIGKILL)`.
    pub(super) fn kill(&mut self) -> Result<String, Error> {
        self.job.kill_all()?;
        self.wait()
    }

    /// Waits until the process ends and returns how: `exit status: 1`.
    pub(super) fn wait(&mut self) -> Result<String, Error> {
        match self.child.wait() {
            Ok(status) => {
                tracing::debug!(pid = self.child.pid(), %status, "QEMU has exited");
                Ok(status.to_string())
            }
            // It has ended, but another thread has reaped it, or SIGCHLD is ignored. The results
            // that arrived before are still valid.
            Err(process::Error::System { source, .. })
                if source.raw_os_error() == Some(Errno::CHILD.raw_os_error()) =>
            {
                Ok("unknown exit status: another part of this process has reaped it".to_owned())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Clears close-on-exec of the descriptors, in the child before exec.
fn keep_open(inherit: &Inherit) -> io::Result<()> {
    // No `dup2`: it could overwrite another of these descriptors, or std's own error pipe.
    for fd in &inherit.0 {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// Blocks the signals that terminate QEMU, in the child before exec.
///
/// A terminal sends them to each process of the foreground job (Ctrl-C, a hang-up), and QEMU
/// handles them even if the runner was started with them ignored, as by a script's `&` or by
/// `nohup`. They are meant for the runner, and QEMU is killed with the runner. QEMU adds to the
/// mask that it inherits (util/main-loop.c, `qemu_signal_init`). A process group of its own is no
/// alternative: QEMU would then run on while Ctrl-Z has stopped the runner.
fn block_signals() -> io::Result<()> {
    // SAFETY: `sigemptyset` initialises the set, and the calls access only the set.
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
    fn spawn_passes_descriptors_under_the_same_number() {
        let mut files = Vec::new();
        let mut inherit = Inherit::default();
        let mut script = String::new();
        for index in 0..5 {
            let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            // By path, because dash accepts only descriptors of one digit.
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
    fn spawn_passes_no_descriptors_of_other_children() {
        let mut inherit = Inherit::default();
        let number = inherit.add(memfd_create("test", MemfdFlags::CLOEXEC).unwrap()).unwrap();
        // Another child, started while this one's descriptors are open.
        let (mut child, _output) =
            shell(&format!("test ! -e /proc/self/fd/{number}"), Inherit::default());
        assert_eq!(child.wait().unwrap(), "exit status: 0");
    }

    #[test]
    fn drop_kills_and_reaps_the_process() {
        let start = Instant::now();
        let (child, _output) = shell("exec sleep 60", Inherit::default());
        let pid = child.child.pid();
        drop(child);
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it was not reaped");
    }

    #[test]
    fn process_dies_with_the_thread_that_spawned_it() {
        let spawn = || {
            let (child, _output) = shell("exec sleep 60", Inherit::default());
            child
        };
        let mut child = std::thread::spawn(spawn).join().unwrap();
        assert!(child.wait().unwrap().starts_with("signal: 9"));
    }

    #[test]
    fn wait_succeeds_if_the_process_was_already_reaped() {
        let (mut child, _output) = shell("exit 3", Inherit::default());
        let pid = rustix::process::Pid::from_raw(child.child.pid());
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
        assert!(child.wait().unwrap().starts_with("unknown exit status"));
        assert!(child.kill().is_ok());
    }

    #[test]
    fn process_ignores_signals_of_a_terminal() {
        let (mut child, _output) =
            shell("kill -INT $$; kill -HUP $$; kill -TERM $$; exit 7", Inherit::default());
        assert_eq!(child.wait().unwrap(), "exit status: 7");
    }

    #[test]
    fn spawn_reports_the_missing_program() {
        let argv = [OsString::from("/no/such/qemu")];
        let error = QemuProcess::spawn(&argv, &[], Inherit::default()).unwrap_err();
        assert!(error.to_string().starts_with("failed to run `/no/such/qemu`: "), "{error}");
    }
}
