//! `cargo xtask nested`: runs the suite on a real KVM, on any host.
//!
//! The test binaries of this workspace run in a machine that has a `/dev/kvm`, and boot their own
//! guests there with it. One machine runs them all, on one kernel after the other.

mod binaries;
mod tally;

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ktstr::provision::KernelSpec;
use ktstr::runner::nested::{Outer, Stream};

use tally::Tally;

/// Environment variables that are passed on to the programs.
const PASSED_ON: [&str; 5] =
    ["RUST_BACKTRACE", "RUST_LOG", "RUST_TEST_THREADS", "NO_COLOR", "CARGO_TERM_COLOR"];

/// The directory of the test binaries.
const DIRECTORY: &str = "/tests";

/// Runs each of `$tests` on each of `$kernels` with the arguments; prints which one it runs, and which
/// have failed. Tests of `hostile`, `ktstr` and `topology` that are ignored elsewhere need this machine; the
/// other binaries ignore tests that fail on purpose.
const SCRIPT: &str = r#"
cd /
failed=
for KTSTR_KERNEL in $kernels; do
    export KTSTR_KERNEL
    for test in $tests; do
        echo "     Running $test on $KTSTR_KERNEL" >&2
        case $test in hostile|ktstr|topology) ignored=--include-ignored ;; *) ignored= ;; esac
        /tests/$test $ignored "$@" || failed="$failed, $test on $KTSTR_KERNEL (status $?)"
    done
done
[ -z "$failed" ] || { echo "failed: ${failed#, }" >&2; exit 1; }
"#;

/// Arguments of the nested run.
#[derive(Debug, clap::Args)]
pub(crate) struct Nested {
    /// Kernels of the tests, as in `KTSTR_KERNEL`; the default one if none is given
    #[arg(long)]
    kernel: Vec<KernelSpec>,
    /// A test binary to run: a file of a directory tests/, or `ktstr` and `ktstr_vmm` for the unit tests
    /// of these; all but `containment`, `macro_ui` and `packages` if none is given.
    #[arg(long, conflicts_with = "exec")]
    test: Vec<String>,
    /// Run a program of this host instead: its path and arguments follow `--`.
    #[arg(long)]
    exec: bool,
    /// Timeout in seconds
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// Arguments for the test binaries, such as a filter.
    #[arg(last = true)]
    args: Vec<String>,
}

impl Nested {
    /// Fails if a test fails, and if no test ran.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.exec { self.run_program() } else { self.run_tests() }
    }

    fn run_tests(mut self) -> Result<ExitCode> {
        if self.kernel.is_empty() {
            self.kernel.push(KernelSpec::default_kernel());
        }
        let binaries = binaries::build(&self.test)?;
        let names: Vec<_> = binaries.iter().map(|binary| binary.name.clone()).collect();
        let kernels: Vec<_> = self.kernel.iter().map(ToString::to_string).collect();
        let mut programs: Vec<_> = binaries
            .into_iter()
            .map(|binary| (binary.path, format!("{DIRECTORY}/{}", binary.name)))
            .collect();
        // The fake QEMU of ktstr-vmm's tests is a bash script.
        programs.extend(find("bash").map(|path| (path, "/bin/bash".to_owned())));
        let outer = Outer { kernels: self.kernel, programs, ..Outer::default() };
        let mut argv = ["/bin/sh", "-c", SCRIPT, "nested"].map(str::to_owned).to_vec();
        argv.extend(self.args);
        let own = [
            ("KTSTR_ENGINE", "kvm".to_owned()),
            // Concurrent guests starve each other on one emulated CPU.
            ("RUST_TEST_THREADS", "1".to_owned()),
            ("kernels", kernels.join(" ")),
            ("tests", names.join(" ")),
        ];
        let mut env = own.map(|(name, value)| (name.to_owned(), value)).to_vec();
        env.extend(passed_on(&PASSED_ON));
        let mut tally = Tally::default();
        let status = outer
            .run(&argv, &env, Duration::from_secs(self.timeout), &mut |stream, bytes| {
                tally.hear(stream, bytes);
                print(stream, bytes)
            })
            .with_context(|| match tally.running() {
                Some(running) => format!("interrupted at {running}; before that: {tally}"),
                None => "no test ran".to_owned(),
            })?;
        println!("\n{tally}");
        ensure!(tally.matched() > 0 || status != 0, "no test matches the filter");
        Ok(if status == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn run_program(self) -> Result<ExitCode> {
        let mut argv = self.args;
        let program = argv.first_mut().context("`--exec` needs `-- PROGRAM [ARGUMENTS]`")?;
        let path = find(program).with_context(|| format!("no program `{program}` in PATH"))?;
        let name = path.file_name().and_then(|name| name.to_str());
        *program = format!("/bin/{}", name.context("the program's name is not UTF-8")?);
        let programs = vec![(path, program.clone())];
        let mut env = passed_on(&PASSED_ON);
        env.extend(passed_on(&["KTSTR_ENGINE"]));
        env.extend(self.kernel.first().map(|spec| ("KTSTR_KERNEL".to_owned(), spec.to_string())));
        let outer = Outer { kernels: self.kernel, programs, ..Outer::default() };
        let timeout = Duration::from_secs(self.timeout);
        Ok(outer.run(&argv, &env, timeout, &mut print)?.into())
    }
}

fn passed_on(names: &[&str]) -> Vec<(String, String)> {
    let value = |name: &&str| Some(((*name).to_owned(), env::var(name).ok()?));
    names.iter().filter_map(value).collect()
}

/// Finds the file of a program by its path or its name in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let directories = env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<PathBuf> = match program.contains('/') {
        true => vec![program.into()],
        false => env::split_paths(&directories).map(|folder| folder.join(program)).collect(),
    };
    candidates.into_iter().find(|path| path.is_file())?.canonicalize().ok()
}

fn print(stream: Stream, bytes: &[u8]) -> Result<()> {
    match stream {
        Stream::Stdout => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes)?;
            Ok(stdout.flush()?)
        }
        Stream::Stderr => Ok(std::io::stderr().lock().write_all(bytes)?),
    }
}
