//! Advice on errors of cgroupfs, depending on the state of the cgroup.

use std::fs;
use std::io;
use std::path::Path;

use super::Operation;
use super::paths::MOUNT;

/// Returns what to do about `cause`, the error of `operation` on `path`.
pub(super) fn on(
    operation: Operation,
    path: &Path,
    value: Option<&str>,
    cause: &io::Error,
) -> String {
    let knob = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_cgroup = operation.is_on_cgroup();
    let cgroup = if is_cgroup { path } else { path.parent().unwrap_or(path) };
    match cause.raw_os_error() {
        Some(libc::ENOENT) if knob == "cgroup.procs" && value.is_some() && path.exists() => {
            "the process is outside of the caller's cgroup namespace, and cgroupfs is mounted with \
             nsdelegate: move it from outside, or start it in a cgroup inside"
                .to_owned()
        }
        Some(libc::ENOENT | libc::ENODEV) => missing(cgroup, knob, is_cgroup),
        Some(libc::EACCES | libc::EPERM) if knob == "cgroup.procs" => {
            "the caller needs write access to cgroup.procs of the destination and of its common \
             ancestor with the source: run as root, or stay in one delegated cgroup"
                .to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "the caller must own this cgroup, or its parent to create or remove it: run as root, or \
             in a delegated cgroup (docs/guide/delegation.md)"
                .to_owned()
        }
        Some(libc::EROFS) => {
            "cgroupfs is mounted read-only, as in many containers: run the container with a writable \
             one (docs/guide/delegation.md)"
                .to_owned()
        }
        Some(libc::EBUSY) if knob == "cgroup.subtree_control" => format!(
            "the cgroup contains processes (cgroup.procs: {}; those that are exiting are not listed) or \
             a child still has the controller enabled: move the processes to a leaf, or clear the \
             children first",
            shown(&cgroup.join("cgroup.procs"))
        ),
        Some(libc::EBUSY) if knob == "cgroup.procs" => format!(
            "a cgroup with domain controllers enabled for its children cannot contain processes \
             (cgroup.subtree_control: {}): use a leaf; a sched_ext scheduler may also reject a move \
             temporarily",
            shown(&cgroup.join("cgroup.subtree_control"))
        ),
        Some(libc::EBUSY | libc::ENOTEMPTY) => {
            "the cgroup still contains processes or has children: remove them first".to_owned()
        }
        Some(libc::EOPNOTSUPP) => threaded(cgroup, knob),
        Some(libc::ERANGE | libc::EINVAL) if knob.starts_with("cpuset.") => {
            "no such CPU or memory node, or the parent does not have it: compare with \
             cpuset.cpus.effective and cpuset.mems.effective of the parent"
                .to_owned()
        }
        Some(libc::ENOSPC) if is_cgroup => {
            "the kernel has ids for 65535 memory cgroups, and removed ones keep theirs while memory \
             is charged to them: see nr_dying_descendants in cgroup.stat"
                .to_owned()
        }
        Some(libc::ENOSPC) => {
            "processes would be left without a CPU or a memory node: see cpuset.cpus.effective and \
             cpuset.mems.effective"
                .to_owned()
        }
        Some(libc::ESRCH) => "the process has ended".to_owned(),
        Some(libc::EEXIST | libc::ENOTDIR) => {
            "a file with that name exists: choose another name".to_owned()
        }
        Some(libc::EAGAIN) => {
            "a limit is reached: see cgroup.max.descendants, cgroup.max.depth and pids.max of the \
             ancestors"
                .to_owned()
        }
        Some(libc::ENAMETOOLONG) => "shorten the path: at most 4095 bytes".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (RLIMIT_NOFILE)".into(),
        Some(libc::EINVAL) if ["cgroup.procs", "cgroup.subtree_control"].contains(&knob) => {
            "kernel threads cannot be moved, and with CONFIG_RT_GROUP_SCHED real-time processes cannot \
             enter cgroups with the cpu controller"
                .to_owned()
        }
        Some(libc::EINVAL) => {
            "the kernel does not accept this value: see admin-guide/cgroup-v2.rst".to_owned()
        }
        _ => "see admin-guide/cgroup-v2.rst".to_owned(),
    }
}

fn missing(cgroup: &Path, knob: &str, is_cgroup: bool) -> String {
    if is_cgroup || !cgroup.is_dir() {
        return format!(
            "there is no such cgroup: create it first; if {} does not exist either, no cgroup v2 \
             hierarchy is mounted",
            MOUNT
        );
    }
    let controller = knob.split('.').next().unwrap_or_default();
    if knob == "cgroup.subtree_control" {
        return format!(
            "a controller is not available in this cgroup (cgroup.controllers: {}): enable it in its \
             parent first; if the file is missing, this is not a cgroup",
            shown(&cgroup.join("cgroup.controllers"))
        );
    }
    if controller == "cgroup" {
        return "this kernel does not have that file, or this is not a cgroup".to_owned();
    }
    let enabled = read(&cgroup.join("cgroup.controllers"));
    if enabled.split(' ').any(|enabled| enabled == controller) {
        return format!("controller `{controller}` is enabled, but this kernel has no {knob}");
    }
    let enabled = cgroup.parent().map(|parent| shown(&parent.join("cgroup.subtree_control")));
    format!(
        "controller `{controller}` is not enabled for this cgroup (cgroup.subtree_control of its \
         parent: {}): pass it to `setup` before the cgroup is created",
        enabled.unwrap_or_default()
    )
}

/// Explains EOPNOTSUPP from the threaded domain that the cgroup is in.
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst, "Threads".
fn threaded(cgroup: &Path, knob: &str) -> String {
    let kind = kind(cgroup);
    let domain = cgroup.ancestors().find(|level| self::kind(level) == "domain threaded");
    let Some(domain) = domain else {
        return format!("the cgroup does not support this (cgroup.type: `{kind}`)");
    };
    let shown = domain.display();
    if kind == "threaded" {
        return match knob {
            "cgroup.kill" => format!(
                "the cgroup is threaded: processes are killed in its threaded domain, {shown}, or \
                 one by one"
            ),
            "cgroup.procs" => format!(
                "the cgroup is threaded: it lists threads, in cgroup.threads, and accepts those of \
                 processes in its threaded domain, {shown}"
            ),
            _ => format!(
                "the cgroup is threaded: only threaded controllers (cpu, cpuset, pids) work below \
                 its threaded domain, {shown}"
            ),
        };
    }
    let children = fs::read_dir(domain).into_iter().flatten().flatten();
    if children.into_iter().any(|entry| self::kind(&entry.path()) == "threaded") {
        return format!(
            "{shown} is a threaded domain, because one of its children is `threaded`: the others \
             accept neither processes nor domain controllers such as memory and io until they are \
             threaded as well (write `threaded` to cgroup.type). Remove the threaded children, or \
             use a cgroup outside of it"
        );
    }
    format!(
        "this is the threaded-domain trap (cgroup.type: `{kind}`, of {shown}: `domain threaded`): \
         cpu, cpuset or pids are enabled for the children of a cgroup that contains processes, which \
         makes it a threaded domain. Move its processes (cgroup.procs: {}) to a leaf, or disable \
         the controllers there, move them, and enable the controllers again",
        self::shown(&domain.join("cgroup.procs"))
    )
}

fn kind(cgroup: &Path) -> String {
    read(&cgroup.join("cgroup.type"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Returns the words of a file in backquotes, or `empty`.
fn shown(path: &Path) -> String {
    let words: Vec<_> = read(path).split_whitespace().map(str::to_owned).collect();
    if words.is_empty() { "empty".to_owned() } else { format!("`{}`", words.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_depends_on_file_and_operation() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        for (operation, file, number, want) in [
            (Operation::Write, "cgroup.procs", libc::ENOENT, "nsdelegate"),
            (Operation::Write, "memory.max", libc::ENOENT, "controller `memory` is not enabled"),
            (Operation::Write, "cpu.max", libc::EMFILE, "RLIMIT_NOFILE"),
            (Operation::Write, "cgroup.procs", libc::ENOSPC, "without a CPU or a memory node"),
            (Operation::Create, "cg", libc::ENOSPC, "nr_dying_descendants"),
            (Operation::Write, "cpuset.mems", libc::EINVAL, "no such CPU or memory node"),
            (Operation::Write, "cgroup.procs", libc::EINVAL, "kernel threads cannot be moved"),
            (Operation::Write, "cpu.max", libc::EINVAL, "does not accept this value"),
        ] {
            let cause = io::Error::from_raw_os_error(number);
            let advice = on(operation, &dir.path().join(file), Some("1"), &cause);
            assert!(advice.contains(want), "{operation} {file}: {advice}");
        }
    }
}
