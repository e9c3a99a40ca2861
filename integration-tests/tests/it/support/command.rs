//! The program's commands, as a user calls them.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::binary;

/// No command of a test takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// The standard output of a command that ended well.
    ///
    /// # Panics
    /// If it did not.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// The standard error of a command that ended with an error.
    ///
    /// # Panics
    /// If it ended well, or panicked.
    pub fn bad(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self.err
    }
}

/// Runs `quorate` with these arguments.
pub async fn quorate(arguments: &[&str]) -> Ended {
    quorate_with_input(arguments, b"").await
}

/// Runs `quorate` with these arguments and this standard input.
pub async fn quorate_with_input(arguments: &[&str], input: &[u8]) -> Ended {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    let mut process = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program can be started");
    let mut stdin = process.stdin.take().expect("piped");
    let feed = async {
        // A command that refuses its input early closes the pipe.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let run = async { tokio::join!(feed, process.wait_with_output()).1 };
    let output = tokio::time::timeout(LIMIT, run).await;
    let output = output.unwrap_or_else(|_| panic!("quorate {arguments:?} took over {LIMIT:?}"));
    let output = output.expect("our own child");
    Ended {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
