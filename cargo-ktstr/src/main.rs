//! `cargo ktstr`: checks this machine, fetches kernels, runs tests, and opens a shell in a guest.

#![forbid(unsafe_code)]

mod cli;
mod demo;
mod doctor;
mod kernel;
mod table;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use ktstr::__private::Untrusted;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // `shell` and `demo` boot this program as PID 1 of their guest.
    ktstr::runner::init_if_guest();
    let cli = Cli::parse_from(cli::without_subcommand_name(std::env::args_os()));
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            // Its causes may be texts of a guest, a mirror or another program.
            eprintln!("error: {}", Untrusted::output(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Doctor => doctor::run(),
        Command::Kernel { command } => kernel::run(command).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => Err(test::run(&args)),
        Command::Shell(args) => Ok(args.shell()?.run()?.into()),
        Command::Demo => Ok(demo::run()),
    }
}
