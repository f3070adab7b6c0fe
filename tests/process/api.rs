//! The API of a job beyond killing it.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use ktstr::prelude::*;
use ktstr::process::{Error, Job, Limits, Mechanism, Signal};

use crate::children::{self, eventually};
use crate::gone::ensure_no_program_runs;
use crate::modes;
use crate::programs::{Role, ensure_killed};

const MINUTE: Duration = Duration::from_secs(60);

fn job() -> Result<Job> {
    Ok(Job::new(Limits::none())?)
}

/// Checks everything that both mechanisms support.
fn ensure_common_api_works() -> Result<()> {
    // A program and its exit status; a program that does not exist.
    let job = job()?;
    let mut ends = Role::Ends.start_in(&job)?;
    ensure!(
        ends.wait()?.code() == Some(7) && ends.wait()?.code() == Some(7),
        "the exit status is kept"
    );
    ensure!(job.members()?.is_empty() && job.leaked()?.is_empty());
    let error = job.spawn(Command::new("/no/such/program")).unwrap_err();
    ensure!(matches!(error, Error::Spawn { .. }), "{error}");
    ensure!(error.to_string().starts_with("failed to run `/no/such/program`: "), "{error}");
    ensure!(job.members()?.is_empty(), "{:?}", job.members()?);

    // Waiting times out.
    let mut waits = Role::Waits.start_in(&job)?;
    ensure!(waits.wait_timeout(Duration::from_millis(20))?.is_none());
    let [member] = &job.members()?[..] else { bail!("{:?}", job.members()?) };
    ensure!(member.pid == waits.pid() && member.cmdline.contains("programs::program"), "{member}");

    // A signal reaches all processes, and a killed job can be used again.
    let mut other = Role::Waits.start_in(&job)?;
    job.signal(Signal::TERM)?;
    ensure_killed(waits.wait()?, Signal::TERM)?;
    ensure_killed(other.wait()?, Signal::TERM)?;
    let mut deaf = Role::Deaf.start_in(&job)?;
    job.kill_all()?;
    ensure_killed(deaf.wait()?, Signal::KILL)?;
    ensure!(job.members()?.is_empty());
    Role::Tree.start_in(&job)?;
    ensure!(job.members()?.len() >= 20);
    job.kill_all()?;
    job.kill_all()?;

    // The CPU time of killed processes still counts.
    let _spinner = Role::Spins.start_in(&job)?;
    eventually("50 ms of CPU time", || Ok(job.stats()?.cpu_time >= Duration::from_millis(50)))?;
    let stats = job.stats()?;
    ensure!(stats.live == 1 && stats.peak_memory > 1 << 20, "{stats:?}");
    job.kill_all()?;
    let after = job.stats()?;
    ensure!(after.live == 0 && after.cpu_time >= stats.cpu_time, "{stats:?}, then {after:?}");
    drop(job);
    ensure_no_program_runs()?;
    ensure_shutdown_reports_every_process()
}

fn ensure_shutdown_reports_every_process() -> Result<()> {
    let job = job()?;
    let polite = Role::Waits.start_in(&job)?;
    let result = job.shutdown(Signal::TERM, MINUTE, true)?;
    ensure!(result.exited.len() == 1 && result.exited[0].process.pid == polite.pid(), "{result:?}");
    ensure!(result.killed.is_empty() && result.remaining.is_empty(), "{result:?}");
    let deaf = Role::Deaf.start_in(&job)?;
    let result = job.shutdown(Signal::TERM, Duration::from_millis(50), false)?;
    ensure!(result.remaining.len() == 1 && result.remaining[0].pid == deaf.pid(), "{result:?}");
    ensure!(result.exited.is_empty() && result.killed.is_empty(), "{result:?}");
    let result = job.shutdown(Signal::TERM, Duration::from_millis(50), true)?;
    ensure!(result.exited.is_empty() && result.remaining.is_empty(), "{result:?}");
    ensure!(result.killed.len() == 1 && result.killed[0].pid == deaf.pid(), "{result:?}");
    println!("{result}");
    // A whole tree, long before the grace period ends.
    Role::Tree.start_in(&job)?;
    let result = job.shutdown(Signal::TERM, MINUTE, false)?;
    ensure!(result.exited.len() >= 20 && result.remaining.is_empty(), "{result:?}");
    ensure!(result.exited.iter().all(|exited| exited.after < MINUTE / 2), "{result:?}");
    // An empty job.
    let result = job.shutdown(Signal::TERM, MINUTE, true)?;
    ensure!(result == ktstr::process::Shutdown::default(), "{result:?}");
    Ok(())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_root(_: &Ctx) -> Result<AssertResult> {
    ensure_common_api_works()?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_ordinary_user(_: &Ctx) -> Result<AssertResult> {
    modes::as_ordinary_user(ensure_common_api_works)?;
    Ok(AssertResult::pass())
}

/// As in many containers.
#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 60)]
fn in_a_pid_namespace(_: &Ctx) -> Result<AssertResult> {
    modes::in_pid_namespace(ensure_common_api_works)?;
    Ok(AssertResult::pass())
}

#[test]
fn on_this_host() -> Result<()> {
    ensure_common_api_works()
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn suspend_stops_all_processes_and_kill_all_resumes(_: &Ctx) -> Result<AssertResult> {
    let job = job()?;
    Role::LeavesSession.start_in(&job)?;
    let spinner = Role::Spins.start_in(&job)?;
    job.suspend()?;
    let before = job.stats()?.cpu_time;
    // Other jobs run meanwhile.
    Role::Ends.start_in(&self::job()?)?.wait()?;
    ensure!(
        job.stats()?.cpu_time == before,
        "CPU time while suspended: {:?}",
        job.stats()?.cpu_time - before
    );
    job.resume()?;
    eventually("CPU time grows after resume", || Ok(job.stats()?.cpu_time > before))?;
    job.kill_all()?;
    drop(spinner);
    let mut spinner = Role::Spins.start_in(&job)?;
    job.suspend()?;
    let error = job.spawn(Role::Waits.command()).unwrap_err();
    ensure!(matches!(error, Error::Suspended { .. }), "{error}");
    job.kill_all()?;
    ensure_killed(spinner.wait()?, Signal::KILL)?;
    Role::Waits.start_in(&job).context("kill_all resumes a job")?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn adopt_makes_a_process_a_member(_: &Ctx) -> Result<AssertResult> {
    let job = job()?;
    let stray = children::Child::fork(children::pause)?;
    job.adopt(stray.pid())?;
    let leaked = job.leaked()?;
    ensure!(leaked.len() == 1 && leaked[0].pid == stray.pid(), "{leaked:?}");
    job.kill_all()?;
    let status = stray.wait()?;
    ensure!(status.terminating_signal() == Some(9), "{status:?}");
    Ok(AssertResult::pass())
}

/// Root may move a process out of its cgroup. A spawned process is killed nevertheless.
#[ktstr_test(cores = 1, duration_s = 30)]
fn drop_kills_spawned_processes_that_were_moved_away(_: &Ctx) -> Result<AssertResult> {
    let job = job()?;
    let mut child = Role::Waits.start_in(&job)?;
    fs::write("/sys/fs/cgroup/cgroup.procs", child.pid().to_string())?;
    ensure!(job.members()?.is_empty(), "{:?}", job.members()?);
    drop(job);
    ensure_killed(child.wait()?, Signal::KILL)?;
    ensure_no_program_runs()?;
    Ok(AssertResult::pass())
}

/// Another process may remove the empty cgroup of a job.
#[ktstr_test(cores = 1, duration_s = 30)]
fn job_survives_the_removal_of_its_cgroup(_: &Ctx) -> Result<AssertResult> {
    let job = job()?;
    let Mechanism::CgroupV2 { group } = job.mechanism().clone() else {
        bail!("root gets a cgroup")
    };
    fs::remove_dir(&group)?;
    job.kill_all()?;
    ensure!(job.members()?.is_empty());
    let error = job.spawn(Role::Waits.command()).unwrap_err().to_string();
    ensure!(error.contains("the cgroup has been removed by another process"), "{error}");
    drop(job);
    ensure!(crate::owners::keepers().is_empty(), "its keeper still runs");
    Ok(AssertResult::pass())
}

/// Processes of a job may create cgroups in it.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn drop_removes_cgroups_created_in_the_job(_: &Ctx) -> Result<AssertResult> {
    let job = Job::below(ktstr::cgroup::MOUNT, Limits::none())?;
    let Mechanism::CgroupV2 { group } = job.mechanism().clone() else {
        bail!("`below` creates a cgroup")
    };
    let child = Role::Waits.start_in(&job)?;
    fs::create_dir_all(group.join("a/b"))?;
    fs::write(group.join("a/b/cgroup.procs"), child.pid().to_string())?;
    ensure!(job.members()?.len() == 1);
    drop(job);
    ensure!(!group.exists());
    ensure_no_program_runs()?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn below_refuses_directories_outside_cgroupfs(_: &Ctx) -> Result<AssertResult> {
    for (parent, why) in [("/proc", "not a directory of a cgroup v2"), ("/no/such", "No such file")]
    {
        let error = Job::below(parent, Limits::none()).unwrap_err().to_string();
        ensure!(error.contains(parent) && error.contains(why), "{error}");
    }
    Ok(AssertResult::pass())
}

/// Commands work as with std: streams, environment, working directory, first argument.
#[test]
fn spawn_honours_every_setting_of_the_command() -> Result<()> {
    use std::os::unix::process::CommandExt;

    let job = job()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "read line; echo $line $A; pwd; echo $0; echo bad >&2", "named"]);
    command.arg0("other").env("A", "of the environment").current_dir("/proc");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = job.spawn(command)?;
    std::io::Write::write_all(&mut child.stdin.take().context("piped")?, b"a line\n")?;
    let mut text = String::new();
    child.stdout.take().context("piped")?.read_to_string(&mut text)?;
    child.stderr.take().context("piped")?.read_to_string(&mut text)?;
    ensure!(text == "a line of the environment\n/proc\nnamed\nbad\n", "{text}");
    ensure!(child.wait()?.success());
    Ok(())
}

/// A command that changes its user cannot be cloned into the cgroup; it moves there before exec.
#[test]
fn spawn_accepts_commands_with_another_user() -> Result<()> {
    use std::os::unix::process::CommandExt;

    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can change its user");
        return Ok(());
    }
    let job = job()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "id -u; cat /proc/self/cgroup"]).uid(65534).stdout(Stdio::piped());
    let mut child = job.spawn(command)?;
    let mut text = String::new();
    child.stdout.take().context("piped")?.read_to_string(&mut text)?;
    ensure!(text.starts_with("65534\n"), "{text}");
    if let Mechanism::CgroupV2 { group } = job.mechanism() {
        let name = group.file_name().context("a name")?.to_string_lossy().into_owned();
        ensure!(text.contains(&name), "{text} is not in {name}");
    }
    ensure!(child.wait()?.success());
    Ok(())
}

/// The sibling that replaces a process is the same kind of leader.
#[test]
fn spawn_keeps_process_group_and_session_leaders() -> Result<()> {
    use std::os::unix::process::CommandExt;

    use rustix::process::{Pid, getpgid, getsid, setsid};

    let job = job()?;
    let is_cgroup = matches!(job.mechanism(), Mechanism::CgroupV2 { .. });
    let mut leader = Role::Waits.command();
    leader.process_group(0);
    let leader = job.spawn(leader)?;
    let pid = Pid::from_raw(leader.pid());
    // A job that is a process group overrides it.
    ensure!((getpgid(pid)? == pid.context("positive")?) == is_cgroup);
    let mut leader = Role::Waits.command();
    // SAFETY: the closure makes one system call.
    unsafe { leader.pre_exec(|| Ok(setsid().map(drop)?)) };
    let mut leader = job.spawn(leader)?;
    let pid = Pid::from_raw(leader.pid());
    ensure!(getsid(pid)? == pid.context("positive")?);
    ensure!(job.members()?.len() == 2, "{:?}", job.members()?);
    drop(job);
    ensure_killed(leader.wait()?, Signal::KILL)
}

#[test]
fn spawn_releases_the_descriptors_of_reaped_children() -> Result<()> {
    let job = job()?;
    let open = || Ok::<_, anyhow::Error>(fs::read_dir("/proc/self/fd")?.count());
    job.spawn(Command::new("/bin/true"))?.wait()?;
    let before = open()?;
    for _ in 0..100 {
        job.spawn(Command::new("/bin/true"))?.wait()?;
    }
    // Other tests of this process open descriptors too.
    ensure!(open()? < before + 90, "{before} descriptors became {}", open()?);
    Ok(())
}

#[test]
fn jobs_of_concurrent_threads_are_independent() -> Result<()> {
    let one = || -> Result<()> {
        for _ in 0..5 {
            let job = job()?;
            let mut command = Command::new("/bin/sleep");
            command.arg("1000");
            let mut child = job.spawn(command)?;
            job.kill_all()?;
            ensure!(job.members()?.is_empty() && !child.wait()?.success());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })
}

/// No process enters while all are killed.
#[test]
fn kill_all_works_while_programs_are_started() -> Result<()> {
    let job = job()?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| -> Result<()> {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let mut command = Command::new("/bin/sleep");
                command.arg("1000");
                job.spawn(command)?;
            }
            Ok(())
        });
        let killed = (0..10).try_for_each(|_| job.kill_all());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        killed?;
        starter.join().expect("it does not panic")
    })
}
