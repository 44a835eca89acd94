//! Two nodes, channels between them, and what goes on there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use serde_json::{Value, json};

use super::bitcoind::Bitcoind;
use super::daemons::Daemons;
use super::lightningd::{Caller, Node, NodeOptions, text};
use super::wait::wait_for;

/// What shows in a log that a channel was lost, or that a node came back with an old state.
const LOSSES: [&str; 6] = [
    "Peer permanent failure",
    "AWAITING_UNILATERAL",
    "racking our own unilateral",
    "racking their unilateral",
    "bad reestablish",
    "They have future commitment",
];
/// How lightningd puts it that it sees a close on the chain, also one that both agreed on.
const CLOSED: &str = "Funding transaction spent";
/// A channel in use, which nobody has agreed to close.
const IN_USE: &str = "in CHANNELD_";
const CHANNEL_SAT: u64 = 10_000_000;

/// The node under backup, its peer, and the chain.
pub struct Pair {
    /// The chain.
    pub bitcoind: Bitcoind,
    /// The peer, without plugin.
    pub peer: Node,
    daemons: Daemons,
    directory: PathBuf,
}

impl Pair {
    /// Starts the chain and the peer in `directory`.
    pub fn start(daemons: &Daemons, directory: &Path) -> Self {
        let bitcoind = Bitcoind::start(daemons, &directory.join("bitcoin"));
        let peer = NodeOptions::new(daemons, &bitcoind, directory.join("peer")).without_plugin();
        let peer = lean(peer).start();
        let (daemons, directory) = (daemons.clone(), directory.to_owned());
        Self { bitcoind, peer, daemons, directory }
    }

    /// A node of the pair, not started.
    pub fn node(&self, name: &str) -> NodeOptions {
        lean(NodeOptions::new(&self.daemons, &self.bitcoind, self.directory.join(name)))
    }

    /// Gives the node coins, opens a channel and balances it.
    pub fn open_channel(&self, node: &Node) {
        self.fund(node);
        node.connect(&self.peer);
        self.open_another(node).expect("a channel");
        self.confirm_channels(node, 1);
    }

    /// Gives the node coins.
    pub fn fund(&self, node: &Node) {
        send_coins(&self.bitcoind, node);
        self.bitcoind.generate(1);
        wait_for_coins(&self.bitcoind, node);
    }

    /// Opens a channel that needs blocks yet; half of it is the peer's.
    pub fn open_another(&self, node: &Node) -> Result<(), String> {
        open_channel(&self.bitcoind, node, &self.peer)
    }

    /// Mines until this many channels work.
    pub fn confirm_channels(&self, node: &Node, count: usize) {
        self.bitcoind.confirm(6);
        self.wait_for_channels(node, count);
    }

    /// Waits until both nodes see this many channels working and connected.
    #[track_caller]
    pub fn wait_for_channels(&self, node: &Node, count: usize) {
        wait_for_channels(node, &self.peer, count);
    }

    /// Nothing says that a channel was closed by force or a state was old.
    #[track_caller]
    pub fn assert_nothing_lost(&self, node: &NodeOptions) {
        for (who, log) in [("the node", node.log()), ("the peer", self.peer.log())] {
            assert_eq!(log.lines().find(|line| tells_of_loss(line)), None, "in the log of {who}");
        }
    }
}

fn tells_of_loss(line: &str) -> bool {
    let in_order = line.contains(CLOSED) && !line.contains(IN_USE);
    LOSSES.iter().any(|loss| line.contains(loss)) && !in_order
}

/// Sends a node coins, which need a block yet.
pub fn send_coins(bitcoind: &Bitcoind, node: &Node) {
    let answer = node.call("newaddr", &[]);
    let address = answer["bech32"].as_str().or(answer["p2tr"].as_str()).expect("an address");
    bitcoind.send(address, "2");
}

/// Waits until a node has seen its coins.
#[track_caller]
pub fn wait_for_coins(bitcoind: &Bitcoind, node: &Node) {
    node.wait_for_height(bitcoind.height());
    wait_for("coins", || {
        let funds = node.try_call("listfunds", &[]).ok()?;
        let confirmed = |output: &Value| output["status"] == "confirmed";
        funds["outputs"].as_array()?.iter().any(confirmed).then_some(())
    });
}

/// Opens a channel that needs blocks yet; half of it is the peer's.
pub fn open_channel(bitcoind: &Bitcoind, node: &Node, peer: &Node) -> Result<(), String> {
    let params = [
        ("id", json!(peer.id())),
        ("amount", json!(CHANNEL_SAT)),
        ("push_msat", json!(CHANNEL_SAT * 500)),
        ("feerate", json!("1000perkw")),
    ];
    peer.wait_for_height(bitcoind.height());
    node.try_call("fundchannel", &params).map(drop)
}

/// Waits until both nodes see this many channels working and connected.
#[track_caller]
pub fn wait_for_channels(node: &Node, peer: &Node, count: usize) {
    for (node, words) in [(node, "channels of the node"), (peer, "channels of the peer")] {
        wait_for(words, || (working(&node.caller()) >= count).then_some(()));
    }
}

/// Without the plugins that no test here needs: each start takes a second less.
pub fn lean(options: NodeOptions) -> NodeOptions {
    let unneeded =
        ["autoclean", "cln-renepay", "commando", "exposesecret", "recklessrpc", "txprepare", "sql"];
    unneeded.iter().fold(options, |options, name| options.arg(format!("--disable-plugin={name}")))
}

/// How many channels work and are connected.
pub fn working(node: &Caller) -> usize {
    let Ok(answer) = node.call("listpeerchannels", &[]) else { return 0 };
    let Some(channels) = answer["channels"].as_array() else { return 0 };
    let works = |channel: &&Value| {
        channel["state"] == "CHANNELD_NORMAL" && channel["peer_connected"] == true
    };
    channels.iter().filter(works).count()
}

/// The ids of the channels that work, oldest first; none where the node does not answer.
pub fn channel_ids(node: &Caller) -> Vec<String> {
    let Ok(answer) = node.call("listpeerchannels", &[]) else { return Vec::new() };
    let channels = answer["channels"].as_array().expect("channels");
    let works = |channel: &&Value| channel["state"] == "CHANNELD_NORMAL";
    channels.iter().filter(works).map(|channel| text(channel, "channel_id")).collect()
}

/// A label that nothing has had yet, of whatever breaks naive quoting.
pub fn hostile_label(rng: &mut Rng) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    const PIECES: [&str; 12] = [
        "'",
        "''; DROP TABLE vars; --",
        "\"",
        "\n",
        "\\",
        "\u{1f4a5}\u{fe0f}",
        "\u{202e}",
        "%s?1",
        "\t\r\n",
        "x'00'",
        "\u{10ffff}",
        "/* ",
    ];
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let pieces = (0..rng.usize(1..5)).map(|_| PIECES[rng.usize(..PIECES.len())]);
    format!("{number} {}", pieces.collect::<String>())
}

/// Has `to` make an invoice with a hostile label, and `from` pay it.
pub fn pay(from: &Caller, to: &Caller, rng: &mut Rng) -> Result<(), String> {
    let invoice = to.call(
        "invoice",
        &[
            ("amount_msat", json!(rng.u64(1_000..2_000_000))),
            ("label", json!(hostile_label(rng))),
            ("description", json!(hostile_label(rng))),
            // A part of a payment whose other part died with the node is held for 70 s, and here
            // blocks come by the second.
            ("cltv", json!(500)),
        ],
    )?;
    let bolt11 = invoice["bolt11"].as_str().ok_or("no bolt11")?;
    let paid = from.call("pay", &[("bolt11", json!(bolt11)), ("retry_for", json!(20))])?;
    if paid["status"] == "complete" { Ok(()) } else { Err(paid.to_string()) }
}
