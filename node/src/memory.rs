//! Keys in memory stay there.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// From here on this process leaves no core dump when it dies, nor can another process of the same user read its
/// memory: it holds the keys of the backup, and in between the node's secret.
///
/// # Errors
/// Where the kernel refuses; nothing else is different then.
pub fn keep_to_itself() -> io::Result<()> {
    // Where dumps go to a program, the limit is not asked; where they go to a file, it is enough.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
