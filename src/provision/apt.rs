//! Fetches packages from the Debian archive by apt-get with a private configuration.
//!
//! apt checks the signature of the suite against Debian's keyring and every package against the signed index. Its
//! lists and caches are in the cache of this crate, so the state of the machine's apt does not change. Of the
//! machine's configuration only `Acquire` is used, for proxies and certificates (apt.conf(5)).

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cache::{self, Cache, Lock};
use super::mirror;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists younger than this are not updated: a kernel and QEMU of one suite are often fetched together.
const FRESH: Duration = Duration::from_secs(10 * 60);

/// File with the message of the last update that failed.
const FAILED: &str = "failed";

/// A package of the signed index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Name of the binary package.
    pub name: String,
    /// Its Debian version.
    pub version: String,
    /// Size of the .deb file in bytes.
    pub size: u64,
    /// SHA-256 of the .deb file, which apt compared after the download.
    pub sha256: String,
}

/// One suite of the archive, with the lock on its lists.
#[derive(Debug)]
pub(super) struct Suite {
    dir: PathBuf,
    mirror: String,
    is_fresh: bool,
    _lock: Lock,
}

impl Suite {
    /// Opens `suite`. Updates its lists with `refresh`, or if they are older than a few minutes. A suite of backports
    /// includes the packages of its base suite.
    pub(super) fn open(cache: &Cache, suite: &str, refresh: bool) -> Result<Self> {
        require_tools()?;
        let name = format!("apt/{suite}");
        let asked_at = SystemTime::now();
        let lock = cache.lock(&name)?;
        let mirror = mirror::of_machine();
        let dir = cache.create_dir(Path::new(&name))?;
        let mut lists = Self { dir, mirror, is_fresh: false, _lock: lock };
        lists.fail_like_others(asked_at)?;
        lists.configure(suite)?;
        let stamp = fs::metadata(lists.stamp()).and_then(|meta| meta.modified());
        let age = stamp.ok().and_then(|stamp| SystemTime::now().duration_since(stamp).ok());
        if refresh || age.is_none_or(|age| age > FRESH) {
            lists.update()?;
        }
        Ok(lists)
    }

    /// Returns the host name of the mirror, for messages.
    pub(super) fn host(&self) -> &str {
        self.mirror.split('/').nth(2).unwrap_or(&self.mirror)
    }

    /// Runs `plan`. If it fails with lists that may be outdated, updates them and runs it once more.
    ///
    /// The archive removes a superseded version within hours.
    pub(super) fn with_fresh_lists<T>(
        &mut self,
        mut plan: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        match plan(self) {
            Err(_) if !self.is_fresh => {
                self.update()?;
                plan(self)
            }
            done => done,
        }
    }

    /// Returns the newest version of the package `name`, and all names in its dependencies.
    pub(super) fn show(&self, name: &str) -> Result<(Package, Vec<String>)> {
        let mut command = self.command("apt-cache");
        let text = run(command.args(["show", "--no-all-versions", name]))
            .with_context(|| format!("no package `{name}` in {}", self.mirror))?;
        parse_show(&text)
            .with_context(|| format!("unexpected output of apt-cache for `{name}`:\n{text}"))
    }

    /// Returns the package `name` and all packages that it needs on an empty system.
    pub(super) fn closure(&self, name: &str) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        // The default is MD5, for compatibility.
        command.args(["install", "--print-uris", "--no-install-recommends", "-y"]);
        let text = run(command.args(["-oAcquire::ForceHash=SHA256", name]))
            .with_context(|| format!("failed to resolve the dependencies of `{name}`"))?;
        let packages: Vec<_> = text.lines().filter_map(parse_uri_line).collect();
        ensure!(
            packages.iter().any(|package| package.name == name),
            "apt-get did not list the package `{name}`:\n{text}"
        );
        Ok(packages)
    }

    /// Downloads `packages` and unpacks all of them into the directory `root`.
    pub(super) fn unpack(&self, packages: &[Package], root: &Path) -> Result<()> {
        let debs = tempfile::tempdir_in(self.dir.join("debs"))?;
        let mut command = self.command("apt-get");
        command.current_dir(debs.path()).arg("download");
        command
            .args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
        run(&mut command).with_context(|| format!("failed to download from {}", self.mirror))?;
        let mut found = 0;
        for entry in debs.path().read_dir()? {
            let mut dpkg_deb = Command::new("dpkg-deb");
            run(dpkg_deb.arg("-x").args([&entry?.path(), root])).context("failed to unpack")?;
            found += 1;
        }
        ensure!(
            found == packages.len(),
            "apt-get downloaded {found} of {} packages",
            packages.len()
        );
        Ok(())
    }

    fn update(&mut self) -> Result<()> {
        let mut command = self.command("apt-get");
        // Without this option, apt-get only warns about a failed index, continues without it, and succeeds.
        command.args(["update", "-oAPT::Update::Error-Mode=any"]);
        let updated = run(&mut command)
            .with_context(|| format!("failed to read the package lists of {}", self.mirror));
        if let Err(error) = &updated {
            // Read by processes that wait for the lock; without the file they only repeat the attempt.
            let _ = fs::write(self.dir.join(FAILED), format!("{error:#}"));
        }
        fs::write(self.stamp(), updated.map(|_| "")?)?;
        self.is_fresh = true;
        Ok(())
    }

    /// Fails if another process failed to update while this one waited for the lock. Without a network each attempt
    /// takes seconds to minutes, and the waiting tests would repeat it one after another.
    fn fail_like_others(&self, since: SystemTime) -> Result<()> {
        let failed = self.dir.join(FAILED);
        match fs::metadata(&failed).and_then(|meta| meta.modified()) {
            Ok(at) if at > since => bail!("{}", fs::read_to_string(&failed)?),
            _ => Ok(()),
        }
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("updated")
    }

    fn configure(&self, suite: &str) -> Result<()> {
        let dir = self.dir.to_str().filter(|path| !path.contains(['"', '\\', ' ']));
        let dir = dir.with_context(|| {
            format!("apt does not support the path `{}`; set KTSTR_CACHE_DIR", self.dir.display())
        })?;
        // Remove the lists of another mirror, and packages that a killed apt left.
        let base = suite.strip_suffix("-backports");
        let source = |suite| format!("deb [signed-by={KEYRING}] {} {suite} main\n", self.mirror);
        let sources: String = base.into_iter().chain([suite]).map(source).collect();
        let sources_path = self.dir.join("sources.list");
        if fs::read_to_string(&sources_path).is_ok_and(|old| old != sources) {
            cache::remove(&self.dir)?;
        }
        cache::remove(&self.dir.join("debs"))?;
        for dir in ["lists/partial", "archives/partial", "debs", "log"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        cache::restrict(&self.dir)?;
        fs::write(self.dir.join("status"), "")?;
        fs::write(sources_path, sources)?;
        let acquire = run(Command::new("apt-config").arg("dump"))?;
        Ok(fs::write(self.dir.join("apt.conf"), configuration(dir, suite, &acquire))?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("apt.conf"));
        command
    }
}

impl Drop for Suite {
    /// Removes apt's index of the lists, which is as large as a kernel and can be rebuilt in a second.
    fn drop(&mut self) {
        for index in ["pkgcache.bin", "srcpkgcache.bin"] {
            let _ = fs::remove_file(self.dir.join(index));
        }
    }
}

/// Finds `program` in PATH, as a shell does.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let is_program = |file: &PathBuf| {
        let meta = file.metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&path).map(|dir| dir.join(program)).find(is_program)
}

/// Runs a command and returns its standard output. The error of a failed command ends with its last lines.
pub(super) fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env("LANGUAGE", "C");
    let shown = command.get_program().to_string_lossy().into_owned();
    let arg = command.get_args().next().map(|arg| arg.to_string_lossy().into_owned());
    let shown = format!("`{shown} {}`", arg.unwrap_or_default());
    let output = command.output().with_context(|| format!("failed to run {shown}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let output_text = stdout + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = output_text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    bail!("{shown} failed with {}:\n    {}", output.status, last.join("\n    "))
}

/// Checks that the tools that fetch packages are installed. The error names the missing tool.
pub fn require_tools() -> Result<()> {
    for program in ["apt-get", "apt-cache", "apt-config", "dpkg-deb"] {
        ensure!(
            find_program(program).is_some(),
            "`{program}` is not in PATH: fetching packages needs the tools of Debian or a \
             derivative"
        );
    }
    ensure!(
        Path::new(KEYRING).exists(),
        "`{KEYRING}`, which verifies packages, is missing; run `apt-get install \
         debian-archive-keyring`"
    );
    Ok(())
}

/// Returns the private configuration. `APT_CONFIG` is read first, so it can exclude the files of the machine: their
/// hooks would clean the caches of the machine.
fn configuration(dir: &str, suite: &str, machine: &str) -> String {
    let acquire = machine.lines().filter(|line| {
        line.starts_with("Acquire::")
            && !["Acquire::IndexTargets", "Acquire::Languages", "Acquire::Changelogs"]
                .iter()
                .any(|ignored| line.starts_with(ignored))
    });
    let mut conf = String::from(
        "Acquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\nAcquire::GzipIndexes \"true\";\n",
    );
    for line in acquire {
        conf += line;
        conf += "\n";
    }
    conf + &format!(
        r#"Acquire::Languages "none";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
// Otherwise packages of backports are never preferred to those of the base suite.
APT::Default-Release "{suite}";
// As root, apt would download as the user _apt, which cannot write to these directories.
APT::Sandbox::User "root";
Dir::Cache "{dir}";
Dir::Cache::archives "archives";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Log "{dir}/log";
Dir::State "{dir}";
Dir::State::lists "lists";
Dir::State::status "{dir}/status";
"#
    )
}

/// Parses the first stanza of `apt-cache show`.
pub fn parse_show(text: &str) -> Option<(Package, Vec<String>)> {
    let stanza = text.split("\n\n").next()?;
    let field = |name: &str| {
        let mut lines = stanza.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let package = Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        size: field("Size")?.parse().ok()?,
        sha256: field("SHA256")?.to_owned(),
    };
    let depends = field("Depends").unwrap_or_default().split([',', '|']);
    let name = |dependency: &str| dependency.split_whitespace().next().map(str::to_owned);
    Some((package, depends.filter_map(name).collect()))
}

/// Parses a line of `--print-uris`: `'URI' name_version_arch.deb size SHA256:hash`.
pub fn parse_uri_line(line: &str) -> Option<Package> {
    let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
    let mut parts = words.next()?.split('_');
    Some(Package {
        name: parts.next()?.to_owned(),
        version: parts.next()?.replace("%3a", ":"),
        size: words.next()?.parse().ok()?,
        sha256: words.next()?.strip_prefix("SHA256:")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_show_reads_a_description() {
        let text = "Package: linux-image-7\nVersion: 7.2.13-1\nDepends: dracut | initramfs-tools \
                    (>= 0.1), linux-binary-7 (= 7.2.13-1), kmod\nSize: 1900\nSHA256: ab\n\n\
                    Package: other\n";
        let (package, depends) = parse_show(text).unwrap();
        assert_eq!((package.name.as_str(), package.size), ("linux-image-7", 1900));
        assert_eq!(depends, ["dracut", "initramfs-tools", "linux-binary-7", "kmod"]);
        for broken in ["", "Package: a\nVersion: 1\nSize: x\nSHA256: ab\n", "N: no such package"] {
            assert!(parse_show(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn parse_uri_line_reads_a_download() {
        let line = "'http://h/q_1%3a10%2bds-0_amd64.deb' q_1%3a10+ds-0_amd64.deb 102 SHA256:5e84";
        let package = parse_uri_line(line).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("q", "1:10+ds-0"));
        assert_eq!((package.size, package.sha256.as_str()), (102, "5e84"));
        for other in ["Reading package lists...", "'http://h/q' q_1_amd64.deb 1 MD5Sum:12", "'"] {
            assert!(parse_uri_line(other).is_none(), "{other}");
        }
    }

    #[test]
    fn configuration_takes_only_acquire_from_the_machine() {
        let machine = "APT::Update::Post-Invoke:: \"rm -rf /\";\nAcquire::http::Proxy \"http://p:3\";\n\
                       Acquire::Languages:: \"de\";\nAcquire::IndexTargets::deb \"\";\n";
        let conf = configuration("/c/apt/sid", "sid", machine);
        assert!(conf.contains("APT::Default-Release \"sid\";\n"));
        assert!(conf.contains("Acquire::http::Proxy \"http://p:3\";\n"));
        // The last value of an option counts.
        let insecure =
            ["InsecureRepositories", "WeakRepositories", "DowngradeToInsecureRepositories"];
        let insecure = insecure.map(|option| format!("Acquire::Allow{option}"));
        let machine: String = insecure.iter().map(|name| format!("{name} \"true\";\n")).collect();
        let allowing = configuration("/c/apt/sid", "sid", &machine);
        for name in insecure {
            let last = allowing.lines().rfind(|line| line.starts_with(&name)).unwrap();
            assert!(last.ends_with(" \"false\";"), "{last}");
        }
        for excluded in ["rm -rf", "\"de\"", "IndexTargets"] {
            assert!(!conf.contains(excluded), "{excluded}");
        }
    }

    #[test]
    fn run_shows_the_last_lines_of_a_failed_command() {
        let script = "for n in 1 2 3 4 5 6 7 8 9 10; do echo line-$n; done; echo end >&2; exit 3";
        let error = run(Command::new("sh").args(["-c", script])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("line-10\n    end"), "{error}");
        assert!(!error.contains("line-1\n"), "{error}");
    }
}
