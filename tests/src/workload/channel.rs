//! Channels and HTLCs: most of what a busy node writes.

use fastrand::Rng;

use super::state::{Channel, Counter, Htlc, State, any_of, beyond, list};
use super::values::{NULL, blob, bytes, hash, nullable, public_key, random_blob};

/// HTLC states in which nothing more happens.
const HSTATE_DONE: u8 = 19;
/// Places in a shachain.
const SHACHAIN_PLACES: u64 = 49;
/// Commitments of a channel that keep a penalty base.
const PENALTIES_KEPT: u64 = 8;

/// A commitment signed or revoked: the whole channel is written, though
/// little in it changed.
pub(super) fn commitment(
    rng: &mut Rng,
    state: &mut State,
    transaction_bytes: usize,
) -> Vec<String> {
    let mut sql = Vec::new();
    if rng.bool() {
        htlc_moves_on(rng, state, &mut sql);
    }
    let channel = state.any_channel(rng);
    channel.commitment += 1;
    channel.msat = channel.msat.wrapping_add(rng.u64(0..10_000));
    if channel.transaction.len() != transaction_bytes {
        channel.transaction = bytes(rng, transaction_bytes);
    }
    for _ in 0..4.min(transaction_bytes) {
        let at = rng.usize(..transaction_bytes);
        channel.transaction[at] = rng.u8(..);
    }
    revoke(rng, channel, &mut sql);
    for _ in 0..rng.usize(1..3) {
        write_channel(rng, channel, &mut sql);
    }
    let (id, commitment) = (channel.id, channel.commitment);
    sql.push(format!(
        "INSERT INTO penalty_bases (  channel_id, commitnum, txid, outnum, amount) \
         VALUES ({id}, {commitment}, {}, {}, {});",
        hash(rng),
        rng.u8(..4),
        channel.msat
    ));
    sql.push(format!(
        "DELETE FROM penalty_bases WHERE channel_id = {id} AND commitnum < {}",
        commitment.saturating_sub(PENALTIES_KEPT)
    ));
    if rng.u8(..4) == 0 {
        sql.push(format!("DELETE FROM htlc_sigs WHERE channelid = {id}"));
        for _ in 0..rng.u8(..4) {
            sql.push(format!(
                "INSERT INTO htlc_sigs (channelid, signature) VALUES ({id}, {})",
                random_blob(rng, 64)
            ));
        }
    }
    sql
}

fn revoke(rng: &mut Rng, channel: &mut Channel, sql: &mut Vec<String>) {
    let id = channel.id;
    let index = (1 << 48) - 1 - channel.commitment;
    let place = u64::from(channel.commitment.trailing_zeros()).min(SHACHAIN_PLACES - 1);
    let secret = hash(rng);
    let count = channel.known.count_ones();
    sql.push(format!("UPDATE shachains SET num_valid={count}, min_index={index} WHERE id={id}"));
    sql.push(format!(
        "UPDATE shachain_known SET idx={index}, hash={secret} WHERE shachain_id={id} AND pos={place}"
    ));
    if channel.known & (1 << place) == 0 {
        channel.known |= 1 << place;
        sql.push(format!(
            "INSERT INTO shachain_known (shachain_id, pos, idx, hash) \
             VALUES ({id}, {place}, {index}, {secret});"
        ));
    }
    channel.per_commit = public_key(rng);
}

/// The six statements with which a channel is written.
fn write_channel(rng: &mut Rng, channel: &Channel, sql: &mut Vec<String>) {
    let id = channel.id;
    let configs = [2 * id, 2 * id + 1];
    sql.push(write_config(configs[0]));
    sql.push(write_columns(rng, channel, configs[0]));
    sql.push(write_config(configs[1]));
    let [funding, revocation, payment, htlc] = &channel.points;
    sql.push(format!(
        "UPDATE channels SET  fundingkey_remote={funding},  revocation_basepoint_remote={revocation},  \
         payment_basepoint_remote={payment},  htlc_basepoint_remote={htlc},  per_commit_remote={},  \
         old_per_commit_remote={},  channel_config_remote={} WHERE id={id}",
        channel.per_commit,
        nullable(rng, public_key),
        configs[1]
    ));
    sql.push(format!("DELETE FROM channel_feerates WHERE channel_id={id}"));
    sql.push(format!("INSERT INTO channel_feerates  VALUES({id}, 4, {})", rng.u32(253..5000)));
    sql.push(format!(
        "UPDATE channels SET  last_sent_commit={} WHERE id={id}",
        random_blob(rng, 9)
    ));
}

fn write_config(id: u64) -> String {
    format!(
        "UPDATE channel_configs SET  dust_limit_satoshis=546,  channel_reserve_satoshis=100000,  \
         to_self_delay=6 WHERE id={id};"
    )
}

/// Most columns of the row at once.
fn write_columns(rng: &mut Rng, channel: &Channel, config: u64) -> String {
    let scid = channel.scid;
    let columns = [
        format!("shachain_remote_id={}", channel.id),
        format!("scid={scid}"),
        format!("short_channel_id='{}x{}x0'", scid >> 40, (scid >> 16) & 0xff_ffff),
        "state=3".into(),
        "funder=0".into(),
        "channel_flags=0".into(),
        "minimum_depth=1".into(),
        format!("next_index_local={}", channel.commitment),
        format!("next_index_remote={}", channel.commitment + 1),
        format!("next_htlc_id={}", channel.htlcs),
        "funding_tx_outnum=0".into(),
        "funding_satoshi=10000000".into(),
        "push_msatoshi=5000000000".into(),
        format!("msatoshi_local={}", channel.msat),
        "shutdown_scriptpubkey_remote=NULL".into(),
        format!("channel_config_local={config}"),
        format!("last_tx={}", blob(&channel.transaction)),
        format!("last_sig={}", random_blob(rng, 64)),
        format!("last_was_revoke={}", rng.u8(..2)),
        format!("msatoshi_to_us_min={}", rng.u64(0..channel.msat.max(1))),
        format!("msatoshi_to_us_max={}", i64::MAX),
        "lease_commit_sig=NULL".into(),
    ];
    let columns = columns.join(",  ");
    format!("UPDATE channels SET  {columns} WHERE id={}", channel.id)
}

/// Advances some HTLC by a state.
fn htlc_moves_on(rng: &mut Rng, state: &mut State, sql: &mut Vec<String>) {
    if state.htlcs.is_empty() {
        return;
    }
    let updated = state.next(Counter::UpdatedIndex);
    let at = rng.usize(..state.htlcs.len());
    let htlc = &mut state.htlcs[at];
    htlc.hstate = (htlc.hstate + 1).min(HSTATE_DONE);
    sql.push(set_var("last_htlcs_updated_index", updated));
    sql.push(format!(
        "UPDATE channel_htlcs SET hstate={}, payment_key={}, malformed_onion=0, failuremsg={} WHERE id={}",
        htlc.hstate,
        nullable(rng, hash),
        nullable(rng, |rng| random_blob(rng, 40)),
        htlc.id
    ));
}

/// A row of `vars` that the migrations made.
pub(super) fn set_var(name: &str, value: u64) -> String {
    format!("UPDATE vars SET intval={value} WHERE name='{name}';")
}

/// A new anchor; older ones go.
pub(super) fn anchors(rng: &mut Rng, state: &mut State) -> Vec<String> {
    let channel = state.any_channel(rng);
    let (id, commitment) = (channel.id, channel.commitment);
    vec![
        format!(
            "INSERT INTO local_anchors VALUES ({id},{commitment},{},1,{})",
            hash(rng),
            rng.u32(1000..2000)
        ),
        format!(
            "DELETE FROM local_anchors WHERE channel_id = {id} and commitment_index <= {};",
            commitment.saturating_sub(2)
        ),
        // Time and again for the same commitment, all the same.
        format!(
            "DELETE FROM local_anchors WHERE channel_id = {id} AND rowid NOT IN (SELECT rowid FROM \
             local_anchors WHERE channel_id = {id} ORDER BY rowid DESC LIMIT 4)"
        ),
    ]
}

/// A penalty base that is no longer needed.
pub(super) fn forget_penalty(rng: &mut Rng, state: &mut State) -> Vec<String> {
    let channel = state.any_channel(rng);
    vec![format!(
        "DELETE FROM penalty_bases WHERE channel_id = {} AND commitnum = {}",
        channel.id,
        channel.commitment.saturating_sub(rng.u64(..3))
    )]
}

/// An HTLC is offered or received.
pub(super) fn add_htlc(rng: &mut Rng, state: &mut State, rows_max: usize) -> Vec<String> {
    let (id, index) = (state.next(Counter::Htlc), state.next(Counter::UpdatedIndex));
    let origin = nullable(rng, |rng| rng.u64(1..id + 1).to_string());
    let channel = state.any_channel(rng);
    channel.htlcs += 1;
    let mut sql = vec![
        format!(
            "INSERT INTO channel_htlcs ( id, channel_id, channel_htlc_id, direction, origin_htlc, msatoshi, \
             cltv_expiry, payment_hash, payment_key, hstate, routing_onion, malformed_onion, shared_secret) \
             VALUES ({id}, {}, {}, {}, {origin}, {}, {}, {}, {NULL}, 10, {}, 0, {});",
            channel.id,
            channel.htlcs,
            rng.u8(..2),
            rng.u64(1..10_000_000),
            rng.u32(100..1000),
            hash(rng),
            random_blob(rng, 366),
            nullable(rng, hash)
        ),
        format!(
            "UPDATE channels   SET in_payments_offered = COALESCE(in_payments_offered, 0) + 1 WHERE id = {};",
            channel.id
        ),
        set_var("last_htlcs_updated_index", index),
    ];
    let channel = channel.id;
    state.htlcs.push_back(Htlc { id, channel, hstate: 10 });
    let old: Vec<u64> = beyond(&mut state.htlcs, rows_max).iter().map(|htlc| htlc.id).collect();
    if !old.is_empty() {
        sql.push(format!("DELETE FROM channel_htlcs WHERE id IN ({});", list(&old)));
    }
    sql
}

/// An HTLC ends: its secrets go, a move is booked.
pub(super) fn resolve_htlc(rng: &mut Rng, state: &mut State, rows_max: usize) -> Vec<String> {
    let Some(htlc) = any_of(rng, &state.htlcs).copied() else {
        return add_htlc(rng, state, rows_max);
    };
    let (id, now) = (state.next(Counter::Move), state.now(rng));
    let amount = rng.i64(-1_000_000..1_000_000);
    state.moves.push_back(id);
    let mut sql = vec![
        format!(
            "UPDATE channel_htlcs SET payment_key=NULL, routing_onion=NULL, failuremsg=NULL, \
             shared_secret=NULL  WHERE id={}",
            htlc.id
        ),
        format!(
            "INSERT INTO channel_moves ( id, account_channel_id, credit_or_debit, tag_bitmap, timestamp, \
             payment_hash, fees) VALUES ({id}, {}, {amount}, 8, {now}, {}, {});",
            htlc.channel,
            nullable(rng, hash),
            rng.u8(..)
        ),
        set_var("last_channelmoves_created_index", id),
    ];
    let old = beyond(&mut state.moves, rows_max);
    if !old.is_empty() {
        sql.push(format!("DELETE FROM channel_moves WHERE id IN ({})", list(&old)));
    }
    sql
}

/// A channel closes, with everything that hangs on it; another opens.
pub(super) fn reopen(rng: &mut Rng, state: &mut State, transaction_bytes: usize) -> Vec<String> {
    let at = rng.usize(..state.channels.len());
    let id = state.channels.swap_remove(at).id;
    state.htlcs.retain(|htlc| htlc.channel != id);
    let mut sql = vec![
        format!("DELETE FROM local_anchors WHERE channel_id = {id}"),
        format!(
            "UPDATE channel_moves SET account_channel_id = NULL WHERE account_channel_id = {id}"
        ),
        format!("DELETE FROM shachains WHERE id = {id}"),
        format!("DELETE FROM channel_configs WHERE id IN ({}, {})", 2 * id, 2 * id + 1),
        // Cascades to HTLCs, fee rates, penalty bases and signatures.
        format!("DELETE FROM channels WHERE id = {id}"),
        "DELETE FROM peers WHERE id NOT IN (SELECT peer_id FROM channels);".into(),
    ];
    sql.extend(open(rng, state, transaction_bytes));
    sql
}

/// A new channel with a new peer.
pub(super) fn open(rng: &mut Rng, state: &mut State, transaction_bytes: usize) -> Vec<String> {
    let id = state.next(Counter::Channel);
    let channel = Channel {
        id,
        scid: (rng.u64(100..1000) << 40) | (rng.u64(..100) << 16),
        commitment: 1,
        htlcs: 0,
        msat: 5_000_000_000,
        transaction: bytes(rng, transaction_bytes),
        points: std::array::from_fn(|_| public_key(rng)),
        per_commit: public_key(rng),
        known: 0,
    };
    let sql = vec![
        format!(
            "INSERT INTO peers (id, node_id, address) VALUES ({id}, {}, '127.0.0.1:{}');",
            public_key(rng),
            rng.u16(1024..)
        ),
        format!("INSERT INTO channel_configs (id) VALUES ({}), ({})", 2 * id, 2 * id + 1),
        format!(
            "INSERT INTO shachains (id, min_index, num_valid) VALUES ({id}, 281474976710656, 0);"
        ),
        format!(
            "INSERT INTO channels (  peer_id, id, scid, funding_tx_id, last_tx) \
             VALUES ({id}, {id}, {}, {}, {});",
            channel.scid,
            hash(rng),
            blob(&channel.transaction)
        ),
    ];
    state.channels.push(channel);
    sql
}
