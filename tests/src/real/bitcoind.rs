//! A bitcoind on regtest.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::daemons::Daemons;
use super::process::free_port;
use super::wait::wait_for;

const USER: &str = "lockstep";

/// A bitcoind that ends with its value.
pub struct Bitcoind {
    cli: PathBuf,
    directory: PathBuf,
    port: u16,
    child: Child,
}

impl Bitcoind {
    /// Starts one in a new directory, with a wallet that has coins to spend.
    pub fn start(daemons: &Daemons, directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("bitcoind's directory");
        let port = free_port();
        let child = Command::new(&daemons.bitcoind)
            .args(["-regtest", "-server", "-listen=0", "-dnsseed=0", "-connect=0", "-txindex=1"])
            .args(["-fallbackfee=0.0002", "-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1"])
            .args(["-dbcache=16", "-rpcworkqueue=256", "-rpcthreads=8"])
            .arg(format!("-datadir={}", directory.display()))
            .arg(format!("-rpcport={port}"))
            .args([format!("-rpcuser={USER}"), format!("-rpcpassword={USER}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bitcoind starts");
        let cli = daemons.bitcoin_cli.clone();
        let node = Self { cli, directory: directory.to_owned(), port, child };
        wait_for("bitcoind answers", || node.call(&["getblockcount"]).ok());
        node.call(&["createwallet", "w"]).expect("a wallet");
        node.generate(101);
        node
    }

    /// Calls a method; its answer as JSON, or as text where it is none.
    pub fn call(&self, args: &[&str]) -> Result<Value, String> {
        let output = Command::new(&self.cli)
            .arg("-regtest")
            .arg(format!("-datadir={}", self.directory.display()))
            .args(self.credentials("-rpc"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("bitcoin-cli runs");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn credentials(&self, prefix: &str) -> [String; 3] {
        let port = self.port;
        [
            format!("{prefix}user={USER}"),
            format!("{prefix}password={USER}"),
            format!("{prefix}port={port}"),
        ]
    }

    /// What lightningd needs to find it.
    pub fn lightningd_args(&self) -> Vec<String> {
        let mut args = self.credentials("--bitcoin-rpc").to_vec();
        args.push("--bitcoin-rpcconnect=127.0.0.1".into());
        args.push(format!("--bitcoin-datadir={}", self.directory.display()));
        args
    }

    /// Mines blocks.
    pub fn generate(&self, blocks: u32) {
        let address = self.call(&["getnewaddress"]).expect("an address");
        let address = address.as_str().expect("an address is text").to_owned();
        self.call(&["generatetoaddress", &blocks.to_string(), &address]).expect("blocks");
    }

    /// The height of the chain.
    pub fn height(&self) -> u64 {
        let height = self.call(&["getblockcount"]).expect("a height");
        height.as_u64().expect("a height is a number")
    }

    /// Sends bitcoin.
    pub fn send(&self, address: &str, bitcoin: &str) {
        self.call(&["sendtoaddress", address, bitcoin]).expect("coins are sent");
    }

    /// Waits until the mempool holds a transaction, and mines `blocks`.
    pub fn confirm(&self, blocks: u32) {
        wait_for("a transaction in the mempool", || {
            let pool = self.call(&["getrawmempool"]).ok()?;
            pool.as_array().filter(|pool| !pool.is_empty()).map(|_| ())
        });
        self.generate(blocks);
    }
}

impl Drop for Bitcoind {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
