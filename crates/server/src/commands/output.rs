//! How results are printed.

use std::io::{self, IsTerminal, Write};

use quorate_kv::Entry;
use quorate_sharding::{Encoding, NamespaceKind, RoutingPrefix};
use serde_json::{Map, Value, json};

/// An entry as JSON; bytes that are no text come as hex, under `key_hex` and `value_hex`.
pub fn entry_json(entry: &Entry, with_value: bool) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", &entry.key);
    if with_value {
        put_bytes(&mut object, "value", &entry.value);
    }
    object.insert("version".into(), entry.version.into());
    object.insert("create_version".into(), entry.create_version.into());
    object.insert("write_count".into(), entry.write_count.into());
    Value::Object(object)
}

/// Adds bytes under a name; those that are no text as hex, under `name_hex`.
pub fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

/// Bytes as hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes for a table: text as it is, anything else escaped.
pub fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Writes a value as it is; a terminal gets a new line after it.
pub fn write_value(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    if io::stdout().is_terminal() {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// A namespace's layout in the words of the command line: kind, encoding.
pub fn layout(kind: &NamespaceKind) -> (&'static str, String) {
    match kind {
        NamespaceKind::Compact => ("compact", "ordered".into()),
        NamespaceKind::Wide { encoding } => {
            let encoding = match encoding {
                Encoding::Ordered => "ordered".into(),
                Encoding::Hashed { prefix } => match prefix {
                    RoutingPrefix::WholeKey => "hashed".into(),
                    RoutingPrefix::Until(byte) => {
                        format!("hashed-until={}", byte.escape_ascii())
                    }
                },
            };
            ("wide", encoding)
        }
    }
}

/// Prints rows under a head, columns as wide as they need.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column));
        let widest = cells.map(|c| c.chars().count()).max().unwrap_or_default();
        widest.max(head[column].len())
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// An error as JSON.
pub fn error_json(error: &quorate_kv::Error) -> Value {
    json!({ "kind": format!("{:?}", error.kind()), "message": error.to_string() })
}
