//! The server of object stores that a bench asks.

use std::time::Duration;

use lockstep_tests::backed::Backed;
use lockstep_tests::servers::memory::Memory;
use lockstep_tests::servers::{Server, moto, rgw};

use crate::sizes;

/// Ceph's gateway on this machine, or with `LOCKSTEP_BENCH_SERVER` `moto` or `memory`, one in this process, whose answers
/// with `LOCKSTEP_AWAY_MS` come so much later, as those of a server that is far away.
pub enum BenchServer {
    /// A program on this machine.
    Program(Box<Server>),
    /// In this process, and how far away it is to be.
    Memory(Memory, Duration),
}

impl BenchServer {
    /// Starts it, and says which it is. `None` where its program is not there, which is said, too.
    pub fn start_or_say() -> Option<Self> {
        let name = std::env::var("LOCKSTEP_BENCH_SERVER").unwrap_or_else(|_| "ceph".into());
        let started = match name.as_str() {
            "memory" => {
                let away = Duration::from_millis(sizes("LOCKSTEP_AWAY_MS", &[0])[0]);
                println!("server: memory, {} ms away", away.as_millis());
                return Some(Self::Memory(Memory::start(), away));
            }
            "moto" => moto::start(),
            _ => rgw::start(),
        };
        println!("server: {name}");
        started.map(|server| Self::Program(Box::new(server)))
    }

    /// From here on its answers come as late as they are to.
    pub fn go_away(&self) {
        if let Self::Memory(memory, away) = self {
            memory.be_away(*away);
        }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        match self {
            Self::Program(server) => &server.url,
            Self::Memory(memory, _) => &memory.url,
        }
    }

    /// What opens it, by the names that the environment has for that.
    pub fn env(&self) -> &[(String, String)] {
        match self {
            Self::Program(server) => &server.env,
            Self::Memory(memory, _) => &memory.env,
        }
    }

    /// A URL below it that nobody used before.
    pub fn prefix(&self, name: &str) -> String {
        match self {
            Self::Program(server) => server.prefix(name),
            Self::Memory(memory, _) => memory.prefix(name),
        }
    }

    /// A node with its backup at such a URL.
    pub fn backed(&self, name: &str) -> Backed {
        Backed::at(self.prefix(name), self.env().to_vec())
    }
}
