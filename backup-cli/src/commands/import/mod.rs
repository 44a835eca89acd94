//! `import`: a new backup of a node that the Python plugin `backup` kept one of.

mod old_lock;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lockstep_node::wallet::Wallet;
use lockstep_node::{Access, LightningDir, NodeSecret, content};
use lockstep_proto::config::write_key_file;
use lockstep_proto::destination::Destination;
use lockstep_proto::error::Error;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::slots::{self, Lock, NODE_SECRET_INFO};
use lockstep_proto::store::sync_parent;
use lockstep_proto::version::DataVersion;
use lockstep_python_backup::scan::Tail;
use lockstep_python_backup::{Extent, Replayed, Scan};
use serde::Serialize;

use self::old_lock::{OldLock, old_path};
use super::creation::{Creation, NewPlaces, files, find_node};
use super::{missing_slots, plugin_line, refuse_running};
use crate::args::{ImportArgs, InitArgs};
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};
use crate::unlock;

/// How the node's database stands to the old backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "detail")]
enum Standing {
    /// There is none: the old backup's is the node's.
    Missing,
    /// Same version, same content.
    Same,
    /// Same version, another content: the first difference.
    Different(String),
    /// Same version, but the old backup leads to no database: why.
    NotReplayed(String),
    /// So many versions ahead.
    Ahead(u32),
    /// What the old backup was before its newest change, which the node never committed.
    Uncommitted,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    old: PathBuf,
    old_records: u64,
    old_data_version: Option<DataVersion>,
    old_header_version: DataVersion,
    old_truncated: Option<Tail>,
    old_fragments: Vec<Tail>,
    database: Standing,
    replayed: Option<Replayed>,
    lightning_dir: PathBuf,
    url: Destination,
    store_id: Option<StoreId>,
    data_version: Option<DataVersion>,
    snapshot_bytes: u64,
    slots: Vec<String>,
    old_lock: Option<PathBuf>,
    database_written: Option<PathBuf>,
    warnings: Vec<String>,
    seconds: f64,
}

/// Imports. Everything is checked before anything is written; the lock file and, where it was asked for, the
/// database come last.
pub fn run(args: &ImportArgs, output: &Output) -> Result<()> {
    let began = Instant::now();
    let old = old_path(&args.old)?;
    let node = find_node(&args.init)?;
    let places = NewPlaces::named(&args.init, node.path())?;
    refuse_running(&node)?;
    let old_lock = OldLock::find(&node)?;
    let live = find_database(&node, args.write_database)?;
    let secret = node_secret(&args.init, &node)?;
    let locks = locks(&args.init, secret.as_ref())?;
    let files = files(&args.init, &node)?;

    let bar = output.bar("reading the old backup", std::fs::metadata(&old).map_or(0, |m| m.len()));
    let scan = Scan::read(&old, &mut |at| bar.set_position(at));
    bar.finish_and_clear();
    let import = Import { args, node: &node, scan: &scan?, output };
    let database = ReplayedDatabase::beside(node.wallet());
    let (standing, replayed) = import.judge(live, &database, secret.as_ref())?;
    let is_base = standing == Standing::Missing;

    let mut report = Report {
        dry_run: args.dry_run,
        old_records: import.scan.records,
        old_data_version: import.scan.newest,
        old_header_version: DataVersion(import.scan.header.data_version),
        old_truncated: import.scan.tail,
        old_fragments: import.scan.fragments.clone(),
        data_version: if is_base { import.scan.newest } else { live },
        warnings: warnings(&import, &old, old_lock.as_ref(), is_base),
        old,
        database: standing,
        replayed,
        lightning_dir: node.path().to_owned(),
        url: places.first_url().clone(),
        store_id: None,
        snapshot_bytes: 0,
        slots: Vec::new(),
        old_lock: None,
        database_written: None,
        seconds: 0.0,
    };
    if !args.dry_run {
        let places = places.create()?;
        let random = |error| Failure::from(Error::from(error));
        let keys = KeyRing::generate(StoreId::generate().map_err(random)?).map_err(random)?;
        write_key_file(&node.key_file(), &keys)?;
        let source = if is_base { database.0.as_path() } else { node.wallet() };
        let creation = Creation {
            purpose: "import",
            node: &node,
            places: &places,
            keys: &keys,
            locks: &locks,
            files: &files,
            source: Some(source),
        };
        let keep_old = || old_lock.as_ref().map_or(Ok(()), |lock| lock.keep(&node));
        let made = creation.make(output, keep_old);
        if made.is_err() {
            // Nothing refers to the new store yet: what is left of it is of no use to anybody.
            let _ = std::fs::remove_file(node.key_file());
        }
        report.snapshot_bytes = made?;
        report.store_id = Some(keys.store());
        report.slots = slots::list(&**places.first())?.into_iter().map(|slot| slot.name).collect();
        report.old_lock = old_lock.map(|lock| lock.kept);
        report.warnings.extend(missing_slots(&**places.first())?);
        if args.write_database {
            database.publish(node.wallet())?;
            report.database_written = Some(node.wallet().to_owned());
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &Report) -> String {
    let version = |version: Option<DataVersion>| version.map_or("none".into(), |v| v.to_string());
    let mut text = match report.dry_run {
        true => format!("'{}' can be imported; nothing was changed\n", report.old.display()),
        false => format!("backup made at {}\n", report.url),
    };
    text += &format!(
        "  '{}' has {} records and goes to data_version {}\n",
        report.old.display(),
        report.old_records,
        version(report.old_data_version)
    );
    for fragment in &report.old_fragments {
        text += &format!(
            "  left out: {} bytes at offset {}, a record that was not written to its end, nor acknowledged\n",
            fragment.bytes, fragment.offset
        );
    }
    if let Some(Replayed { left_out, mended, .. }) = &report.replayed {
        for left in left_out {
            text += &format!(
                "  left out: the record at offset {}, data_version {}, {} {}\n",
                left.offset,
                left.data_version,
                match left.offset < left.replaced_by {
                    true => "which the node never committed; it was replaced by the one at",
                    false => "which does not replay; taken was the one that it replaced, at",
                },
                left.replaced_by
            );
        }
        if *mended > 0 {
            text += &format!("  {mended} statements lacked a space and were mended\n");
        }
    }
    let live = version(report.data_version);
    text += &match &report.database {
        Standing::Missing => {
            format!(
                "  the new backup begins with the database that it leads to, data_version {live}\n"
            )
        }
        Standing::Same => {
            format!("  the node's database is at data_version {live} too and holds the same\n")
        }
        Standing::Different(difference) => format!(
            "  warning: the node's database is at data_version {live} too, but holds something else than the old \
             backup (the first): {difference}\n"
        ),
        Standing::NotReplayed(why) => format!(
            "  the node's database is at data_version {live} too\n  warning: the old backup was not compared, it \
             cannot be restored: {why}\n"
        ),
        Standing::Ahead(by) => format!(
            "  it is behind: the node's database is at data_version {live}, {by} ahead, and was not compared\n"
        ),
        Standing::Uncommitted => format!(
            "  the node's database is at data_version {live} and holds the same but for the newest record, which \
             the node never committed\n"
        ),
    };
    if report.database != Standing::Missing {
        text += "  the new backup begins with the node's database\n";
    }
    if !report.slots.is_empty() {
        text += &format!(
            "  {}; opens with: {}, or backup.key\n",
            bytes(report.snapshot_bytes),
            report.slots.join(", ")
        );
    }
    if let Some(lock) = &report.old_lock {
        text += &format!("  the Python plugin's lock file is now '{}'\n", lock.display());
    }
    if let Some(database) = &report.database_written {
        text += &format!("  '{}' was written\n", database.display());
    }
    for warning in &report.warnings {
        text += &format!("  warning: {warning}\n");
    }
    if report.dry_run {
        return text;
    }
    if report.database == Standing::Missing && report.database_written.is_none() {
        text += &format!(
            "next: 'backup-cli restore {} {}' writes the database\n",
            report.url,
            report.lightning_dir.display()
        );
    }
    text += &format!(
        "next: in lightningd's config, put '{}' in the place of the Python plugin's line, and start it.\nkeep the old \
         backup until 'backup-cli verify' has passed",
        plugin_line()
    );
    text
}

fn warnings(
    import: &Import<'_>,
    old: &Path,
    old_lock: Option<&OldLock>,
    is_base: bool,
) -> Vec<String> {
    let scan = import.scan;
    let mut warnings = Vec::new();
    if let Some(tail) = scan.tail {
        warnings.push(format!(
            "the old backup breaks off in the record at offset {}, of which there are {} bytes{}",
            tail.offset,
            tail.bytes,
            if scan.lacks_acknowledged() { "" } else { "; it was never acknowledged" }
        ));
    }
    let header = DataVersion(scan.header.data_version);
    if scan.newest.is_some_and(|newest| newest != header) {
        warnings.push(format!("the old backup's header says data_version {header}"));
    }
    if let Some(lock) = old_lock
        && lock.old.as_deref().is_none_or(|named| !same_file(named, old))
    {
        warnings.push(format!(
            "the Python plugin's lock file names another backup, '{}'",
            lock.backend_url
        ));
    }
    if is_base && !import.node.hsm_secret().exists() {
        warnings.push(
            "there is no hsm_secret in the directory: bring the node's before it starts".into(),
        );
    }
    warnings
}

/// One import: what is given.
struct Import<'a> {
    args: &'a ImportArgs,
    node: &'a LightningDir,
    scan: &'a Scan,
    output: &'a Output,
}

impl Import<'_> {
    /// Compares the node's database with the old backup, and refuses where it is older.
    fn judge(
        &self,
        live: Option<DataVersion>,
        database: &ReplayedDatabase,
        secret: Option<&NodeSecret>,
    ) -> Result<(Standing, Option<Replayed>)> {
        let known = self.scan.known();
        let Some(live) = live else { return self.take_old(database, secret) };
        match live.ahead_of(known) {
            0.. if self.scan.newest != Some(live) => {
                let newest = self.scan.newest.unwrap_or_default();
                Ok((Standing::Ahead(live.0.wrapping_sub(newest.0)), None))
            }
            0.. => match self.replay(Extent::Whole, true, database) {
                Ok(replayed) => {
                    let standing = match self.compare(database)? {
                        None => Standing::Same,
                        Some(difference) => Standing::Different(difference),
                    };
                    Ok((standing, Some(replayed)))
                }
                Err(error @ Error::Damaged { .. }) => {
                    Ok((Standing::NotReplayed(error.to_string()), None))
                }
                Err(error) => Err(error.into()),
            },
            -1 => {
                let extent = match self.scan.newest {
                    Some(newest) if newest == live => Extent::Whole,
                    Some(_) if self.scan.newest_at.is_some() => Extent::BeforeNewest,
                    _ => return Err(self.older(live)),
                };
                // Without proof that it is the state right before, it may be any older one.
                let replayed = self.replay(extent, true, database).map_err(|_| self.older(live))?;
                match self.compare(database)? {
                    None => Ok((Standing::Uncommitted, Some(replayed))),
                    Some(_) => Err(self.older(live)),
                }
            }
            _ => Err(self.older(live)),
        }
    }

    /// The node has no database: the old backup's becomes its.
    fn take_old(
        &self,
        database: &ReplayedDatabase,
        secret: Option<&NodeSecret>,
    ) -> Result<(Standing, Option<Replayed>)> {
        if self.scan.lacks_acknowledged() && !self.args.accept_stale {
            return Err(Failure::new(
                format!(
                    "failed to import: '{}' has lost its end: its header counts {} records up to data_version {}, \
                     there are {} up to {}",
                    self.scan.path.display(),
                    self.scan.header.records,
                    self.scan.known(),
                    self.scan.records,
                    self.scan.newest.map_or("none".into(), |version| version.to_string())
                ),
                "look for a whole copy of it, or for the node's database. A node that is started from an older \
                 state can lose all channel funds; '--accept-stale' does it all the same. Nothing was changed.",
            ));
        }
        if self.scan.newest.is_none() {
            let store = self.scan.path.display().to_string();
            let what = "the Python plugin has never written to it".into();
            return Err(Error::Nothing { store, what }.into());
        }
        let replayed = self
            .replay(Extent::Whole, self.args.accept_stale, database)
            .map_err(|error| Failure::from(error).doing("import"))?;
        let wallet = Wallet::open(&database.0, Access::Exclusive)?;
        let id = wallet.map(|wallet| wallet.node_id()).transpose()?.flatten();
        match (id, secret.map(NodeSecret::node_id)) {
            (Some(id), Some(own)) if id != own => Err(Failure::wrong_key(
                format!(
                    "'{}' is of another node than '{}'",
                    self.scan.path.display(),
                    self.node.hsm_secret().display()
                ),
                "bring the hsm_secret and the backup of one node together; nothing was changed.",
            )),
            _ => Ok((Standing::Missing, Some(replayed))),
        }
    }

    fn replay(
        &self,
        extent: Extent,
        any_branch: bool,
        database: &ReplayedDatabase,
    ) -> Result<Replayed, Error> {
        let bar = self.output.bar("replaying the old backup", self.scan.end);
        let replayed = lockstep_python_backup::replay::run(
            self.scan,
            extent,
            any_branch,
            &database.0,
            &mut |at| {
                bar.set_position(at);
            },
        );
        bar.finish_and_clear();
        replayed
    }

    /// The first difference between what was replayed and the node's database.
    fn compare(&self, database: &ReplayedDatabase) -> Result<Option<String>> {
        let old = Wallet::open(&database.0, Access::Exclusive)?;
        let live = Wallet::open(self.node.wallet(), Access::Exclusive)?;
        let (Some(old), Some(live)) = (old, live) else {
            return Ok(Some("one of the two is empty".into()));
        };
        if let (Some(a), Some(b)) = (old.node_id()?, live.node_id()?)
            && a != b
        {
            return Err(Failure::new(
                format!(
                    "'{}' is of another node than '{}'",
                    self.scan.path.display(),
                    self.node.wallet().display()
                ),
                "give the backup of this node; nothing was changed.",
            ));
        }
        Ok(content::compare(old.connection(), live.connection())?)
    }

    fn older(&self, live: DataVersion) -> Failure {
        let (database, old) = (self.node.wallet().display(), self.scan.path.display());
        Failure::version(
            format!(
                "failed to import: '{database}' is older than '{old}': data_version {live} against {}",
                self.scan.known()
            ),
            "do not start it: that can cost all channel funds. Move it aside; then '--write-database' puts \
             the newer one in its place.",
        )
    }
}

/// The database that the old backup leads to, until it is published or dropped.
struct ReplayedDatabase(PathBuf);

impl ReplayedDatabase {
    fn beside(wallet: &Path) -> Self {
        let mut name = wallet.file_name().unwrap_or_default().to_owned();
        name.push(".importing");
        Self(wallet.with_file_name(name))
    }

    /// Gives it the name of the node's database, which no other file may have by now.
    fn publish(&self, wallet: &Path) -> Result<()> {
        File::open(&self.0)
            .and_then(|file| file.sync_all())
            .map_err(Failure::file("sync", &self.0))?;
        std::fs::hard_link(&self.0, wallet).map_err(Failure::file("publish", wallet))?;
        sync_parent(wallet).map_err(Failure::file("sync the folder of", wallet))
    }
}

impl Drop for ReplayedDatabase {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The version of the node's database; `None` only where there is no file of it at all.
fn find_database(node: &LightningDir, write: bool) -> Result<Option<DataVersion>> {
    let exists = |path: &&PathBuf| path.symlink_metadata().is_ok();
    let files = node.wallet_files();
    let Some(found) = files.iter().find(exists) else { return Ok(None) };
    if write {
        return Err(Failure::new(
            format!("failed to write the database: '{}' already exists", found.display()),
            "nothing was changed; move the old database files aside first, or leave out '--write-database'.",
        ));
    }
    let wallet = Wallet::open(node.wallet(), Access::Exclusive)?;
    match wallet.map(|wallet| wallet.data_version()).transpose()?.flatten() {
        Some(version) => Ok(Some(DataVersion(version))),
        None => Err(Failure::new(
            format!("'{}' exists, but it is no database with a data_version", found.display()),
            "move it aside, and the old backup's database is taken instead; nothing was changed.",
        )),
    }
}

fn node_secret(args: &InitArgs, node: &LightningDir) -> Result<Option<NodeSecret>> {
    let path = node.hsm_secret();
    if !path.exists() {
        return Ok(None);
    }
    unlock::node_secret(&path, args.secret_passphrase_file.as_deref()).map(Some)
}

/// What the first slots are locked with.
fn locks(args: &InitArgs, secret: Option<&NodeSecret>) -> Result<Vec<Lock>> {
    let mut locks: Vec<Lock> =
        secret.iter().map(|secret| Lock::Node(secret.make_secret(NODE_SECRET_INFO))).collect();
    if let Some(path) = &args.passphrase_file {
        locks.push(unlock::passphrase_lock(path)?);
    }
    for recipient in &args.recipient {
        locks.push(Lock::recipient(recipient)?);
    }
    Ok(locks)
}
