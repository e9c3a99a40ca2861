//! Which format an input has: as said, by its name, or by its first line.

use std::path::Path;

/// A format of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Debian package index: control stanzas
    #[value(name = "deb")]
    Debian,
    /// JSON lines; needs --key FIELD
    #[value(name = "jsonl")]
    JsonLines,
    /// Key, TAB, value
    #[value(name = "tsv")]
    Tsv,
}

impl Format {
    /// The format that a file name tells, the ending of a compression taken off.
    pub fn of_name(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let packed = [".gz", ".xz", ".lz4"];
        let plain = packed
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(&name);
        if plain.ends_with("packages") {
            return Some(Format::Debian);
        }
        match Path::new(plain).extension()?.to_str()? {
            "jsonl" | "ndjson" => Some(Format::JsonLines),
            "tsv" | "tab" => Some(Format::Tsv),
            _ => None,
        }
    }

    /// The format that the first bytes tell. An empty input has any format.
    pub fn of_content(head: &[u8]) -> Option<Format> {
        let Some(line) = head
            .split(|b| *b == b'\n')
            .find(|l| !l.trim_ascii().is_empty())
        else {
            return Some(Format::Tsv);
        };
        if line.trim_ascii_start().starts_with(b"{") {
            return Some(Format::JsonLines);
        }
        let colon = line.windows(2).position(|w| w == b": ");
        let field = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
        if colon.is_some_and(|at| at > 0 && line[..at].iter().all(field)) {
            return Some(Format::Debian);
        }
        line.contains(&b'\t').then_some(Format::Tsv)
    }
}
