//! Schema changes, and table rebuilds inside their `PRAGMA` window.

use fastrand::Rng;

use super::state::{Counter, State};
use super::values::{any_value, hash, public_key, text};
use super::{WorkloadConfig, channel, schema};
use crate::step::Step;

/// Columns that `payments` gets before a rebuild drops them all.
const EXTRA_COLUMNS_MAX: u64 = 6;
/// Side tables that stay.
const SIDE_TABLES_MAX: usize = 4;
/// Channels of a fresh node.
const CHANNELS: usize = 5;

/// Everything up to the first ordinary step.
pub(super) fn fresh_node(rng: &mut Rng, state: &mut State, config: &WorkloadConfig) -> Vec<Step> {
    let mut first: Vec<String> = schema::FIRST.iter().map(ToString::to_string).collect();
    first.push(format!(
        "INSERT INTO vars (name, intval) VALUES ('data_version', {});",
        config.start_version
    ));
    let mut rest: Vec<String> = schema::LAST.iter().map(ToString::to_string).collect();
    for name in [
        "last_htlcs_updated_index",
        "last_channelmoves_created_index",
        "last_invoices_created_index",
        "next_pay_index",
        "last_processed_block",
    ] {
        rest.push(format!("INSERT INTO vars (name, intval) VALUES ('{name}', 0);"));
    }
    let genesis = vec![
        format!("INSERT INTO vars (name, blobval) VALUES ('genesis_hash', {});", hash(rng)),
        format!("INSERT INTO vars (name, blobval) VALUES ('node_id', {});", public_key(rng)),
    ];
    let mut steps = vec![Step::Transaction(first)];
    steps.extend(window(Step::transaction(schema::FIRST_REBUILD.iter().copied())));
    steps.push(Step::Transaction(rest));
    steps.push(Step::Transaction(genesis));
    for _ in 0..CHANNELS {
        let open = channel::open(rng, state, config.transaction_bytes);
        steps.push(Step::Transaction(open));
    }
    steps
}

/// A step between `PRAGMA foreign_keys = OFF` and `= ON`.
fn window(step: Step) -> [Step; 3] {
    [Step::foreign_keys(false), step, Step::foreign_keys(true)]
}

/// Some migration: one step, or three around a rebuild.
pub(super) fn any(rng: &mut Rng, state: &mut State) -> Vec<Step> {
    match rng.u8(..4) {
        0 if state.payment_columns < EXTRA_COLUMNS_MAX => vec![add_column(rng, state)],
        0 | 1 => window(rebuild_payments(state)).into(),
        2 => window(rebuild_channels(state)).into(),
        _ => vec![side_table(rng, state)],
    }
}

fn add_column(rng: &mut Rng, state: &mut State) -> Step {
    state.payment_columns += 1;
    let column = state.payment_columns;
    let default = text(["", "it's", "0"][rng.usize(..3)]);
    Step::transaction([
        format!("ALTER TABLE payments ADD COLUMN extra_{column} TEXT DEFAULT {default};"),
        format!("UPDATE payments SET extra_{column} = NULL WHERE id % 2 = 0;"),
    ])
}

/// lightningd's way: move the table aside, make it anew, copy, drop.
///
/// With foreign keys off, the block goes and outputs keep naming it; were they
/// on, the heights would become NULL: a replay that ignores the `PRAGMA`s
/// gives another database.
fn rebuild_payments(state: &mut State) -> Step {
    state.payment_columns = 0;
    let columns = schema::PAYMENT_COLUMNS;
    let mut sql = vec![
        "ALTER TABLE payments RENAME TO temp_payments;".to_owned(),
        schema::PAYMENTS.to_owned(),
        format!("INSERT INTO payments SELECT {columns} FROM temp_payments;"),
        "DROP TABLE temp_payments;".to_owned(),
        "CREATE INDEX payments_idx ON payments (payment_hash)".to_owned(),
    ];
    if state.blocks.len() > 1
        && let Some(height) = state.blocks.pop_front()
    {
        sql.push(format!("DELETE FROM blocks WHERE height = {height}"));
    }
    Step::Transaction(sql)
}

/// SQLite's documented way, on a table that others reference: with foreign
/// keys on, the `DROP` would cascade to every HTLC.
fn rebuild_channels(state: &State) -> Step {
    let create = schema::CHANNELS.replacen("TABLE channels", "TABLE new_channels", 1);
    let ids: Vec<u64> = state.channels.iter().map(|channel| channel.id).collect();
    Step::Transaction(vec![
        create,
        format!(
            "INSERT INTO new_channels SELECT * FROM channels WHERE id IN ({}) ORDER BY id;",
            super::state::list(&ids)
        ),
        "DROP TABLE channels;".to_owned(),
        "ALTER TABLE new_channels RENAME TO channels;".to_owned(),
    ])
}

/// A table that comes, with an index and rows, and later goes.
fn side_table(rng: &mut Rng, state: &mut State) -> Step {
    let number = state.next(Counter::SideTable);
    state.side_tables.push_back(number);
    let mut sql = vec![
        format!(
            "CREATE TABLE side_{number} (id INTEGER PRIMARY KEY, a TEXT NOT NULL DEFAULT 'it''s', b, \
             UNIQUE (a, b) ON CONFLICT REPLACE);"
        ),
        format!("CREATE INDEX side_{number}_idx ON side_{number} (b, lower(a))"),
    ];
    for _ in 0..rng.u8(1..6) {
        sql.push(format!("INSERT INTO side_{number} (b) VALUES ({})", any_value(rng)));
    }
    if state.side_tables.len() > SIDE_TABLES_MAX {
        let old = state.side_tables.pop_front().expect("more than none");
        sql.push(format!("DROP TABLE IF EXISTS side_{old};"));
    }
    Step::Transaction(sql)
}
