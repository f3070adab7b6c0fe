//! Copies a QEMU into a machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ktstr::provision::QemuProgram;
use ktstr::runner::nested::Outer;

/// Adds all that `qemu` needs to boot a kernel, each file under the path it has here, so that its
/// command line is the same in the machine.
pub(super) fn qemu(qemu: &QemuProgram, outer: &mut Outer) -> Result<()> {
    let argv: Vec<&str> = qemu
        .argv
        .iter()
        .map(|word| word.to_str())
        .collect::<Option<_>>()
        .context("QEMU's command line is not UTF-8")?;
    match argv[..] {
        [loader, "--library-path", folder, program, ..] => {
            let list = run(&[loader, "--library-path", folder, "--list", program])?;
            let libraries = list.lines().filter_map(|line| {
                let (_, rest) = line.split_once(" => ")?;
                Some(rest.rsplit_once(" (")?.0)
            });
            for file in [loader, program].into_iter().chain(libraries) {
                outer.files.push((file.into(), file.to_owned()));
            }
        }
        [program, ..] => outer.programs.push((program.into(), program.to_owned())),
        [] => {}
    }
    let folders = run(&[&argv[..], &["-L", "help"]].concat())?;
    for folder in folders.lines() {
        for path in firmware(Path::new(folder)) {
            let name =
                path.to_str().context("the name of a firmware file is not UTF-8")?.to_owned();
            outer.files.push((path, name));
        }
    }
    Ok(())
}

/// Returns the images in a directory of firmware, without those of network cards.
fn firmware(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let is_needed = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_image = name.ends_with(".bin") || name.ends_with(".rom");
        is_image && !name.starts_with("pxe-") && !name.starts_with("efi-") && path.is_file()
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_needed).collect()
}

fn run(argv: &[&str]) -> Result<String> {
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .output()
        .with_context(|| format!("cannot run {}", argv[0]))?;
    ensure!(output.status.success(), "`{}` failed: {}", argv.join(" "), output.status);
    String::from_utf8(output.stdout)
        .with_context(|| format!("the output of {} is not UTF-8", argv[0]))
}
