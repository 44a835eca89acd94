//! What a place really does about two creates of one name. Many that speak S3 overwrite, whatever they are asked.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use object_store::{Error, PutMode};

use super::client::{Client, Result};
use super::remote_error::explain;
use crate::hex;
use crate::store::StoreErrorKind;

/// A place that refuses so many creates, and overwrites each time, does not know them.
const REFUSALS: u32 = 4;
/// Creates that race for one name.
const RACERS: u8 = 8;

/// True where of several creates of one name, one after the other and at once, exactly one ends well, and where what
/// was written is read and listed at once.
///
/// # Errors
/// Where the place cannot be written to at all.
pub async fn probe(client: &Client) -> Result<bool> {
    if !client.can_create() {
        return Ok(false);
    }
    let token: [u8; 8] = crate::seal::random_token()
        .map_err(|error| StoreErrorKind::Io(std::io::Error::other(error)))?;
    let folder = format!("probe-{}", hex::encode(&token));
    let found = exclusive(client, &folder).await;
    for name in ["sequence", "race"] {
        // Best effort: what is left has a name of no known form, and is ignored.
        let _ = client.remove(&format!("{folder}/{name}")).await;
    }
    found
}

async fn exclusive(client: &Client, folder: &str) -> Result<bool> {
    let name = format!("{folder}/sequence");
    let create = |name: String, body: u8| async move {
        client.put(&name, Bytes::from(vec![body; 64]), PutMode::Create).await
    };
    let mut refusals = 0;
    loop {
        match create(name.clone(), 1).await {
            // An answer may have been lost: the object is ours then.
            Ok(()) | Err(Error::AlreadyExists { .. }) => break,
            Err(refused) => {
                // Whether the request is not known here, or nothing works at all.
                let plain = client.put(&name, Bytes::from(vec![1; 64]), PutMode::Overwrite).await;
                plain.map_err(|_| explain(refused))?;
            }
        }
        // One that was lost says nothing of the place, and a writer that took it for another would fence nobody.
        refusals += 1;
        if refusals == REFUSALS {
            return Ok(false);
        }
        client.rest(refusals, Duration::MAX).await;
    }
    match create(name.clone(), 2).await {
        Err(Error::AlreadyExists { .. }) => {}
        Ok(()) => return Ok(false),
        Err(lost) => return Err(explain(lost)),
    }
    if client.read(&name).await? != vec![1; 64] {
        return Ok(false);
    }
    let race = format!("{folder}/race");
    let racers = (0..RACERS).map(|body| create(race.clone(), body));
    let ended = join_all(racers).await;
    let winners = ended.iter().filter(|ended| ended.is_ok()).count();
    let found = client.read(&race).await?;
    let stands = ended.iter().zip(0_u8..).any(|(ended, body)| {
        // The winner's answer may be lost; then all say that it exists.
        (ended.is_ok() || winners == 0) && found == vec![body; 64]
    });
    let listed = client.list(folder).await?.len() == 2;
    Ok(winners <= 1 && stands && listed)
}
