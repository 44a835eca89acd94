//! Opening a log that has several places: which of them answer, and which has the newest state.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::ground::Ground;
use super::policy::Policy;
use crate::config::NamedDestination;
use crate::error::{Error, Result};
use crate::log::LogEnd;
use crate::seal::KeyRing;
use crate::store::Store;

/// A place that answered: its store, and where its log ends.
pub type Answer = Result<(Arc<dyn Store>, LogEnd)>;

/// Opens one place.
///
/// # Errors
/// Where it does not answer, or holds another store, or no log that ends well.
pub fn open_one(ground: &Ground, destination: &NamedDestination, keys: &KeyRing) -> Answer {
    let store = ground.open(destination, keys.store())?;
    let end = LogEnd::read(&*store, keys)?;
    Ok((store, end))
}

/// Opens all places at once, each for no longer than `patience`.
pub fn open_all(
    ground: &Ground,
    destinations: &[NamedDestination],
    keys: &KeyRing,
    patience: Duration,
) -> Vec<Answer> {
    let (keys, own) = (keys.clone(), ground.clone());
    ground.ask_each(destinations, patience, move |destination| open_one(&own, destination, &keys))
}

/// Asks all places something at once, each for no longer than `patience`: one that hangs in the operating system,
/// as a mount whose server is gone, is left to itself.
pub fn ask_each<T: Send + 'static>(
    destinations: &[NamedDestination],
    patience: Duration,
    question: impl Fn(&NamedDestination) -> Result<T> + Clone + Send + 'static,
) -> Vec<Result<T>> {
    let (sender, answers) = channel();
    for (index, destination) in destinations.iter().enumerate() {
        let (sender, destination) = (sender.clone(), destination.clone());
        let question = question.clone();
        // Nobody may listen any more.
        thread::spawn(move || drop(sender.send((index, question(&destination)))));
    }
    drop(sender);
    let until = Instant::now() + patience;
    let mut given: Vec<Option<Result<T>>> = destinations.iter().map(|_| None).collect();
    while let Ok((index, answer)) =
        answers.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        given[index] = Some(answer);
    }
    let unanswered = |destination: &NamedDestination| Error::Refused {
        what: format!("'{}' has not answered for {} s", destination.url, patience.as_secs()),
        hint: "check the disk or network behind it.".into(),
    };
    let answers = given.into_iter().zip(destinations);
    answers.map(|(answer, of)| answer.unwrap_or_else(|| Err(unanswered(of)))).collect()
}

/// The number of the place that has the newest state, of those that count.
///
/// # Errors
/// [`Error::Refused`] where fewer answered than an append needs, with what each of the others said; where none did
/// and all say the same, that.
pub fn newest(
    destinations: &[NamedDestination],
    policy: Policy,
    answers: &mut Vec<Answer>,
) -> Result<usize> {
    let counts = |index: &usize| destinations[*index].mode.is_sync();
    let good: Vec<usize> =
        (0..answers.len()).filter(counts).filter(|&index| answers[index].is_ok()).collect();
    if good.is_empty()
        && let Some(first) = answers.iter().position(Result::is_err)
        && let Err(error) = answers.swap_remove(first)
    {
        return Err(error);
    }
    if good.len() < policy.to_acknowledge() {
        let words: Vec<String> = answers
            .iter()
            .zip(destinations)
            .filter_map(|(answer, of)| Some(format!("'{}': {}", of.name, answer.as_ref().err()?)))
            .collect();
        return Err(Error::Refused {
            what: format!(
                "{} of the destinations that count must answer, {} did ({})",
                policy.to_acknowledge(),
                good.len(),
                words.join("; ")
            ),
            hint: "bring back what does not answer; or 'backup-cli destination remove' it.".into(),
        });
    }
    let ends: Vec<(usize, &LogEnd)> =
        good.iter().filter_map(|&index| Some((index, &answers[index].as_ref().ok()?.1))).collect();
    match leading(&ends, policy) {
        Ok(index) => Ok(index),
        Err((one, other)) => Err(Error::TwoHistories {
            one: destinations[one].url.to_string(),
            other: destinations[other].url.to_string(),
            at: answers[one].as_ref().map_or(String::new(), |(_, end)| end.segment.to_string()),
        }),
    }
}

/// The place whose log ends in the newest epoch, and furthest in it: it has all that was acknowledged, if that is
/// certain. Else that one and the other.
///
/// It is not where the newest writer may have died before its first record was acknowledged, and another place
/// has a record of an older writer's under the same number, which may have been.
///
/// # Errors
/// The numbers of the two places.
pub fn leading(ends: &[(usize, &LogEnd)], policy: Policy) -> Result<usize, (usize, usize)> {
    let newest = ends.iter().max_by_key(|(_, end)| end.age());
    let Some(&(index, newest)) = newest else { return Ok(0) };
    let first = newest.segment.first_seq;
    let alike = ends.iter().filter(|(_, end)| end.position == newest.position).count();
    let acknowledged = newest.position.seq > first || alike >= policy.to_acknowledge();
    for &(other, end) in ends.iter().filter(|(_, end)| end.epoch < newest.epoch) {
        let beside = end.position.seq >= first;
        if beside && (!acknowledged || end.position.seq > first) {
            return Err((index, other));
        }
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::SegmentName;
    use crate::log::Position;
    use crate::record::{Destinations, Head};
    use crate::seal::Chain;

    fn end(epoch: u32, first_seq: u64, seq: u64) -> LogEnd {
        let mut chain = [epoch as u8; 32];
        chain[0] = seq as u8;
        LogEnd {
            position: Position { generation: 1, seq, chain: Chain(chain) },
            head: Head::default(),
            time: 0,
            batch_time: None,
            epoch,
            segment: SegmentName { generation: 1, epoch, index: 0, first_seq },
            directory: "d".into(),
            host: "h".into(),
            destinations: Destinations::default(),
            closed: false,
        }
    }

    fn lead(ends: &[LogEnd]) -> Result<usize, (usize, usize)> {
        let ends: Vec<(usize, &LogEnd)> = ends.iter().enumerate().collect();
        leading(&ends, Policy::new(3, Some(2)).unwrap())
    }

    #[test]
    fn the_furthest_of_the_newest_epoch_leads() {
        assert_eq!(lead(&[end(1, 1, 10), end(1, 1, 11), end(1, 1, 10)]), Ok(1));
        assert_eq!(lead(&[end(1, 1, 11), end(2, 11, 15), end(2, 11, 14)]), Ok(1));
    }

    /// It began a segment, failed, and began another with the same number, which was acknowledged.
    #[test]
    fn of_one_writer_the_later_segment_leads() {
        let later = end(2, 11, 11);
        let later = LogEnd { segment: SegmentName { index: 1, ..later.segment }, ..later };
        assert_eq!(lead(&[later.clone(), later.clone(), end(2, 11, 11)]), Ok(1));
        assert_eq!(lead(&[end(2, 11, 11), later.clone(), later]), Ok(2));
    }

    #[test]
    fn a_record_that_nobody_was_told_of_does_not_matter() {
        // The open record of epoch 2 was acknowledged: by what follows it, or by two that have it.
        assert_eq!(lead(&[end(1, 1, 11), end(2, 11, 12)]), Ok(1));
        assert_eq!(lead(&[end(1, 1, 11), end(2, 11, 11), end(2, 11, 11)]), Ok(2));
    }

    #[test]
    fn where_it_is_not_certain_nobody_leads() {
        assert_eq!(lead(&[end(1, 1, 11), end(2, 11, 11)]), Err((1, 0)));
        assert_eq!(lead(&[end(1, 1, 12), end(2, 11, 15)]), Err((1, 0)));
    }
}
