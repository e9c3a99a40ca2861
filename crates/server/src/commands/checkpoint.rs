//! The file that says how far a load came.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How far the load of one input into one namespace came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    path: PathBuf,
    input: String,
    namespace: String,
}

impl Checkpoint {
    /// The checkpoint of a load, kept at `path`.
    pub fn new(path: PathBuf, input: &Path, namespace: &str) -> Self {
        Checkpoint {
            path,
            input: input.display().to_string(),
            namespace: namespace.to_owned(),
        }
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many records were done; 0 if there is no such file.
    ///
    /// # Errors
    /// When the file is of another load, or is none of ours.
    pub fn read(&self) -> Result<u64> {
        let name = self.path.display();
        if !self.path.exists() {
            return Ok(0);
        }
        let text = fs::read(&self.path).with_context(|| format!("read {name}"))?;
        let value: Value =
            serde_json::from_slice(&text).with_context(|| format!("{name} is no checkpoint"))?;
        let field = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        if field("input") != self.input || field("namespace") != self.namespace {
            bail!(
                "{name} is the checkpoint of `{}` into `{}`, not of `{}` into `{}`",
                field("input"),
                field("namespace"),
                self.input,
                self.namespace
            );
        }
        value
            .get("records")
            .and_then(Value::as_u64)
            .with_context(|| format!("{name} does not say how many records are done"))
    }

    /// Keeps how many records are done: the old file or the new one is there, never half of one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, records: u64) -> Result<()> {
        let value = json!({
            "input": self.input, "namespace": self.namespace, "records": records,
        });
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let write = || {
            fs::write(&new, format!("{value}\n"))?;
            fs::File::open(&new)?.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().with_context(|| format!("write {}", self.path.display()))
    }
}
