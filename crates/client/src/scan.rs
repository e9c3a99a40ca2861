//! Scans: one page, walked shard by shard in the order of encoded keys.
//!
//! A page token is a format byte, a direction byte and the encoded key after which the next page
//! begins. An unordered scan of a part of a hashed namespace walks all of it and picks what fits:
//! such a page ends after a bounded piece of the walk, so it may hold few entries, or none.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_kv::{Entry, Error, ErrorKind, Result, Scan, ScanOrder, ScanPage};
use quorate_sharding::{Answer, Operation, Shard};
use tokio::time::Instant;

use crate::NamespaceKv;
use crate::call::Call;
use crate::namespace::unexpected;
use crate::routes::Place;

const PAGE_FORMAT: u8 = 1;
/// What one shard may answer at once, in bytes of keys and values.
const ANSWER_BYTES_MAX: u32 = 1 << 20;
/// What a page may hold, in bytes of keys and values.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How many entries a walk that picks looks at for one page, at least.
const WALK_MIN: usize = 10_000;

/// A page as it grows.
struct Walk {
    /// What is left of the range, as encoded keys; an empty end: no end.
    start: Bytes,
    end: Bytes,
    reverse: bool,
    limit: usize,
    /// The range to pick from, as the user's keys.
    pick: Option<(Bytes, Bytes)>,
    entries: Vec<Entry>,
    bytes: usize,
    seen: usize,
}

impl NamespaceKv {
    pub(crate) async fn read_page(&self, scan: Scan) -> Result<ScanPage> {
        self.check_level(&scan.level)?;
        if scan.limit == 0 {
            return Err(invalid("a scan's limit is at least 1"));
        }
        let deadline = self.deadline(scan.timeout);
        let mut walk = self.begin(&scan)?;
        loop {
            if walk.is_over() {
                return Ok(walk.page(None));
            }
            let (shard, answer) = self.step(&walk, &scan, deadline).await?;
            let Answer::Scan {
                entries,
                more,
                last,
            } = answer
            else {
                return Err(unexpected(&answer));
            };
            if let Some(cut) = walk.take(entries) {
                let after = self.encoding.encode_bytes(&cut);
                return Ok(walk.page(Some(after)));
            }
            match &last {
                Some(last) if more => walk.go_past_key(last),
                _ => walk.go_past_shard(&shard),
            }
            if walk.is_full() && !walk.is_over() {
                return Ok(walk.page(last));
            }
        }
    }

    /// The walk of a scan: its range as encoded keys, after the page before.
    fn begin(&self, scan: &Scan) -> Result<Walk> {
        let reverse = scan.order == ScanOrder::KeyReverse;
        let (range, pick) = match self.encoding.encode_range(&scan.start, &scan.end) {
            Some(range) => (range, None),
            None if scan.order != ScanOrder::Unordered => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "a hashed namespace is scanned in order only within one routing prefix; \
                     over more of it ask for an unordered scan (ScanOrder::Unordered, --unordered)",
                ));
            }
            None => {
                let all = scan.start.is_empty() && scan.end.is_empty();
                let pick = (!all).then(|| (scan.start.clone(), scan.end.clone()));
                ((Bytes::new(), Bytes::new()), pick)
            }
        };
        let mut walk = Walk {
            start: range.0,
            end: range.1,
            reverse,
            limit: scan.limit,
            pick,
            entries: Vec::new(),
            bytes: 0,
            seen: 0,
        };
        if let Some(page) = &scan.page {
            let after = read_page_token(page, reverse)?;
            walk.go_past_key(&after);
        }
        Ok(walk)
    }

    /// Asks the next shard of the walk.
    async fn step(
        &self,
        walk: &Walk,
        scan: &Scan,
        deadline: Instant,
    ) -> Result<(std::sync::Arc<Shard>, Answer)> {
        let place = if walk.reverse {
            Place::Below(walk.end.clone())
        } else {
            Place::Holds(walk.start.clone())
        };
        let wanted = if walk.pick.is_some() {
            WALK_MIN
        } else {
            walk.limit - walk.entries.len()
        };
        let operation = Operation::Scan {
            start: walk.start.clone(),
            end: walk.end.clone(),
            limit: u32::try_from(wanted).unwrap_or(u32::MAX),
            limit_bytes: ANSWER_BYTES_MAX,
            reverse: walk.reverse,
            level: scan.level,
        };
        Call::new(&self.inner, self.id, place, operation, deadline)
            .run()
            .await
    }
}

impl Walk {
    fn is_over(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit
            || self.bytes >= PAGE_BYTES_MAX
            || (self.pick.is_some() && self.seen >= WALK_MIN)
    }

    /// Takes what is wanted of an answer. If that is not all of it, because the page is full,
    /// gives the last key that was taken.
    fn take(&mut self, entries: Vec<Entry>) -> Option<Bytes> {
        self.seen += entries.len();
        for entry in entries {
            let picked = self.pick.as_ref().is_none_or(|(start, end)| {
                entry.key >= *start && (end.is_empty() || entry.key < *end)
            });
            if !picked {
                continue;
            }
            if self.entries.len() == self.limit {
                return self.entries.last().map(|e| e.key.clone());
            }
            self.bytes += entry.key.len() + entry.value.len();
            self.entries.push(entry);
        }
        None
    }

    /// What is left begins after, or in reverse ends before, this encoded key.
    fn go_past_key(&mut self, encoded: &Bytes) {
        if self.reverse {
            self.end = encoded.clone();
        } else {
            let mut after = BytesMut::with_capacity(encoded.len() + 1);
            after.put_slice(encoded);
            after.put_u8(0);
            self.start = self.start.clone().max(after.freeze());
        }
    }

    /// What is left lies behind this shard.
    fn go_past_shard(&mut self, shard: &Shard) {
        let border = if self.reverse {
            &shard.start
        } else {
            &shard.end
        };
        if border.is_empty() {
            // The first or last shard of the namespace: nothing is left.
            self.start = Bytes::from_static(&[0]);
            self.end = self.start.clone();
        } else if self.reverse {
            self.end = border.clone();
        } else {
            self.start = border.clone();
        }
    }

    /// The page; `after` is the encoded key that the next one begins behind.
    fn page(self, after: Option<Bytes>) -> ScanPage {
        let next = after.map(|after| {
            let mut token = BytesMut::with_capacity(after.len() + 2);
            token.put_u8(PAGE_FORMAT);
            token.put_u8(self.reverse.into());
            token.put_slice(&after);
            token.freeze()
        });
        ScanPage {
            entries: self.entries,
            next,
        }
    }
}

fn read_page_token(token: &Bytes, reverse: bool) -> Result<Bytes> {
    match token.get(..2) {
        Some([PAGE_FORMAT, direction]) if *direction == u8::from(reverse) => Ok(token.slice(2..)),
        _ => Err(invalid("the page token is not of a scan like this one")),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}
