//! A real lightningd and a real bitcoind on regtest with the real plugin and `backup-cli`. Needs
//! `lightningd`, `lightning-cli`, `bitcoind` and `bitcoin-cli` on `PATH`; without them every test says so
//! in one line and passes. `LOCKSTEP_LONG=1` runs the long forms.

mod clean_stop;
mod destination;
mod direction;
mod fenced;
mod fresh;
mod money;
mod notifications;
mod places;
mod recovery;
mod rehearsal;
mod secret;
mod standby;
mod upgrade;
