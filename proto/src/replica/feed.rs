//! What is being written, for destinations that are not all equally fast. No I/O.
//!
//! The writer makes steps: a segment begins, a record is appended, the segment ends. Each destination makes the same
//! steps at its own pace, from the segments that are kept here: the one that is being written, and before it
//! as many as there is room for. One that is further behind must be brought up from another destination.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::layout::SegmentName;

/// Bytes of ended segments that are kept for who is slow.
const KEPT_BYTES: usize = 16 << 20;

/// The newest segments, as steps; a destination has done so many of them, counted from the first.
#[derive(Debug, Default)]
pub struct Feed {
    segments: VecDeque<Segment>,
    /// Steps made so far.
    steps: u64,
}

/// A segment as far as it is written.
#[derive(Debug)]
struct Segment {
    name: SegmentName,
    header: Arc<[u8]>,
    records: Vec<Arc<[u8]>>,
    bytes: usize,
    ended: bool,
    /// The number of the step that begins it.
    first: u64,
}

impl Segment {
    /// The number of the step after its last.
    fn end(&self) -> u64 {
        self.first + 1 + self.records.len() as u64 + u64::from(self.ended)
    }
}

/// What a destination has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Begin a segment.
    Begin(SegmentName, Arc<[u8]>),
    /// Append a record to it.
    Record(SegmentName, Arc<[u8]>),
    /// End it.
    End,
}

/// Where a destination is.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// It has done everything.
    Nothing,
    /// It does this.
    Step(Step),
    /// What it has to do next is not kept any more.
    Lost,
}

/// A segment to go on with, all that is known of it at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Resume {
    /// Its name.
    pub name: SegmentName,
    /// Its header.
    pub header: Arc<[u8]>,
    /// Its records so far.
    pub records: Vec<Arc<[u8]>>,
    /// What is done once it is written so.
    pub done: u64,
}

impl Feed {
    /// A segment begins.
    pub fn begin(&mut self, name: SegmentName, header: &[u8]) {
        let first = self.steps;
        let header: Arc<[u8]> = header.into();
        let (records, bytes, ended) = (Vec::new(), header.len(), false);
        self.segments.push_back(Segment { name, header, records, bytes, ended, first });
        self.steps += 1;
    }

    /// A record is appended to the newest segment. Gives the number of steps with this one; `None` where it is not
    /// this segment's turn any more.
    pub fn record(&mut self, name: SegmentName, bytes: &[u8]) -> Option<u64> {
        let segment = self.segments.back_mut().filter(|segment| segment.name == name)?;
        segment.bytes += bytes.len();
        segment.records.push(bytes.into());
        self.steps += 1;
        Some(self.steps)
    }

    /// The newest segment ends, if it is this one.
    pub fn end(&mut self, name: SegmentName) {
        if let Some(segment) = self.segments.back_mut().filter(|segment| segment.name == name) {
            segment.ended = true;
            self.steps += 1;
        }
    }

    /// Forgets everything: nobody takes the steps any more that were made up to here.
    pub fn clear(&mut self) {
        self.segments.clear();
    }

    /// Steps made so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The oldest segment that is kept, once there is one, and what is done by who has all before it.
    pub fn oldest(&self) -> Option<(SegmentName, u64)> {
        self.segments.front().map(|segment| (segment.name, segment.first))
    }

    /// The header of that segment.
    pub fn oldest_header(&self) -> Option<&[u8]> {
        self.segments.front().map(|segment| &*segment.header)
    }

    /// What comes next for who has done so many.
    pub fn next(&self, done: u64) -> Next {
        if done >= self.steps {
            return Next::Nothing;
        }
        let Some(segment) = self.holding(done) else { return Next::Lost };
        let at = done - segment.first;
        let record = |at: u64| segment.records.get(usize::try_from(at).ok()?);
        Next::Step(match at.checked_sub(1) {
            None => Step::Begin(segment.name, segment.header.clone()),
            Some(at) => match record(at) {
                Some(record) => Step::Record(segment.name, record.clone()),
                None => Step::End,
            },
        })
    }

    /// The segment in which who has done so many is, or which it begins next, whole; `None` where that is lost, or
    /// not begun.
    pub fn resume(&self, done: u64) -> Option<Resume> {
        // Of the newest all may be done, and more to come. Not of one that was given up before it was ended.
        let newest = self.segments.back().filter(|of| done == of.end() && !of.ended);
        let segment = self.holding(done).or(newest)?;
        let (name, header) = (segment.name, segment.header.clone());
        let done = segment.first + 1 + segment.records.len() as u64;
        Some(Resume { name, header, records: segment.records.clone(), done })
    }

    fn holding(&self, step: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| (segment.first..segment.end()).contains(&step))
    }

    /// Forgets ended segments that everybody has done, and the oldest where there are too many bytes; never the newest.
    /// `slowest` is what the slowest has done that is not lost already.
    pub fn forget(&mut self, slowest: u64) {
        let mut bytes: usize = self.segments.iter().map(|segment| segment.bytes).sum();
        while self.segments.len() > 1
            && let Some(front) = self.segments.front()
            && (front.end() <= slowest || bytes > KEPT_BYTES)
        {
            bytes -= front.bytes;
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(index: u32) -> SegmentName {
        SegmentName { generation: 1, epoch: 1, index, first_seq: u64::from(index) }
    }

    /// All steps from `done` on, as one would do them.
    fn steps_from(feed: &Feed, mut done: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Next::Step(step) = feed.next(done) {
            steps.push(step);
            done += 1;
        }
        assert_eq!(feed.next(done), Next::Nothing);
        steps
    }

    fn fed() -> Feed {
        let mut feed = Feed::default();
        for index in 0..3 {
            feed.begin(name(index), b"header");
            feed.record(name(index), b"open").unwrap();
            feed.record(name(index), b"batch").unwrap();
            if index < 2 {
                feed.end(name(index));
            }
        }
        feed
    }

    #[test]
    fn steps_are_those_that_were_made() {
        let feed = fed();
        let steps = steps_from(&feed, 0);
        assert_eq!(steps.len() as u64, feed.steps());
        assert_eq!(steps[4], Step::Begin(name(1), b"header"[..].into()));
        assert_eq!(steps[6], Step::Record(name(1), b"batch"[..].into()));
        assert_eq!(steps[7], Step::End);
        for done in 0..=feed.steps() {
            assert_eq!(steps_from(&feed, done), steps[done as usize..]);
        }
    }

    #[test]
    fn who_resumes_has_the_whole_segment_and_does_the_rest() {
        let feed = fed();
        let steps = steps_from(&feed, 0);
        for done in 0..=feed.steps() {
            let resume = feed.resume(done).unwrap();
            let index = (done / 4).min(2);
            assert_eq!(resume.name, name(index as u32), "{done}");
            assert_eq!(resume.records.len(), 2);
            assert_eq!(resume.done, index * 4 + 3);
            assert_eq!(steps_from(&feed, resume.done), steps[resume.done as usize..]);
        }
    }

    /// The writer gives a segment up, where its record was not acknowledged, and begins another.
    #[test]
    fn who_has_all_of_a_segment_that_was_given_up_resumes_with_the_next() {
        let mut feed = Feed::default();
        for index in 0..2 {
            feed.begin(name(index), b"header");
            feed.record(name(index), b"open").unwrap();
        }
        let resume = feed.resume(2).unwrap();
        assert_eq!((resume.name, resume.done), (name(1), 4));
        assert_eq!(feed.resume(4).unwrap().name, name(1));
    }

    #[test]
    fn only_the_newest_segment_goes_on() {
        let mut feed = fed();
        let steps = feed.steps();
        assert_eq!(feed.record(name(1), b"batch"), None);
        feed.end(name(1));
        assert_eq!((feed.steps(), feed.next(steps)), (steps, Next::Nothing));
        feed.clear();
        assert_eq!(feed.record(name(2), b"batch"), None);
        feed.end(name(2));
        assert_eq!((feed.steps(), feed.next(steps), feed.oldest()), (steps, Next::Nothing, None));
        feed.begin(name(3), b"header");
        assert_eq!(steps_from(&feed, steps), [Step::Begin(name(3), b"header"[..].into())]);
    }

    #[test]
    fn what_is_forgotten_is_lost_but_never_the_newest_segment() {
        let mut feed = fed();
        feed.forget(3);
        assert_eq!(feed.oldest(), Some((name(0), 0)));
        feed.forget(4);
        assert_eq!(feed.oldest(), Some((name(1), 4)));
        assert_eq!(feed.next(3), Next::Lost);
        assert!(feed.resume(3).is_none());
        feed.forget(u64::MAX);
        assert_eq!(feed.oldest(), Some((name(2), 8)));
        assert_eq!(steps_from(&feed, 8).len(), 3);
    }

    #[test]
    fn who_is_too_slow_is_not_waited_for() {
        let mut feed = fed();
        feed.record(name(2), &vec![0; KEPT_BYTES]).unwrap();
        feed.forget(0);
        assert_eq!(feed.oldest(), Some((name(2), 8)), "it is kept, however large it is");
    }

    #[test]
    fn no_more_is_forgotten_than_makes_room() {
        let mut feed = Feed::default();
        for index in 0..4 {
            feed.begin(name(index), b"header");
            feed.record(name(index), &vec![0; KEPT_BYTES / 3]).unwrap();
            feed.end(name(index));
        }
        feed.forget(0);
        assert_eq!(feed.oldest(), Some((name(2), 6)));
    }
}
