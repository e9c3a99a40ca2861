//! Debian package indexes: stanzas of `Field: value` lines between empty lines.
//!
//! The key is `name/architecture/version`, from the fields `Package`, `Architecture` and
//! `Version`; the value is the stanza's text, each line ended by `\n`.

use std::io::BufRead;

use bytes::Bytes;

use super::lines::Lines;
use super::{InputError, RECORD_BYTES_MAX, Record, Result, malformed};

const KEY_FIELDS: [&str; 3] = ["Package", "Architecture", "Version"];

/// A stanza as it is read.
#[derive(Default)]
struct Stanza {
    text: Vec<u8>,
    fields: [Option<Vec<u8>>; KEY_FIELDS.len()],
    /// The first thing that is wrong with it; the rest of it is passed over.
    wrong: Option<(u64, String)>,
}

/// The next stanza.
pub fn read(lines: &mut Lines<impl BufRead>) -> Result<Option<Record>> {
    let mut stanza = Stanza::default();
    let mut first = None;
    loop {
        let number = lines.number() + 1;
        match lines.next() {
            Ok(Some(line)) if line.iter().all(u8::is_ascii_whitespace) => {
                if let Some(first) = first {
                    return stanza.finish(first).map(Some);
                }
            }
            Ok(Some(line)) => {
                first.get_or_insert(number);
                stanza.add(number, line);
            }
            Ok(None) => return first.map(|first| stanza.finish(first)).transpose(),
            Err(InputError::Malformed { line, what }) => {
                first.get_or_insert(line);
                stanza.wrong.get_or_insert((line, what));
            }
            Err(error) => return Err(error),
        }
    }
}

impl Stanza {
    fn add(&mut self, number: u64, line: &[u8]) {
        if self.wrong.is_some() {
            return;
        }
        if self.text.len() + line.len() > RECORD_BYTES_MAX {
            let what = format!("the stanza is larger than {RECORD_BYTES_MAX} bytes");
            self.wrong = Some((number, what));
            self.text = Vec::new();
            return;
        }
        // A line that begins with a blank continues the field above; `#` begins a comment.
        if !matches!(line[0], b' ' | b'\t' | b'#') {
            let Some(colon) = line.iter().position(|b| *b == b':').filter(|at| *at > 0) else {
                self.wrong = Some((number, "not a `Field: value` line".into()));
                return;
            };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let wanted = |field: &&str| field.as_bytes().eq_ignore_ascii_case(name);
            if let Some(at) = KEY_FIELDS.iter().position(wanted) {
                self.fields[at].get_or_insert_with(|| value.to_vec());
            }
        }
        self.text.extend_from_slice(line);
        self.text.push(b'\n');
    }

    fn finish(self, first: u64) -> Result<Record> {
        if let Some((line, what)) = self.wrong {
            return malformed(line, what);
        }
        let mut key = Vec::new();
        for (field, value) in KEY_FIELDS.iter().zip(self.fields) {
            let Some(value) = value.filter(|v| !v.is_empty()) else {
                return malformed(first, format!("the stanza has no field `{field}`"));
            };
            if !key.is_empty() {
                key.push(b'/');
            }
            key.extend_from_slice(&value);
        }
        Ok(Record {
            key: Bytes::from(key),
            value: Bytes::from(self.text),
            line: first,
        })
    }
}
