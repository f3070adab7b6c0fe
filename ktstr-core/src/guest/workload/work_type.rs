//! The types of work, by the pressure they make.

use std::path::PathBuf;
use std::time::Duration;

use super::{SchedPolicy, WorkerCtx};

/// The shortest phase of a sequence: a shorter one ends before its load has begun.
const SHORTEST_PHASE: Duration = Duration::from_millis(1);

/// What a worker does with its CPU.
///
/// Each type documents the pressure that it makes, its iteration if that is not obvious, and its unit of
/// work. A *burst* is computing without a system call for 5 µs, and for up to 50 µs where taking
/// the time is slow, so that measuring takes a few percent at most. Types that need partners form groups in
/// the order of the workers: of two, of three, or one of all.
// Two specs with one `Custom` function may compare as different, which nothing relies on.
#[allow(unpredictable_function_pointer_comparisons)]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WorkType {
    /// Spins without a system call: always runnable, never sleeps. It waits as a spin lock does, with
    /// PAUSE, which leaves the core to an SMT sibling. Unit: a burst.
    #[default]
    SpinWait,
    /// Yields the CPU after each burst, and is runnable again at once: the scheduler picks the next task
    /// all the time. Unit: a yield.
    YieldHeavy,
    /// Computes, yields and sleeps alternately, like a program with some of everything. Unit: a round of
    /// eight bursts, a yield and a sleep of 100 µs.
    Mixed,
    /// Computes with all arithmetic units: no PAUSE, no memory, no system call; shows the cost of a busy
    /// SMT sibling and of a lower frequency. Unit: a burst.
    AluHot,
    /// Pairs that compute like AluHot, each on one SMT thread of the pair's own core: they compete
    /// for its execution units. Needs SMT. Unit: a burst.
    SmtSiblingSpin,
    /// Computes for 2 ms, sleeps for 3 ms: a load that comes and goes faster than averages follow.
    /// Unit: such a period.
    Bursty,
    /// Sleeps for 50 µs after each burst: its CPU enters and leaves the idle state all the time, and
    /// is picked for a task that hardly uses it. Unit: a sleep.
    IdleChurn,
    /// Sleeps until exactly each next millisecond and does no other work: measures how late the task of a
    /// timer gets its CPU. Unit: a timer.
    TimerLatency,
    /// A ring of all workers, 2 or more: each wakes the next and goes to sleep. One is runnable at a
    /// time, and always another one. Unit: a wake-up passed on.
    WakeChain,
    /// 2 or more: the first wakes all others at once, and one of them gets work. The rest wakes in
    /// vain, on all CPUs. Unit: a herd woken; for the others, the prize won.
    /// Its wake-up latencies count from the last wake-up before, so they are lower bounds.
    ThunderingHerd,
    /// Pairs that send 4 KiB to and fro through pipes: blocking I/O, with wake-ups that are
    /// synchronous (the waker is about to sleep). Unit: a byte received.
    PipeIo,
    /// Pairs that wake each other by a futex and sleep: the shortest possible wake-ups. Unit: a
    /// wake-up received.
    FutexPingPong,
    /// 2 or more: the first hands each of the others a message, one by one, and sleeps until all have
    /// answered: wide fan-outs of short requests. Unit: a round; for the others, a message.
    FutexFanOut,
    /// 2 or more that all need the same lock, half of the time: a preempted lock holder delays all
    /// others. Unit: a time the lock was held. Wake-up latencies are lower bounds, as above.
    MutexContention,
    /// Groups of three on one CPU: one of nice 19 holds a lock for long, one of nice -10 needs it, and
    /// one of nice 0 computes, which keeps the first from releasing it. Unit: a time the
    /// lock was held; for the one of nice 0, a burst.
    PriorityInversion,
    /// Pairs with a queue of 16 items between them: the producer makes bursts of twice as many, so
    /// that it waits for the consumer, then computes, so that the consumer waits for it. Unit: an item.
    ProducerConsumer,
    /// Reads and writes 4 MiB in random order: more than a core's own caches hold, so that migrations and
    /// the load of other CPUs cost time. Unit: a cache line.
    CachePressure,
    /// Takes 1 MiB page by page and gives it back: page faults, the memory's locks, and as many TLB
    /// flushes. Unit: a page fault.
    PageFaultChurn,
    /// Works in 1 MiB of memory of each NUMA node, one after the other, on whatever node it runs. Reports
    /// the number of pages per node. Unit: a page.
    NumaSweep,
    /// Writes 4 KiB to a file in the temporary directory and waits for fdatasync: uninterruptible sleeps
    /// on a disk; only the system calls on a file system in memory. Unit: a
    /// write.
    IoSyncWrite,
    /// Forks a process that ends at once, and waits for it: new tasks have to be placed all the time.
    /// Unit: a child.
    ForkExit,
    /// Changes its own affinity from one CPU to the next after each burst: forced migrations. Unit: a
    /// change.
    AffinityChurn,
    /// Changes its own nice value after each burst, from 0 to 19 and again: its weight changes while
    /// it is runnable. Needs root. Unit: a change.
    NiceSweep,
    /// Changes its own policy after each burst, through Normal, Batch, Idle, Fifo and RoundRobin, the
    /// latter two if it may: it moves from one scheduling class to the other. Unit: a change.
    PolicyChurn,
    /// Pairs on one CPU: one spins as Fifo, which leaves the other, a fair task, only what the kernel
    /// reserves for those. Needs root. Unit: a burst.
    RtStarvation,
    /// 2 or more: the first writes to 16 event descriptors, one after each burst, and all others wait
    /// for all of them by epoll: each event wakes several, and one of them gets it. Unit: an event written;
    /// for the others, got. Wake-up latencies are lower bounds, as above.
    EpollStorm,
    /// Pairs: one sends a signal after each burst, the other computes and is interrupted by them.
    /// Unit: a signal sent; for the other, handled.
    SignalStorm,
    /// One type after the other, each for its time, then again from the first. Only types without
    /// groups.
    Sequence(Vec<(Self, Duration)>),
    /// Runs the function. The worker ends when it returns, which counts as an early exit. It has to call
    /// [`WorkerCtx::record_iteration`] regularly: a worker without an iteration for 10 s is stuck, unless the
    /// test sets `not_stuck = false`.
    ///
    /// It runs in a forked process. The process of a `host_only` test has other threads, so it must not wait
    /// for locks that one of them may hold at the fork: standard output, a logger.
    Custom(fn(&WorkerCtx)),
    /// Moves itself from one cgroup to the other after each burst. Both are directories in the
    /// cgroup file system. The worker's own cgroup has no effect after the first move. Unit: a move.
    CgroupAttachStorm {
        /// The two directories.
        groups: [PathBuf; 2],
    },
}

/// The number of workers of a type that form a group.
enum Grouping {
    Alone,
    Of(u32),
    AllOf(u32),
}

impl WorkType {
    fn grouping(&self) -> Grouping {
        match self {
            Self::SmtSiblingSpin
            | Self::PipeIo
            | Self::FutexPingPong
            | Self::ProducerConsumer
            | Self::RtStarvation
            | Self::SignalStorm => Grouping::Of(2),
            Self::PriorityInversion => Grouping::Of(3),
            Self::WakeChain
            | Self::ThunderingHerd
            | Self::FutexFanOut
            | Self::MutexContention
            | Self::EpollStorm => Grouping::AllOf(2),
            _ => Grouping::Alone,
        }
    }

    /// Returns the number of workers in a group, if there are `workers` in all.
    pub(super) fn group_size(&self, workers: u32) -> Result<u32, String> {
        match self.grouping() {
            Grouping::Alone => Ok(1),
            Grouping::Of(size) if workers.is_multiple_of(size) => Ok(size),
            Grouping::Of(size) => Err(format!(
                "{self:?} works in groups of {size}, and {workers} is not a multiple of that"
            )),
            Grouping::AllOf(least) if workers >= least => Ok(workers),
            Grouping::AllOf(least) => {
                Err(format!("{self:?} takes at least {least} workers, not {workers}"))
            }
        }
    }

    /// Returns the role of a worker in its group, by its index: in a group of fixed size each has its own,
    /// in one of any size the first has.
    pub(super) fn role(&self, index: usize) -> u32 {
        match self.grouping() {
            Grouping::Alone => 0,
            Grouping::Of(_) => index as u32,
            Grouping::AllOf(_) => index.min(1) as u32,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let Self::Sequence(phases) = self else { return Ok(()) };
        if phases.is_empty() {
            return Err("a sequence needs at least 1 phase".to_owned());
        }
        phases.iter().try_for_each(|(work, length)| match work {
            Self::Sequence(_) => Err("a sequence cannot be a phase of another".to_owned()),
            _ if !matches!(work.grouping(), Grouping::Alone) => {
                Err(format!("{work:?} cannot be a phase: each worker of a sequence works alone"))
            }
            _ if *length < SHORTEST_PHASE => {
                Err(format!("a phase lasts at least {SHORTEST_PHASE:?}, not {length:?}"))
            }
            _ => Ok(()),
        })
    }

    /// Returns whether the type sets the CPUs of its workers.
    pub(super) fn places_itself(&self) -> bool {
        match self {
            Self::SmtSiblingSpin
            | Self::PriorityInversion
            | Self::RtStarvation
            | Self::AffinityChurn => true,
            Self::Sequence(phases) => phases.iter().any(|(work, _)| work.places_itself()),
            _ => false,
        }
    }

    /// Returns whether workers of the type, of all roles, record their wake-ups; false for a custom
    /// function, of which it is unknown.
    pub(super) fn measures_wakeups(&self) -> bool {
        match self {
            Self::Mixed
            | Self::Bursty
            | Self::IdleChurn
            | Self::TimerLatency
            | Self::WakeChain
            | Self::ThunderingHerd
            | Self::FutexPingPong
            | Self::FutexFanOut
            | Self::MutexContention
            | Self::PriorityInversion
            | Self::ProducerConsumer
            | Self::EpollStorm => true,
            Self::Sequence(phases) => phases.iter().any(|(work, _)| work.measures_wakeups()),
            _ => false,
        }
    }

    /// Returns whether workers of the type leave their cgroup.
    pub(crate) fn moves_itself(&self) -> bool {
        match self {
            Self::CgroupAttachStorm { .. } => true,
            Self::Sequence(phases) => phases.iter().any(|(work, _)| work.moves_itself()),
            _ => false,
        }
    }

    /// Returns the least weight that workers of the type give themselves, if they change it.
    pub(super) fn least_weight(&self) -> Option<u32> {
        match self {
            Self::NiceSweep => SchedPolicy::Normal.weight(19),
            Self::PolicyChurn => SchedPolicy::Idle.weight(0),
            Self::Sequence(phases) => {
                phases.iter().filter_map(|(work, _)| work.least_weight()).min()
            }
            _ => None,
        }
    }

    /// Returns whether an iteration needs other tasks to run, or waits for the kernel: such a worker may
    /// sleep because another task gets no CPU time.
    pub(super) fn needs_others(&self) -> bool {
        match self {
            Self::ForkExit | Self::IoSyncWrite | Self::CgroupAttachStorm { .. } => true,
            Self::Sequence(phases) => phases.iter().any(|(work, _)| work.needs_others()),
            _ => !matches!(self.grouping(), Grouping::Alone),
        }
    }

    /// Returns whether the type sets the policies and nice values of its workers.
    pub(super) fn ranks_itself(&self) -> bool {
        match self {
            Self::PriorityInversion | Self::RtStarvation | Self::NiceSweep | Self::PolicyChurn => {
                true
            }
            Self::Sequence(phases) => phases.iter().any(|(work, _)| work.ranks_itself()),
            _ => false,
        }
    }
}
