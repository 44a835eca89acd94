//! The file of the Python plugin `backup`: what it holds, and the database that it leads to.
//!
//! | module | idea |
//! |---|---|
//! | [`format`] | header and records, as they lie in the file |
//! | [`scan`] | one pass over the heads: how far it goes, what is there twice, where it breaks off |
//! | [`mend`] | statements that an old lightningd spelled wrongly |
//! | [`replay`] | from the records to a database |
//!
//! The file is only ever read. It has no checksums, so what can be proved is little: that the lengths lead
//! from record to record, that the versions follow each other, that SQLite takes every statement, and that
//! the database says itself at the end which version it is.

pub mod format;
pub mod mend;
pub mod replay;
pub mod scan;

pub use self::replay::{Extent, Replayed};
pub use self::scan::Scan;
