//! `cargo ktstr test`: runs Cargo's test command with a given kernel and engine.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Error, Result};
use ktstr::provision::{Cache, KernelSpec, kernel};

use crate::cli::TestArgs;

/// Replaces this process by Cargo. Returns only if that fails.
pub(crate) fn run(args: &TestArgs) -> Error {
    match prepare(args) {
        Ok(mut command) => {
            let error = command.exec();
            Error::new(error).context(format!("cannot run {}", command.get_program().display()))
        }
        Err(error) => error,
    }
}

fn prepare(args: &TestArgs) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(cargo_arguments(args.nextest, &args.args));
    if let Some(spec) = &args.kernel {
        // Once, before Cargo builds anything, instead of in each test.
        kernel::resolve_spec(&Cache::from_env()?, spec)
            .with_context(|| format!("cannot find kernel `{spec}`"))?;
        command.env("KTSTR_KERNEL", value(spec)?);
    }
    if let Some(engine) = args.engine {
        command.env("KTSTR_ENGINE", engine.as_str());
    }
    Ok(command)
}

fn cargo_arguments(nextest: bool, args: &[OsString]) -> Vec<&OsStr> {
    let command: &[&str] = if nextest { &["nextest", "run"] } else { &["test"] };
    command.iter().map(OsStr::new).chain(args.iter().map(OsString::as_os_str)).collect()
}

/// Returns the value of `KTSTR_KERNEL`. A path is absolute, because tests run in the directory of
/// their package.
fn value(spec: &KernelSpec) -> Result<OsString> {
    Ok(match spec {
        KernelSpec::Path(path) => {
            std::path::absolute(path).context("cannot find the working directory")?.into_os_string()
        }
        KernelSpec::Known(_) | KernelSpec::Host => spec.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_arguments_are_passed_unchanged() {
        let args: Vec<OsString> = ["-p", "x", "--", "-q"].map(OsString::from).into();
        assert_eq!(cargo_arguments(false, &args), ["test", "-p", "x", "--", "-q"]);
        assert_eq!(cargo_arguments(true, &args[..2]), ["nextest", "run", "-p", "x"]);
    }

    #[test]
    fn value_of_a_path_is_absolute() {
        let here = std::env::current_dir().unwrap();
        let spec = "./bzImage".parse().unwrap();
        assert_eq!(value(&spec).unwrap(), here.join("bzImage"));
        assert_eq!(value(&KernelSpec::Host).unwrap(), "host");
    }
}
