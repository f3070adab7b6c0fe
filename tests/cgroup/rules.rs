//! The rules of cgroup v2: the same operations on cgroupfs and on the test double, each with the
//! result that both must return.

use std::fs;
use std::path::Path;

use ktstr::cgroup::{CgroupManager, Error, MOUNT, RecordingCgroups};
use ktstr::prelude::*;

use crate::children::{Child, pause};

/// CPUs of the guest and of the double; both have one memory node.
const CPUS: u32 = 2;

/// A name that is longer than most file systems accept.
const LONG: &str = concat!(
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef",
);

/// The processes of a case: children that wait, and the caller itself.
const CHILDREN: usize = 3;
const CALLER: usize = CHILDREN;

/// One operation; processes are given by their index.
#[derive(Debug, Clone, Copy)]
enum Run {
    Setup(&'static [Controller]),
    Create(&'static str),
    Remove(&'static str),
    CleanUp,
    Cpus(&'static str, &'static [usize]),
    ClearCpus(&'static str),
    EffectiveCpus(&'static str),
    Mems(&'static str, &'static [usize]),
    ClearMems(&'static str),
    CpuMax(&'static str, Option<u64>, u64),
    CpuWeight(&'static str, u32),
    MemoryMax(&'static str, Option<u64>),
    PidsMax(&'static str, Option<u64>),
    Freeze(&'static str, bool),
    IsFrozen(&'static str),
    IsPopulated(&'static str),
    Kill(&'static str),
    Move(&'static str, &'static [usize]),
    Place(&'static str, usize),
    Procs(&'static str),
    Drain(&'static str),
    End(usize),
    ClearControllers(&'static str),
    AddController(Controller),
}

use Controller::{Cpu, Cpuset, Memory, Pids};
use Run::*;

/// Each case begins without cgroups, with all controllers disabled and all processes running.
///
/// The expected result is `ok`, the value read, the errno, or the variant of the error.
const CASES: &[(&str, &[(Run, &str)])] = &[
    (
        "names",
        &[
            (Procs("a"), "ENOENT"),
            (AddController(Cpu), "ENOENT"),
            (Create("a"), "ok"),
            (Create("a"), "ok"),
            (Create(""), "Name"),
            (Procs(""), "Name"),
            (Remove(""), "Name"),
            (IsFrozen(""), "Name"),
            (Move("", &[0]), "Name"),
            (CpuWeight("", 1), "Name"),
            (Create(".."), "Name"),
            (Create("a/../b"), "Name"),
            (Create("/a"), "Name"),
            (Create("a//b"), "Name"),
            (Create(".a"), "Name"),
            (Create("a\nb"), "Name"),
            (Create("a\0b"), "Name"),
            (Create("cgroup.procs"), "EEXIST"),
            (Create("a/cgroup.kill"), "EEXIST"),
            (Create("a/cgroup.kill/b"), "EEXIST"),
            (Create("a/cpu.stat"), "EEXIST"),
            (Remove("cgroup.procs"), "ok"),
            (Create(LONG), "ok"),
            (Remove(LONG), "ok"),
            (Create("gr\u{fc}n a"), "ok"),
            (Procs("gr\u{fc}n a"), "[]"),
        ],
    ),
    (
        "missing cgroups",
        &[
            (Create("a"), "ok"),
            (Remove("none"), "ok"),
            (Freeze("none", true), "ENOENT"),
            (Freeze("none", false), "ENOENT"),
            (Kill("none"), "ENOENT"),
            (Procs("none"), "ENOENT"),
            (IsPopulated("none"), "ENOENT"),
            (Move("none", &[0]), "ENOENT"),
            (Move("none", &[]), "ok"),
            (Place("none", 0), "ENOENT"),
            (Drain("none"), "ENOENT"),
            (ClearControllers("none"), "ENOENT"),
            (CpuWeight("none", 1), "ENOENT"),
            (Cpus("none", &[0]), "ENOENT"),
            (ClearCpus("none"), "ENOENT"),
        ],
    ),
    (
        "trees",
        &[
            (Create("a/b/c"), "ok"),
            (Remove("a"), "HasChildren"),
            (Remove("a/b"), "HasChildren"),
            (Remove("a/b/c"), "ok"),
            (Remove("a/b"), "ok"),
            (Create("a/d"), "ok"),
            (Move("a/d", &[0]), "ok"),
            (CleanUp, "ok"),
            (Procs("a"), "ENOENT"),
            (CleanUp, "ok"),
            (Create("a"), "ok"),
            (Procs("a"), "[]"),
        ],
    ),
    (
        "controllers come from the parent",
        &[
            (Create("a"), "ok"),
            (CpuMax("a", None, 100_000), "ENOENT"),
            (AddController(Cpu), "ENOENT"),
            (Setup(&[]), "ok"),
            (AddController(Cpu), "ENOENT"),
            (Setup(&[Cpu]), "ok"),
            (CpuMax("a", None, 100_000), "ok"),
            (MemoryMax("a", None), "ENOENT"),
            (AddController(Memory), "ENOENT"),
            (AddController(Cpu), "ok"),
            (Create("cpu.max"), "EEXIST"),
            (Create("a/b"), "ok"),
            (CpuWeight("a/b", 50), "ok"),
            (ClearControllers("a"), "ok"),
            (CpuWeight("a/b", 50), "ENOENT"),
            (Create("a/b/c"), "ok"),
            (CpuWeight("a/b/c", 1), "ok"),
            (ClearControllers("a"), "EBUSY"),
            (ClearControllers("a/b"), "ok"),
            (ClearControllers("a"), "ok"),
            (ClearControllers("a"), "ok"),
            (Setup(&[Memory, Pids]), "ok"),
            (MemoryMax("a", None), "ok"),
            (PidsMax("a", None), "ok"),
            (MemoryMax("a/b", None), "ENOENT"),
            (CleanUp, "ok"),
            (Create("a/b"), "ok"),
            (MemoryMax("a/b", None), "ok"),
            (CpuWeight("a/b", 50), "ok"),
        ],
    ),
    (
        "values",
        &[
            (Setup(&[Cpu, Cpuset, Memory, Pids]), "ok"),
            (Create("a"), "ok"),
            (CpuMax("a", Some(999), 100_000), "Range"),
            (CpuMax("a", Some(1_000), 100_000), "ok"),
            (CpuMax("a", Some(1_000), 1_000), "ok"),
            (CpuMax("a", Some(1_000), 1_000_000), "ok"),
            (CpuMax("a", Some((1 << 44) - 1), 100_000), "ok"),
            (CpuMax("a", Some(1 << 44), 100_000), "Range"),
            (CpuMax("a", None, 999), "Range"),
            (CpuMax("a", None, 1_000_001), "Range"),
            (CpuWeight("a", 0), "Range"),
            (CpuWeight("a", 1), "ok"),
            (CpuWeight("a", 10_000), "ok"),
            (CpuWeight("a", 10_001), "Range"),
            (MemoryMax("a", Some(0)), "ok"),
            (MemoryMax("a", Some(i64::MAX as u64)), "ok"),
            (MemoryMax("a", Some(1 << 63)), "Range"),
            (PidsMax("a", Some(0)), "ok"),
            (PidsMax("a", Some(4_194_304)), "ok"),
            (PidsMax("a", Some(4_194_305)), "Range"),
            (Move("a", &[0]), "ok"),
            (Cpus("a", &[0, 1]), "ok"),
            (Cpus("a", &[2]), "ERANGE"),
            (Cpus("a", &[0, 99]), "ERANGE"),
            (Mems("a", &[0]), "ok"),
            (Mems("a", &[1]), "EINVAL"),
            (Mems("a", &[2_000]), "ERANGE"),
            (EffectiveCpus("a"), "{0, 1}"),
        ],
    ),
    (
        "cpusets are emptied with and without processes",
        &[
            (Setup(&[Cpuset]), "ok"),
            (Create("a/b"), "ok"),
            (ClearCpus("a/b"), "ok"),
            (ClearMems("a/b"), "ok"),
            (Cpus("a", &[1]), "ok"),
            (Mems("a", &[0]), "ok"),
            (EffectiveCpus("a/b"), "{1}"),
            (Move("a/b", &[0]), "ok"),
            // The process is in a child.
            (ClearCpus("a"), "ok"),
            (ClearMems("a"), "ok"),
            (EffectiveCpus("a"), "{0, 1}"),
            (EffectiveCpus("a/b"), "{0, 1}"),
            (Cpus("a/b", &[0]), "ok"),
            (Mems("a/b", &[0]), "ok"),
            (EffectiveCpus("a/b"), "{0}"),
            (Cpus("a/b", &[]), "ok"),
            (Mems("a/b", &[]), "ok"),
            (EffectiveCpus("a/b"), "{0, 1}"),
            // CPUs that the parent does not have are accepted and ignored.
            (Cpus("a", &[0]), "ok"),
            (Cpus("a/b", &[1]), "ok"),
            (EffectiveCpus("a/b"), "{0}"),
            (ClearCpus("a/b"), "ok"),
            (EffectiveCpus("a/b"), "{0}"),
            (Drain("a/b"), "ok"),
            (ClearCpus("a/b"), "ok"),
            (Cpus("a", &[0, 1]), "ok"),
            (EffectiveCpus("a/b"), "{0, 1}"),
        ],
    ),
    (
        "processes without controllers",
        &[
            (Create("a/b"), "ok"),
            (IsPopulated("a"), "false"),
            (Move("a", &[0]), "ok"),
            (Move("a/b", &[1]), "ok"),
            (IsPopulated("a"), "true"),
            (Procs("a"), "[0]"),
            (Procs("a/b"), "[1]"),
            (Move("a", &[1, 2]), "ok"),
            (Procs("a"), "[0, 1, 2]"),
            (Procs("a/b"), "[]"),
            (IsPopulated("a/b"), "false"),
            (Drain("a"), "ok"),
            (Procs("a"), "[]"),
            (Move("a", &[0]), "ok"),
            (End(0), "ok"),
            (Procs("a"), "[]"),
            (Move("a", &[0]), "AllGone"),
            (Place("a", 0), "ESRCH"),
            (Move("a", &[0, 1]), "ok"),
            (Procs("a"), "[1]"),
            (Place("a/b", 2), "ok"),
            (Kill("a"), "ok"),
            (Procs("a"), "[]"),
            (Procs("a/b"), "[]"),
            (Move("a", &[1, 2]), "AllGone"),
            (Kill("a"), "ok"),
            (Remove("a/b"), "ok"),
        ],
    ),
    (
        "no processes together with domain controllers",
        &[
            (Setup(&[Memory]), "ok"),
            (Create("a"), "ok"),
            (Move("a", &[0]), "ok"),
            (Create("a/b"), "Occupied"),
            (Procs("a/b"), "ENOENT"),
            (Drain("a"), "ok"),
            (Create("a/b"), "ok"),
            (Move("a", &[0]), "EBUSY"),
            (Place("a", 0), "EBUSY"),
            (Move("a/b", &[0]), "ok"),
            (Move("a", &[1]), "EBUSY"),
            (ClearControllers("a"), "ok"),
            (Move("a", &[1]), "ok"),
            (Create("a/c"), "Occupied"),
            (Remove("a/b"), "ok"),
            (Procs("a"), "[1]"),
        ],
    ),
    (
        "processes together with cpu and pids make a threaded domain",
        &[
            (Setup(&[Cpu, Pids]), "ok"),
            (Create("a/b"), "ok"),
            (Move("a", &[0]), "ok"),
            (Move("a/b", &[1]), "EOPNOTSUPP"),
            (Place("a/b", 1), "EOPNOTSUPP"),
            (Move("a/b", &[0]), "EOPNOTSUPP"),
            (Procs("a/b"), "[]"),
            (CpuWeight("a/b", 10), "ok"),
            (Freeze("a/b", true), "ok"),
            (Freeze("a/b", false), "ok"),
            (Kill("a/b"), "ok"),
            (Drain("a/b"), "ok"),
            (Create("a/b/c"), "Occupied"),
            (Drain("a"), "ok"),
            (Move("a/b", &[1]), "ok"),
            (Move("a", &[0]), "EBUSY"),
            (Kill("a/b"), "ok"),
            (Move("a", &[0]), "ok"),
            (Setup(&[Memory]), "ok"),
            (MemoryMax("a", None), "ok"),
            (MemoryMax("a/b", None), "ENOENT"),
            (Remove("a/b"), "ok"),
            (Procs("a"), "[0]"),
        ],
    ),
    (
        "freezing",
        &[
            (Create("a/b"), "ok"),
            (Move("a/b", &[0]), "ok"),
            (Freeze("a", true), "ok"),
            (IsFrozen("a/b"), "true"),
            (Freeze("a/b", false), "ok"),
            (IsFrozen("a/b"), "true"),
            (Move("a/b", &[1]), "ok"),
            (Procs("a/b"), "[0, 1]"),
            (Kill("a"), "ok"),
            (Procs("a/b"), "[]"),
            (Freeze("a", false), "ok"),
            (IsFrozen("a/b"), "false"),
            (Freeze("a", true), "ok"),
            (Remove("a/b"), "ok"),
            (Move("a", &[2]), "ok"),
            (Remove("a"), "ok"),
            (Create("a"), "ok"),
            (Move("a", &[2]), "ok"),
            (Procs("a"), "[2]"),
        ],
    ),
    (
        "the caller",
        &[
            (Create("a/b"), "ok"),
            (Move("a/b", &[CALLER]), "ok"),
            (Kill("a"), "Process"),
            (Kill("a/b"), "Process"),
            (Freeze("a", true), "Process"),
            (Freeze("a", false), "ok"),
            (Drain("a/b"), "ok"),
            (Kill("a"), "ok"),
        ],
    ),
];

/// The implementation under test.
trait Subject {
    fn cgroups(&self) -> &dyn CgroupOps;

    /// Returns the pids of the processes, by index.
    fn pids(&self) -> [i32; CHILDREN + 1];

    /// Ends and reaps a process.
    fn end(&mut self, index: usize) -> Result<()>;

    /// Reaps the processes that were killed.
    fn reap(&mut self) -> Result<()>;

    fn effective_cpus(&self, cgroup: &str) -> Result<std::collections::BTreeSet<usize>>;
}

struct Double(RecordingCgroups);

impl Subject for Double {
    fn cgroups(&self) -> &dyn CgroupOps {
        &self.0
    }

    fn pids(&self) -> [i32; CHILDREN + 1] {
        [101, 102, 103, own_pid()]
    }

    fn end(&mut self, index: usize) -> Result<()> {
        self.0.end_process(self.pids()[index]);
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        Ok(())
    }

    fn effective_cpus(&self, cgroup: &str) -> Result<std::collections::BTreeSet<usize>> {
        Ok(self.0.effective_cpus(cgroup)?)
    }
}

struct Kernel {
    cgroups: CgroupManager,
    children: [Option<Child>; CHILDREN],
    pids: [i32; CHILDREN + 1],
}

impl Kernel {
    fn new() -> Result<Self> {
        let children = [Child::fork(pause)?, Child::fork(pause)?, Child::fork(pause)?];
        let [a, b, c] = children.each_ref().map(Child::pid);
        let cgroups = CgroupManager::new(Path::new(MOUNT).join("rules"));
        Ok(Self { cgroups, children: children.map(Some), pids: [a, b, c, own_pid()] })
    }

    /// Removes all cgroups and disables all controllers.
    fn finish(self) -> Result<()> {
        self.cgroups.cleanup_all()?;
        let control = Path::new(MOUNT).join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control)?;
        let disable: Vec<_> = enabled.split_whitespace().map(|name| format!("-{name}")).collect();
        if !disable.is_empty() {
            fs::write(&control, disable.join(" "))?;
        }
        Ok(())
    }
}

impl Subject for Kernel {
    fn cgroups(&self) -> &dyn CgroupOps {
        &self.cgroups
    }

    fn pids(&self) -> [i32; CHILDREN + 1] {
        self.pids
    }

    fn end(&mut self, index: usize) -> Result<()> {
        drop(self.children[index].take());
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        for child in &mut self.children {
            if child.as_ref().is_some_and(|child| child.has_ended().is_ok_and(|ended| ended)) {
                drop(child.take());
            }
        }
        Ok(())
    }

    fn effective_cpus(&self, cgroup: &str) -> Result<std::collections::BTreeSet<usize>> {
        let path = self.cgroups.parent_path().join(cgroup).join("cpuset.cpus.effective");
        match fs::read_to_string(path)?.trim() {
            "0" => Ok([0].into()),
            "1" => Ok([1].into()),
            "0-1" => Ok([0, 1].into()),
            other => bail!("cpuset.cpus.effective is `{other}`"),
        }
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn run(subject: &mut impl Subject, operation: Run) -> Result<String> {
    let pids = subject.pids();
    let cgroups = subject.cgroups();
    let done = |result: Result<(), Error>| result.map(|()| "ok".to_owned());
    let set = |numbers: &[usize]| numbers.iter().copied().collect();
    let result = match operation {
        Setup(controllers) => done(cgroups.setup(&controllers.iter().copied().collect())),
        Create(name) => done(cgroups.create_cgroup(name)),
        Remove(name) => done(cgroups.remove_cgroup(name)),
        CleanUp => done(cgroups.cleanup_all()),
        Cpus(name, cpus) => done(cgroups.set_cpuset(name, &set(cpus))),
        ClearCpus(name) => done(cgroups.clear_cpuset(name)),
        EffectiveCpus(name) => Ok(format!("{:?}", subject.effective_cpus(name)?)),
        Mems(name, nodes) => done(cgroups.set_cpuset_mems(name, &set(nodes))),
        ClearMems(name) => done(cgroups.clear_cpuset_mems(name)),
        CpuMax(name, quota, period) => done(cgroups.set_cpu_max(name, quota, period)),
        CpuWeight(name, weight) => done(cgroups.set_cpu_weight(name, weight)),
        MemoryMax(name, bytes) => done(cgroups.set_memory_max(name, bytes)),
        PidsMax(name, max) => done(cgroups.set_pids_max(name, max)),
        Freeze(name, frozen) => done(cgroups.set_freeze(name, frozen)),
        IsFrozen(name) => cgroups.stats(name).map(|stats| stats.frozen.to_string()),
        IsPopulated(name) => cgroups.stats(name).map(|stats| stats.populated.to_string()),
        Kill(name) => {
            let killed = done(cgroups.kill_cgroup(name));
            subject.reap()?;
            killed
        }
        Move(name, indices) => {
            let pids: Vec<_> = indices.iter().map(|index| pids[*index]).collect();
            done(cgroups.move_tasks(name, &pids))
        }
        Place(name, index) => done(cgroups.place_task_during_handshake(name, pids[index])),
        Procs(name) => cgroups.read_procs(name).map(|found| {
            let index = |pid: &i32| pids.iter().position(|one| one == pid);
            format!("{:?}", found.iter().filter_map(index).collect::<Vec<_>>())
        }),
        Drain(name) => done(cgroups.drain_tasks(name)),
        End(index) => {
            subject.end(index)?;
            Ok("ok".to_owned())
        }
        ClearControllers(name) => done(cgroups.clear_subtree_control(name)),
        AddController(controller) => done(cgroups.add_parent_subtree_controller(controller)),
    };
    Ok(result.unwrap_or_else(|error| kind(&error)))
}

/// Returns the errno of an error, or its variant.
fn kind(error: &Error) -> String {
    let names = [
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::ERANGE, "ERANGE"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    ];
    match error.raw_os_error() {
        Some(errno) => {
            let name = names.iter().find(|(known, _)| *known == errno);
            name.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
        }
        None => format!("{error:?}").split(' ').next().unwrap_or_default().to_owned(),
    }
}

/// Runs a case; returns the results that were not as expected.
fn differences(subject: &mut impl Subject, case: &[(Run, &str)]) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for (number, (operation, want)) in case.iter().enumerate() {
        let got = run(subject, *operation).with_context(|| format!("{number}: {operation:?}"))?;
        if got != *want {
            differences.push(format!("{number}: {operation:?} returned {got}, not {want}"));
        }
    }
    Ok(differences)
}

fn ensure_none(differences: &[String]) -> Result<()> {
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[test]
fn recording_cgroups_follow_the_rules() -> Result<()> {
    let mut all = Vec::new();
    for (name, case) in CASES {
        let mut double = Double(RecordingCgroups::with_machine(CPUS as usize, 1));
        let found = differences(&mut double, case).with_context(|| format!("case `{name}`"))?;
        all.extend(found.into_iter().map(|one| format!("{name}, {one}")));
    }
    ensure_none(&all)
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn kernel_follows_the_rules(_: &Ctx) -> Result<AssertResult> {
    let mut all = Vec::new();
    for (name, case) in CASES {
        let mut kernel = Kernel::new()?;
        let found = differences(&mut kernel, case).with_context(|| format!("case `{name}`"))?;
        all.extend(found.into_iter().map(|one| format!("{name}, {one}")));
        kernel.finish().with_context(|| format!("case `{name}`"))?;
    }
    ensure_none(&all)?;
    Ok(AssertResult::pass())
}
