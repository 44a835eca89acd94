//! Invoices, payments, blocks, outputs, forwards, the datastore.

use fastrand::Rng;

use super::channel::set_var;
use super::state::{Counter, State, any_of, beyond, list};
use super::values::{
    any_integer, any_text, blob, bytes, hash, nullable, public_key, random_blob, text,
};

/// Bytes of the largest blob.
const BIG_BLOB_BYTES: usize = 2 << 20;
/// Blocks that stay.
const BLOCKS_KEPT: usize = 100;
/// Offers that stay.
const OFFERS_KEPT: usize = 20;

/// A new invoice, labelled by whatever users write there.
pub(super) fn invoice(rng: &mut Rng, state: &mut State, rows_max: usize) -> Vec<String> {
    let mut sql = Vec::new();
    if rng.u8(..8) == 0 {
        offer(rng, state, &mut sql);
    }
    let id = state.next(Counter::Invoice);
    // Looks like a number now and then, and must stay text.
    let label = if rng.u8(..8) == 0 { id.to_string() } else { format!("{}#{id}", any_text(rng)) };
    let offer = any_of(rng, &state.offers).map_or("NULL", String::as_str);
    sql.push(set_var("last_invoices_created_index", id));
    sql.push(format!(
        "INSERT INTO invoices            ( id, payment_hash, payment_key, state            , msatoshi, label, \
         expiry_time            , bolt11, description, features, local_offer_id)     VALUES ( {id}, {}, {}, 0            \
         , {}, {}, {}            , 'lnbcrt{}', {}, {}, {offer});",
        hash(rng),
        hash(rng),
        nullable(rng, |rng| rng.u64(1..1 << 40).to_string()),
        text(&label),
        any_integer(rng),
        rng.u64(..),
        text(&any_text(rng)),
        if rng.bool() { "x'02000002024100'" } else { "x''" },
    ));
    state.invoices.push_back(id);
    state.unpaid.push_back(id);
    let old = beyond(&mut state.invoices, rows_max);
    state.unpaid.retain(|id| !old.contains(id));
    if !old.is_empty() {
        sql.push(format!("DELETE FROM invoices WHERE id IN ({});", list(&old)));
    }
    sql
}

/// A new offer; old ones go, after the invoices that name them let go.
fn offer(rng: &mut Rng, state: &mut State, sql: &mut Vec<String>) {
    let id = hash(rng);
    sql.push(format!(
        "INSERT INTO offers (  offer_id, bolt12, label, status) VALUES ({id}, 'lno1{}', {}, 1);",
        rng.u64(..),
        nullable(rng, |rng| text(&any_text(rng)))
    ));
    state.offers.push_back(id);
    for old in beyond(&mut state.offers, OFFERS_KEPT) {
        for table in ["invoices", "payments"] {
            sql.push(format!(
                "UPDATE {table} SET local_offer_id = NULL WHERE local_offer_id = {old}"
            ));
        }
        sql.push(format!("DELETE FROM offers WHERE offer_id={old}"));
    }
}

/// An invoice is paid.
pub(super) fn invoice_paid(rng: &mut Rng, state: &mut State) -> Vec<String> {
    let index = state.next(Counter::PayIndex);
    let mut sql = vec![set_var("next_pay_index", index + 1)];
    if let Some(id) = state.unpaid.pop_front() {
        sql.push(format!(
            "UPDATE invoices   SET state=1     , pay_index={index}     , msatoshi_received={} WHERE id={id};",
            rng.u32(1..)
        ));
    }
    sql
}

/// A payment is tried.
pub(super) fn payment(rng: &mut Rng, state: &mut State, rows_max: usize) -> Vec<String> {
    let (id, now) = (state.next(Counter::Payment), state.now(rng));
    let offer = any_of(rng, &state.offers).map_or("NULL", String::as_str);
    let mut sql = vec![format!(
        "INSERT INTO payments (  id, timestamp, status, payment_hash, destination, msatoshi, payment_preimage, \
         bolt11, description, partid, groupid, local_offer_id) \
         VALUES ({id}, {now}, 0, {}, {}, {}, NULL, {}, {}, {}, {id}, {offer});",
        hash(rng),
        nullable(rng, public_key),
        rng.u64(1..1 << 40),
        nullable(rng, |rng| text(&any_text(rng))),
        nullable(rng, |rng| text(&any_text(rng))),
        rng.u8(..3),
    )];
    state.payments.push_back(id);
    let old = beyond(&mut state.payments, rows_max);
    if !old.is_empty() {
        sql.push(format!("DELETE FROM payments WHERE id IN ({})", list(&old)));
    }
    sql
}

/// A payment succeeds, fails, or is deleted.
pub(super) fn payment_settled(rng: &mut Rng, state: &mut State) -> Vec<String> {
    let Some(&id) = any_of(rng, &state.payments) else {
        return vec![set_var("last_sendpays_created_index", 0)];
    };
    let column = rng.u64(..state.payment_columns + 1);
    vec![match rng.u8(..4) {
        0 => format!("DELETE FROM payments WHERE id = {id}     AND status = 1"),
        1 if column > 0 => {
            format!("UPDATE payments SET extra_{column}={} WHERE id={id}", text(&any_text(rng)))
        }
        _ => format!(
            "UPDATE payments SET status={}, payment_preimage={} WHERE id={id};",
            1 + rng.u8(..2),
            nullable(rng, hash)
        ),
    }]
}

/// A datastore entry is made, changed or deleted.
pub(super) fn datastore(rng: &mut Rng, state: &mut State, rows_max: usize) -> Vec<String> {
    let length = rng.usize(..400);
    let data = if rng.u8(..6) == 0 { "x''".to_owned() } else { random_blob(rng, length) };
    match (rng.u8(..5), any_of(rng, &state.datastore).cloned()) {
        (0 | 1, Some(key)) => vec![format!(
            "UPDATE datastore SET data={data}, generation=generation+1 WHERE key={key};"
        )],
        (2, Some(key)) => {
            state.datastore.retain(|other| *other != key);
            vec![format!("DELETE FROM datastore WHERE key={key};")]
        }
        _ => {
            let mut key = any_text(rng).into_bytes();
            key.push(0);
            key.extend(bytes(rng, 8));
            let key = blob(&key);
            let mut sql = vec![format!("INSERT INTO datastore VALUES ({key}, {data}, 0);")];
            state.datastore.push_back(key);
            for old in beyond(&mut state.datastore, rows_max) {
                sql.push(format!("DELETE FROM datastore WHERE key={old};"));
            }
            sql
        }
    }
}

/// One huge entry, which the next one replaces.
pub(super) fn big_blob(rng: &mut Rng) -> Vec<String> {
    let data = random_blob(rng, BIG_BLOB_BYTES);
    vec![
        "DELETE FROM datastore WHERE key=x'626967';".into(),
        format!("INSERT INTO datastore VALUES (x'626967', {data}, 0);"),
    ]
}

/// A block arrives (or a reorganisation), perhaps with an output of ours.
pub(super) fn block(rng: &mut Rng, state: &mut State) -> Vec<String> {
    let mut sql = Vec::new();
    if state.blocks.len() > 1 && rng.u8(..16) == 0 {
        let height = state.blocks.pop_back().expect("more than one");
        // Sets the heights of its outputs to NULL.
        sql.push(format!("DELETE FROM blocks WHERE height = {height}"));
    }
    let height = state.blocks.back().map_or(101, |height| height + 1);
    let new = hash(rng);
    sql.push(set_var("last_processed_block", height));
    sql.push(format!(
        "INSERT INTO blocks (height, hash, prev_hash) VALUES ({height}, {new}, {});",
        if state.last_block_hash.is_empty() { "NULL" } else { &state.last_block_hash }
    ));
    state.last_block_hash = new;
    state.blocks.push_back(height);
    for old in beyond(&mut state.blocks, BLOCKS_KEPT) {
        sql.push(format!("DELETE FROM blocks WHERE height = {old}"));
    }
    output(rng, state, height, &mut sql);
    sql
}

fn output(rng: &mut Rng, state: &mut State, height: u64, sql: &mut Vec<String>) {
    if rng.bool()
        && let Some((txid, index)) = any_of(rng, &state.outputs)
    {
        sql.push(format!(
            "UPDATE outputs SET spend_height={height}, status=2 WHERE prev_out_tx={txid} \
             AND prev_out_index={index}"
        ));
    }
    let (txid, index) = (hash(rng), rng.u64(..4));
    sql.push(format!(
        "INSERT INTO outputs (  prev_out_tx, prev_out_index, value, type, status, keyindex, \
         confirmation_height, spend_height) VALUES ({txid}, {index}, {}, 1, 0, {}, {height}, NULL);",
        rng.u64(546..1 << 40),
        any_integer(rng)
    ));
    state.outputs.push_back((txid, index));
    for (txid, index) in beyond(&mut state.outputs, BLOCKS_KEPT) {
        sql.push(format!(
            "DELETE FROM outputs WHERE prev_out_tx={txid} AND prev_out_index={index}"
        ));
    }
}

/// A forward, which lightningd inserts and later replaces.
pub(super) fn forward(rng: &mut Rng, state: &mut State, rows_max: usize) -> Vec<String> {
    let known = any_of(rng, &state.forwards).copied().filter(|_| rng.bool());
    let (channel, htlc) = known.unwrap_or_else(|| (rng.u64(1..1 << 62), rng.u64(..) >> 1));
    if known.is_none() {
        state.forwards.push_back((channel, htlc));
    }
    let now = state.now(rng);
    let mut sql = vec![format!(
        "INSERT OR REPLACE INTO forwards (in_channel_scid, in_htlc_id, out_channel_scid, out_htlc_id, \
         in_msatoshi, out_msatoshi, state, received_time, resolved_time, failcode) \
         VALUES ({channel}, {htlc}, {}, NULL, {}, {}, {}, {now}, {}, {});",
        rng.u64(1..1 << 62),
        rng.u32(..),
        rng.u32(..),
        rng.u8(..4),
        nullable(rng, |rng| (now + rng.u64(..100)).to_string()),
        any_integer(rng)
    )];
    for (channel, htlc) in beyond(&mut state.forwards, rows_max) {
        sql.push(format!(
            "DELETE FROM forwards WHERE in_channel_scid = {channel} AND in_htlc_id = {htlc}"
        ));
    }
    sql
}
