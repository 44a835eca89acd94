//! Write batches: the statements of one `db_write` as bytes.

pub mod codec;
pub mod shape;
pub mod wire;

/// True where every statement is a `PRAGMA`: what lightningd sends outside of any transaction.
pub fn is_settings<S: AsRef<str>>(writes: &[S]) -> bool {
    !writes.is_empty()
        && writes.iter().all(|sql| {
            sql.as_ref()
                .trim_start()
                .get(..7)
                .is_some_and(|word| word.eq_ignore_ascii_case("PRAGMA "))
        })
}
