//! `drill`: a restore that is thrown away, from each destination, with the key that would be at hand.

use std::path::Path;
use std::time::Instant;

use lockstep_node::wallet::Wallet;
use lockstep_node::{Access, HsmSecretFile, LightningDir, content};
use lockstep_proto::config::LockFile;
use lockstep_proto::drill::{Compared, Drill, Rehearsal, Rehearsed};
use lockstep_proto::error::Error;
use lockstep_proto::marker::Marker;
use lockstep_proto::restore::{Plan, Restored, Target};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::shadow::{Digest, Proofs};
use lockstep_proto::store::Store;
use rusqlite::{Connection, OpenFlags};

use super::live::{self, digest_of};
use super::now;
use super::restoring::write_database;
use crate::args::DrillArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, counted, utc};
use crate::place::{Site, nothing_named};
use crate::scratch::Scratch;
use crate::unlock::{Means, no_means};

/// What is restored from, and what with.
struct Drilled {
    /// The node's directory, where it was named by that.
    node: Option<(LightningDir, LockFile)>,
    sites: Vec<Site>,
    means: Means,
}

/// Rehearses.
pub fn run(args: &DrillArgs, output: &Output) -> Result<()> {
    let drilled = find(args)?;
    let scratch = Scratch::new(args.folder.as_deref())?;
    let mut failures = Vec::new();
    let mut rehearsals = Vec::new();
    for site in &drilled.sites {
        let began = Instant::now();
        let mut rehearsal = Rehearsal {
            name: site.name.clone(),
            url: site.url.clone(),
            seconds: 0.0,
            error: None,
            restored: None,
        };
        let done = rehearse(&drilled, site, &scratch, &mut rehearsal, began, output);
        if let Err(failure) = done {
            rehearsal.seconds = began.elapsed().as_secs_f64();
            rehearsal.error = Some(failure.message().into());
            failures.push(failure);
        }
        rehearsals.push(rehearsal);
    }
    drop(scratch);
    let store_id = match (&drilled.node, &drilled.sites[..]) {
        (Some((_, lock)), _) => lock.store_id,
        (None, [site, ..]) => Marker::read(site.store()?)?.store_id,
        (None, []) => return Err(nothing_named()),
    };
    let drill = Drill::new(store_id, now(), drilled.means.describe(), rehearsals);
    if let Some((node, _)) = &drilled.node {
        drill.write(node.path())?;
    }
    output.result(&drill, || text(&drill, &drilled));
    match (failures.len() < drill.destinations.len(), failures.into_iter().next()) {
        (_, None) => Ok(()),
        (false, Some(first)) => Err(first.doing("rehearse a restore")),
        (true, Some(_)) => {
            let bad = drill.destinations.iter().filter(|one| one.error.is_some());
            Failure::if_any(
                bad.map(|one| one.name.as_str()),
                "a restore would fail from",
                "'backup-cli verify --heal' brings a destination up from the others.",
            )
        }
    }
}

/// The destinations that the arguments name, and the key that they choose. Where they choose none: the secret that
/// would be left if this machine were not, and only else what lies on it.
fn find(args: &DrillArgs) -> Result<Drilled> {
    let (node, mut sites) = match (&args.place.lightning_dir, &args.place.url) {
        (Some(directory), _) => {
            let (node, lock, sites) = Site::all_of_node(directory)?;
            (Some((node, lock)), sites)
        }
        (None, Some(url)) => (None, vec![Site::at(url)?]),
        (None, None) => return Err(nothing_named()),
    };
    for name in &args.destination {
        if !sites.iter().any(|site| site.name == *name) {
            let names: Vec<_> = sites.iter().map(|site| site.name.as_str()).collect();
            return Err(Failure::new(
                format!("there is no destination '{name}'"),
                format!("its destinations: {}.", names.join(", ")),
            ));
        }
    }
    if !args.destination.is_empty() {
        sites.retain(|site| args.destination.contains(&site.name));
    }
    let unlock = &args.place.unlock;
    let means = match (Means::chosen(unlock)?, &node) {
        (Some(means), _) => means,
        (None, Some((node, _))) => {
            let secret = node.hsm_secret();
            let plain = HsmSecretFile::read(&secret).is_ok_and(|file| !file.needs_passphrase());
            if plain || (secret.exists() && unlock.secret_passphrase_file.is_some()) {
                Means::hsm_secret(&secret, unlock)?
            } else {
                Means::in_directory(node, unlock)?.ok_or_else(|| {
                    Failure::wrong_key(
                        format!("there is no key in '{}'", node.path().display()),
                        "give --words, --hsm-secret FILE, --passphrase-file FILE or --identity FILE.",
                    )
                })?
            }
        }
        (None, None) => return Err(no_means(sites[0].store()?)?),
    };
    Ok(Drilled { node, sites, means })
}

/// A restore from one destination, as it would be in earnest.
fn rehearse(
    drilled: &Drilled,
    site: &Site,
    scratch: &Scratch,
    rehearsal: &mut Rehearsal,
    began: Instant,
    output: &Output,
) -> Result<()> {
    let store = site.store()?;
    let (keys, opened) = drilled.means.open(store)?;
    let plan = Plan::newest(store, &keys)?;
    scratch.require_room(database_bytes(&plan))?;
    let path = scratch.file("restored.sqlite3");
    let restored = write_database(store, &keys, &plan, &path, output);
    let restored = restored.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
    rehearsal.seconds = began.elapsed().as_secs_f64();
    let found = rehearsal.restored.insert(Rehearsed {
        opened_by: opened.by,
        generation: restored.position.generation,
        seq: restored.position.seq,
        data_version: restored.data_version,
        as_of: restored.time,
        snapshots: plan.lineage.links.len(),
        read_bytes: plan.lineage.size() + plan.log_bytes(),
        batches: restored.batches,
        statements: restored.statements,
        database_bytes: path.metadata().map_err(Failure::file("look at", &path))?.len(),
        compared: Compared::Nothing { why: "it is not this node's".into() },
    });
    let replayed = Replayed { store, keys: &keys, restored: &restored, path: &path };
    let compared = match &drilled.node {
        None => Ok(Compared::Nothing { why: "no '--lightning-dir' was given".into() }),
        Some((node, lock)) => replayed.compare(node, lock, output),
    };
    // The next destination needs its room.
    std::fs::remove_file(&path).map_err(Failure::file("remove", &path))?;
    found.compared = compared?;
    Ok(())
}

/// About what a restored database takes.
fn database_bytes(plan: &Plan) -> u64 {
    let newest = plan.lineage.links.last().map(|link| &link.summary.meta);
    let snapshot = newest.map_or(0, |meta| u64::from(meta.page_size) * u64::from(meta.page_count));
    snapshot + plan.log_bytes()
}

/// A database that was restored for the drill.
struct Replayed<'a> {
    store: &'a dyn Store,
    keys: &'a KeyRing,
    restored: &'a Restored,
    path: &'a Path,
}

impl Replayed<'_> {
    /// With the database of the stopped node, or else with what was last proved.
    fn compare(&self, node: &LightningDir, lock: &LockFile, output: &Output) -> Result<Compared> {
        let why = |why: &str| Ok(Compared::Nothing { why: why.into() });
        let at = self.restored.position;
        if node.running()?.is_none() {
            let Some(expected) = live::expected(node, self.store, self.keys, output)? else {
                return why(
                    "the database is not there, or not at the newest version of this destination",
                );
            };
            return match self.equals(expected.generation, expected.seq, expected.digest, output)? {
                None => why("the database is of another history"),
                Some(true) => Ok(Compared::Database { seq: expected.seq }),
                Some(false) => {
                    let difference = self.first_difference(node)?;
                    Err(Failure::from(expected.differs()).adding(&difference))
                }
            };
        }
        let folder = lock.compaction.shadow_in(node.path());
        let proofs = Proofs::read(&folder, self.keys.store());
        let Some(proven) = proofs.compared.or(proofs.checked) else {
            return why("lightningd runs, and nothing was proved by a compaction yet");
        };
        if proven.generation != at.generation || proven.seq > at.seq {
            return why("lightningd runs, and what was last proved is not in what was restored");
        }
        match self.equals(proven.generation, proven.seq, proven.digest, output) {
            Ok(Some(true)) => {
                let of_the_database = proofs.compared.is_some();
                Ok(Compared::LastProof { seq: proven.seq, of_the_database })
            }
            Ok(Some(false)) => Err(Failure::from(Error::Differs {
                generation: proven.generation,
                seq: proven.seq,
                data_version: proven.data_version.unwrap_or_default(),
            })),
            Ok(None) => why("what was last proved is of another history"),
            // What was before the snapshots that are kept is gone.
            Err(failure) if failure.is_refusal() => {
                why("lightningd runs, and what was last proved is not kept any more")
            }
            Err(failure) => Err(failure),
        }
    }

    /// Whether the log gives that content at that place. `None` where it never came by it.
    fn equals(
        &self,
        generation: u32,
        seq: u64,
        expected: Digest,
        output: &Output,
    ) -> Result<Option<bool>> {
        let at = self.restored.position;
        if generation != at.generation || seq > at.seq {
            return Ok(None);
        }
        if seq == at.seq {
            return Ok(Some(digest_of(&self.open()?)? == expected));
        }
        std::fs::remove_file(self.path).map_err(Failure::file("remove", self.path))?;
        let plan = Plan::to(self.store, self.keys, Target::Seq(seq))?;
        write_database(self.store, self.keys, &plan, self.path, output)?;
        Ok(Some(digest_of(&self.open()?)? == expected))
    }

    fn open(&self) -> Result<Connection> {
        let db = Connection::open_with_flags(self.path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        db.map_err(|error| Failure::new(format!("failed to open what was restored: {error}"), ""))
    }

    /// Where the database and what was restored differ first, in words without a value.
    fn first_difference(&self, node: &LightningDir) -> Result<String> {
        let node = live::wallet_of(node)?;
        let Some(wallet) = Wallet::open(node.wallet(), Access::Exclusive)? else {
            return Ok(String::new());
        };
        let found = content::compare(wallet.connection(), &self.open()?)?;
        Ok(found.unwrap_or_default())
    }
}

fn text(drill: &Drill, drilled: &Drilled) -> String {
    let took = drill.seconds();
    let mut text = match drill.passed {
        true => format!("passed: you would be back in {took:.1} s, with {}\n", drill.opened_with),
        false => format!("failed, with {}\n", drill.opened_with),
    };
    for one in &drill.destinations {
        text += &destination_text(one);
    }
    if matches!(drilled.means, Means::KeyFile(_)) {
        text += "warning: a key file is lost with the disk that it is on: rehearse with '--words', too\n";
    }
    text += "nobody was shut out, nothing was changed at the destinations; what was restored is gone again\n";
    if let Some((node, _)) = &drilled.node {
        text +=
            &format!("kept in {} for 'backup-cli status'\n", Drill::file(node.path()).display());
    }
    text
}

fn destination_text(one: &Rehearsal) -> String {
    let mut text = match &one.error {
        None => format!("'{}' ({}): back in {:.1} s\n", one.name, one.url, one.seconds),
        Some(error) => format!("'{}' ({}): failed: {error}\n", one.name, one.url),
    };
    let Some(found) = &one.restored else { return text };
    let version = found.data_version.map_or("none".into(), |version| version.to_string());
    text += &format!(
        "  opened by {}\n  data_version {version}, generation {}, seq {}, as of {}\n",
        found.opened_by,
        found.generation,
        found.seq,
        utc(found.as_of)
    );
    text += &format!(
        "  {} read: {}, then {} with {}; the database has {}; SQLite's checks pass\n",
        bytes(found.read_bytes),
        counted(found.snapshots as u64, "snapshot"),
        counted(found.batches, "batch"),
        counted(found.statements, "statement"),
        bytes(found.database_bytes)
    );
    if one.error.is_none() {
        text += &match &found.compared {
            Compared::Database { .. } => "  equal to the node's database, row by row\n".into(),
            Compared::LastProof { seq, of_the_database: true } => {
                format!("  equal, at seq {seq}, to what the node's database held there\n")
            }
            Compared::LastProof { seq, of_the_database: false } => {
                format!("  equal, at seq {seq}, to what the plugin's compaction proved there\n")
            }
            Compared::Nothing { why } => format!("  compared with nothing: {why}\n"),
        };
    }
    text
}
