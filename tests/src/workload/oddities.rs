//! Strange but valid SQL: what a parser of statements, a shape cache or a
//! splitter of text gets wrong.

use fastrand::Rng;

use super::values::{any_integer, any_text, any_value, blob, random_blob, text};

/// Rows that the odd table keeps.
const ROWS_KEPT: u32 = 40;

/// One to three odd statements.
pub(super) fn any(rng: &mut Rng) -> Vec<String> {
    let mut sql: Vec<String> = (0..rng.u8(1..4)).map(|_| odd_statement(rng)).collect();
    sql.push(format!(
        "DELETE FROM \"odd table\" WHERE id NOT IN (SELECT id FROM \"odd table\" ORDER BY id DESC LIMIT {ROWS_KEPT})"
    ));
    sql
}

fn odd_statement(rng: &mut Rng) -> String {
    match rng.u8(..6) {
        0 => insert(rng),
        1 => update(rng),
        2 => upsert(rng),
        3 => select_into(rng),
        4 => delete(rng),
        _ => spelling(rng),
    }
}

fn insert(rng: &mut Rng) -> String {
    let (a, b, c) = (any_value(rng), any_value(rng), any_value(rng));
    let name = text(&any_text(rng));
    match rng.u8(..4) {
        0 => format!(
            "/* it's a \"comment\"; */ INSERT INTO \"odd table\" (\"select\", \"quo\"\"ted\", [any thing]) \
             VALUES ({a}, {b}, {c}) -- and; 'another'"
        ),
        1 => format!(
            "INSERT INTO\n\t`odd table`\n(nocase, `real`)\r\nVALUES\n({name}, {b}),\n({name} || 'x', -.5e-3)\n;"
        ),
        2 => "INSERT INTO \"odd table\" DEFAULT VALUES;".to_owned(),
        _ => format!("REPLACE INTO main.\"odd table\"(id,\"select\",nocase)VALUES(7,{a},{name});"),
    }
}

fn update(rng: &mut Rng) -> String {
    let (value, number) = (any_value(rng), any_integer(rng));
    match rng.u8(..4) {
        0 => format!(
            "UPDATE \"odd table\" SET \"select\" = CASE WHEN [any thing] IS NULL THEN {value} \
             WHEN typeof([any thing]) = 'blob' THEN hex([any thing]) ELSE \"select\" END WHERE id IN \
             (SELECT id FROM \"odd table\" WHERE `real` IS NULL ORDER BY id DESC LIMIT 3)"
        ),
        1 => format!(
            "UPDATE \"odd table\" SET ([any thing], `real`) = (SELECT {value}, max(id) FROM \"odd table\") \
             WHERE id BETWEEN {} AND {}",
            rng.u8(..),
            rng.u16(..)
        ),
        2 => format!(
            "UPDATE OR IGNORE \"odd table\" SET nocase = replace(coalesce(nocase, ''), 'x', '''') \
             WHERE nocase LIKE '%50!%%' ESCAPE '!' OR nocase GLOB '*[0-9]*' OR \"select\" IS NOT {number}"
        ),
        _ => format!(
            "WITH newest(n) AS (SELECT max(id) FROM \"odd table\" AS \"t\") UPDATE \"odd table\" SET \
             [any thing] = CAST({value} AS TEXT) WHERE id = (SELECT n FROM newest)"
        ),
    }
}

fn upsert(rng: &mut Rng) -> String {
    let name = text(["a", "A", "'", ""][rng.usize(..4)]);
    let number = rng.u8(..4);
    let value = any_value(rng);
    match rng.u8(..3) {
        0 => format!(
            "INSERT INTO pairs (a, b, total) VALUES ({name}, {number}, {value}) \
             ON CONFLICT (a, b) DO UPDATE SET total = excluded.total WHERE pairs.total IS NOT excluded.total"
        ),
        1 => format!("INSERT INTO pairs VALUES ({name}, {number}, 1) ON CONFLICT DO NOTHING;"),
        _ => "INSERT INTO vars (name, intval) VALUES ('odd_count', 1) \
              ON CONFLICT(name) DO UPDATE SET intval = vars.intval + excluded.intval"
            .to_owned(),
    }
}

fn select_into(rng: &mut Rng) -> String {
    let value = any_value(rng);
    match rng.u8(..3) {
        0 => format!(
            "INSERT INTO \"odd table\" (\"select\", [any thing]) SELECT name, {value} FROM vars \
             WHERE intval IS NOT NULL ORDER BY name LIMIT 2 OFFSET 1;"
        ),
        1 => "INSERT INTO \"odd table\" (\"select\") WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 \
              FROM n WHERE i < 3) SELECT 'n' || i FROM n ORDER BY i"
            .to_owned(),
        _ => format!(
            "INSERT OR IGNORE INTO pairs SELECT coalesce(\"select\", 'none'), count(*) % 4, {value} \
             FROM \"odd table\" WHERE typeof(\"select\") = 'integer' GROUP BY 1 HAVING count(*) > 1 \
             ORDER BY 1 LIMIT 4"
        ),
    }
}

fn delete(rng: &mut Rng) -> String {
    match rng.u8(..3) {
        0 => "DELETE FROM pairs WHERE a NOT IN ('a', 'A', '''', '') OR (a, b) IN (VALUES ('a', 1), ('', 2))"
            .to_owned(),
        1 => format!(
            "DELETE FROM \"odd table\" WHERE EXISTS (SELECT 1 FROM pairs WHERE pairs.b = \"odd table\".id % {}) \
             AND id % 3 = 0;",
            rng.u8(2..9)
        ),
        _ => "UPDATE vars SET intval=1 WHERE name='doesnotexist'".to_owned(),
    }
}

/// Literals in spellings that no renderer produces.
fn spelling(rng: &mut Rng) -> String {
    let length = rng.usize(..12);
    let spelled = match rng.u8(..8) {
        0 => format!("X'{}'", blob(&[rng.u8(..), 0xAB])[2..].trim_end_matches('\'').to_uppercase()),
        1 => "0x7FFFFFFFFFFFFFFF".to_owned(),
        2 => "+ - - 5".to_owned(),
        3 => "1e3".to_owned(),
        4 => "9223372036854775808".to_owned(), // one too many: a real
        5 => "'' || '''' || x'27'".to_owned(),
        6 => "nuLL".to_owned(),
        _ => random_blob(rng, length),
    };
    let end = ["", ";", " ;  ", "\n", " --", " /* open */"][rng.usize(..6)];
    format!("insert into \"odd table\"([any thing],\"select\")values({spelled},'?1 :a /* '){end}")
}
