//! The tables: a likeness of lightningd's, with its names and references, as
//! its migrations leave them behind (old forms first, columns added later).

/// The first transaction of a fresh node, without the version's row.
pub(super) const FIRST: &[&str] = &[
    "CREATE TABLE version (version INTEGER)",
    "INSERT INTO version VALUES (1)",
    "CREATE TABLE vars (  name TEXT, val TEXT, PRIMARY KEY (name));",
    "ALTER TABLE vars ADD COLUMN intval INTEGER",
    "ALTER TABLE vars ADD COLUMN blobval BLOB",
    "CREATE TABLE db_upgrades (upgrade_from INTEGER, lightning_version TEXT);",
    "CREATE TABLE blocks (height INTEGER, hash BLOB, prev_hash BLOB, UNIQUE(height));",
    "CREATE TABLE outputs (prev_out_tx BLOB, prev_out_index INTEGER, value INTEGER, type INTEGER, \
     status INTEGER, keyindex INTEGER, PRIMARY KEY (prev_out_tx, prev_out_index));",
    "ALTER TABLE outputs ADD COLUMN confirmation_height INTEGER REFERENCES blocks(height) ON DELETE SET NULL;",
    "ALTER TABLE outputs ADD COLUMN spend_height INTEGER REFERENCES blocks(height) ON DELETE SET NULL;",
    "CREATE INDEX output_height_idx ON outputs (confirmation_height, spend_height);",
    "CREATE TABLE shachains (id INTEGER, min_index INTEGER, num_valid INTEGER, PRIMARY KEY (id));",
    "CREATE TABLE shachain_known (shachain_id INTEGER REFERENCES shachains(id) ON DELETE CASCADE, \
     pos INTEGER, idx INTEGER, hash BLOB, PRIMARY KEY (shachain_id, pos));",
    "CREATE TABLE peers (id INTEGER, node_id BLOB UNIQUE, address TEXT, PRIMARY KEY (id));",
    "CREATE TABLE channel_configs (id INTEGER, dust_limit_satoshis INTEGER, \
     channel_reserve_satoshis INTEGER, to_self_delay INTEGER, PRIMARY KEY (id));",
    CHANNELS,
    "CREATE TABLE channel_htlcs (id INTEGER, channel_id INTEGER REFERENCES channels(id) ON DELETE CASCADE, \
     channel_htlc_id INTEGER, direction INTEGER, origin_htlc INTEGER, msatoshi INTEGER, cltv_expiry INTEGER, \
     payment_hash BLOB, payment_key BLOB, routing_onion BLOB, failuremsg BLOB, malformed_onion INTEGER, \
     hstate INTEGER, shared_secret BLOB, PRIMARY KEY (id), UNIQUE (channel_id, channel_htlc_id, direction));",
    "CREATE TABLE htlc_sigs (channelid INTEGER REFERENCES channels(id) ON DELETE CASCADE, signature BLOB);",
    "CREATE INDEX channel_idx ON htlc_sigs (channelid)",
    "CREATE TABLE channel_feerates (channel_id INTEGER REFERENCES channels(id) ON DELETE CASCADE, \
     hstate INTEGER, feerate_per_kw INTEGER, UNIQUE (channel_id, hstate));",
    "CREATE TABLE penalty_bases (channel_id INTEGER REFERENCES channels(id) ON DELETE CASCADE, \
     commitnum INTEGER, txid BLOB, outnum INTEGER, amount INTEGER, PRIMARY KEY (channel_id, commitnum));",
    "CREATE TABLE local_anchors (channel_id INTEGER REFERENCES channels(id), commitment_index INTEGER, \
     commitment_txid BLOB, commitment_anchor_outnum INTEGER, commitment_fee INTEGER)",
    "CREATE INDEX local_anchors_idx ON local_anchors (channel_id)",
    "CREATE TABLE invoices (id INTEGER, state INTEGER, msatoshi INTEGER, payment_hash BLOB, payment_key BLOB, \
     label TEXT, PRIMARY KEY (id), UNIQUE (label), UNIQUE (payment_hash));",
    "ALTER TABLE invoices ADD expiry_time INTEGER;",
    "UPDATE invoices SET expiry_time=9223372036854775807;",
    "ALTER TABLE invoices ADD pay_index INTEGER;",
    "CREATE UNIQUE INDEX invoices_pay_index ON invoices(pay_index);",
    "ALTER TABLE invoices ADD msatoshi_received INTEGER;",
    "ALTER TABLE invoices ADD bolt11 TEXT;",
    "ALTER TABLE invoices ADD description TEXT;",
    "ALTER TABLE invoices ADD COLUMN features BLOB DEFAULT '';",
    "CREATE TABLE offers (offer_id BLOB, bolt12 TEXT, label TEXT, status INTEGER, PRIMARY KEY (offer_id));",
    "ALTER TABLE invoices ADD COLUMN local_offer_id BLOB DEFAULT NULL REFERENCES offers(offer_id);",
    "CREATE TABLE payments (id INTEGER, timestamp INTEGER, status INTEGER, payment_hash BLOB, \
     direction INTEGER, destination BLOB, msatoshi INTEGER, failchannel TEXT, PRIMARY KEY (id), \
     UNIQUE (payment_hash));",
    "CREATE TABLE forwards (in_channel_scid INTEGER, in_htlc_id INTEGER, out_channel_scid INTEGER, \
     out_htlc_id INTEGER, in_msatoshi INTEGER, out_msatoshi INTEGER, state INTEGER, received_time INTEGER, \
     resolved_time INTEGER, failcode INTEGER, PRIMARY KEY(in_channel_scid, in_htlc_id))",
    "CREATE TABLE channel_moves (id INTEGER, account_channel_id INTEGER references channels(id), \
     tag_bitmap INTEGER NOT NULL, credit_or_debit INTEGER NOT NULL, timestamp INTEGER NOT NULL, \
     payment_hash BLOB, fees INTEGER NOT NULL, PRIMARY KEY (id))",
    "CREATE TABLE datastore (key BLOB, data BLOB, generation INTEGER, PRIMARY KEY (key));",
    "UPDATE vars SET intval = CAST(val AS INTEGER) WHERE name IN ('bip32_max_index', 'next_pay_index')",
];

/// `channels`, in the form that a rebuild gives it again.
pub(super) const CHANNELS: &str = "CREATE TABLE channels (id INTEGER, \
     peer_id INTEGER REFERENCES peers(id) ON DELETE CASCADE, scid INTEGER, short_channel_id TEXT, \
     channel_config_local INTEGER, channel_config_remote INTEGER, state INTEGER, funder INTEGER, \
     channel_flags INTEGER, minimum_depth INTEGER, next_index_local INTEGER, next_index_remote INTEGER, \
     next_htlc_id INTEGER, funding_tx_id BLOB, funding_tx_outnum INTEGER, funding_satoshi INTEGER, \
     push_msatoshi INTEGER, msatoshi_local INTEGER, msatoshi_to_us_min INTEGER, msatoshi_to_us_max INTEGER, \
     fundingkey_remote BLOB, revocation_basepoint_remote BLOB, payment_basepoint_remote BLOB, \
     htlc_basepoint_remote BLOB, per_commit_remote BLOB, old_per_commit_remote BLOB, \
     shachain_remote_id INTEGER, shutdown_scriptpubkey_remote BLOB, last_tx BLOB, last_sig BLOB, \
     last_sent_commit BLOB, last_was_revoke INTEGER, lease_commit_sig BLOB DEFAULT NULL, \
     in_payments_offered INTEGER DEFAULT 0, in_msatoshi_fulfilled INTEGER DEFAULT 0, PRIMARY KEY (id));";

/// The columns that `payments` has after every rebuild.
pub(super) const PAYMENT_COLUMNS: &str = "id, timestamp, status, payment_hash, destination, msatoshi, \
     payment_preimage, bolt11, description, partid, groupid, local_offer_id";

/// `payments`, as a rebuild makes it.
pub(super) const PAYMENTS: &str = "CREATE TABLE payments ( id INTEGER,  timestamp INTEGER,  status INTEGER,  \
     payment_hash BLOB,  destination BLOB,  msatoshi INTEGER,  payment_preimage BLOB,  bolt11 TEXT,  \
     description TEXT,  partid INTEGER,  groupid INTEGER NOT NULL DEFAULT 0,  \
     local_offer_id BLOB DEFAULT NULL REFERENCES offers(offer_id),  PRIMARY KEY (id),  \
     UNIQUE (payment_hash,  partid,  groupid));";

/// The rebuild that every fresh node makes, between two `PRAGMA` calls.
pub(super) const FIRST_REBUILD: &[&str] = &[
    "ALTER TABLE payments RENAME TO temp_payments;",
    PAYMENTS,
    "INSERT INTO payments SELECT id, timestamp, status, payment_hash, destination, msatoshi, NULL, NULL, NULL, \
     0, id, NULL FROM temp_payments;",
    "DROP TABLE temp_payments;",
];

/// The rest of the migrations: what the workload needs beside, and names that
/// want quoting.
pub(super) const LAST: &[&str] = &[
    "CREATE INDEX payments_idx ON payments (payment_hash)",
    "CREATE INDEX channel_htlcs_speedup_unresolved_idx    ON channel_htlcs(channel_id, direction) \
     WHERE hstate NOT IN (9, 19);",
    "CREATE TABLE \"odd table\" (id INTEGER PRIMARY KEY, \"select\" TEXT, \"quo\"\"ted\" BLOB, [any thing], \
     `real` REAL, nocase TEXT COLLATE NOCASE, CHECK (id > 0));",
    "CREATE INDEX \"odd index\" ON \"odd table\" (\"select\" DESC, nocase) WHERE \"select\" IS NOT NULL",
    "CREATE TABLE pairs (a TEXT, b INTEGER, total, PRIMARY KEY (a, b)) WITHOUT ROWID",
    "INSERT OR IGNORE INTO blocks (height) VALUES ((SELECT COALESCE(MIN(id), 100) FROM channels));",
    "DELETE FROM peers WHERE id NOT IN (SELECT peer_id FROM channels);",
    "UPDATE version SET version=282;",
    "INSERT INTO db_upgrades VALUES (-1, 'v26.06.6');",
];
