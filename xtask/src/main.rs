//! Tasks of the workspace: `cargo xtask <task>`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

mod codegen;

const USAGE: &str = "\
usage: cargo xtask <task>

  codegen [--check]   make the Rust code of proto/; with --check compare only
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["codegen"] => codegen::run(&root()?, false),
        ["codegen", "--check"] => codegen::run(&root()?, true),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown task: {}\n\n{USAGE}", words.join(" ")),
    }
}

/// The workspace's root folder.
fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("xtask lies in the workspace's root folder")
}
