//! Telling a process of this machine that has ended from one that runs.
//!
//! A number alone does not: it is used again, and another machine or container has its own. What the kernel says of
//! itself does: this boot of it, which numbers it counts (the namespace), and when the process began.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

/// What a process is told by, besides its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStamp {
    /// This boot of this kernel, a random name.
    boot: String,
    /// Whose numbers these are: the pid namespace.
    namespace: String,
    /// When it began, in the kernel's ticks since the boot.
    started: u64,
}

impl ProcessStamp {
    /// Of this process; `None` where the system does not tell.
    pub fn of_this_process() -> Option<Self> {
        // In another namespace's /proc all numbers are others.
        let own = fs::read_link("/proc/self").ok()?.to_str()?.parse::<u32>().ok()?;
        let (_, started) = stat(std::process::id()).filter(|_| own == std::process::id())?;
        Some(Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned(),
            namespace: fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned(),
            started,
        })
    }

    /// True where the process `pid` that had this stamp has ended. False where it runs, or where nobody can say: it
    /// is of another machine, boot or container.
    pub fn is_gone(&self, pid: u32) -> bool {
        let Some(here) = Self::of_this_process() else { return false };
        if (&here.boot, &here.namespace) != (&self.boot, &self.namespace) {
            return false;
        }
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
        match test_kill_process(number) {
            Err(Errno::SRCH) => true,
            // It is there, ours or somebody's; an ended one that nobody has asked after is a zombie.
            _ => stat(pid).is_some_and(|(state, started)| {
                matches!(state, 'Z' | 'X') || started != self.started
            }),
        }
    }
}

/// State and start of a process. Its name, in parentheses, may hold anything.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn one_that_ended_is_gone_and_one_of_elsewhere_is_not() {
        let here = ProcessStamp::of_this_process().unwrap();
        assert!(!here.is_gone(std::process::id()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let of_child = ProcessStamp { started: stat(child.id()).unwrap().1, ..here.clone() };
        assert!(!of_child.is_gone(child.id()));
        let reused = ProcessStamp { started: of_child.started + 1, ..here.clone() };
        assert!(reused.is_gone(child.id()), "the number is another's now");
        child.kill().unwrap();
        while !matches!(stat(child.id()), Some(('Z', _))) {
            std::thread::yield_now();
        }
        assert!(of_child.is_gone(child.id()), "a zombie");
        child.wait().unwrap();
        assert!(of_child.is_gone(child.id()));
        for elsewhere in [
            ProcessStamp { boot: "another".into(), ..of_child.clone() },
            ProcessStamp { namespace: "pid:[1]".into(), ..of_child.clone() },
        ] {
            assert!(!elsewhere.is_gone(child.id()));
        }
    }
}
