//! Templates: guests that were booted and saved, in the cache. Other guests are forked from them.
//!
//! A template is a directory `templates/<hash>`, which never changes once it exists:
//!
//! | file | contents |
//! |---|---|
//! | `machine/` | what [`Vm::save`] wrote |
//! | `facts.json` | [`Facts`]: what a session needs to continue instead of the one that saved the guest |
//! | `uses` | one byte for each guest that was forked; its modification time is that of the last use |
//!
//! The first test that needs a machine holds its lock exclusively until the guest is saved; tests that need the same
//! machine wait for that. A test that forks a guest shares the lock until the guest runs, so that the files are not
//! removed meanwhile. The kernel releases the locks of a process that dies.
//!
//! An error here does not fail a test: without a template, its guest boots.

mod key;
mod layout;
mod prune;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use ktstr_core::wire::Hello;
use ktstr_vmm::{Engine, Error, Vm, VmConfig};
use serde::{Deserialize, Serialize};

use crate::provision::cache::{self, Cache, Lock};
pub(super) use key::key;
use layout::{DIRECTORY, FACTS, MACHINE, MAX_AGE, MAX_USES, USES};
pub(super) use prune::limit;
pub use prune::{TemplateUsage, usage};

/// The most bytes of [`Facts`] that are read. A console has up to 8 MiB, and six times as many in JSON.
const MAX_FACTS: u64 = 64 << 20;

/// The template of one machine.
#[derive(Debug, Clone)]
pub(super) struct Template {
    cache: Cache,
    /// All that the machine depends on.
    key: String,
    /// The name of the entry in the cache, which has a hash of the key.
    name: String,
    /// The most bytes that all templates may take.
    limit: u64,
}

/// How to get a guest that waits for a request.
#[derive(Debug)]
pub(super) enum Plan {
    /// Boot it, and save it if there is a [`Saver`].
    Boot(Option<Saver>),
    /// Fork it.
    Fork(Fork),
}

/// What a session needs to continue instead of the one that saved the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// [`Template::key`], because two keys may have the same hash.
    key: String,
    /// When the guest was saved.
    saved: SystemTime,
    /// The state of the session.
    pub(super) boot: BootState,
}

/// The state of a session at the time when its guest waits for the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BootState {
    /// The time of the host from the start of the engine until the guest was paused. The guest's uptime is not
    /// longer.
    pub(super) ran: Duration,
    /// The number of the next frame on the wire.
    pub(super) next_frame: u32,
    /// The guest's first message.
    pub(super) hello: Hello,
    /// The console of the boot.
    pub(super) console: String,
}

impl Template {
    /// Returns the template of the machine that `key` identifies.
    pub(super) fn new(cache: Cache, key: String, limit: u64) -> Self {
        let name = format!("{DIRECTORY}/{:016x}", key::hash(&key));
        Self { cache, key, name, limit }
    }

    /// Decides whether the guest of a test boots. Waits while another test boots the same machine, to save it, and
    /// returns for how long, if at all.
    pub(super) fn plan(&self) -> (Plan, Option<Duration>) {
        let began = Instant::now();
        let mut has_waited = false;
        let plan = self.try_plan(&mut has_waited).unwrap_or_else(|error| {
            tracing::debug!("boot without a template: {error:#}");
            Plan::Boot(None)
        });
        (plan, has_waited.then(|| began.elapsed()))
    }

    fn try_plan(&self, has_waited: &mut bool) -> Result<Plan> {
        self.cache.check_writable()?;
        if !self.exists()
            && let Some(lock) = self.cache.try_lock(&self.name)?
            && !self.exists()
        {
            return Ok(Plan::Boot(Some(self.saver(lock))));
        }
        // Shared, so that tests which wait for the template do not wait for the forks of each other.
        let (lock, waited) = self.cache.lock_shared(&self.name)?;
        *has_waited = waited;
        if !self.exists() {
            // The guest of another test could not be saved. If all tests that have waited tried again, each would
            // wait for the boots of the others.
            return Ok(Plan::Boot(None));
        }
        match self.read_usable() {
            Ok((facts, uses)) => {
                Ok(Plan::Fork(Fork { template: self.clone(), facts, uses, _lock: lock }))
            }
            Err(error) => {
                tracing::debug!("replace the template: {error:#}");
                drop(lock);
                Ok(Plan::Boot(self.remove(None)?))
            }
        }
    }

    /// Removes a template that cannot be used, and returns the permission to save another one. Keeps it if another
    /// test uses it, or if it has been replaced by a usable one. If the machine of the template is damaged, its facts
    /// do not show that: `damaged` is then the time at which it was saved, which identifies it.
    fn remove(&self, damaged: Option<SystemTime>) -> Result<Option<Saver>> {
        let Some(lock) = self.cache.try_lock(&self.name)? else { return Ok(None) };
        if let Ok((facts, _)) = self.read_usable()
            && Some(facts.saved) != damaged
        {
            return Ok(None);
        }
        cache::remove(&self.path())?;
        Ok(Some(self.saver(lock)))
    }

    /// Reads the facts and the number of uses of the template.
    ///
    /// # Errors
    ///
    /// If it is damaged, too old, or was used too often.
    fn read_usable(&self) -> Result<(Facts, u64)> {
        self.cache.check(&self.name)?;
        let path = self.path().join(FACTS);
        let mut json = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_FACTS).read_to_end(&mut json))
            .with_context(|| format!("failed to read `{}`", path.display()))?;
        let facts: Facts = serde_json::from_slice(&json)
            .with_context(|| format!("`{}` is damaged", path.display()))?;
        ensure!(facts.key == self.key, "`{}` is of another machine", path.display());
        let age = facts.saved.elapsed().context("it is from the future")?;
        ensure!(age < MAX_AGE, "it is {} h old", age.as_secs() / 3600);
        let uses = fs::metadata(self.path().join(USES)).context("its uses are not counted")?.len();
        ensure!(uses < MAX_USES, "it was used {uses} times");
        Ok((facts, uses))
    }

    fn saver(&self, lock: Lock) -> Saver {
        Saver { template: self.clone(), lock }
    }

    fn exists(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok()
    }

    fn path(&self) -> PathBuf {
        self.cache.entry(&self.name)
    }
}

/// The permission to save a template. Other tests that need the machine wait until it is dropped.
#[derive(Debug)]
pub(super) struct Saver {
    template: Template,
    lock: Lock,
}

impl Saver {
    /// Saves a guest that waits for its request. `save` writes its machine into a directory.
    ///
    /// # Errors
    ///
    /// If a file cannot be written, or `save` fails. No template exists then.
    pub(super) fn save(
        self,
        boot: BootState,
        save: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<()> {
        let Self { template, lock } = self;
        let facts = Facts { key: template.key.clone(), saved: SystemTime::now(), boot };
        template.cache.build_under(&lock, &template.name, |path| {
            let machine = path.join(MACHINE);
            // For its owner only: it has the guest's memory, which may have secrets.
            DirBuilder::new().mode(0o700).create(path)?;
            fs::create_dir(&machine)?;
            save(&machine)?;
            File::create_new(path.join(USES))?;
            fs::write(path.join(FACTS), serde_json::to_vec(&facts)?)?;
            Ok(())
        })?;
        drop(lock);
        prune::prune(&template.cache, template.limit);
        Ok(())
    }
}

/// A template to fork a guest from. It is not removed until this is dropped.
#[derive(Debug)]
pub(super) struct Fork {
    template: Template,
    facts: Facts,
    uses: u64,
    _lock: Lock,
}

/// A guest that was forked.
#[derive(Debug)]
pub(super) struct Forked {
    pub(super) vm: Box<dyn Vm>,
    pub(super) boot: BootState,
    /// The time since the guest was saved.
    pub(super) age: Duration,
    /// How many guests had been forked before.
    pub(super) uses: u64,
}

impl Fork {
    /// Starts the guest.
    ///
    /// # Errors
    ///
    /// If the engine cannot restore it. A damaged template is removed, and the error is the permission to save
    /// another one.
    pub(super) fn start(
        self,
        engine: &dyn Engine,
        config: &VmConfig,
    ) -> Result<Forked, Option<Saver>> {
        let Self { template, facts, uses, _lock: lock } = self;
        match engine.restore(config, &template.path().join(MACHINE)) {
            Ok(vm) => {
                count_use(&template.path().join(USES));
                let age = facts.saved.elapsed().unwrap_or_default();
                Ok(Forked { vm, boot: facts.boot, age, uses })
            }
            Err(error) => {
                tracing::debug!("boot instead: {error}");
                drop(lock);
                let is_damaged =
                    matches!(error, Error::Damaged { .. } | Error::OtherMachine { .. });
                let removed =
                    if is_damaged { template.remove(Some(facts.saved)) } else { Ok(None) };
                Err(removed.unwrap_or_else(|error| {
                    tracing::debug!("failed to remove the template: {error:#}");
                    None
                }))
            }
        }
    }
}

fn count_use(path: &Path) {
    // Each write appends, so concurrent uses need no lock.
    let counted =
        OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(b"."));
    if let Err(error) = counted {
        tracing::debug!("failed to count a use in `{}`: {error}", path.display());
    }
}

#[cfg(test)]
mod tests;
