//! The command line.

use std::ffi::OsString;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use ktstr::machine::{Llcs, MachineSpec, Topology};
use ktstr::provision::KernelSpec;
use ktstr::runner::shell::Shell;

/// Run Rust tests inside their own virtual machines
#[derive(Debug, Parser)]
#[command(name = "cargo-ktstr", bin_name = "cargo ktstr", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check whether tests can run on this machine and suggest fixes
    Doctor,
    /// List and fetch the kernels that tests boot
    Kernel {
        #[command(subcommand)]
        command: KernelCommand,
    },
    /// Run `cargo test` or `cargo nextest run` with a given kernel and engine
    Test(TestArgs),
    /// Open a shell inside a virtual machine
    Shell(ShellArgs),
    /// Run a sample test; fetches the kernel and QEMU it needs
    Demo,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// List the known kernels and which of them are cached
    List,
    /// Fetch kernels into the cache
    Fetch {
        /// The kernels, such as `debian:sid` [default: the default kernel]
        #[arg(value_name = "SPEC", value_parser = parse_spec)]
        specs: Vec<KernelSpec>,
        /// Fetch the newest version even if one is cached
        #[arg(long)]
        refresh: bool,
    },
    /// Print the path of the file to boot; fetches the kernel if it is not cached
    Path {
        /// A name from `kernel list`, `host`, or a path [default: `KTSTR_KERNEL`, or the default kernel]
        #[arg(value_name = "SPEC", value_parser = parse_spec)]
        spec: Option<KernelSpec>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The kernel of tests that do not name one: a name from `kernel list`, `host`, or a path
    #[arg(long, value_name = "SPEC", value_parser = parse_spec)]
    pub(crate) kernel: Option<KernelSpec>,
    /// The engine that runs the machines
    #[arg(long, value_enum)]
    pub(crate) engine: Option<EngineName>,
    /// Run `cargo nextest run` instead of `cargo test`
    #[arg(long)]
    pub(crate) nextest: bool,
    /// All other arguments are passed to Cargo: `cargo ktstr test -p mine -- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) args: Vec<OsString>,
}

/// The values of `KTSTR_ENGINE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    /// KVM if it is usable, else QEMU
    Auto,
    /// Hardware virtualization
    Kvm,
    /// Emulation by QEMU
    Qemu,
}

impl EngineName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// NUMA nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=64))]
    numa_nodes: u32,
    /// Last-level caches of all nodes [default: 1, or the number of values of `--cores`]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=255))]
    llcs: Option<u32>,
    /// Cores of each last-level cache: one number for all, or a list such as `4,2`
    #[arg(long, value_name = "N,...", default_value = "2", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=255))]
    cores: Vec<u32>,
    /// SMT threads of each core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=8))]
    threads: u32,
    /// Memory in MiB
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u32).range(64..=1_048_576))]
    memory_mib: u32,
    /// The kernel: a name from `kernel list`, `host`, or a path
    #[arg(long, value_name = "SPEC", value_parser = parse_spec)]
    kernel: Option<KernelSpec>,
    /// Run this command with `sh -c` without a terminal, and exit with its status
    #[arg(long, value_name = "CMD", allow_hyphen_values = true)]
    exec: Option<String>,
}

impl ShellArgs {
    /// Returns the shell to run, if the numbers are consistent.
    pub(crate) fn shell(self) -> Result<Shell> {
        let Self { numa_nodes, llcs, cores, threads, .. } = self;
        let (llcs, cores) = match (llcs, &cores[..]) {
            (llcs, [each]) => (llcs.unwrap_or(1), vec![*each; llcs.unwrap_or(1) as usize]),
            (llcs, list) => (llcs.unwrap_or(list.len() as u32), cores),
        };
        ensure!(
            llcs as usize == cores.len(),
            "--cores lists {} last-level caches, but --llcs is {llcs}",
            cores.len()
        );
        ensure!(
            llcs.is_multiple_of(numa_nodes),
            "--llcs {llcs} is not a multiple of --numa-nodes {numa_nodes}: all nodes have the same number; \
             --llcs {} fits",
            llcs.next_multiple_of(numa_nodes)
        );
        let nr_cores: u32 = cores.iter().sum();
        let nr_cpus = nr_cores * threads;
        ensure!(
            nr_cpus <= Topology::MAX_CPUS,
            "{llcs} LLCs with {nr_cores} cores * {threads} threads are {nr_cpus} CPUs; \
             a machine has at most {}",
            Topology::MAX_CPUS
        );
        Ok(Shell {
            machine: MachineSpec {
                topology: Topology {
                    numa_nodes,
                    llcs: Llcs::of(&cores),
                    threads_per_core: threads,
                },
                memory_mib: self.memory_mib,
                kernel: self.kernel.map(|spec| spec.to_string().into()),
                ..MachineSpec::DEFAULT
            },
            command: self.exec,
        })
    }
}

fn parse_spec(text: &str) -> Result<KernelSpec, ktstr::provision::SpecError> {
    text.parse()
}

/// Removes the `ktstr` that Cargo inserts before the arguments of `cargo ktstr`.
pub(crate) fn without_subcommand_name(
    args: impl IntoIterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    args.into_iter()
        .enumerate()
        .filter(|(index, arg)| *index != 1 || arg != "ktstr")
        .map(|(_, arg)| arg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let args = line.split_whitespace().map(OsString::from);
        Ok(Cli::try_parse_from(without_subcommand_name(args))?.command)
    }

    fn shell(line: &str) -> Result<Shell> {
        let Command::Shell(args) = parse(line)? else { panic!("{line}") };
        args.shell()
    }

    #[test]
    fn cli_definition_passes_the_checks_of_clap() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn parse_accepts_the_name_of_the_subcommand_once() {
        for line in ["cargo-ktstr ktstr doctor", "cargo-ktstr doctor"] {
            assert!(matches!(parse(line), Ok(Command::Doctor)), "{line}");
        }
        assert!(parse("cargo-ktstr ktstr ktstr doctor").is_err());
    }

    #[test]
    fn test_args_keep_the_arguments_of_cargo() {
        for (line, kernel, args) in [
            ("test", None, vec![]),
            ("test --kernel host --release", Some("host"), vec!["--release"]),
            ("test --kernel=host -p x -- -q", Some("host"), vec!["-p", "x", "--", "-q"]),
            ("test -p x --kernel host", None, vec!["-p", "x", "--kernel", "host"]),
            ("test -- -p x", None, vec!["-p", "x"]),
            ("test -- -- --nocapture", None, vec!["--", "--nocapture"]),
        ] {
            let Ok(Command::Test(found)) = parse(&format!("cargo-ktstr {line}")) else {
                panic!("{line}")
            };
            assert_eq!(found.kernel.map(|spec| spec.to_string()).as_deref(), kernel, "{line}");
            assert_eq!(found.args, args, "{line}");
        }
    }

    #[test]
    fn engine_names_are_the_values_of_ktstr_engine() {
        for engine in EngineName::value_variants() {
            let name = engine.to_possible_value().unwrap();
            assert_eq!(name.get_name(), engine.as_str());
        }
    }

    #[test]
    fn shell_args_describe_the_machine() {
        let found =
            shell("cargo-ktstr shell --numa-nodes 2 --llcs 4 --cores 3 --threads 2").unwrap();
        assert_eq!(found.machine.topology.to_string(), "2n4l3c2t");
        for (options, topology) in [
            ("--llcs 2", "1n2l2c1t"),
            ("--cores 3", "1n1l3c1t"),
            ("--cores 4,2 --threads 2", "1n2l4+2c2t"),
            ("--cores 1,3 --llcs 2 --numa-nodes 2", "2n2l1+3c1t"),
        ] {
            let found = shell(&format!("cargo-ktstr shell {options}")).unwrap();
            assert_eq!(found.machine.topology.to_string(), topology, "{options}");
        }
        assert_eq!((found.machine.memory_mib, found.command), (256, None));
        let found = shell("cargo-ktstr shell --exec -x --memory-mib 512 --kernel host").unwrap();
        assert_eq!(found.command.as_deref(), Some("-x"));
        assert_eq!(
            (found.machine.memory_mib, found.machine.kernel.as_deref()),
            (512, Some("host"))
        );
        assert_eq!(shell("cargo-ktstr shell").unwrap().machine.topology, Topology::DEFAULT);
    }

    #[test]
    fn shell_args_refuse_impossible_machines() {
        for (options, why) in [
            ("--numa-nodes 2 --llcs 3", "--llcs 4 fits"),
            ("--llcs 16 --cores 16", "at most 255"),
            ("--llcs 255 --cores 255 --threads 8", "at most 255"),
            ("--cores 128,128", "at most 255"),
            ("--llcs 3 --cores 4,2", "--cores lists 2 last-level caches, but --llcs is 3"),
            ("--numa-nodes 2 --cores 4,2,1", "--llcs 3 is not a multiple"),
            ("--cores 4,0", "0 is not in 1..=255"),
            ("--cores 4,", "invalid"),
            ("--threads 9", "9 is not in 1..=8"),
            ("--memory-mib 1", "1 is not in 64..=1048576"),
            ("--kernel nonsense", "debian:trixie"),
        ] {
            let error = shell(&format!("cargo-ktstr shell {options}")).unwrap_err().to_string();
            assert!(error.contains(why), "{options}: {error}");
        }
    }
}
