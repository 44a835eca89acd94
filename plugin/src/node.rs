//! Everything that is not `db_write`: manifest, RPC methods, and the node's secret, by `cln-plugin` on a
//! thread of its own. What goes wrong here never stops a backup.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use cln_plugin::messages::NotificationTopic;
use cln_plugin::{Builder, Plugin};
use cln_rpc::ClnRpc;
use lockstep_proto::hex;
use lockstep_proto::slots::{self, Lock, NODE_SECRET_INFO};
use serde_json::{Value, json};
use tokio::io::AsyncWrite;
use zeroize::Zeroizing;

use crate::status::{DestinationStatus, SharedStatus};
use crate::wire::{Level, Output};

/// Other plugins are told when a destination is not current any more, …
const DEGRADED: &str = "backup_degraded";
/// … and when all are again.
const RECOVERED: &str = "backup_recovered";
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The thread of `cln-plugin`, and the way to it.
pub struct NodeSide {
    messages: UnixStream,
    broken: bool,
    output: Arc<Output>,
}

impl NodeSide {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where there can be no thread or no pair of sockets.
    pub fn start(output: Arc<Output>, status: SharedStatus) -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("failed to make a pair of sockets")?;
        theirs.set_nonblocking(true).context("failed to set up a socket")?;
        let log = output.clone();
        std::thread::Builder::new()
            .name("cln-plugin".into())
            .spawn(move || {
                if let Err(error) = serve(theirs, &log, status) {
                    log.log(Level::Unusual, &format!("RPC methods have ended: {error:#}"));
                }
            })
            .context("failed to start a thread")?;
        Ok(Self { messages: ours, broken: false, output })
    }

    /// Hands a message on.
    pub fn forward(&mut self, message: &[u8]) {
        let sent = self.messages.write_all(message).and_then(|()| self.messages.write_all(b"\n\n"));
        if let (Err(error), false) = (sent, self.broken) {
            self.broken = true;
            let line = format!("RPC methods are not available any more: {error}");
            self.output.log(Level::Unusual, &line);
        }
    }
}

fn serve(messages: UnixStream, output: &Arc<Output>, status: SharedStatus) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let input = tokio::net::UnixStream::from_std(messages)?;
        let answers = WholeMessages { buffer: Vec::new(), output: output.clone() };
        let configured = Builder::new(input, answers)
            .hook("db_write", |_, _| async { Err(anyhow!("db_write is answered elsewhere")) })
            .rpcmethod("backup-status", "Show how the backup of this node is", backup_status)
            .rpcmethod(
                "backup-compact",
                "Make a snapshot of what changed, in the background",
                backup_compact,
            )
            .rpcmethod(
                "backup-reload",
                "Write to the destinations that backup.lock names now",
                |_, _| async { Err(anyhow!("backup-reload is answered elsewhere")) },
            )
            // Without a subscription lightningd ends a plugin before its own last writes.
            .subscribe("shutdown", |_, _| async { Ok(()) })
            .notification(NotificationTopic::new(DEGRADED))
            .notification(NotificationTopic::new(RECOVERED))
            .with_logging(false)
            .configure()
            .await?;
        let Some(configured) = configured else { return Ok(()) };
        let configuration = configured.configuration();
        let socket = Path::new(&configuration.lightning_dir).join(&configuration.rpc_file);
        let plugin = configured.start(status.clone()).await?;
        tokio::spawn(tell_others(plugin.clone()));
        tokio::spawn(look_around(socket, status, output.clone()));
        plugin.join().await
    })
}

async fn backup_status(plugin: Plugin<SharedStatus>, _params: Value) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(plugin.state().answer())?)
}

async fn backup_compact(plugin: Plugin<SharedStatus>, _params: Value) -> anyhow::Result<Value> {
    let request = plugin.state().compactor().request();
    Ok(serde_json::to_value(request.ok_or_else(|| anyhow!("the backup is not open"))?)?)
}

/// For as long as lightningd listens.
async fn tell_others(plugin: Plugin<SharedStatus>) {
    let mut degraded = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let status = plugin.state().answer();
        if status.is_degraded() == degraded {
            continue;
        }
        degraded = !degraded;
        let topic = if degraded { DEGRADED } else { RECOVERED };
        let place = |of: &DestinationStatus| json!({ "name": of.name, "state": of.state, "error": of.error });
        let destinations: Vec<Value> = status.destinations.iter().map(place).collect();
        let payload = json!({ "destinations": destinations });
        if plugin.send_custom_notification(topic.into(), payload).await.is_err() {
            return;
        }
    }
}

/// What is done once, when lightningd runs.
async fn look_around(socket: PathBuf, status: SharedStatus, output: Arc<Output>) {
    keep_node_slot(&socket, &status, &output).await;
    if let Ok(false) = is_important(&socket).await {
        let warning = "this plugin is not important to lightningd, which goes on without a backup if it dies. \
                       hint: write important-plugin= instead of plugin= in lightningd's config";
        output.log(Level::Unusual, warning);
        status.lock().warnings.push(warning.into());
    }
}

/// True where lightningd stops when this program dies. The path may be given through a link.
async fn is_important(socket: &Path) -> anyhow::Result<bool> {
    let mut rpc = ClnRpc::new(socket).await.context("connect to lightningd")?;
    let params = json!({ "config": "important-plugin" });
    let answer: Value = rpc.call_raw("listconfigs", &params).await.context("listconfigs")?;
    let own = std::env::current_exe()?.canonicalize()?;
    let values = answer.pointer("/configs/important-plugin/values_str");
    let paths = values.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    Ok(paths.into_iter().any(|path| {
        let path = Path::new(path);
        path.canonicalize().is_ok_and(|path| path == own) || path.file_name() == own.file_name()
    }))
}

/// Adds the slot that the node's own secret opens, where init could not: a fresh node had no secret
/// yet, and one with a remote signer has no file.
async fn keep_node_slot(socket: &Path, status: &SharedStatus, output: &Output) {
    if status.lock().slots.iter().any(|slot| slot == "node") {
        return;
    }
    match add_node_slot(socket, status).await {
        Ok(()) => output.log(
            Level::Info,
            "key slot 'node' added: the words or hsm_secret of this node open the backup",
        ),
        Err(error) => output.log(
            Level::Unusual,
            &format!("key slot 'node' could not be added: {error:#}; without '{}' nothing opens the backup", "backup.key"),
        ),
    }
}

async fn add_node_slot(socket: &Path, status: &SharedStatus) -> anyhow::Result<()> {
    let mut rpc = ClnRpc::new(socket).await.context("connect to lightningd")?;
    let params = json!({ "string": NODE_SECRET_INFO });
    let answer: Value = rpc.call_raw("makesecret", &params).await.context("makesecret")?;
    let secret = answer.get("secret").and_then(Value::as_str).unwrap_or_default();
    let secret = hex::decode::<32>(secret).ok_or_else(|| anyhow!("makesecret gave no secret"))?;
    let keys = status.key_slots().ok_or_else(|| anyhow!("the store is not open yet"))?;
    slots::add(&*keys.store, &keys.keys, &Lock::Node(Zeroizing::new(secret)))?;
    let names = slots::list(&*keys.store)?.into_iter().map(|slot| slot.name).collect();
    status.lock().set_slots(names);
    Ok(())
}

/// Passes on only whole messages, so that those of two threads never mix.
struct WholeMessages {
    buffer: Vec<u8>,
    output: Arc<Output>,
}

impl AsyncWrite for WholeMessages {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.buffer.extend_from_slice(bytes);
        if let Some(at) = memchr::memmem::rfind(&self.buffer, b"\n\n") {
            let rest = self.buffer.split_off(at + 2);
            let whole = std::mem::replace(&mut self.buffer, rest);
            self.output.send_bytes(&whole);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
