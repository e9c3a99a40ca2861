//! Many seeds, each in a process of its own, as many at once as there are cores.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quorate_sim::bugs::BUGS;
use quorate_sim::faults::KINDS;
use quorate_sim::report::Line;
use quorate_sim::switches::PLACES;

/// A run that takes longer of real time hangs.
const HANGS_AFTER: Duration = Duration::from_secs(600);

struct Wish {
    first: u64,
    seeds: u64,
    minutes: u64,
    twice: bool,
    bugs: bool,
    only: Vec<String>,
}

/// `[--seeds N] [--seed S] [--twice] [--minutes M] [--bugs [--only A,B]]`; whether all is as it must be.
pub fn run(words: &[&str]) -> Result<bool, String> {
    let wish = parse(words)?;
    match wish.bugs {
        true => bugs(&wish),
        false => seeds(&wish),
    }
}

fn parse(words: &[&str]) -> Result<Wish, String> {
    let mut wish = Wish {
        first: 1,
        seeds: 0,
        minutes: 0,
        twice: false,
        bugs: false,
        only: Vec::new(),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || {
            let next = words.next();
            let number = next.and_then(|word| word.parse().ok());
            number.ok_or_else(|| format!("{word} wants a number"))
        };
        match *word {
            "--seed" => wish.first = number()?,
            "--seeds" => wish.seeds = number()?,
            "--minutes" => wish.minutes = number()?,
            "--twice" => wish.twice = true,
            "--bugs" => wish.bugs = true,
            "--only" => {
                let names = words.next().unwrap_or(&"");
                wish.only = names.split(',').map(str::to_owned).collect();
            }
            other => return Err(format!("not understood: {other}")),
        }
    }
    let known = |name: &String| BUGS.iter().any(|bug| bug.name == name);
    if let Some(name) = wish.only.iter().find(|name| !known(name)) {
        return Err(format!("there is no bug {name}"));
    }
    if wish.seeds == 0 {
        wish.seeds = if wish.minutes > 0 { u64::MAX } else { 200 };
    }
    Ok(wish)
}

/// Plays a seed in a process of its own.
fn play(seed: u64, bugs: &[&str]) -> Line {
    let failed = |why: String| Line {
        seed,
        oracle: "process".into(),
        message: why,
        ..Line::default()
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return failed(error.to_string()),
    };
    let mut command = Command::new(program);
    command.arg("one").arg(seed.to_string()).args(bugs);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(error.to_string()),
    };
    let mut output = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        if let Some(output) = &mut output {
            // What can't be read is no line, which is said below.
            let _ = output.read_to_string(&mut text);
        }
        text
    });
    let end = Instant::now() + HANGS_AFTER;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.to_string(),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break format!("hung for {HANGS_AFTER:?}");
            }
        }
    };
    let text = reader.join().unwrap_or_default();
    let line = text.lines().find_map(Line::parse);
    line.unwrap_or_else(|| failed(format!("it ended without a verdict: {status}")))
}

/// What many runs add up to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    simulated_ms: u64,
    operations: u64,
    seen: [u64; 3],
    faults: BTreeMap<String, u64>,
    fired: BTreeMap<String, u64>,
    failures: Vec<Line>,
    differ: Vec<u64>,
}

impl Sum {
    fn add(&mut self, line: Line) {
        self.seeds += 1;
        self.simulated_ms += line.simulated_ms;
        self.operations += line.operations;
        for (sum, seen) in self.seen.iter_mut().zip(&line.seen) {
            *sum += seen;
        }
        for (name, count) in &line.faults {
            *self.faults.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &line.fired {
            *self.fired.entry(name.clone()).or_default() += count;
        }
        if !line.oracle.is_empty() {
            report_failure(&line);
            self.failures.push(line);
        }
    }

    fn print(&self, took: Duration, twice: bool) {
        let hours = self.simulated_ms as f64 / 3_600_000.0;
        let cpus = at_once();
        let cpu_hours = took.as_secs_f64() * cpus as f64 / 3600.0;
        println!(
            "sim: {} seeds in {:.0} s on {cpus} cores, {hours:.2} simulated hours ({:.0} for an hour of a core)",
            self.seeds,
            took.as_secs_f64(),
            hours / cpu_hours.max(1e-9)
        );
        let [appended, applied, compared] = self.seen;
        println!(
            "operations judged: {}; entries appended {appended}, applied {applied}; states compared {compared}",
            self.operations
        );
        let messages: u64 = ["message_lost", "message_late"]
            .iter()
            .filter_map(|name| self.faults.get(*name))
            .sum();
        let total: u64 = self.faults.values().sum::<u64>() - messages;
        let kinds = KINDS.iter().filter(|kind| self.faults.contains_key(**kind));
        println!(
            "faults: {total} of {} kinds of {}",
            kinds.count(),
            KINDS.len()
        );
        for (name, count) in &self.faults {
            println!("  {name} {count}");
        }
        println!("places fired: {} of {}", self.fired.len(), PLACES.len());
        for place in PLACES {
            println!("  {place} {}", self.fired.get(*place).unwrap_or(&0));
        }
        if twice {
            println!(
                "played twice: {} of {} traces differ",
                self.differ.len(),
                self.seeds
            );
        }
        println!("failures: {}", self.failures.len() + self.differ.len());
        for line in &self.failures {
            report_failure(line);
        }
        for seed in &self.differ {
            println!("seed {seed} is not deterministic: its two traces differ");
        }
    }
}

fn report_failure(line: &Line) {
    println!(
        "seed {} failed: {}: {}",
        line.seed, line.oracle, line.message
    );
    println!("  again: cargo xtask sim --seed {} --seeds 1", line.seed);
}

fn at_once() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn seeds(wish: &Wish) -> Result<bool, String> {
    let started = Instant::now();
    let end = (wish.minutes > 0).then(|| started + Duration::from_secs(wish.minutes * 60));
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    thread::scope(|scope| {
        for _ in 0..at_once() {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let is_late = end.is_some_and(|end| Instant::now() >= end);
                    if n >= wish.seeds || is_late {
                        return;
                    }
                    let seed = wish.first.wrapping_add(n);
                    let line = play(seed, &[]);
                    let again = wish.twice.then(|| play(seed, &[]).trace);
                    let Ok(mut sum) = sum.lock() else { return };
                    if again.is_some_and(|again| again != line.trace) {
                        sum.differ.push(seed);
                    }
                    sum.add(line);
                }
            });
        }
    });
    let sum = sum.into_inner().map_err(|_| "a worker panicked")?;
    sum.print(started.elapsed(), wish.twice);
    Ok(sum.failures.is_empty() && sum.differ.is_empty())
}

/// Plays seeds with each bug planted until an oracle notices.
fn bugs(wish: &Wish) -> Result<bool, String> {
    let mut all = true;
    println!("| planted bug | noticed by | seeds |\n|---|---|---|");
    for bug in BUGS {
        if !wish.only.is_empty() && !wish.only.iter().any(|name| name == bug.name) {
            continue;
        }
        match until_found(bug.name, wish.first, wish.seeds) {
            Some((seeds, line)) => {
                println!(
                    "| `{}`: {} | {} | {seeds} |",
                    bug.name, bug.what, line.oracle
                );
                println!("    {}", line.message.chars().take(300).collect::<String>());
            }
            None => {
                all = false;
                println!("| `{}`: {} | nobody | {} |", bug.name, bug.what, wish.seeds);
            }
        }
    }
    Ok(all)
}

/// After how many seeds a bug was found, and how.
fn until_found(bug: &str, first: u64, most: u64) -> Option<(u64, Line)> {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let found: Mutex<Vec<(u64, Line)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..at_once() {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= most {
                        return;
                    }
                    let line = play(first + n, &[bug]);
                    // Noticed for what it is: a hang or a lost process would be so too.
                    if !line.oracle.is_empty() && line.bugs_reached.contains_key(bug) {
                        over.store(true, Ordering::Relaxed);
                        if let Ok(mut found) = found.lock() {
                            found.push((n + 1, line));
                        }
                    }
                }
            });
        }
    });
    let found = found.into_inner().ok()?;
    found.into_iter().min_by_key(|(seeds, _)| *seeds)
}
