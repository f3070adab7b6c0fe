//! The manager on temporary directories, which show what it writes and returns.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

/// Creates a directory that looks like the root of a hierarchy, and a manager for it.
fn hierarchy() -> (tempfile::TempDir, CgroupManager) {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    fs::create_dir(root.path().join("ktstr")).unwrap();
    for level in ["", "ktstr"] {
        fs::write(root.path().join(level).join("cgroup.subtree_control"), "").unwrap();
    }
    let manager = CgroupManager::new(root.path().join("ktstr")).with_walk_root(root.path());
    (root, manager.unwrap())
}

fn add_cgroup(root: &Path, name: &str, files: &[(&str, &str)]) {
    let path = root.join("ktstr").join(name);
    fs::create_dir_all(&path).unwrap();
    for (file, text) in files {
        fs::write(path.join(file), text).unwrap();
    }
}

#[test]
fn new_writes_nothing() {
    let manager = CgroupManager::new("/nonexistent/ktstr");
    assert_eq!(manager.parent_path(), Path::new("/nonexistent/ktstr"));
    assert_eq!(manager.walk_root(), Path::new("/sys/fs/cgroup"));
    manager.setup(&BTreeSet::new()).expect("an empty set does nothing");
    manager.remove_cgroup("cg").expect("removing a missing cgroup succeeds");
    assert_eq!(manager.outstanding_removes(), 0);
    manager.cleanup_all().expect("cleaning up nothing succeeds");
}

#[test]
fn with_walk_root_refuses_paths_that_do_not_fit() {
    for (parent, root, reason) in [
        ("/a/b", "/a/c", "not at or below"),
        ("/ab", "/a", "not at or below"),
        ("/a/../b", "/a", "contains `..`"),
        ("/a/b", "/a/../a", "contains `..`"),
        ("/a/b", "", "is not absolute"),
    ] {
        let error = CgroupManager::new(parent).with_walk_root(root).unwrap_err().to_string();
        for part in [parent, root, reason] {
            assert!(error.contains(part), "{error}");
        }
    }
    CgroupManager::new("/a").with_walk_root("/a").expect("the parent may be the walk root");
}

#[test]
fn below_uses_the_walk_root_of_the_environment() {
    let paths = |named: Option<&str>| {
        let manager = CgroupManager::below(named.map(Into::into), "/ktstr/suite").unwrap();
        (manager.parent_path().to_owned(), manager.walk_root().to_owned())
    };
    let default = ("/sys/fs/cgroup/ktstr/suite".into(), "/sys/fs/cgroup".into());
    assert_eq!(paths(None), default);
    assert_eq!(paths(Some("")), default);
    assert_eq!(paths(Some("/cg/mine")), ("/cg/mine/ktstr/suite".into(), "/cg/mine".into()));
    let error = CgroupManager::below(Some("/cg/../mine".into()), "/ktstr").unwrap_err();
    assert!(error.to_string().contains("contains `..`"), "{error}");
}

#[test]
fn setup_writes_one_sorted_line_per_level() {
    let (root, manager) = hierarchy();
    manager
        .setup(&BTreeSet::from([Controller::Pids, Controller::Cpu, Controller::Cpuset]))
        .unwrap();
    for level in ["", "ktstr"] {
        let path = root.path().join(level).join("cgroup.subtree_control");
        assert_eq!(fs::read_to_string(path).unwrap(), "+cpu +cpuset +pids");
    }
}

#[test]
fn create_cgroup_sets_up_a_removed_parent_again() {
    let (root, manager) = hierarchy();
    let (level, parent) = (root.path().join("cgroup.subtree_control"), root.path().join("ktstr"));
    manager.setup(&BTreeSet::from([Controller::Cpu])).unwrap();
    fs::remove_dir_all(&parent).unwrap();
    fs::write(&level, "").unwrap();
    // In a directory, the new cgroup has no files.
    let error = manager.create_cgroup("cg").unwrap_err().to_string();
    assert!(error.contains("write `+cpu` to ") && error.contains("ktstr/cgroup.sub"), "{error}");
    assert_eq!(fs::read_to_string(level).unwrap(), "+cpu");
}

#[test]
fn setup_lists_available_controllers() {
    let (root, manager) = hierarchy();
    fs::write(root.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
    let wanted = BTreeSet::from([Controller::Memory, Controller::Io, Controller::Cpu]);
    let error = manager.setup(&wanted).unwrap_err().to_string();
    assert!(error.contains("`io memory` are not available"), "{error}");
    assert!(error.contains("lists `cpu pids`"), "{error}");
    let path = root.path().join("cgroup.subtree_control");
    assert_eq!(fs::read_to_string(path).unwrap(), "", "nothing is written");
}

#[test]
fn setup_fails_at_the_level_that_rejects_the_write() {
    let (root, manager) = hierarchy();
    fs::remove_file(root.path().join("ktstr/cgroup.subtree_control")).unwrap();
    let error = manager.setup(&BTreeSet::from([Controller::Cpu])).unwrap_err().to_string();
    assert!(error.contains("write `+cpu` to "), "{error}");
    assert!(error.contains("ktstr/cgroup.subtree_control`: ENOENT ("), "{error}");
    assert!(!root.path().join("ktstr/cgroup.subtree_control").exists(), "nothing is created");
}

#[test]
fn setup_refuses_levels_with_processes() {
    let (root, manager) = hierarchy();
    add_cgroup(root.path(), "", &[("cgroup.procs", "1\n"), ("cgroup.type", "domain\n")]);
    let error = manager.setup(&BTreeSet::from([Controller::Pids])).unwrap_err().to_string();
    assert!(error.contains("contains processes [1]"), "{error}");
    assert!(error.contains("threaded domain"), "{error}");
}

#[test]
fn set_knob_names_the_missing_controller() {
    let (root, manager) = hierarchy();
    add_cgroup(root.path(), "cg", &[("cgroup.controllers", "cpu\n")]);
    let error = manager.set_memory_max("cg", Some(4096)).unwrap_err().to_string();
    assert!(error.contains("write `4096` to "), "{error}");
    assert!(error.contains("cg/memory.max`: ENOENT (No such file or directory)"), "{error}");
    assert!(error.contains("controller `memory` is not enabled for this cgroup"), "{error}");
    let error = manager.set_cpu_weight("cg", 100).unwrap_err().to_string();
    assert!(error.contains("this kernel has no cpu.weight"), "{error}");
    let error = manager.set_cpu_weight("none", 100).unwrap_err().to_string();
    assert!(error.contains("there is no such cgroup"), "{error}");
}

#[test]
fn set_cpuset_error_contains_a_snapshot() {
    let (root, manager) = hierarchy();
    add_cgroup(
        root.path(),
        "cg",
        &[("cgroup.controllers", "cpu\n"), ("cpuset.mems.effective", "0\n")],
    );
    let error = manager.set_cpuset("cg", &BTreeSet::from([0, 1])).unwrap_err().to_string();
    for part in [
        "write `0-1` to ",
        "controller `cpuset` is not enabled",
        "cgroup.controllers: cpu",
        "cpuset.mems.effective: 0",
        "cpuset.cpus.effective: ENOENT",
        "entries: cgroup.controllers cpuset.mems.effective",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn move_task_refuses_cgroups_without_memory_nodes() {
    let (root, manager) = hierarchy();
    let files = [("cpuset.cpus", "0\n"), ("cpuset.mems.effective", "\n"), ("cgroup.procs", "")];
    add_cgroup(root.path(), "cg", &files);
    let error = manager.move_task("cg", 4711).unwrap_err().to_string();
    assert!(error.contains("cpuset.cpus is `0` and cpuset.mems.effective is empty"), "{error}");
    manager.move_tasks("cg", &[]).expect("moving nothing succeeds");
    manager.place_task_during_handshake("cg", 4711).unwrap();
    assert_eq!(manager.read_procs("cg").unwrap(), [4711]);
}

#[test]
fn move_task_refuses_pids_that_are_not_positive() {
    let (root, manager) = hierarchy();
    add_cgroup(root.path(), "cg", &[("cgroup.procs", "")]);
    for pid in [0, -1, i32::MIN] {
        let error = manager.move_task("cg", pid).unwrap_err().to_string();
        assert!(error.contains("pids are positive"), "{error}");
    }
    assert_eq!(manager.read_procs("cg").unwrap(), [0_i32; 0]);
}

#[test]
fn read_procs_refuses_malformed_lines_and_missing_cgroups() {
    let (root, manager) = hierarchy();
    // 0 is a process in another pid namespace.
    add_cgroup(root.path(), "cg", &[("cgroup.procs", "12\n0\n34\n")]);
    assert_eq!(manager.read_procs("cg").unwrap(), [12, 34]);
    add_cgroup(root.path(), "bad", &[("cgroup.procs", "12\nabc\n")]);
    let error = manager.read_procs("bad").unwrap_err().to_string();
    assert!(error.contains("failed to parse ") && error.contains("bad/cgroup.procs"), "{error}");
    let error = manager.read_procs("none").unwrap_err().to_string();
    assert!(error.contains("read ") && error.contains("there is no such cgroup"), "{error}");
}

#[test]
fn remove_cgroup_refuses_after_eleven_failures() {
    let (root, manager) = hierarchy();
    let name = |number: usize| format!("cg{number}");
    for number in 0..12 {
        add_cgroup(root.path(), &name(number), &[("stuck", "")]);
    }
    for number in 0..11 {
        let error = manager.remove_cgroup(&name(number)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY), "{error}");
        assert_eq!(manager.outstanding_removes(), number + 1);
    }
    let refused = manager.remove_cgroup(&name(11)).unwrap_err();
    assert!(matches!(refused, Error::TooManyOutstanding { .. }), "{refused}");
    manager.remove_cgroup("missing").expect("a missing cgroup is never refused");
    assert_eq!(manager.outstanding_removes(), 11, "neither of the two is counted");

    fs::remove_file(root.path().join("ktstr/cg0/stuck")).unwrap();
    manager.remove_cgroup(&name(0)).expect("a counted cgroup is tried again");
    let error = manager.remove_cgroup(&name(11)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY), "tried again, not refused: {error}");

    for number in 1..12 {
        fs::remove_file(root.path().join("ktstr").join(name(number)).join("stuck")).unwrap();
    }
    let error = manager.cleanup_all().unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(libc::ENOTEMPTY),
        "the parent contains a file here: {error}"
    );
    assert_eq!(manager.outstanding_removes(), 1);
}

#[test]
fn operations_do_not_take_files_for_cgroups() {
    let (root, manager) = hierarchy();
    add_cgroup(root.path(), "", &[("cgroup.procs", "")]);
    manager.remove_cgroup("cgroup.procs").expect("there is no such cgroup");
    assert_eq!(manager.outstanding_removes(), 0);
    assert!(root.path().join("ktstr/cgroup.procs").exists());
    for error in [
        manager.create_cgroup("cgroup.procs").unwrap_err(),
        manager.create_cgroup("cgroup.procs/leaf").unwrap_err(),
        manager.set_cpu_weight("cgroup.procs", 1).unwrap_err(),
    ] {
        assert!(error.to_string().contains("a file with that name exists"), "{error}");
    }
}

#[test]
fn remove_cgroup_always_tries_below_a_counted_one() {
    let (root, manager) = hierarchy();
    let name = |number: usize| format!("cg{number}");
    for number in 0..11 {
        add_cgroup(root.path(), &format!("{}/below", name(number)), &[]);
        manager.remove_cgroup(&name(number)).unwrap_err();
    }
    assert_eq!(manager.outstanding_removes(), 11);
    manager.remove_cgroup("cg0/below").unwrap();
    manager.remove_cgroup("cg0").unwrap();
    assert_eq!(manager.outstanding_removes(), 10);
}

/// A process without its first thread stays listed after the other threads were moved.
#[test]
fn drain_tasks_ends_when_the_cgroup_is_not_populated() {
    let (root, manager) = hierarchy();
    fs::write(root.path().join("cgroup.procs"), "").unwrap();
    add_cgroup(
        root.path(),
        "cg",
        &[("cgroup.procs", "4711\n"), ("cgroup.events", "populated 0\n")],
    );
    manager.drain_tasks("cg").unwrap();
    assert_eq!(fs::read_to_string(root.path().join("cgroup.procs")).unwrap(), "4711");
}

/// Without `cgroup.kill`, as before Linux 5.14.
#[test]
fn kill_cgroup_falls_back_to_single_processes() {
    let (root, manager) = hierarchy();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id().to_string();
    add_cgroup(root.path(), "cg/below", &[("cgroup.procs", &pid)]);
    add_cgroup(root.path(), "cg", &[("cgroup.procs", ""), ("cgroup.freeze", "")]);
    manager.kill_cgroup("cg").unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    let freeze = fs::read_to_string(root.path().join("ktstr/cg/cgroup.freeze")).unwrap();
    assert_eq!(freeze, "0", "thawed at the end");
}

#[test]
fn kill_cgroup_kills_and_thaws_without_freezing() {
    let (root, manager) = hierarchy();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id().to_string();
    add_cgroup(root.path(), "cg/cgroup.events", &[]);
    add_cgroup(root.path(), "cg", &[("cgroup.procs", &pid), ("cgroup.freeze", "")]);
    let error = manager.kill_cgroup("cg").unwrap_err().to_string();
    assert!(error.contains("wait for ") && error.contains("EISDIR"), "{error}");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    let freeze = fs::read_to_string(root.path().join("ktstr/cg/cgroup.freeze")).unwrap();
    assert_eq!(freeze, "0");
}

#[test]
fn kill_and_freeze_refuse_a_cgroup_with_the_caller() {
    let (root, manager) = hierarchy();
    let own = format!("{}\n", std::process::id());
    let files = ["cgroup.kill", "cgroup.freeze"];
    add_cgroup(root.path(), "cg", &[("cgroup.procs", &own), (files[0], ""), (files[1], "")]);
    for refused in [manager.kill_cgroup("cg"), manager.set_freeze("cg", true)] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("the caller is in it"), "{error}");
    }
    for file in files {
        assert_eq!(fs::read_to_string(root.path().join("ktstr/cg").join(file)).unwrap(), "");
    }
    manager.set_freeze("cg", false).expect("another process may have frozen it");
}

#[test]
fn subtree_controllers_are_cleared_and_added() {
    let (root, manager) = hierarchy();
    add_cgroup(root.path(), "cg", &[("cgroup.subtree_control", "cpu memory\n")]);
    manager.clear_subtree_control("cg").unwrap();
    let path = root.path().join("ktstr/cg/cgroup.subtree_control");
    assert_eq!(fs::read_to_string(path).unwrap(), "-cpu -memory");
    manager.add_parent_subtree_controller(Controller::Io).unwrap();
    let path = root.path().join("ktstr/cgroup.subtree_control");
    assert_eq!(fs::read_to_string(path).unwrap(), "+io");
}
