//! What can be done with what there is. No I/O.

use std::path::Path;

use lockstep_proto::version::DataVersion;

use super::{Found, Kind, Log, LogState, Secret, Way, quoted};
use crate::args::RestoreArgs;

/// A place for a new backup, in a command.
const NEW: &str = "file:///NEW/EMPTY/FOLDER";
const PENALTY: &str = "if a peer has seen a newer state, it may take all that is in the channel";

/// Best first; at least one.
pub fn ways(found: &Found, args: &RestoreArgs) -> Vec<Way> {
    if found.running {
        let what =
            "lightningd runs there: nothing is lost. Stop it before you change anything".into();
        return vec![Way { kind: Kind::Exact, what, commands: Vec::new() }];
    }
    let mut ways = Vec::new();
    let context = Context { found, key: key(found, args) };
    let whole = found.logs.iter().filter(|log| matches!(log.state, LogState::Whole { .. }));
    let newest = whole.max_by_key(|log| log.seq());
    context.database(newest, &mut ways);
    if let Some(log) = newest {
        context.restore(log, &mut ways);
    }
    if newest.is_none() {
        let damaged = found.logs.iter().filter(|log| log.seq().is_some());
        if let Some(log) = damaged.max_by_key(|log| log.seq()) {
            context.salvage(log, &mut ways);
        }
        context.bring(&mut ways);
    }
    context.close_channels(&mut ways);
    // Each kind in the order in which it was found.
    ways.sort_by_key(|way| way.kind as u8);
    ways
}

/// The option that opens the backup.
fn key(found: &Found, args: &RestoreArgs) -> String {
    let unlock = &args.unlock;
    let file = |option: &str, path: &Path| format!(" {option} {}", quoted(path));
    if let Some(path) = &unlock.key_file {
        file("--key-file", path)
    } else if let Some(path) = &unlock.hsm_secret {
        file("--hsm-secret", path)
    } else if let Some(path) = &unlock.passphrase_file {
        file("--passphrase-file", path)
    } else if let Some(path) = &unlock.identity {
        file("--identity", path)
    } else if unlock.words || found.secret.is_none() {
        " --words".into()
    } else {
        String::new()
    }
}

impl Log {
    /// Up to where it can be restored.
    fn seq(&self) -> Option<u64> {
        match &self.state {
            LogState::Whole { seq, .. } => Some(*seq),
            LogState::Damaged { seq, .. } => *seq,
            _ => None,
        }
    }
}

struct Context<'a> {
    found: &'a Found,
    key: String,
}

impl Context<'_> {
    fn directory(&self) -> String {
        quoted(&self.found.directory)
    }

    fn in_directory(&self, name: &str) -> String {
        quoted(&self.found.directory.join(name))
    }

    /// The database that is there, against the newest log, where one is whole.
    fn database(&self, newest: Option<&Log>, ways: &mut Vec<Way>) {
        let Some(database) = &self.found.database else { return };
        let (Some(own), None) = (database.data_version, &database.error) else { return };
        let start = "lightningd      # as it was started before".to_owned();
        if let Some(LogState::Whole { data_version: Some(head), .. }) = newest.map(|log| &log.state)
        {
            let what = match DataVersion(own).ahead_of(DataVersion(*head)) {
                0 => "the database there is what the backup holds: nothing is lost",
                1.. => {
                    "the database there is newer than the backup, which lightningd wrote without the plugin: keep it. \
                     The next start takes a snapshot"
                }
                _ => return,
            };
            ways.push(Way { kind: Kind::Exact, what: what.into(), commands: vec![start] });
            return;
        }
        // Nothing says that it is old but a backup that went further.
        let intact = self.found.logs.iter().filter_map(|log| match &log.state {
            LogState::Damaged { data_version, .. } => *data_version,
            _ => None,
        });
        if intact.max().is_some_and(|version| DataVersion(own).ahead_of(DataVersion(version)) < 0) {
            return;
        }
        let (kind, what) = match self.found.backed_up {
            true => (
                Kind::Exact,
                "the database there is intact. If the node ran in this directory last, and was restored nowhere else, it \
                 is the newest state: go on with it, with a new backup",
            ),
            false => (
                Kind::Risk,
                "there is an intact database. If it is a copy of which nobody knows how old it is, do not start it: \
                 a peer that has seen a newer state may take all that is in the channel",
            ),
        };
        let mut commands = self.leave_old_backup();
        commands.push(format!("backup-cli init --lightning-dir {} {NEW}", self.directory()));
        commands.push(start);
        ways.push(Way { kind, what: what.into(), commands });
    }

    fn restore(&self, log: &Log, ways: &mut Vec<Way>) {
        let LogState::Whole { incomplete, alive, .. } = &log.state else { return };
        let mut commands = Vec::new();
        if alive.is_some() {
            commands.push(
                "# the node that writes this backup looks alive: stop it for good; if it is dead, add --take-over".into(),
            );
        }
        let mut what = "the backup is whole".to_owned();
        if let Some(database) = &self.found.database {
            what += "; the database there is older, or damaged: it must not be started";
            commands.push(format!(
                "mv {0} {0}.old     # and its -journal, -wal",
                quoted(&database.path)
            ));
        }
        let (place, directory) = (shell(&log.place), self.directory());
        let restore = match self.found.standby && self.found.database.is_none() {
            true => format!("backup-cli promote {place} {directory}{}", self.key),
            false => format!("backup-cli restore {place} {directory}{}", self.key),
        };
        let then = [
            self.secret_line(),
            Some(format!("lightningd      # with {}", self.found.plugin_line)),
        ];
        let then = || then.iter().flatten().cloned();
        if let Some(away) = incomplete {
            let exact =
                format!("{what}, but {away}. Bring them back first: one may have a newer state");
            let mut first = commands.clone();
            first.extend([restore.clone()].into_iter().chain(then()));
            ways.push(Way { kind: Kind::Exact, what: exact, commands: first });
            what = format!("where they are gone for good: {PENALTY}");
            commands.push(format!("{restore} --accept-stale"));
            commands.extend(then());
            ways.push(Way { kind: Kind::Risk, what, commands });
            return;
        }
        commands.push(restore);
        commands.extend(then());
        ways.push(Way { kind: Kind::Exact, what, commands });
    }

    /// An older state, without the log that led to it.
    fn salvage(&self, log: &Log, ways: &mut Vec<Way>) {
        let Some(seq) = log.seq() else { return };
        let what = format!(
            "the backup is intact up to seq {seq}; what the node did after that is lost with the damage. Look for another \
             copy of '{}' first (another destination: 'backup-cli verify --heal'; a snapshot of the NAS). A node that \
             goes on from here: {PENALTY}",
            log.place
        );
        let database = match &self.found.database {
            Some(database) => database.path.clone(),
            None => self.found.directory.join(lockstep_node::dir::WALLET),
        };
        let mut commands = Vec::new();
        if self.found.database.is_some() {
            commands
                .push(format!("mv {0} {0}.old     # and its -journal, -wal", quoted(&database)));
        } else {
            commands.push(format!("mkdir -m 700 -p {}", self.directory()));
        }
        commands.push(format!(
            "backup-cli restore --no-claim --to-seq {seq} --accept-stale {} {}{}",
            shell(&log.place),
            self.directory(),
            self.key
        ));
        commands.extend(self.copy_secret());
        commands.extend(self.leave_old_backup());
        commands.push(format!("backup-cli init --lightning-dir {} {NEW}", self.directory()));
        commands.push(format!("lightningd      # with {}", self.found.plugin_line));
        ways.push(Way { kind: Kind::Risk, what, commands });
    }

    /// What would make more possible.
    fn bring(&self, ways: &mut Vec<Way>) {
        for log in &self.found.logs {
            let (what, command) = match &log.state {
                LogState::Closed { error } => (
                    format!("'{}' may be whole, but {error}", log.place),
                    format!(
                        "backup-cli restore --plan {} {} --words",
                        shell(&log.place),
                        self.directory()
                    ),
                ),
                LogState::Away { error } => (
                    format!(
                        "'{}' does not answer, or is not there: {error}. Mount it, or find its disk",
                        log.place
                    ),
                    format!(
                        "backup-cli restore --plan {} {}{}",
                        shell(&log.place),
                        self.directory(),
                        self.key
                    ),
                ),
                _ => continue,
            };
            ways.push(Way { kind: Kind::Exact, what, commands: vec![command] });
        }
        if self.found.logs.is_empty() {
            ways.push(Way {
                kind: Kind::Exact,
                what: "no backup was named: if there is one, everything is in it".into(),
                commands: vec![format!(
                    "backup-cli restore --plan URL {}{}",
                    self.directory(),
                    self.key
                )],
            });
        }
    }

    /// What lightningd itself offers.
    fn close_channels(&self, ways: &mut Vec<Way>) {
        if self.found.secret.is_none() {
            let what = "without the node's words or its hsm_secret nobody gets at its coins: look for them".into();
            ways.push(Way { kind: Kind::Nothing, what, commands: Vec::new() });
            return;
        }
        // Never over a database, however old: another directory.
        let fresh = match self.found.database.is_some() || self.found.backed_up {
            true => "/NEW/LIGHTNING/bitcoin".to_owned(),
            false => self.directory(),
        };
        let own = fresh == self.directory();
        let mut commands = Vec::new();
        if !own {
            commands.push(format!("mkdir -m 700 -p {fresh}     # named after the network"));
        }
        commands.extend(match (&self.found.secret, own) {
            (Some(Secret::Here(_)), true) | (None, _) => None,
            (Some(Secret::Here(_)), false) => {
                Some(format!("cp -p {} {fresh}/", self.in_directory("hsm_secret")))
            }
            (Some(Secret::File(path)), _) => {
                Some(format!("install -m 0400 {} {fresh}/hsm_secret", quoted(path)))
            }
            (Some(Secret::Words), _) => Some(format!(
                "lightning-hsmtool generatehsm {fresh}/hsm_secret     # asks for the words"
            )),
        });
        let start = "lightningd      # there, without this plugin in its config";
        let what = match &self.found.emergency_recover {
            Some(file) => {
                if !own {
                    commands.push(format!("cp -p {} {fresh}/", quoted(&file.path)));
                }
                commands.push(start.into());
                commands.push("lightning-cli emergencyrecover".into());
                "every channel is closed by its peer, and what is yours comes on chain. Channels that were opened after \
                 emergency.recover was written are not in it, and what was under way may be lost"
            }
            None => {
                commands.push(format!(
                    "{start}, and with --rescan=-HEIGHT from before the node's first coin"
                ));
                commands.push(
                    "lightning-cli connect PEER_ID@HOST      # each peer that you remember".into(),
                );
                commands.push("lightning-cli restorefrompeer".into());
                "there is no emergency.recover. Coins on chain come back by a rescan; channels only where peers kept the \
                 node's own channel backup, and each of those is closed"
            }
        };
        commands.push("lightning-cli listfunds".into());
        ways.push(Way { kind: Kind::Closing, what: what.into(), commands });
    }

    /// The new backup's files take their names.
    fn leave_old_backup(&self) -> Vec<String> {
        if !self.found.backed_up {
            return Vec::new();
        }
        let names = ["backup.lock", "backup.key"].map(|name| self.in_directory(name));
        names.iter().map(|name| format!("mv {name} {name}.old")).collect()
    }

    /// For what does not write the secret itself.
    fn copy_secret(&self) -> Option<String> {
        let there = self.in_directory("hsm_secret");
        match self.found.secret.as_ref()? {
            Secret::Here(_) => None,
            Secret::File(path) => Some(format!("install -m 0400 {} {there}", quoted(path))),
            Secret::Words => {
                Some(format!("lightning-hsmtool generatehsm {there}     # asks for the words"))
            }
        }
    }

    /// A restore writes the secret that opened it; with another key somebody has to bring it.
    fn secret_line(&self) -> Option<String> {
        let brings = self.key.contains("--words") || self.key.contains("--hsm-secret");
        (self.found.secret.is_none() && !brings)
            .then(|| format!("# put the node's hsm_secret into {}", self.directory()))
    }
}

/// A URL as an argument of a command.
fn shell(url: &str) -> String {
    quoted(Path::new(url))
}
