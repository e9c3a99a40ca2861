//! Merging ordered streams.

use std::cmp::Ordering;

use futures_util::future::join_all;
use futures_util::stream::{self, Stream, StreamExt};

use crate::{Error, ErrorKind, Result};

struct Merge<T, S, F> {
    streams: Vec<S>,
    heads: Vec<Option<T>>,
    order: F,
    begun: bool,
    ended: bool,
}

/// Merges streams that are each in order into one that is. It holds one row of each.
///
/// Rows that are equal come in the order of the streams. After an error nothing more comes: what is missing
/// may have belonged before what would follow. A stream that is not in order is found, as `Invalid`.
pub fn merge<T, S, F>(streams: Vec<S>, order: F) -> impl Stream<Item = Result<T>>
where
    S: Stream<Item = Result<T>> + Unpin,
    F: Fn(&T, &T) -> Ordering,
{
    let merge = Merge {
        heads: streams.iter().map(|_| None).collect(),
        streams,
        order,
        begun: false,
        ended: false,
    };
    stream::unfold(merge, |mut merge| async move {
        if merge.ended {
            return None;
        }
        match merge.next().await {
            Ok(row) => row.map(|row| (Ok(row), merge)),
            Err(error) => {
                merge.ended = true;
                Some((Err(error), merge))
            }
        }
    })
}

impl<T, S, F> Merge<T, S, F>
where
    S: Stream<Item = Result<T>> + Unpin,
    F: Fn(&T, &T) -> Ordering,
{
    async fn next(&mut self) -> Result<Option<T>> {
        if !self.begun {
            self.begun = true;
            // All at once: the slowest is waited for, not their sum.
            let first = join_all(self.streams.iter_mut().map(StreamExt::next)).await;
            for (head, row) in self.heads.iter_mut().zip(first) {
                *head = row.transpose()?;
            }
        }
        let filled = self.heads.iter().enumerate();
        let filled = filled.filter_map(|(at, head)| Some((at, head.as_ref()?)));
        // `min_by` gives the first of equals.
        let Some((at, _)) = filled.min_by(|(_, a), (_, b)| (self.order)(a, b)) else {
            return Ok(None);
        };
        let next = self.streams[at].next().await.transpose()?;
        if let (Some(next), Some(last)) = (&next, &self.heads[at])
            && (self.order)(next, last) == Ordering::Less
        {
            let text =
                format!("the rows of stream {at} are not in the order that they are merged by");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(std::mem::replace(&mut self.heads[at], next))
    }
}
