//! The time that a statement saw: replay must give the one at which its batch was appended.

use crate::record::TimeMs;

const FUNCTIONS: [&str; 6] = ["strftime", "datetime", "date", "time", "julianday", "unixepoch"];
const KEYWORDS: [&str; 3] = ["current_timestamp", "current_date", "current_time"];

/// True where a statement may ask for the time when it is executed: rare enough to look twice then. One that
/// defines a table or trigger which will ask must stay as it is.
pub fn may_ask_time(sql: &str) -> bool {
    let lower = sql.to_ascii_lowercase();
    let changes_rows = ["insert", "update", "delete", "replace"];
    let first = lower.trim_start();
    if !changes_rows.iter().any(|word| first.starts_with(word)) {
        return false;
    }
    lower.contains("current_") || FUNCTIONS.iter().any(|name| lower.contains(&format!("{name}(")))
}

/// `sql` with the argument `'now'` of date and time functions, and the keywords for the current time,
/// replaced by `time`. Everything else, also a value that happens to read `now`, stays as it is.
pub fn pin_time(sql: &str, time: TimeMs) -> String {
    let mut out = String::with_capacity(sql.len());
    // For each open parenthesis: whether it is that of a date or time function.
    let mut calls: Vec<bool> = Vec::new();
    let mut word = "";
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let len = token_len(rest, first);
        let (token, after) = rest.split_at(len);
        let lower = token.to_ascii_lowercase();
        match first {
            '(' => calls.push(FUNCTIONS.contains(&word.to_ascii_lowercase().as_str())),
            ')' => drop(calls.pop()),
            _ => {}
        }
        if lower == "'now'" && calls.last() == Some(&true) {
            out.push_str(&format!("'{}'", iso(time)));
        } else if KEYWORDS.contains(&lower.as_str()) {
            let iso = iso(time);
            let (date, clock) = (&iso[..10], &iso[11..19]);
            out.push_str(&match lower.as_str() {
                "current_date" => format!("'{date}'"),
                "current_time" => format!("'{clock}'"),
                _ => format!("'{date} {clock}'"),
            });
        } else {
            out.push_str(token);
        }
        word = token;
        rest = after;
    }
    out
}

/// A word, a quoted stretch, or one character.
fn token_len(sql: &str, first: char) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    match first {
        '\'' | '"' | '`' => sql[1..].find(first).map_or(sql.len(), |at| at + 2),
        c if is_word(c) => sql.find(|c: char| !is_word(c)).unwrap_or(sql.len()),
        c => c.len_utf8(),
    }
}

/// `YYYY-MM-DD HH:MM:SS.SSS` in UTC, as SQLite reads it.
fn iso(time: TimeMs) -> String {
    let (days, ms) = ((time / 86_400_000) as i64, time % 86_400_000);
    // Civil date from days since 1970, after Howard Hinnant's "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_sqlite() {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        for time in [
            0,
            951_782_399_999,
            951_782_400_000,
            1_709_164_800_001,
            1_795_000_000_123,
            4_102_444_799_000,
            4_107_542_400_000,
        ] {
            let expected: String = db
                .query_row(
                    "SELECT strftime('%Y-%m-%d %H:%M:%f', ?1 / 1000.0, 'unixepoch')",
                    [time as f64],
                    |row| row.get(0),
                )
                .unwrap();
            assert_eq!(iso(time), expected);
        }
    }

    #[test]
    fn only_the_time_is_replaced() {
        let time = 1_709_164_800_000;
        let pinned = pin_time(
            "UPDATE invoices SET paid_timestamp = strftime('%s', 'now'), label='now', note='it''s now' WHERE x = date(('now')) OR y=Date('NOW')",
            time,
        );
        assert_eq!(
            pinned,
            "UPDATE invoices SET paid_timestamp = strftime('%s', '2024-02-29 00:00:00.000'), label='now', note='it''s now' WHERE x = date(('now')) OR y=Date('2024-02-29 00:00:00.000')"
        );
        assert_eq!(
            pin_time("SELECT CURRENT_TIMESTAMP, current_date, Current_Time", time + 3_723_000),
            "SELECT '2024-02-29 01:02:03', '2024-02-29', '01:02:03'"
        );
        assert!(!may_ask_time("UPDATE vars SET intval=1"));
        assert!(may_ask_time(" INSERT INTO t VALUES (date('now'))"));
        assert!(!may_ask_time("CREATE TABLE t (d DEFAULT CURRENT_DATE)"));
    }
}
