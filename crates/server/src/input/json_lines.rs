//! JSON lines: an object a line. One field is the key, the whole line is the value. Empty lines
//! are passed over.

use std::io::BufRead;

use bytes::Bytes;
use serde_json::Value;

use super::lines::Lines;
use super::{Record, Result, malformed};

/// The next record; `field` holds the key: a string, a number or a boolean.
pub fn read(lines: &mut Lines<impl BufRead>, field: &str) -> Result<Option<Record>> {
    loop {
        let number = lines.number() + 1;
        let Some(line) = lines.next()? else {
            return Ok(None);
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return malformed(number, "not a JSON object"),
            Err(error) => return malformed(number, format!("not JSON: {error}")),
        };
        let key = match object.get(field) {
            Some(Value::String(text)) if text.is_empty() => {
                return malformed(number, format!("the field `{field}` is empty"));
            }
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
            Some(_) => {
                let what = format!("the field `{field}` is no string, number or boolean");
                return malformed(number, what);
            }
            None => return malformed(number, format!("there is no field `{field}`")),
        };
        return Ok(Some(Record {
            key: Bytes::from(key),
            value: Bytes::copy_from_slice(line),
            line: number,
        }));
    }
}
