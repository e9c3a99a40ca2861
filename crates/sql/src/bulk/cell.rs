//! A value of a row, and rows as PostgreSQL's `COPY` reads them.

/// A value on its way into a table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Cell {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating number.
    Float(f64),
    /// Text; the database parses it where the column is of another type, and the database allows that.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// The values of one row, in the order of the load's columns.
pub type Row = Vec<Cell>;

impl Cell {
    /// About how many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Cell::Null | Cell::Bool(_) => 1,
            Cell::Int(_) | Cell::Float(_) => 8,
            Cell::Text(text) => text.len(),
            Cell::Bytes(bytes) => bytes.len(),
        }
    }
}

/// Rows in the text format of `COPY`.
///
/// Errors: `Invalid` for text with a NUL, which PostgreSQL can't hold.
#[cfg(feature = "postgres")]
pub(crate) fn copy_text(rows: &[Row]) -> crate::Result<Vec<u8>> {
    let mut out = Vec::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at > 0 {
                out.push(b'\t');
            }
            copy_cell(cell, &mut out)?;
        }
        out.push(b'\n');
    }
    Ok(out)
}

#[cfg(feature = "postgres")]
fn copy_cell(cell: &Cell, out: &mut Vec<u8>) -> crate::Result<()> {
    match cell {
        Cell::Null => out.extend(b"\\N"),
        Cell::Bool(value) => out.push(if *value { b't' } else { b'f' }),
        Cell::Int(value) => out.extend(value.to_string().bytes()),
        Cell::Float(value) if value.is_infinite() => {
            out.extend(
                if *value > 0.0 {
                    "Infinity"
                } else {
                    "-Infinity"
                }
                .bytes(),
            );
        }
        Cell::Float(value) => out.extend(value.to_string().bytes()),
        Cell::Text(text) => {
            for byte in text.bytes() {
                match byte {
                    0 => {
                        let text = "PostgreSQL can't hold text with a NUL byte";
                        return Err(crate::Error::new(crate::ErrorKind::Invalid, text));
                    }
                    b'\\' => out.extend(b"\\\\"),
                    b'\n' => out.extend(b"\\n"),
                    b'\r' => out.extend(b"\\r"),
                    b'\t' => out.extend(b"\\t"),
                    byte => out.push(byte),
                }
            }
        }
        Cell::Bytes(bytes) => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            out.extend(b"\\\\x");
            for byte in bytes {
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
        }
    }
    Ok(())
}
