//! Threads that work for the one that starts them, and end before it goes on.
//!
//! Nothing here panics, as [`Scope::spawn`] does where the system has no thread left: a node would stop of it.

use std::io;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::{Error, Result};

/// Starts one, with a name that the system shows.
///
/// # Errors
/// [`Error::Thread`] where the system has none left.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    let started = Builder::new().name(name.into()).spawn_scoped(scope, work);
    started.map_err(|source| Error::Thread { name: name.into(), source })
}

/// Waits for what comes of one.
///
/// # Errors
/// What its work returned; [`Error::Thread`] where that did not end as it should.
pub fn join<T>(started: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    let name = started.thread().name().unwrap_or_default().to_owned();
    started
        .join()
        .unwrap_or_else(|_| Err(Error::Thread { name, source: io::Error::other("it has failed") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_of_a_thread_is_an_error_where_it_panics() {
        let (fine, panicked) = std::thread::scope(|scope| {
            let fine = start(scope, "fine", || Ok(1)).unwrap();
            let panicked = start(scope, "panicking", || -> Result<u8> { panic!("in a test") });
            (join(fine), join(panicked.unwrap()))
        });
        assert_eq!(fine.unwrap(), 1);
        let error = panicked.unwrap_err().to_string();
        assert_eq!(error, "thread 'panicking': it has failed");
    }
}
