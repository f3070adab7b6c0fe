//! QEMU's command line, a pure function of the machine to run.

use std::ffi::OsString;
use std::os::fd::RawFd;

use ktstr_core::machine::Topology;

use crate::config::VmConfig;

/// Numbers of the file descriptors that QEMU inherits.
#[derive(Debug, Clone)]
pub(super) struct Inherited {
    /// The QMP monitor: one end of a socket pair.
    pub(super) qmp: RawFd,
    /// One end of a socket pair per port.
    pub(super) ports: Vec<RawFd>,
    /// One file per memory node.
    pub(super) memory: Vec<RawFd>,
}

/// What a machine starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartFrom {
    /// A kernel, with zeroed memory that this process can read.
    Kernel,
    /// A saved machine. Its memory is that of the files, which are not written, and its state is
    /// loaded by a command.
    ///
    /// Source: QEMU 10.0, docs/system/vm-templating.rst.
    SavedMachine,
}

impl StartFrom {
    fn memory(self) -> &'static str {
        match self {
            Self::Kernel => "share=on",
            Self::SavedMachine => "share=off,readonly=on,rom=off",
        }
    }
}

/// The CPU model of a guest. Both models disable five-level paging: it doubles the cost of a page
/// walk without any use, and guests of a guest crash with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CpuModel {
    /// An Intel CPU: because TCG lacks topoext, AMD CPUs under TCG do not share an L3.
    Intel,
    /// An AMD CPU, with SVM: the hardware virtualization that TCG emulates.
    Amd,
}

impl CpuModel {
    fn model(self) -> &'static str {
        match self {
            Self::Intel => "max,la57=off,vendor=GenuineIntel,family=6,model=85,stepping=4",
            Self::Amd => "max,la57=off",
        }
    }
}

/// The kernel command line that this machine needs.
///
/// On a busy host a late timer interrupt looks like a broken IO-APIC, which panics the kernel
/// (`no_timer_check`), and a late watchdog looks like a bad TSC, after which reading the clock is
/// many times slower (`tsc=reliable`). TCG's TSC is one clock for all CPUs.
const CMDLINE: &str = "console=ttyS0 no_timer_check tsc=reliable";

/// Builds all arguments after the program and its own leading ones.
///
/// `tsc_khz` is the rate of the host's TSC, which TCG's guests read. A kernel that is not given it
/// calibrates against the PIT, and on a busy host misreads a late interrupt as a slow TSC.
pub(super) fn build(
    config: &VmConfig,
    fds: &Inherited,
    cpu: CpuModel,
    tsc_khz: Option<u32>,
    start: StartFrom,
) -> Vec<OsString> {
    let mut args = QemuArgs::default();
    args.flag("-nodefaults").flag("-no-user-config").option("-display", "none");
    // Start stopped (`-S`): QMP must be open before the guest can end, or the event with the reason
    // is lost. Pause at the end instead of exiting: the guest's last output may still be in its
    // rings.
    args.flag("-S").option("-action", "reboot=shutdown,shutdown=pause");
    args.option("-accel", "tcg,thread=multi");
    args.option("-cpu", cpu.model());
    add_topology(&mut args, config, &fds.memory, start);
    add_channels(&mut args, config, fds);
    match start {
        StartFrom::Kernel => add_kernel(&mut args, config, tsc_khz),
        StartFrom::SavedMachine => {
            args.option("-incoming", "defer");
        }
    }
    args.0
}

fn add_kernel(args: &mut QemuArgs, config: &VmConfig, tsc_khz: Option<u32>) {
    args.option("-kernel", &config.kernel).option("-initrd", &config.initramfs);
    // Without this, Linux 6.1 counts the missing cores of smaller caches as hotpluggable CPUs.
    let nr_cpus = config.topology.nr_cpus();
    let tsc_khz = tsc_khz.map_or_else(String::new, |khz| format!("tsc_early_khz={khz} "));
    let own = format!("{CMDLINE} {tsc_khz}possible_cpus={nr_cpus}");
    args.option("-append", format!("{own} {}", config.cmdline));
}

/// Returns what machines must have in common for one to be restored from another: the version of
/// QEMU, and all arguments except for the numbers of descriptors and the measured rate of the TSC,
/// which is passed only to a kernel that boots.
pub(super) fn identity(config: &VmConfig, version: &str, cpu: CpuModel) -> Vec<String> {
    let ports = vec![0; config.ports.len()];
    let fds = Inherited { qmp: 0, ports, memory: config.node_sizes_mib().map(|_| 0).collect() };
    let args = build(config, &fds, cpu, None, StartFrom::Kernel);
    let args = args.iter().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(format!("QEMU {version}")).chain(args).collect()
}

fn add_topology(args: &mut QemuArgs, config: &VmConfig, files: &[RawFd], start: StartFrom) {
    add_cpus(args, &config.topology);
    args.option("-m", format!("{}M", config.memory_mib));
    for (node, (size_mib, fd)) in config.node_sizes_mib().zip(files).enumerate() {
        let access = start.memory();
        args.option(
            "-object",
            format!(
                "memory-backend-file,id=mem{node},size={size_mib}M,mem-path=/proc/self/fd/{fd},\
                 {access}"
            ),
        );
    }
    // One node needs no tables: without any, the kernel puts everything into node 0.
    let numa_nodes = config.topology.numa_nodes;
    if numa_nodes == 1 {
        args.option("-machine", "pc,memory-backend=mem0");
        return;
    }
    args.option("-machine", "pc");
    // The numbers of all CPUs that there is room for, also of those that do not exist.
    let per_node = config.topology.llcs_per_node() * cpus_per_socket(&config.topology);
    for node in 0..numa_nodes {
        let (first, last) = (node * per_node, (node + 1) * per_node - 1);
        args.option("-numa", format!("node,nodeid={node},cpus={first}-{last},memdev=mem{node}"));
    }
    for src in 0..numa_nodes {
        for dst in src + 1..numa_nodes {
            args.option("-numa", format!("dist,src={src},dst={dst},val=20"));
        }
    }
}

/// Adds the CPUs. A last-level cache is a socket, because QEMU gives each socket an L3, while
/// `dies=` aborts QEMU 10 with an Intel CPU.
///
/// All sockets have room for the cores of the largest cache. QEMU itself fills them in order, up to
/// the first one with fewer cores; each CPU after that gap is a device, of the model in `-cpu`.
fn add_cpus(args: &mut QemuArgs, topology: &Topology) {
    let threads_per_core = topology.threads_per_core;
    let llc_cores: Vec<_> = topology.llcs.cores().collect();
    let max_cores = topology.llcs.max_cores();
    let full = llc_cores.iter().take_while(|cores| **cores == max_cores).count();
    let (in_order, behind) = llc_cores.split_at(llc_cores.len().min(full + 1));
    let cpus = in_order.iter().sum::<u32>() * threads_per_core;
    let (sockets, max_cpus) = (llc_cores.len(), llc_cores.len() as u32 * cpus_per_socket(topology));
    args.option(
        "-smp",
        format!(
            "{cpus},maxcpus={max_cpus},sockets={sockets},cores={max_cores},\
             threads={threads_per_core}"
        ),
    );
    for (socket, cores) in (in_order.len()..).zip(behind) {
        for core in 0..*cores {
            for thread in 0..threads_per_core {
                args.option(
                    "-device",
                    format!("max-x86_64-cpu,socket-id={socket},core-id={core},thread-id={thread}"),
                );
            }
        }
    }
}

/// Returns the number of CPUs that a socket has room for.
fn cpus_per_socket(topology: &Topology) -> u32 {
    topology.llcs.max_cores() * topology.threads_per_core
}

fn add_channels(args: &mut QemuArgs, config: &VmConfig, fds: &Inherited) {
    args.option("-chardev", format!("socket,id=qmp,fd={}", fds.qmp));
    // Not `-mon`, which is deprecated since QEMU 11.1.
    args.option("-qmp", "chardev:qmp");
    // A pipe, because the UART writes single bytes: a socket is full after a few hundred writes
    // of any size, a pipe after 64 KiB.
    args.option("-chardev", "stdio,id=console,signal=off").option("-serial", "chardev:console");
    if fds.ports.is_empty() {
        return;
    }
    // One more than there are ports, because number 0 is reserved for a console.
    let max_ports = fds.ports.len() + 1;
    args.option("-device", format!("virtio-serial-pci,max_ports={max_ports}"));
    for (index, (name, fd)) in config.ports.iter().zip(&fds.ports).enumerate() {
        args.option("-chardev", format!("socket,id=port{index},fd={fd}"));
        let (nr, name) = (index + 1, escape(name));
        args.option("-device", format!("virtserialport,nr={nr},chardev=port{index},name={name}"));
    }
}

/// Doubles the commas of a value inside a comma-separated option.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// A command line that is being built.
#[derive(Debug, Default)]
struct QemuArgs(Vec<OsString>);

impl QemuArgs {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{even, uneven};

    fn config(topology: Topology, memory_mib: u32, ports: &[&str]) -> VmConfig {
        VmConfig {
            kernel: "/k/vm,linux".into(),
            initramfs: "/i".into(),
            cmdline: "quiet x=1,2".into(),
            kaslr: true,
            topology,
            memory_mib,
            ports: ports.iter().map(|&name| name.into()).collect(),
        }
    }

    fn built(config: &VmConfig) -> Vec<String> {
        built_from(config, StartFrom::Kernel)
    }

    fn built_from(config: &VmConfig, start: StartFrom) -> Vec<String> {
        let nodes = config.topology.numa_nodes as RawFd;
        let ports = config.ports.len() as RawFd;
        let fds = Inherited {
            qmp: 10,
            ports: (20..20 + ports).collect(),
            memory: (30..30 + nodes).collect(),
        };
        let args = build(config, &fds, CpuModel::Intel, Some(2_445_400), start);
        args.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    /// Returns the values of an option, in their order.
    fn values<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
        let pairs = args.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn build_makes_last_level_caches_sockets() {
        for (topology, want) in [
            ([1, 1, 1, 1], "1,maxcpus=1,sockets=1,cores=1,threads=1"),
            ([1, 2, 2, 2], "8,maxcpus=8,sockets=2,cores=2,threads=2"),
            ([2, 4, 2, 1], "8,maxcpus=8,sockets=4,cores=2,threads=1"),
            ([1, 3, 3, 1], "9,maxcpus=9,sockets=3,cores=3,threads=1"),
        ] {
            let args = built(&config(even(topology), 512, &[]));
            assert_eq!(values(&args, "-smp"), [want]);
            assert_eq!(values(&args, "-device"), [""; 0]);
        }
    }

    #[test]
    fn build_makes_cpus_after_a_smaller_cache_devices() {
        for (llc_cores, threads_per_core, smp, devices) in [
            (vec![3, 1], 2, "8,maxcpus=12,sockets=2,cores=3,threads=2", vec![]),
            (vec![1, 2], 1, "1,maxcpus=4,sockets=2,cores=2,threads=1", vec![[1, 0, 0], [1, 1, 0]]),
            (
                vec![2, 1, 2, 1],
                2,
                "6,maxcpus=16,sockets=4,cores=2,threads=2",
                vec![[2, 0, 0], [2, 0, 1], [2, 1, 0], [2, 1, 1], [3, 0, 0], [3, 0, 1]],
            ),
        ] {
            let topology = uneven(1, &llc_cores, threads_per_core);
            let args = built(&config(topology, 512, &[]));
            assert_eq!(values(&args, "-smp"), [smp]);
            let devices = devices.iter().map(|[socket, core, thread]| {
                format!("max-x86_64-cpu,socket-id={socket},core-id={core},thread-id={thread}")
            });
            assert_eq!(values(&args, "-device"), devices.collect::<Vec<_>>());
        }
    }

    #[test]
    fn build_assigns_missing_cpus_to_nodes() {
        let topology = uneven(2, &[3, 1], 2);
        let args = built(&config(topology, 512, &[]));
        assert_eq!(
            values(&args, "-numa")[..2],
            ["node,nodeid=0,cpus=0-5,memdev=mem0", "node,nodeid=1,cpus=6-11,memdev=mem1"]
        );
    }

    #[test]
    fn build_adds_no_numa_options_for_one_node() {
        let args = built(&config(even([1, 2, 1, 1]), 512, &[]));
        assert_eq!(values(&args, "-m"), ["512M"]);
        assert_eq!(values(&args, "-numa"), [""; 0]);
        assert_eq!(
            values(&args, "-object"),
            ["memory-backend-file,id=mem0,size=512M,mem-path=/proc/self/fd/30,share=on"]
        );
        assert!(values(&args, "-machine")[0].ends_with("memory-backend=mem0"));
    }

    #[test]
    fn build_maps_the_memory_of_a_saved_machine_privately() {
        let args = built_from(&config(even([2, 2, 1, 1]), 512, &[]), StartFrom::SavedMachine);
        let objects = values(&args, "-object");
        assert_eq!(objects.len(), 2);
        for object in objects {
            assert!(object.ends_with(",share=off,readonly=on,rom=off"), "{object}");
        }
        assert_eq!(values(&args, "-incoming"), ["defer"]);
        // It is in the memory already.
        assert_eq!(values(&args, "-kernel"), [""; 0]);
    }

    #[test]
    fn identity_depends_on_the_machine_and_on_nothing_else() {
        let of = |topology, memory_mib, version| {
            identity(&config(even(topology), memory_mib, &["a"]), version, CpuModel::Intel)
        };
        let one = of([1, 1, 1, 1], 256, "11.1");
        assert_eq!(one, of([1, 1, 1, 1], 256, "11.1"));
        assert!(!one.iter().any(|word| word.contains("tsc_early_khz")), "it is measured: {one:?}");
        for other in [
            of([1, 1, 2, 1], 256, "11.1"),
            of([1, 1, 1, 1], 257, "11.1"),
            of([1, 1, 1, 1], 256, "11.2"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn build_divides_cpus_and_memory_among_nodes() {
        let args = built(&config(even([3, 3, 2, 1]), 1000, &[]));
        assert_eq!(
            values(&args, "-numa"),
            [
                "node,nodeid=0,cpus=0-1,memdev=mem0",
                "node,nodeid=1,cpus=2-3,memdev=mem1",
                "node,nodeid=2,cpus=4-5,memdev=mem2",
                "dist,src=0,dst=1,val=20",
                "dist,src=0,dst=2,val=20",
                "dist,src=1,dst=2,val=20",
            ]
        );
        let sizes: Vec<&str> = values(&args, "-object")
            .into_iter()
            .map(|object| object.split(',').find(|part| part.starts_with("size=")).unwrap())
            .collect();
        assert_eq!(sizes, ["size=333M", "size=333M", "size=334M"]);
    }

    #[test]
    fn build_numbers_ports_from_one() {
        let args = built(&config(even([1, 1, 1, 1]), 256, &["ktstr.wire", "a,b"]));
        assert_eq!(
            values(&args, "-device"),
            [
                "virtio-serial-pci,max_ports=3",
                "virtserialport,nr=1,chardev=port0,name=ktstr.wire",
                "virtserialport,nr=2,chardev=port1,name=a,,b",
            ]
        );
        assert_eq!(
            values(&args, "-chardev"),
            [
                "socket,id=qmp,fd=10",
                "stdio,id=console,signal=off",
                "socket,id=port0,fd=20",
                "socket,id=port1,fd=21",
            ]
        );
        assert_eq!(values(&built(&config(even([1, 1, 1, 1]), 256, &[])), "-device"), [""; 0]);
    }

    #[test]
    fn build_uses_no_deprecated_option_for_qmp() {
        let args = built(&config(even([1, 1, 1, 1]), 256, &[]));
        assert_eq!((values(&args, "-qmp"), values(&args, "-mon")), (vec!["chardev:qmp"], vec![]));
    }

    #[test]
    fn build_passes_paths_and_command_line_unchanged() {
        let args = built(&config(even([1, 1, 1, 1]), 256, &[]));
        assert_eq!(values(&args, "-kernel"), ["/k/vm,linux"]);
        let own = format!("{CMDLINE} tsc_early_khz=2445400 possible_cpus=1");
        assert_eq!(values(&args, "-append"), [format!("{own} quiet x=1,2")]);
    }
}
