//! [`Ranges`]: a set of ids as sorted, disjoint, non-adjacent, inclusive ranges.

/// A set of ids. Invariant: `ranges` are sorted, each has `low <= high`, and between two of them at
/// least one id is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    ranges: Vec<(i64, i64)>,
}

impl Ranges {
    /// Adds one id.
    pub fn insert(&mut self, id: i64) {
        let at = self.ranges.partition_point(|(_, high)| *high < id);
        if self.ranges.get(at).is_some_and(|(low, _)| *low <= id) {
            return;
        }
        let left = at > 0 && self.ranges[at - 1].1 + 1 == id;
        let right = self.ranges.get(at).is_some_and(|(low, _)| *low == id + 1);
        match (left, right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = id,
            (false, true) => self.ranges[at].0 = id,
            (false, false) => self.ranges.insert(at, (id, id)),
        }
    }

    /// Forgets all ids up to this one, inclusive.
    pub fn remove_through(&mut self, id: i64) {
        let gone = self.ranges.partition_point(|(_, high)| *high <= id);
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut() {
            first.0 = first.0.max(id + 1);
        }
    }

    /// Whether the id is in the set.
    pub fn contains(&self, id: i64) -> bool {
        let at = self.ranges.partition_point(|(_, high)| *high < id);
        self.ranges.get(at).is_some_and(|(low, _)| *low <= id)
    }

    /// The largest id.
    pub fn last(&self) -> Option<i64> {
        self.ranges.last().map(|(_, high)| *high)
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ids it has.
    pub fn count(&self) -> i64 {
        self.ranges.iter().map(|(low, high)| high - low + 1).sum()
    }

    /// The ids above `floor` and below [`Ranges::last`] that are missing: their lows, their highs.
    pub fn gaps(&self, floor: i64) -> (Vec<i64>, Vec<i64>) {
        let mut before = floor;
        let mut gaps = (Vec::new(), Vec::new());
        for (low, high) in &self.ranges {
            if *low > before + 1 {
                gaps.0.push(before + 1);
                gaps.1.push(low - 1);
            }
            before = before.max(*high);
        }
        gaps
    }

    /// Every id. As long as [`Ranges::count`].
    pub fn ids(&self) -> Vec<i64> {
        self.ranges
            .iter()
            .flat_map(|(low, high)| *low..=*high)
            .collect()
    }

    /// As one flat list: low, high, low, high.
    pub fn to_flat(&self) -> Vec<i64> {
        self.ranges
            .iter()
            .flat_map(|(low, high)| [*low, *high])
            .collect()
    }

    /// From such a list; a list that breaks the invariant is `None`.
    pub fn from_flat(flat: &[i64]) -> Option<Ranges> {
        if !flat.len().is_multiple_of(2) {
            return None;
        }
        let mut ranges = Vec::new();
        for pair in flat.chunks_exact(2) {
            let follows = ranges
                .last()
                .is_none_or(|(_, high): &(i64, i64)| high + 1 < pair[0]);
            if pair[0] > pair[1] || !follows {
                return None;
            }
            ranges.push((pair[0], pair[1]));
        }
        Some(Ranges { ranges })
    }
}

impl FromIterator<i64> for Ranges {
    fn from_iter<I: IntoIterator<Item = i64>>(ids: I) -> Self {
        let mut made = Ranges::default();
        ids.into_iter().for_each(|id| made.insert(id));
        made
    }
}
