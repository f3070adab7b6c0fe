//! `cargo ktstr kernel`: lists the kernels and fetches them into the cache.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ktstr::provision::{Cache, Kernel, KernelSpec, KernelStatus, kernel, megabytes};

use crate::cli::KernelCommand;
use crate::table::table;

pub(crate) fn run(command: KernelCommand) -> Result<()> {
    let cache = Cache::from_env()?;
    match command {
        KernelCommand::List => {
            print!("{}", list(&kernel::list(&cache)?));
            Ok(())
        }
        KernelCommand::Fetch { specs, refresh } => fetch(&cache, specs, refresh),
        KernelCommand::Path { spec } => {
            println!("{}", path(&cache, spec)?.display());
            Ok(())
        }
    }
}

fn list(kernels: &[KernelStatus]) -> String {
    let head = ["SPEC", "SERIES", "CACHED", "SIZE", "SCHED_EXT", "NOTE"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(kernels.iter().map(row)).collect();
    table(&rows)
}

fn row(status: &KernelStatus) -> [String; 6] {
    let known = status.known;
    let default = if known.is_default() { "default; " } else { "" };
    [
        known.name.clone(),
        known.series.clone(),
        status.cached.as_ref().map_or("-".to_owned(), |kernel| kernel.version.clone()),
        if status.disk_usage == 0 { "-".to_owned() } else { megabytes(status.disk_usage) },
        if status.sched_ext { "yes" } else { "no" }.to_owned(),
        format!("{default}{}", known.note),
    ]
}

fn fetch(cache: &Cache, mut specs: Vec<KernelSpec>, refresh: bool) -> Result<()> {
    if specs.is_empty() {
        specs.push(KernelSpec::default_kernel());
    }
    for spec in specs {
        let kernel = kernel::fetch(cache, &spec, refresh).with_context(|| no_kernel(&spec))?;
        println!("{}", fetched(&kernel));
    }
    Ok(())
}

fn fetched(kernel: &Kernel) -> String {
    format!("{}: {} at {}", kernel.spec, kernel.version, kernel.boot.path.display())
}

fn path(cache: &Cache, spec: Option<KernelSpec>) -> Result<PathBuf> {
    let kernel = match spec {
        Some(spec) => kernel::resolve_spec(cache, &spec).with_context(|| no_kernel(&spec))?,
        None => kernel::resolve(cache, None)?,
    };
    Ok(kernel.boot.path)
}

fn no_kernel(spec: &KernelSpec) -> String {
    format!("cannot find kernel `{spec}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_an_empty_cache_has_every_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let text = list(&kernel::list(&Cache::at(dir.path())).unwrap());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("SPEC "), "{text}");
        assert!(lines.len() >= 4, "{text}");
        assert_eq!(text.matches("default; ").count(), 1, "{text}");
        assert!(lines[1..].iter().all(|line| line.contains("  -  ")), "{text}");
    }
}
