//! The servers that tests keep backups on are up, and do with an object that must not be there yet what each
//! is known for.

mod azure;
mod faulty;
mod s3;
mod socks;
mod store;
mod webdav;
