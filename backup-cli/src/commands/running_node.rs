//! What a running node is asked, at lightningd's RPC socket.

use std::time::Duration;

use cln_rpc::ClnRpc;
use lockstep_node::LightningDir;
use serde_json::{Value, json};

/// While a transaction waits for a destination lightningd answers nobody.
const PATIENCE: Duration = Duration::from_secs(20);

/// Has the plugin read `backup.lock` again, and go on at the destinations that it names now.
///
/// # Errors
/// Why it does not, in words.
pub fn reload(node: &LightningDir) -> Result<(), String> {
    ask(node, "backup-reload", &json!({})).map(drop)
}

/// Calls a method.
///
/// # Errors
/// Why there is no answer, in words.
pub fn ask(node: &LightningDir, method: &str, params: &Value) -> Result<Value, String> {
    let socket = node.rpc_socket();
    let ask = async {
        let mut rpc = ClnRpc::new(&socket).await.map_err(|error| error.to_string())?;
        let answer = rpc.call_raw::<Value, Value>(method, params).await;
        answer.map_err(|error| error.message)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, ask)
            .await
            .unwrap_or_else(|_| Err(format!("it has not answered for {} s", PATIENCE.as_secs())))
    })
}
