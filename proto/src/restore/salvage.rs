//! How far a log can be restored that is damaged somewhere.

use super::batches::{Committed, CommittedBatch};
use super::{Plan, Target};
use crate::error::{Error, Result};
use crate::log::{After, LogReader};
use crate::record::TimeMs;
use crate::seal::KeyRing;
use crate::store::Store;
use crate::version::DataVersion;

/// What can be had of a log.
#[derive(Debug)]
pub struct Salvage {
    /// The newest batch that is intact with all before it; `None` where there is none.
    pub newest: Option<Intact>,
    /// What is wrong behind it; `None` where nothing is.
    pub damage: Option<Error>,
}

/// A batch that can be restored to, by [`Target::Seq`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intact {
    /// Its record.
    pub seq: u64,
    /// lightningd's version with it.
    pub data_version: Option<DataVersion>,
    /// When it was appended.
    pub time: TimeMs,
}

/// Reads what a restore of the newest state would read, and says how far that goes.
///
/// # Errors
/// Where the store cannot be read, or nothing of it makes a database.
pub fn look(store: &dyn Store, keys: &KeyRing) -> Result<Salvage> {
    let mut damage = None;
    let plan = match Plan::newest(store, keys) {
        Err(error @ Error::Damaged { .. }) => {
            damage = Some(error);
            Plan::to(store, keys, Target::Seq(u64::MAX))?
        }
        plan => plan?,
    };
    let plan = match plan.around_damage(store, keys)? {
        Some(other) => other,
        None => plan,
    };
    let base = plan.lineage.links.last().map(|link| &link.summary);
    let mut newest = base.map(|base| Intact {
        seq: base.position.seq,
        data_version: base.meta.data_version,
        time: base.meta.time,
    });
    let held = plan.after().map_or(0, |after| after.seq);
    let mut committed = Committed::going_on(held, |batch: CommittedBatch| {
        if batch.at.seq > held {
            let data_version = match batch.transaction {
                true => Some(batch.data_version),
                false => newest.and_then(|newest| newest.data_version),
            };
            newest = Some(Intact { seq: batch.at.seq, data_version, time: batch.time });
        }
        Ok(())
    });
    let after = plan.after().map(After::from);
    match LogReader::new(store, keys).read_from(after, &plan.segments, &mut committed) {
        Ok(_) => {}
        Err(error @ Error::Damaged { .. }) => damage = damage.or(Some(error)),
        Err(error) => return Err(error),
    }
    committed.finish()?;
    Ok(Salvage { newest, damage })
}
