//! A bound on a process's memory, page cache included: a control group of version 1 or 2.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// A control group that ends with its value.
pub struct Limit {
    dir: PathBuf,
}

impl Limit {
    /// A group whose processes may take so much.
    pub fn new(bytes: u64) -> Result<Limit> {
        let name = format!("quorate-bench-{}", std::process::id());
        let (root, file) = match Path::new("/sys/fs/cgroup/memory").is_dir() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let dir = Path::new(root).join(name);
        let help = "rows beyond the cache need a memory control group: run as root";
        fs::create_dir_all(&dir).context(help)?;
        let limit = Limit { dir };
        fs::write(limit.dir.join(file), bytes.to_string()).context(help)?;
        Ok(limit)
    }

    /// The command's process will be in the group.
    pub fn hold(&self, command: &mut Command) {
        let procs = self.dir.join("cgroup.procs");
        // SAFETY: the child writes one file before it becomes the program; nothing else runs in it.
        unsafe {
            command.pre_exec(move || fs::write(&procs, std::process::id().to_string()));
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // Empty by now; if not, it stays behind, which does no harm.
        let _ = fs::remove_dir(&self.dir);
    }
}
