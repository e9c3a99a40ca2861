//! Write, read, look back by a snapshot, iterate.

use quorate_env::Env;
use quorate_storage::{
    Batch, Engine, IterOptions, KeyspaceId, KeyspaceOptions, Lsm, Options, ReadAt, WriteOptions,
};

fn main() -> quorate_storage::Result<()> {
    let fruit = KeyspaceId(0);
    let options = Options {
        keyspaces: vec![KeyspaceOptions::plain(fruit.0, "fruit")],
        ..Options::default()
    };
    let dir = std::env::temp_dir().join("quorate-first-steps");
    let store = Lsm::open(&Env::real(1), &dir, options)?;

    let mut batch = Batch::new();
    batch.put(fruit, b"apple", b"red");
    batch.put(fruit, b"banana", b"yellow");
    store.write(&batch, WriteOptions::SYNCED)?;
    let before = ReadAt::snapshot(&store.snapshot());

    batch.clear();
    batch.put(fruit, b"apple", b"green");
    store.write(&batch, WriteOptions::default())?;
    println!("now:    {:?}", store.get(fruit, b"apple", &ReadAt::NEWEST)?);
    println!("before: {:?}", store.get(fruit, b"apple", &before)?);

    let mut all = store.iterate(fruit, IterOptions::default())?;
    all.seek_to_first()?;
    while all.valid() {
        println!(
            "{:?} = {:?}",
            all.key().escape_ascii(),
            all.value().escape_ascii()
        );
        all.next()?;
    }
    store.close()
}
