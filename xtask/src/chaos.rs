//! `xtask chaos`: the tests whose faults need mounts and networks. They run inside namespaces of their own, which
//! root has for the asking; for what needs mounts alone others get one together with a user namespace.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{ci, services};

const PACKAGE: &[&str] = &[
    "--package",
    "quorate-integration-tests",
    "--features",
    "chaos",
];
/// The test of every kind of fault, for as long as one likes.
const LONG: &str = "chaos_of_every_kind";
const FAKETIME: services::Tool = services::Tool {
    program: "faketime/libfaketime.so.1",
    package: "libfaketime",
};
const IP: services::Tool = services::Tool {
    program: "ip",
    package: "iproute2",
};
const MKFS: services::Tool = services::Tool {
    program: "mkfs.ext4",
    package: "e2fsprogs",
};

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish<'a> {
    minutes: Option<u64>,
    seed: Option<u64>,
    release: bool,
    filter: Vec<&'a str>,
}

/// Builds the server and the tests, then runs those whose names begin with `chaos`; with `--minutes` the long one.
pub fn run(root: &Path, words: &[&str]) -> Result<()> {
    let wish = parse(words)?;
    let mut command = Command::new("unshare");
    command.args(namespaces(&wish.filter)?).current_dir(root);
    if services::is_root()? {
        let faketime = services::require_library(&FAKETIME)?;
        command.env("QUORATE_CHAOS_FAKETIME", faketime);
        services::require(&IP)?;
        services::require(&MKFS)?;
    }
    let profile = if wish.release { "release" } else { "test" };
    let server = ["build", "--profile", profile, "--package", "quorate-server"];
    ci::cargo(root, &server)?;
    ci::cargo(root, &[&["test", "--no-run"], PACKAGE].concat())?;
    // Of a network of its own not even loopback is up.
    command.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    command.arg(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(["test", "--offline"]).args(PACKAGE).arg("--");
    match (&wish.minutes, wish.filter.as_slice()) {
        (Some(_), []) => command.args([LONG, "--nocapture"]),
        (_, []) => command.arg("chaos_"),
        (_, filter) => command.args(filter),
    };
    let seconds = wish.minutes.unwrap_or(0) * 60;
    command.env("QUORATE_CHAOS_SECONDS", seconds.to_string());
    if let Some(seed) = wish.seed {
        command.env("QUORATE_TEST_SEED", seed.to_string());
    }
    let target = ci::target_folder(root)?;
    if wish.release {
        command.env("QUORATE_BIN", target.join("release/quorate"));
    }
    std::fs::create_dir_all(target.join("chaos"))?;
    command.env("QUORATE_CHAOS_PAGE", target.join("chaos/figures.md"));
    ci::run(command)
}

fn parse<'a>(words: &[&'a str]) -> Result<Wish<'a>> {
    let mut wish = Wish::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            let number = words.next().and_then(|text| text.parse().ok());
            number.with_context(|| format!("{word} wants a number"))
        };
        match *word {
            "--minutes" => wish.minutes = Some(number()?),
            "--seed" => wish.seed = Some(number()?),
            "--release" => wish.release = true,
            option if option.starts_with('-') => bail!("there is no option {option}"),
            filter => wish.filter.push(filter),
        }
    }
    Ok(wish)
}

/// How namespaces are made here. Only root has devices to mount; disks in memory do without.
fn namespaces(filter: &[&str]) -> Result<&'static [&'static str]> {
    if services::is_root()? {
        return Ok(&["--mount", "--net"]);
    }
    ensure!(
        filter == ["chaos_disk"],
        "the faults need root: sudo -E env PATH=$PATH cargo xtask chaos\n\
         (without it there is `cargo xtask chaos chaos_disk`)"
    );
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net"])
        .args(["mount", "-t", "tmpfs", "none", "/mnt"])
        .output()
        .context("unshare is missing: apt-get install util-linux")?;
    ensure!(
        tried.status.success(),
        "no mount namespace can be made here: run `cargo xtask chaos` as root, or allow user \
         namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    );
    Ok(&["--user", "--map-root-user", "--mount", "--net"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chaos_words_are_understood_or_refused() {
        let wish = parse(&["--minutes", "3", "--release"]).expect("it is sound");
        let wanted = Wish {
            minutes: Some(3),
            release: true,
            ..Wish::default()
        };
        assert_eq!(wish, wanted);
        assert_eq!(parse(&["disk"]).expect("sound").filter, ["disk"]);
        assert!(parse(&["--minutes", "soon"]).is_err());
        assert!(parse(&["--hours"]).is_err());
    }
}
