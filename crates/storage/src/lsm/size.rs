//! How large ranges are, and where their middle is, from indexes alone.

use super::Inner;
use crate::engine::KeyRange;
use crate::error::Result;
use crate::iter::bounds;
use crate::key::KEYSPACE_BYTES;
use crate::levels::TableFile;
use crate::options::KeyspaceId;

/// With more tables than this in a range, their ends are known well enough.
const TABLES_TO_OPEN: usize = 32;

impl Inner {
    pub(super) fn approximate_bytes(&self, id: KeyspaceId, range: KeyRange<'_>) -> Result<u64> {
        self.keyspaces.get(id)?;
        let (lower, upper) = bounds(id, range.lower, range.upper);
        let state = self.state();
        let mut bytes = 0;
        for table in state.levels.iter().flatten() {
            bytes += bytes_in(table, &lower, upper.as_deref())?;
        }
        Ok(bytes)
    }

    pub(super) fn approximate_middle_key(
        &self,
        id: KeyspaceId,
        range: KeyRange<'_>,
    ) -> Result<Option<Vec<u8>>> {
        self.keyspaces.get(id)?;
        let (lower, upper) = bounds(id, range.lower, range.upper);
        let inside =
            |p: &[u8]| p > lower.as_slice() && upper.as_deref().is_none_or(|upper| p < upper);
        let state = self.state();
        let tables = state.levels.iter().flatten();
        let mut concerned = Vec::new();
        for table in tables {
            let bytes = bytes_in(table, &lower, upper.as_deref())?;
            if bytes > 0 {
                concerned.push((table, bytes));
            }
        }
        // Places, and how many bytes lie before each and after the one before it.
        let mut marks: Vec<(Vec<u8>, u64)> = Vec::new();
        for (table, bytes) in &concerned {
            if concerned.len() > TABLES_TO_OPEN {
                marks.push((table.meta.properties.end.clone(), *bytes));
            } else {
                let add = |place: &[u8], size| {
                    if inside(place) {
                        marks.push((place.to_vec(), size + values_of(table, size)));
                    }
                };
                table.table()?.for_each_block(add)?;
            }
        }
        marks.sort();
        let total: u64 = marks.iter().map(|(_, size)| size).sum();
        let mut sum = 0;
        let middle = marks.into_iter().find(|(_, size)| {
            sum += size;
            sum * 2 >= total
        });
        let middle = middle.map(|(place, _)| place).filter(|place| inside(place));
        Ok(middle.map(|place| place.get(KEYSPACE_BYTES..).unwrap_or_default().to_vec()))
    }
}

/// About how many bytes a table spends on places from `lower` to below `upper`.
fn bytes_in(table: &TableFile, lower: &[u8], upper: Option<&[u8]>) -> Result<u64> {
    let p = &table.meta.properties;
    if !p.overlaps(lower, upper) {
        return Ok(0);
    }
    if p.is_within(lower, upper) {
        return Ok(table.meta.size_bytes + p.apart().bytes);
    }
    let open = table.table()?;
    let from = open.offset_of(lower)?;
    let to = match upper {
        Some(upper) => open.offset_of(upper)?,
        None => table.meta.size_bytes,
    };
    let bytes = to.saturating_sub(from);
    Ok(bytes + values_of(table, bytes))
}

/// What values apart add to so many bytes of a table, as if they were spread evenly over it.
fn values_of(table: &TableFile, bytes: u64) -> u64 {
    let apart = table.meta.properties.apart().bytes;
    let part = u128::from(apart) * u128::from(bytes) / u128::from(table.meta.size_bytes.max(1));
    part as u64
}
