//! What to do about an answer of cgroupfs, told from the state of the group it concerns.

use std::fs;
use std::io;
use std::path::Path;

use super::paths::MOUNT;

/// What to do about `cause`, which `operation` on `path` met.
pub(super) fn on(operation: &str, path: &Path, value: Option<&str>, cause: &io::Error) -> String {
    let knob = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_group = operation.ends_with("cgroup");
    let group = if is_group { path } else { path.parent().unwrap_or(path) };
    match cause.raw_os_error() {
        Some(libc::ENOENT) if knob == "cgroup.procs" && value.is_some() && path.exists() => {
            "the process is in a group outside of the caller's cgroup namespace, and cgroupfs is \
             mounted with nsdelegate: move it from outside, or start it in a group inside"
                .to_owned()
        }
        Some(libc::ENOENT | libc::ENODEV) => missing(group, knob, is_group),
        Some(libc::EACCES | libc::EPERM) if knob == "cgroup.procs" => {
            "the caller must be able to write cgroup.procs of the group a process enters and of \
             the first one above both that and the one it leaves: run as root, or stay in one \
             delegated group"
                .to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "the caller must own this group, or the one above to make or remove it: run as root, or \
             have it delegated (docs/guide/delegation.md)"
                .to_owned()
        }
        Some(libc::EROFS) => {
            "cgroupfs is mounted read-only here, as in many containers: run the container with a \
             writable one (docs/guide/delegation.md)"
                .to_owned()
        }
        Some(libc::EBUSY) if knob == "cgroup.subtree_control" => format!(
            "the group holds processes (cgroup.procs: {}) or a group below still uses the \
             controller: move the processes to a leaf, or clear the groups below first",
            shown(&group.join("cgroup.procs"))
        ),
        Some(libc::EBUSY) if knob == "cgroup.procs" => format!(
            "a group with domain controllers enabled for its children cannot hold processes \
             (cgroup.subtree_control: {}): use a leaf; a sched_ext scheduler may also say no for \
             a moment",
            shown(&group.join("cgroup.subtree_control"))
        ),
        Some(libc::EBUSY | libc::ENOTEMPTY) => {
            "the group still holds processes or other groups: empty it first".to_owned()
        }
        Some(libc::EOPNOTSUPP) => threaded(group, knob),
        Some(libc::ERANGE | libc::EINVAL) if knob.starts_with("cpuset.") => {
            "no such CPU or node here, or the group above has not got it: compare with \
             cpuset.cpus.effective and cpuset.mems.effective of the group above"
                .to_owned()
        }
        Some(libc::ENOSPC) if is_group => {
            "the kernel has ids for 65535 memory groups, and removed ones keep theirs while memory \
             is charged to them: look at nr_dying_descendants in cgroup.stat"
                .to_owned()
        }
        Some(libc::ENOSPC) => {
            "processes would be left without a CPU or a node: look at cpuset.cpus.effective and \
             cpuset.mems.effective"
                .to_owned()
        }
        Some(libc::ESRCH) => "there is no such process: it has ended".to_owned(),
        Some(libc::EEXIST | libc::ENOTDIR) => {
            "a file of that name is there: choose another name".to_owned()
        }
        Some(libc::EAGAIN) => {
            "a limit was met: look at cgroup.max.descendants, cgroup.max.depth and pids.max of the \
             groups above"
                .to_owned()
        }
        Some(libc::ENAMETOOLONG) => "shorten the path: 4095 bytes in all".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (RLIMIT_NOFILE)".into(),
        Some(libc::EINVAL) if ["cgroup.procs", "cgroup.subtree_control"].contains(&knob) => {
            "kernel threads do not move, and with CONFIG_RT_GROUP_SCHED real-time processes stay \
             out of groups that have the cpu controller"
                .to_owned()
        }
        Some(libc::EINVAL) => {
            "the kernel does not take this value: see admin-guide/cgroup-v2.rst".to_owned()
        }
        _ => "see admin-guide/cgroup-v2.rst".to_owned(),
    }
}

fn missing(group: &Path, knob: &str, is_group: bool) -> String {
    if is_group || !group.is_dir() {
        return format!(
            "there is no such group: create it first; if {} is not there either, no cgroup v2 \
             hierarchy is mounted",
            MOUNT
        );
    }
    let controller = knob.split('.').next().unwrap_or_default();
    if knob == "cgroup.subtree_control" {
        return format!(
            "a controller is not available in this group (cgroup.controllers: {}): enable it in \
             the group above first; if the file is missing, this is no cgroup",
            shown(&group.join("cgroup.controllers"))
        );
    }
    if controller == "cgroup" {
        return "this kernel has no such file, or this is no cgroup".to_owned();
    }
    let enabled = read(&group.join("cgroup.controllers"));
    if enabled.split(' ').any(|enabled| enabled == controller) {
        return format!("controller `{controller}` is enabled, but this kernel has no {knob}");
    }
    let above = group.parent().map(|above| shown(&above.join("cgroup.subtree_control")));
    format!(
        "controller `{controller}` is not enabled for this group (cgroup.subtree_control of the \
         group above: {}): name it in `setup` before the group is made",
        above.unwrap_or_default()
    )
}

/// Explains EOPNOTSUPP from the threaded domain that the cgroup is in.
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst, "Threads".
fn threaded(group: &Path, knob: &str) -> String {
    let kind = kind(group);
    let domain = group.ancestors().find(|above| self::kind(above) == "domain threaded");
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
                "the cgroup is threaded: it lists threads, in cgroup.threads, and takes those of \
                 processes in its threaded domain, {shown}"
            ),
            _ => format!(
                "the cgroup is threaded: only threaded controllers (cpu, cpuset, pids) work below \
                 its threaded domain, {shown}"
            ),
        };
    }
    let below = fs::read_dir(domain).into_iter().flatten().flatten();
    if below.into_iter().any(|entry| self::kind(&entry.path()) == "threaded") {
        return format!(
            "{shown} is a threaded domain, as a cgroup in it is `threaded`: others in it take no \
             processes, and none has domain controllers such as memory and io, until they are \
             threaded as well (write `threaded` to cgroup.type). Remove the threaded ones, or use \
             a cgroup outside of it"
        );
    }
    format!(
        "this is the threaded-domain trap (cgroup.type: `{kind}`, of {shown}: `domain threaded`): \
         cpu, cpuset or pids are enabled for the children of a cgroup that holds processes, which \
         makes it a threaded domain. Move its processes (cgroup.procs: {}) to a leaf, or disable \
         the controllers there, move them, and enable the controllers again",
        self::shown(&domain.join("cgroup.procs"))
    )
}

fn kind(group: &Path) -> String {
    read(&group.join("cgroup.type"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The words of a file in backquotes, or that there are none.
fn shown(path: &Path) -> String {
    let words: Vec<_> = read(path).split_whitespace().map(str::to_owned).collect();
    if words.is_empty() { "empty".to_owned() } else { format!("`{}`", words.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_means_different_things_to_different_files() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), "").unwrap();
        for (operation, file, number, told) in [
            ("write", "cgroup.procs", libc::ENOENT, "nsdelegate"),
            ("write", "memory.max", libc::ENOENT, "controller `memory` is not enabled"),
            ("write", "cpu.max", libc::EMFILE, "RLIMIT_NOFILE"),
            ("write", "cgroup.procs", libc::ENOSPC, "without a CPU or a node"),
            ("create cgroup", "cg", libc::ENOSPC, "nr_dying_descendants"),
            ("write", "cpuset.mems", libc::EINVAL, "no such CPU or node"),
            ("write", "cgroup.procs", libc::EINVAL, "kernel threads do not move"),
            ("write", "cpu.max", libc::EINVAL, "does not take this value"),
        ] {
            let cause = io::Error::from_raw_os_error(number);
            let advice = on(operation, &group.path().join(file), Some("1"), &cause);
            assert!(advice.contains(told), "{operation} {file}: {advice}");
        }
    }
}
