//! The bugs that are planted in the product, each behind a switch of its name (`quorate_env::switch::bug`).

/// A planted bug.
#[derive(Debug, Clone, Copy)]
pub struct Bug {
    /// Its name, as the code asks for it.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
}

/// All of them.
pub const BUGS: &[Bug] = &[
    Bug {
        name: "acknowledged_before_synced",
        what: "the log calls records durable before it has synced them",
    },
    Bug {
        name: "failed_sync_forgotten",
        what: "the log goes on after a failed sync as if it had succeeded",
    },
    Bug {
        name: "damage_taken_for_a_torn_tail",
        what: "recovery cuts the log off at a damaged record, though later ones were synced",
    },
    Bug {
        name: "vote_not_kept",
        what: "votes are not written to the log",
    },
    Bug {
        name: "votes_released_with_segments",
        what: "segments go without a record of the votes and purges in them",
    },
    Bug {
        name: "conflicting_entries_kept",
        what: "a follower keeps its own entries where the leader's differ",
    },
    Bug {
        name: "read_index_without_quorum",
        what: "a leader answers ReadIndex from what it knows, without asking a quorum",
    },
    Bug {
        name: "late_reads_join_a_round",
        what: "reads that come while a ReadIndex round is under way share its answer",
    },
    Bug {
        name: "read_before_applied",
        what: "a replica reads before it has applied up to the index of the barrier",
    },
    Bug {
        name: "token_not_looked_at",
        what: "a replica answers a read with a token, however far behind it is",
    },
    Bug {
        name: "commit_without_quorum",
        what: "an append that failed counts as acknowledged",
    },
    Bug {
        name: "learner_counted",
        what: "while there is a learner, it counts for a voter that does not answer",
    },
    Bug {
        name: "unknown_outcome_said_not_applied",
        what: "a write of unknown outcome is answered as not applied, so clients repeat it",
    },
    Bug {
        name: "lost_answer_said_not_applied",
        what: "a client's connection breaks, and its transport says that nothing was sent",
    },
    Bug {
        name: "position_apart_from_data",
        what: "the applied position is written in a batch of its own, before the data",
    },
    Bug {
        name: "applied_again_after_restart",
        what: "the stored position is one behind, so that an entry is applied twice",
    },
    Bug {
        name: "applied_called_flushed",
        what: "what is applied is called flushed, so the log loses what the tables lack",
    },
    Bug {
        name: "snapshot_without_its_position",
        what: "a snapshot is installed without its applied index",
    },
    Bug {
        name: "versions_follow_the_clock",
        what: "a leader whose clock is behind gives smaller versions",
    },
    Bug {
        name: "conditions_judged_on_arrival_only",
        what: "a conditional write is applied whatever the version is by then",
    },
    Bug {
        name: "wiped_node_returns",
        what: "a node whose log and tables were lost comes back under its old identity",
    },
    Bug {
        name: "outcome_depends_on_the_replica",
        what: "applying looks at something that differs between replicas",
    },
    Bug {
        name: "lease_across_a_restart",
        what: "a voter that comes back has forgotten what it promised to the leader",
    },
    Bug {
        name: "lease_without_margin",
        what: "voters promise no longer than the leader counts on, whatever their clocks",
    },
    Bug {
        name: "lease_kept_after_handing_over",
        what: "a leader that hands over reads by its lease, and nobody waits for its end",
    },
    Bug {
        name: "lease_let_go_of_when_thought_dead",
        what: "voters forget their promise when they are told that the leader is dead",
    },
    Bug {
        name: "tainted_replica_goes_on",
        what: "a replica whose data is damaged goes on voting and answering with what is left",
    },
    Bug {
        name: "one_taint_for_a_file",
        what: "of a damaged file that holds data of several groups, one alone is taken for damaged",
    },
];
