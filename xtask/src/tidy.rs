//! `xtask tidy`: what the compiler does not check and the design asks for.
//!
//! - crates depend on each other only along the arrows of the design;
//! - a file of code has at most 800 lines and a function at most 70, tests not counted;
//! - every file says at its head what it is;
//! - nothing is left unfinished or ignored.
//!
//! The list of exceptions only shrinks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const LIB_LINES_MAX: usize = 100;

/// Which crates of ours a crate may depend on. Tests may depend on anything.
const ARROWS: &[(&str, &[&str])] = &[
    ("kv", &[]),
    ("env", &[]),
    ("log", &["env"]),
    ("storage", &["env", "log"]),
    ("replication", &["kv", "env", "log"]),
    ("sharding", &["kv"]),
    ("proto", &["kv", "sharding"]),
    ("client", &["kv", "proto", "sharding"]),
    (
        "node",
        &["kv", "env", "log", "storage", "replication", "sharding"],
    ),
    (
        "server",
        &[
            "kv",
            "env",
            "storage",
            "replication",
            "sharding",
            "node",
            "proto",
            "bench",
            "client",
            "outbox",
            "saga",
        ],
    ),
    ("outbox", &["kv"]),
    ("saga", &["kv", "outbox"]),
    ("cache", &["kv"]),
    ("sql", &["kv"]),
    ("quorate", &["*"]),
    ("bench", &["*"]),
    ("sim", &["*"]),
];

/// The one crate that may name each of these.
const OWNED: &[(&str, &str)] = &[
    ("openraft", "replication"),
    ("rdkafka", "outbox"),
    ("redis", "cache"),
];

/// Checks everything and lists all that is wrong.
pub fn run(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    check_arrows(root, &mut faults)?;
    let mut files = Vec::new();
    for folder in ["crates", "examples", "xtask", "integration-tests"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = file
            .strip_prefix(root)
            .unwrap_or(file)
            .display()
            .to_string();
        check_file(&name, &text, &mut faults);
    }
    if faults.is_empty() {
        println!("tidy: {} files, nothing to say", files.len());
        return Ok(());
    }
    bail!("tidy:\n  {}", faults.join("\n  "))
}

fn check_arrows(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some((_, allowed)) = ARROWS.iter().find(|(of, _)| *of == name) else {
            faults.push(format!("crates/{name}: the design has no such crate"));
            continue;
        };
        let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
        for dependency in dependencies(&manifest) {
            if let Some((_, owner)) = OWNED.iter().find(|(what, _)| dependency.starts_with(what))
                && *owner != name
            {
                faults.push(format!(
                    "crates/{name}: only `{owner}` may depend on {dependency}"
                ));
            }
            let Some(ours) = dependency.strip_prefix("quorate-") else {
                continue;
            };
            if !allowed.contains(&ours) && !allowed.contains(&"*") {
                faults.push(format!("crates/{name}: no arrow leads to `{ours}`"));
            }
        }
    }
    Ok(())
}

/// The names under `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let lines = manifest
        .lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// What would be flagged here itself is put together from parts.
const UNFINISHED: [&str; 5] = [
    concat!("to", "do!("),
    concat!("unimplement", "ed!("),
    concat!("#[ign", "ore"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

fn check_file(name: &str, text: &str, faults: &mut Vec<String>) {
    let is_test = name.contains("/tests") || name.contains("integration-tests/");
    let is_generated = name.contains("/generated/");
    if is_generated {
        return;
    }
    if !text.starts_with("//!") {
        faults.push(format!("{name}: says nothing at its head (`//! ...`)"));
    }
    for mark in UNFINISHED {
        if text.contains(mark) {
            faults.push(format!("{name}: holds `{mark}`"));
        }
    }
    if is_test {
        return;
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
    }
    if name.ends_with("/src/lib.rs") && lines > LIB_LINES_MAX {
        faults.push(format!(
            "{name}: {lines} lines, a lib.rs has at most {LIB_LINES_MAX}"
        ));
    }
    for (at, function, length) in functions(text) {
        if length > FUNCTION_LINES_MAX {
            faults.push(format!(
                "{name}:{at}: `{function}` has {length} lines, at most {FUNCTION_LINES_MAX}"
            ));
        }
    }
}

/// Every function with its first line and its length, by its indentation, which rustfmt made.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let head = code
            .trim_start_matches("pub(crate) ")
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub ")
            .trim_start_matches("const ")
            .trim_start_matches("async ")
            .trim_start_matches("unsafe ");
        let Some(rest) = head.strip_prefix("fn ") else {
            continue;
        };
        let close = format!("{}}}", &line[..line.len() - code.len()]);
        let body = lines[at..].iter().position(|l| *l == close);
        let semicolon = lines[at..].iter().position(|l| l.trim_end().ends_with(';'));
        if let Some(length) = body
            && semicolon.is_none_or(|s| s > 0)
        {
            let function = rest.split(['(', '<']).next().unwrap_or_default();
            found.push((at + 1, function.to_owned(), length + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(name: &str, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        check_file(name, text, &mut faults);
        faults
    }

    #[test]
    fn tidy_finds_a_file_without_head_and_one_too_long() {
        assert_eq!(faults_of("crates/a/src/b.rs", "fn a() {}\n").len(), 1);
        let long = format!("//! Long.\n{}", "// line\n".repeat(FILE_LINES_MAX));
        assert_eq!(faults_of("crates/a/src/b.rs", &long).len(), 1);
        assert!(faults_of("crates/a/src/tests.rs", &long).is_empty());
    }

    #[test]
    fn tidy_finds_a_function_too_long() {
        let body = "    let a = 1;\n".repeat(FUNCTION_LINES_MAX);
        let text = format!("//! Head.\n\npub fn long() {{\n{body}}}\n\nfn short() {{}}\n");
        let faults = faults_of("crates/a/src/b.rs", &text);
        assert!(
            faults.len() == 1 && faults[0].contains("`long`"),
            "{faults:?}"
        );
    }

    #[test]
    fn tidy_reads_dependencies_only() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nquorate-kv.workspace = true\n\
                        bytes = \"1\"\n\n[dev-dependencies]\ntempfile = \"3\"\n";
        assert_eq!(dependencies(manifest), ["quorate-kv", "bytes"]);
    }
}
