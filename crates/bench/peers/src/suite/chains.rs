//! What the suite runs: chains of cases.

/// Cases that share a directory, in order.
pub struct Chain {
    pub name: &'static str,
    pub steps: Vec<Step>,
}

/// One case.
pub struct Step {
    /// Its name in the report.
    pub workload: String,
    pub case: String,
    /// Options of `storage-bench run`.
    pub options: Vec<String>,
    /// It begins with an empty directory.
    pub fresh: bool,
    pub reported: bool,
    /// The memory that it and its page cache may take.
    pub memory_bytes: Option<u64>,
}

/// The usual size: keys of 16 and values of 100 bytes.
const KEYS: u64 = 3_000_000;

struct Scale {
    tiny: bool,
}

impl Scale {
    fn keys(&self, keys: u64) -> String {
        match self.tiny {
            true => (keys / 1000).max(200).to_string(),
            false => keys.to_string(),
        }
    }

    fn seconds(&self, seconds: u64) -> String {
        match self.tiny {
            true => "0".into(),
            false => seconds.to_string(),
        }
    }

    /// A case with the usual number of keys.
    fn step(&self, workload: &str, case: &str) -> Step {
        let options = ["--keys", &self.keys(KEYS), "--seconds", &self.seconds(2)];
        Step {
            workload: workload.to_owned(),
            case: case.to_owned(),
            options: options.map(String::from).to_vec(),
            fresh: false,
            reported: true,
            memory_bytes: None,
        }
    }
}

impl Step {
    fn fresh(mut self) -> Step {
        self.fresh = true;
        self
    }

    fn quiet(mut self) -> Step {
        self.reported = false;
        self
    }

    /// The last of an option counts.
    fn with(mut self, option: &str, value: impl ToString) -> Step {
        let name = format!("--{option}");
        if let Some(at) = self.options.iter().position(|word| *word == name) {
            self.options.drain(at..at + 2);
        }
        self.options.extend([name, value.to_string()]);
        self
    }

    fn in_memory_of(mut self, bytes: u64) -> Step {
        self.memory_bytes = Some(bytes);
        self
    }
}

/// All chains.
pub fn all(full: bool, tiny: bool) -> Vec<Chain> {
    let scale = Scale { tiny };
    let mut chains = vec![
        fill(&scale),
        small(&scale),
        synced(&scale),
        beyond_cache(&scale),
        large(&scale),
        deletes(&scale),
        keyspaces(&scale),
        versions(&scale),
    ];
    if full {
        chains.push(many(&scale));
        chains.push(soak(&scale));
    }
    chains
}

fn fill(scale: &Scale) -> Chain {
    let step = |workload, case| scale.step(workload, case).fresh();
    Chain {
        name: "fill",
        steps: vec![
            step("fillseq/threads=1", "fillseq"),
            step("fillseq/threads=2", "fillseq").with("threads", 2),
            step("fillrandom/threads=2", "fillrandom").with("threads", 2),
            step("fillrandom/value=400", "fillrandom")
                .with("keys", scale.keys(1_000_000))
                .with("key-bytes", 20)
                .with("value-bytes", 400),
        ],
    }
}

fn small(scale: &Scale) -> Chain {
    let step = |workload, case| scale.step(workload, case);
    Chain {
        name: "small",
        steps: vec![
            step("fillrandom/threads=1", "fillrandom").fresh(),
            step("readrandom/not-compacted", "readrandom"),
            step("readmissing/not-compacted", "readmissing"),
            step("overwrite/threads=1", "overwrite"),
            step("settle", "settle").quiet(),
            step("readrandom/compacted", "readrandom"),
            step("readrandom/compacted/threads=2", "readrandom").with("threads", 2),
            step("readmissing/compacted", "readmissing"),
            step("multiget-16/compacted", "multiget"),
            step("readseq", "readseq"),
            step("readreverse", "readreverse"),
            step("seekrandom-10", "seekrandom"),
            step("seekreverse-10", "seekreverse"),
            step("ycsb-c", "ycsb-c"),
            step("ycsb-b", "ycsb-b"),
            step("ycsb-a", "ycsb-a"),
            step("ycsb-f", "ycsb-f"),
            step("ycsb-e", "ycsb-e"),
            step("readwhilewriting", "readwhilewriting"),
        ],
    }
}

fn synced(scale: &Scale) -> Chain {
    let step = |threads: u64| {
        scale
            .step(&format!("fillsync/threads={threads}"), "fillsync")
            .with("threads", threads)
            .with("seconds", scale.seconds(4))
            .fresh()
    };
    Chain {
        name: "synced",
        steps: [1, 4, 16, 64].into_iter().map(step).collect(),
    }
}

/// Four times the cache, and memory for little more than the cache, so that misses meet the disk.
fn beyond_cache(scale: &Scale) -> Chain {
    let cache = |step: Step| step.with("cache-mib", 64).in_memory_of(320 << 20);
    Chain {
        name: "beyond-cache",
        steps: vec![
            scale.step("fill", "fillrandom").fresh().quiet(),
            scale.step("settle", "settle").quiet(),
            cache(scale.step("readrandom/cache=quarter", "readrandom")),
            cache(scale.step("seekrandom-10/cache=quarter", "seekrandom")),
        ],
    }
}

fn large(scale: &Scale) -> Chain {
    let sizes = [(1 << 10, 60_000_u64), (16 << 10, 8_000), (256 << 10, 600)];
    let steps = sizes.into_iter().flat_map(|(bytes, keys)| {
        let step = |case: &str| {
            scale
                .step(&format!("{case}/value={bytes}"), case)
                .with(
                    "keys",
                    scale
                        .keys(keys)
                        .parse::<u64>()
                        .map_or(keys, |k| k.min(keys)),
                )
                .with("value-bytes", bytes)
        };
        [step("large-overwrite").fresh(), step("large-scan")]
    });
    Chain {
        name: "large",
        steps: steps.collect(),
    }
}

fn deletes(scale: &Scale) -> Chain {
    Chain {
        name: "deletes",
        steps: vec![
            scale.step("queue", "queue").fresh(),
            scale
                .step("deleterange", "deleterange")
                .with("keys", scale.keys(1_000_000))
                .fresh(),
        ],
    }
}

fn keyspaces(scale: &Scale) -> Chain {
    Chain {
        name: "keyspaces",
        steps: vec![scale.step("keyspaces-16", "keyspaces").fresh()],
    }
}

fn versions(scale: &Scale) -> Chain {
    let cases = [
        ("versions-latest", 1),
        ("versions-latest", 20),
        ("versions-at", 1),
        ("versions-at", 20),
    ];
    let steps = cases.into_iter().map(|(case, versions)| {
        scale
            .step(&format!("{case}/versions={versions}"), case)
            .with("keys", scale.keys(2_000_000))
            .with("threads", versions)
            .fresh()
    });
    Chain {
        name: "versions",
        steps: steps.collect(),
    }
}

fn many(scale: &Scale) -> Chain {
    let step = |workload: &str, case| {
        scale
            .step(workload, case)
            .with("keys", scale.keys(20_000_000))
    };
    Chain {
        name: "many",
        steps: vec![
            step("fillrandom/keys=20M", "fillrandom").fresh(),
            step("readrandom/keys=20M/not-compacted", "readrandom"),
            step("overwrite/keys=20M", "overwrite"),
            step("settle", "settle").quiet(),
            step("readrandom/keys=20M/compacted", "readrandom"),
            step("seekrandom-10/keys=20M", "seekrandom"),
        ],
    }
}

fn soak(scale: &Scale) -> Chain {
    Chain {
        name: "soak",
        steps: vec![
            scale
                .step("soak", "soak")
                .with("keys", scale.keys(10_000_000))
                .with("seconds", scale.seconds(600))
                .fresh(),
        ],
    }
}
