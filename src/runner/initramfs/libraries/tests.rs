//! Programs and libraries that consist of their headers and dynamic section.

use std::os::unix::fs::symlink;

use super::*;

/// The dynamic section of a file: tags with strings.
type Entries<'a> = &'a [(elf::DynamicTag, &'a str)];

/// Builds a file with one segment at address 0, which is all of the file, and a dynamic section.
fn elf_file(interpreter: Option<&str>, entries: Entries) -> Vec<u8> {
    let mut strings = vec![0];
    let mut dynamic = Vec::new();
    for (tag, text) in entries {
        dynamic.push((tag.0, strings.len() as u64));
        strings.extend(text.as_bytes());
        strings.push(0);
    }
    let interpreter = interpreter.map(|path| format!("{path}\0")).unwrap_or_default();
    let segments = 2 + u16::from(!interpreter.is_empty());
    let start = 64 + 56 * u64::from(segments);
    let strings_at = start + interpreter.len() as u64;
    let dynamic_at = (strings_at + strings.len() as u64).next_multiple_of(8);
    dynamic.push((elf::DT_STRTAB.0, strings_at));
    dynamic.push((elf::DT_STRSZ.0, strings.len() as u64));
    dynamic.push((elf::DT_NULL.0, 0));
    let dynamic: Vec<u8> = dynamic
        .iter()
        .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
        .collect();
    let end = dynamic_at + dynamic.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([3, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([0, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, segments, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut segment = |kind: u32, at: u64, len: u64| {
        file.extend([kind, 4].map(u32::to_le_bytes).concat());
        file.extend([at, at, at, len, len, 8].map(u64::to_le_bytes).concat());
    };
    segment(elf::PT_LOAD.0, 0, end);
    segment(elf::PT_DYNAMIC.0, dynamic_at, dynamic.len() as u64);
    if !interpreter.is_empty() {
        segment(elf::PT_INTERP.0, start, interpreter.len() as u64);
    }
    file.extend(interpreter.as_bytes());
    file.extend(strings);
    file.resize(dynamic_at as usize, 0);
    file.extend(dynamic);
    file
}

/// A directory of programs and libraries.
struct System(tempfile::TempDir);

impl System {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap().join(name)
    }

    fn add(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn library(&self, name: &str, entries: Entries) {
        self.add(name, &elf_file(None, entries));
    }

    /// Returns the files, relative to this directory, of the libraries that a program with these entries needs.
    fn found(&self, search: &Search, entries: Entries) -> Result<Vec<String>> {
        let program = self.add("bin/program", &elf_file(None, entries));
        let found = search.closure(Object::read(&program, &program)?.unwrap())?;
        let root = self.path("");
        let relative = |file: PathBuf| file.strip_prefix(&root).unwrap().display().to_string();
        Ok(found.into_iter().map(|(_, file)| relative(file)).collect())
    }

    fn search(&self, is_musl: bool) -> Search {
        Search {
            loader: Loader { is_musl, names: vec!["ld.so".to_owned()] },
            first: vec![self.path("first")],
            cache: HashMap::from([("libcached.so".to_owned(), self.path("cached/libcached.so"))]),
            last: vec![self.path("last")],
            root: None,
            lookups: Cell::new(0),
        }
    }
}

const NEEDED: elf::DynamicTag = elf::DT_NEEDED;
const RPATH: elf::DynamicTag = elf::DT_RPATH;
const RUNPATH: elf::DynamicTag = elf::DT_RUNPATH;

#[test]
fn libraries_executes_nothing_of_the_program() {
    use std::os::unix::fs::PermissionsExt;
    let system = System::new();
    let mark = system.path("ran");
    let script = system.add("ld", format!("#!/bin/sh\ntouch {}\n", mark.display()).as_bytes());
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    system.library("lib.so", &[]);
    let own = format!("{}/lib.so", system.path("").display());
    let program = elf_file(script.to_str(), &[(NEEDED, &own)]);
    let program = system.add("program", &program);
    let found = libraries(&program).unwrap();
    assert_eq!(found.interpreter.unwrap().1, script);
    assert_eq!(found.needed, [(own, system.path("lib.so"))]);
    assert!(!mark.exists(), "the host executed the loader of the program");
    // Nor is a device read as a library or a loader.
    for (interpreter, library) in [("/dev/zero", "libc.so.6"), ("/bin/sh", "/dev/zero")] {
        let program = system.add("program", &elf_file(Some(interpreter), &[(NEEDED, library)]));
        let error = format!("{:#}", libraries(&program).unwrap_err());
        assert!(error.contains("/dev/zero is not a regular file"), "{error}");
    }
}

#[test]
fn libraries_of_this_program_are_those_that_are_loaded() {
    let loaded = this_program::loaded_files().unwrap();
    for program in [THIS_PROGRAM.into(), env::current_exe().unwrap()] {
        let found = libraries(&program).unwrap();
        let names: Vec<_> = found.needed.iter().map(|(name, _)| &**name).collect();
        assert!(names.contains(&"libc.so.6") && names.contains(&"libgcc_s.so.1"), "{names:?}");
        for (name, file) in found.needed {
            let file = fs::canonicalize(file).unwrap();
            assert!(loaded.iter().any(|loaded| loaded.path == file), "{name}: {}", file.display());
        }
        assert!(found.interpreter.is_some_and(|(name, file)| Path::new(&name) == file));
    }
}

#[test]
fn find_searches_in_the_order_of_the_loader() {
    let directories = ["rpath", "first", "runpath", "cached", "last"];
    for (is_musl, tag, order) in [
        (false, RPATH, &["rpath", "first", "cached", "last"][..]),
        (false, RUNPATH, &["first", "runpath", "cached", "last"]),
        (true, RPATH, &["first", "rpath", "last"]),
        (true, RUNPATH, &["first", "runpath", "last"]),
    ] {
        let system = System::new();
        for directory in directories {
            system.library(&format!("{directory}/libcached.so"), &[]);
        }
        let mut search = system.search(is_musl);
        if is_musl {
            search.cache.clear();
        }
        let directory = if tag == RPATH { "$ORIGIN/../rpath" } else { "${ORIGIN}/../runpath" };
        for expected in order {
            let found = system.found(&search, &[(NEEDED, "libcached.so"), (tag, directory)]);
            let found = system.path(&found.unwrap()[0]);
            let want = system.path(&format!("{expected}/libcached.so"));
            assert_eq!(fs::canonicalize(found).unwrap(), want, "musl: {is_musl}");
            fs::remove_file(want).unwrap();
        }
        let found = system.found(&search, &[(NEEDED, "libcached.so"), (tag, directory)]);
        let error = found.unwrap_err().to_string();
        assert!(error.ends_with(
            "libcached.so, which this host lacks; install the package that contains it"
        ));
    }
}

#[test]
fn find_uses_the_rpath_of_dependents_but_not_their_runpath() {
    let system = System::new();
    system.library("private/libone.so", &[(NEEDED, "libtwo.so")]);
    system.library("private/libtwo.so", &[]);
    let entries = |tag| [(NEEDED, "libone.so"), (tag, "$ORIGIN/../private")];
    for (is_musl, tag, is_found) in
        [(false, RPATH, true), (false, RUNPATH, false), (true, RPATH, true), (true, RUNPATH, true)]
    {
        let found = system.found(&system.search(is_musl), &entries(tag));
        assert_eq!(found.is_ok(), is_found, "{is_musl} {tag:?}: {found:?}");
    }
}

#[test]
fn closure_loads_each_library_once() {
    let system = System::new();
    // A circle, a library under its own and another name, the loader itself, and a file for another machine.
    system.library("last/liba.so", &[(NEEDED, "libb.so"), (NEEDED, "ld.so")]);
    system.library(
        "last/libb.so",
        &[(NEEDED, "liba.so"), (NEEDED, "libb.so.1"), (elf::DT_SONAME, "libb.so.1")],
    );
    system.add("first/liba.so", b"\x7fELF\x01 and no more");
    let found = system.found(&system.search(false), &[(NEEDED, "liba.so"), (NEEDED, "libb.so")]);
    assert_eq!(found.unwrap(), ["last/liba.so", "last/libb.so"]);
    let musl = system.search(true);
    assert_eq!(
        system.found(&musl, &[(NEEDED, "libc.so"), (NEEDED, "libpthread.so.0")]).unwrap(),
        [""; 0]
    );
    assert!(system.found(&musl, &[(NEEDED, "libcc.so")]).is_err());
}

#[test]
fn libraries_in_uses_no_file_outside_of_the_packages() {
    let system = System::new();
    system.library("outside/libout.so", &[]);
    system.library("root/usr/lib/libin.so", &[]);
    system.library("root/opt/libfar.so", &[]);
    system.library("root/ld.so", &[]);
    symlink(system.path("outside/libout.so"), system.path("root/usr/lib/libout.so")).unwrap();
    let find = |entries: Entries| {
        let program = system.add("root/usr/bin/program", &elf_file(Some("/any"), entries));
        libraries_in(&system.path("root"), "ld.so", "usr/lib", &program)
    };
    let found = find(&[(NEEDED, "libin.so"), (NEEDED, "libfar.so"), (RUNPATH, "/opt")]).unwrap();
    let names: Vec<_> = found.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["libin.so", "libfar.so"]);
    for outside in
        ["libout.so", "libc.so.6", &format!("{}/outside/libout.so", system.path("").display())]
    {
        let error = find(&[(NEEDED, outside), (RPATH, "$ORIGIN/../../../outside")]).unwrap_err();
        assert!(error.to_string().contains("which its packages do not contain"), "{error}");
    }
}

#[test]
fn directories_replaces_tokens_and_leaves_out_relative_paths() {
    let system = System::new();
    let object = Object { origin: "/o".into(), ..Object::default() };
    for (list, want) in [
        ("$ORIGIN:${ORIGIN}/lib::/a", &["/o", "/o/lib", "/a"][..]),
        ("/$LIB/x", &["/lib/x86_64-linux-gnu/x", "/lib64/x"]),
        ("/${PLATFORM}", &["/x86_64"]),
        ("$ORIGINS/a:lib:.", &[]),
    ] {
        let found = system.search(false).directories(list.as_bytes(), &object);
        assert_eq!(found, want.iter().map(PathBuf::from).collect::<Vec<_>>(), "{list}");
    }
}

/// Builds a cache with entries: flags, CPU, name, path.
fn cache(entries: &[(u32, u64, &str, &str)], is_after_old: bool) -> Vec<u8> {
    let mut table = b"glibc-ld.so.cache1.1".to_vec();
    table.extend((entries.len() as u32).to_le_bytes());
    table.resize(48, 0);
    let mut strings = Vec::new();
    let mut offset = |text: &str| {
        let at = 48 + 24 * entries.len() + strings.len();
        strings.extend(text.as_bytes());
        strings.push(0);
        at as u32
    };
    for (flags, cpu, name, path) in entries {
        table.extend([*flags, offset(name), offset(path), 0].map(u32::to_le_bytes).concat());
        table.extend(cpu.to_le_bytes());
    }
    table.extend(strings);
    let mut old = b"ld.so-1.7.0\0\x01\0\0\0".to_vec();
    old.resize(32, 0xff);
    if is_after_old { [old, table].concat() } else { table }
}

#[test]
fn parse_cache_reads_the_libraries_for_every_cpu() {
    let entries = [
        (0x303, 1 << 62, "liba.so", "/v3/liba.so"),
        (0x803, 0, "liba.so", "/32/liba.so"),
        (0x303, 0, "liba.so", "/lib/liba.so"),
        (0x303, 0, "liba.so", "/later/liba.so"),
        (0x303, 0, "libb.so", "/lib/libb.so"),
    ];
    let want = [("liba.so", "/lib/liba.so"), ("libb.so", "/lib/libb.so")];
    let want = HashMap::from(want.map(|(name, path)| (name.to_owned(), path.into())));
    for is_after_old in [false, true] {
        let cache = cache(&entries, is_after_old);
        assert_eq!(parse_cache(&cache), Some(want.clone()));
        for len in 0..cache.len() {
            assert_eq!(parse_cache(&cache[..len]), None, "{len} bytes");
        }
    }
    if let Ok(of_host) = fs::read("/etc/ld.so.cache") {
        assert!(parse_cache(&of_host).is_some_and(|cache| cache.contains_key("libc.so.6")));
    }
}

#[test]
fn read_fails_for_damaged_files_without_a_panic() {
    let system = System::new();
    let whole = elf_file(Some("/ld"), &[(NEEDED, "liba.so"), (RUNPATH, "/a")]);
    for at in 16..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let path = system.add("damaged", &damaged);
            if let Ok(Some(object)) = Object::read(&path, &path) {
                let _ = system.search(false).closure(object);
            }
        }
    }
    let many = vec![(NEEDED, "liba.so"); MAX_LIBRARIES + 1];
    let path = system.add("many", &elf_file(None, &many));
    let error = format!("{:#}", Object::read(&path, &path).unwrap_err());
    assert!(error.contains("more than 1024 libraries"), "{error}");
}

/// A small file may take any memory and time: lists of long strings that overlap, and directories for each library.
#[test]
fn libraries_of_hostile_files_cost_what_their_bytes_do() {
    let system = System::new();
    let long = "x".repeat(LONGEST_STRING);
    for tag in [elf::DT_NEEDED, elf::DT_SONAME, elf::DT_RPATH, elf::DT_RUNPATH] {
        let error = system.found(&system.search(false), &[(tag, &long)]).unwrap_err();
        assert!(format!("{error:#}").contains("longer than 65536 bytes"), "{error:#}");
    }
    let list = "/a:".repeat(LONGEST_STRING / 3);
    let names: Vec<_> = (0..5).map(|number| format!("lib{number}.so")).collect();
    names.iter().for_each(|name| system.library(&format!("last/{name}"), &[]));
    let mut entries: Vec<_> = names.iter().map(|name| (elf::DT_NEEDED, &**name)).collect();
    entries.push((elf::DT_RUNPATH, &list));
    let error = system.found(&system.search(false), &entries).unwrap_err();
    assert!(format!("{error:#}").contains("more than 100000 files"), "{error:#}");

    let read = |interpreter: &str| {
        let path = system.add("program", &elf_file(Some(interpreter), &[]));
        Object::read(&path, &path).map(|object| object.unwrap().interpreter)
    };
    let longest = format!("/{}", "l".repeat(LONGEST_INTERPRETER as usize - 2));
    assert_eq!(read(&longest).unwrap(), Some(longest.clone()));
    let error = read(&format!("{longest}l")).unwrap_err();
    assert!(format!("{error:#}").contains("4097 bytes (limit 4096)"), "{error:#}");
}
