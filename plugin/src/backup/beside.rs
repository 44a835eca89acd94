//! What runs beside the hook: compactions, companion files, heartbeats, the witness, metrics.

use lockstep_proto::config::NamedDestination;
use lockstep_proto::drill::Drill;

use super::Backup;
use crate::compactor::Setup;
use crate::heartbeat::Heart;
use crate::metrics;
use crate::wire::Level;
use crate::witness::Noting;

impl Backup {
    /// Starts it all, with the first answer: only then does lightningd run for certain.
    pub(super) fn start_beside(&mut self) {
        let Some((settings, retention)) = self.compaction.take() else { return };
        let setup = Setup {
            places: self.places.clone(),
            keys: self.keys.clone(),
            wallet: self.wallet.clone(),
            folder: settings.shadow_in(&self.directory),
            settings,
            retention,
            companions: self.companions.clone(),
        };
        if let Err(error) = self.compactor.start(setup, self.output.clone()) {
            let line = format!("no compaction: failed to start a thread: {error}");
            self.output.log(Level::Unusual, &line);
        }
        self.companions.clone().start(self.status.clone());
        self.start_heartbeats(&self.places.named());
        let noting = Noting {
            directory: self.directory.clone(),
            store_id: self.store_id,
            status: self.status.clone(),
            output: self.output.clone(),
        };
        noting.start();
        self.start_metrics();
    }

    fn start_metrics(&self) {
        let Some(settings) = &self.metrics else { return };
        let (directory, store) = (self.directory.clone(), self.store_id);
        let last_drill = Box::new(move || Drill::read(&directory, store));
        match metrics::serve(settings, self.status.clone(), last_drill) {
            Ok(address) => {
                self.output.log(Level::Info, &format!("metrics at http://{address}/metrics"));
            }
            Err(error) => {
                let line = format!("no metrics at {}: {error}", settings.listen);
                self.output.log(Level::Unusual, &line);
            }
        }
    }

    /// Starts heartbeats at these destinations. Where that fails, a restore elsewhere finds the node silent.
    pub(super) fn start_heartbeats(&self, places: &[NamedDestination]) {
        let Some(writer) = &self.writer else { return };
        let heart = Heart {
            keys: self.keys.clone(),
            by: writer.claimant().clone(),
            interval: self.heartbeat_interval,
            status: self.status.clone(),
            output: self.output.clone(),
        };
        if let Err(error) = heart.start(places) {
            let line = format!("no heartbeats: failed to start a thread: {error}");
            self.output.log(Level::Unusual, &line);
        }
    }
}
