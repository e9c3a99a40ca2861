//! Filters that know prefixes: scans within one go around tables, and nothing makes them wrong.

use quorate_env::Random;
use quorate_env::sim::Sim;

use super::conformance::{list, try_list};
use super::workload::{META, dir, seeds, tiny};
use crate::planted::{Bug, is_noticed};
use crate::{
    Batch, Engine, IterOptions, KeyRange, Lsm, Model, Options, Prefix, ReadAt, WriteOptions,
};

fn with_prefix(prefix: Prefix) -> Options {
    let mut options = Options {
        table_bytes: 64 << 10,
        ..tiny()
    };
    options.keyspaces[1].prefix = prefix;
    options
}

fn put(engine: &dyn Engine, key: &str) {
    let mut batch = Batch::new();
    batch.put(META, key.as_bytes(), key.as_bytes());
    engine.write(&batch, WriteOptions::APPLY).unwrap();
}

#[test]
fn prefix_scan_goes_around_tables_without_it() {
    let options = Options {
        auto_compact: false,
        ..with_prefix(Prefix::Delimiter(b'/'))
    };
    let lsm = Lsm::open(&Sim::new(1).env(), dir(), options).unwrap();
    // Tables that all reach from a to z.
    for user in ["bob", "eve", "kim", "tom"] {
        put(&lsm, "a/1");
        put(&lsm, &format!("{user}/1"));
        put(&lsm, &format!("{user}/2"));
        put(&lsm, "z/1");
        lsm.flush().unwrap();
    }
    let scan = |options: IterOptions| {
        let before = lsm.stats();
        let keys = list(&lsm, META, &options).len();
        let after = lsm.stats();
        (keys, after.prefix_stopped - before.prefix_stopped)
    };
    assert_eq!(scan(IterOptions::prefix(b"eve/")), (2, 3));
    assert_eq!(scan(IterOptions::prefix(b"ann/")), (0, 4));
    assert_eq!(scan(IterOptions::range(b"eve/2", b"eve/9")), (1, 3));
    assert_eq!(
        scan(IterOptions::prefix(b"eve")),
        (2, 0),
        "not a prefix to the extractor"
    );
    assert_eq!(scan(IterOptions::range(b"eve/2", b"kim/2")), (2, 0));
    assert_eq!(scan(IterOptions::default()).0, 10);
    // A table with range deletions is always looked into.
    let mut batch = Batch::new();
    batch.delete_range(META, KeyRange::new(b"a", b"f"));
    batch.put(META, b"kim/3", b"");
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.flush().unwrap();
    assert_eq!(scan(IterOptions::prefix(b"eve/")).0, 0);
    // Single keys are not taken for prefixes, nor the other way around.
    assert!(lsm.get(META, b"kim/", &ReadAt::NEWEST).unwrap().is_none());
}

/// A key of few prefixes of all lengths.
fn key(random: &Random) -> String {
    let part = || {
        let length = random.below(3);
        (0..length)
            .map(|_| ['a', 'b', '/'][random.below(3) as usize])
            .collect::<String>()
    };
    format!("{}{}{}", part(), part(), part())
}

/// Random keys, flushes, compactions, and openings with another extractor each; after each scans of ranges
/// and prefixes.
fn check_random(seed: u64) -> Result<(), String> {
    let sim = Sim::new(seed);
    let random = Random::from_seed(seed);
    let model = Model::new(&tiny().keyspaces);
    let extractors = [
        Prefix::None,
        Prefix::Fixed(1),
        Prefix::Fixed(3),
        Prefix::Delimiter(b'/'),
        Prefix::Delimiter(b'b'),
    ];
    for _ in 0..8 {
        let extractor = extractors[random.below(5) as usize];
        let options = Options {
            filter_bits_per_key: [0, 10, 10][random.below(3) as usize],
            auto_compact: random.one_in(2),
            ..with_prefix(extractor)
        };
        let lsm = Lsm::open(&sim.env(), dir(), options).map_err(|e| e.to_string())?;
        for _ in 0..6 {
            let mut batch = Batch::new();
            for _ in 0..random.below(6) {
                let key = key(&random);
                match random.below(8) {
                    0 => batch.delete(META, key.as_bytes()),
                    _ => batch.put(META, key.as_bytes(), b"v"),
                }
            }
            lsm.write(&batch, WriteOptions::APPLY)
                .map_err(|e| e.to_string())?;
            model
                .write(&batch, WriteOptions::APPLY)
                .map_err(|e| e.to_string())?;
            match random.below(8) {
                0 => lsm.compact_all().map_err(|e| e.to_string())?,
                1..=4 => drop(lsm.flush().map_err(|e| e.to_string())?),
                _ => {}
            }
            for _ in 0..10 {
                let (a, b) = (key(&random), key(&random));
                let options = match random.one_in(2) {
                    true => IterOptions::prefix(a.as_bytes()),
                    false => IterOptions::range(a.as_bytes(), b.as_bytes()),
                };
                let mine = try_list(&lsm, META, &options).map_err(|e| e.to_string())?;
                if mine != list(&model, META, &options) {
                    return Err(format!("seed {seed}, {extractor:?}: {options:?}: {mine:?}"));
                }
            }
        }
        lsm.close().map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn check_all() -> Result<(), String> {
    seeds(60).try_for_each(check_random)
}

#[test]
fn prefix_scans_are_right_whatever_extractors_tables_were_made_with() {
    check_all().unwrap();
}

#[test]
fn prefix_check_notices_every_way_to_be_wrong() {
    for bug in [
        Bug::PrefixesAreNotInTheFilter,
        Bug::PrefixIgnoresUpperBound,
        Bug::PrefixOfTheWrongExtractor,
    ] {
        assert!(is_noticed(bug, check_all), "{bug:?}");
    }
}
