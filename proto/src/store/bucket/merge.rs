//! Putting the parts of a segment together: one object in place of a thousand.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::client::{Client, Result};
use crate::layout::SegmentName;
use crate::store::StoreErrorKind;
use crate::store::parts::{Partial, Tail};

/// The segments that can be put together, oldest first, and whether their first part must stay: all but the newest,
/// to which somebody may be writing. (Nobody can write to an older one: the number of its next record is taken.)
pub fn due(tail: Tail, merged: &BTreeSet<SegmentName>) -> Vec<(Partial, bool)> {
    let mut segments = tail.segments;
    segments.pop();
    let names: BTreeSet<SegmentName> =
        merged.iter().copied().chain(segments.iter().map(|partial| partial.name)).collect();
    let first_of_epoch = |name: SegmentName| {
        !names.iter().any(|other| other.epoch == name.epoch && other.first_seq < name.first_seq)
    };
    segments
        .into_iter()
        // Of one that was removed parts may have come back.
        .filter(|partial| merged.contains(&partial.name) || partial.check_gapless().is_ok())
        .map(|partial| {
            let keep_first = first_of_epoch(partial.name);
            (partial, keep_first)
        })
        .collect()
}

/// Puts a segment that nobody writes to any more together, reads it back, and removes its parts; but with `keep_first`
/// leaves the number of the first taken, where creates are `exclusive`.
///
/// Two that do this at once do it twice. Whatever interrupts it: the segment is there whole, or in parts, or
/// both.
///
/// # Errors
/// Where the server refuses; the parts are then still there.
pub async fn merge(
    client: &Client,
    partial: &Partial,
    exclusive: bool,
    keep_first: bool,
) -> Result<()> {
    let name = partial.name.to_string();
    let whole = match client.join(partial).await {
        Ok(whole) => Bytes::from(whole),
        // Some of its parts are gone: a merge was interrupted after it had read the whole back.
        Err(_) if client.exists(&name).await? => {
            return client.remove_parts(partial, exclusive && keep_first).await;
        }
        Err(error) => return Err(error),
    };
    match client.create(&name, whole.clone(), exclusive).await {
        // Another process was faster; the bytes are compared.
        Ok(()) | Err(StoreErrorKind::Exists) => {}
        Err(error) => return Err(error),
    }
    // Longer where another process removed the last parts while this one listed them.
    if !client.read(&name).await?.starts_with(&whole) {
        let what = "it was put together, and reads back as something else".to_owned();
        return Err(StoreErrorKind::Damaged(what));
    }
    client.remove_parts(partial, exclusive && keep_first).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::parts::Part;

    #[test]
    fn the_newest_stays_in_parts_and_the_first_of_an_epoch_leaves_its_number_taken() {
        let partial = |epoch, index, first_seq| Partial {
            name: SegmentName { generation: 1, epoch, index, first_seq },
            owned: false,
            parts: vec![Part { seq: first_seq, size: 200 }],
        };
        let merged = BTreeSet::from([partial(1, 0, 1).name]);
        let segments = vec![partial(1, 1, 9), partial(2, 0, 20), partial(2, 1, 30)];
        let due: Vec<_> = due(Tail { segments }, &merged)
            .into_iter()
            .map(|(partial, keep)| (partial.name.first_seq, keep))
            .collect();
        assert_eq!(due, [(9, false), (20, true)]);
    }
}
