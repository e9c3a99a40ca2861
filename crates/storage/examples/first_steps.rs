//! Put, get, iterate, and a look back by a snapshot.

use quorate_env::Env;
use quorate_storage::{
    Batch, Engine, IterOptions, KeyspaceId, KeyspaceOptions, Lsm, Options, ReadAt, WriteOptions,
};

const FRUIT: KeyspaceId = KeyspaceId(0);

fn main() -> quorate_storage::Result<()> {
    let dir = std::env::temp_dir().join("quorate-first-steps");
    let options = Options {
        keyspaces: vec![KeyspaceOptions::plain(FRUIT.0, "fruit")],
        ..Options::default()
    };
    let store = Lsm::open(&Env::real(1), &dir, options)?;

    let mut batch = Batch::new();
    batch.put(FRUIT, b"apple", b"red");
    batch.put(FRUIT, b"banana", b"yellow");
    store.write(&batch, WriteOptions::SYNCED)?;
    let before = store.snapshot();

    batch.clear();
    batch.put(FRUIT, b"apple", b"green");
    store.write(&batch, WriteOptions::default())?;
    println!("now:    {:?}", store.get(FRUIT, b"apple", &ReadAt::NEWEST)?);
    println!(
        "before: {:?}",
        store.get(FRUIT, b"apple", &ReadAt::snapshot(&before))?
    );

    let mut fruit = store.iterate(FRUIT, IterOptions::default())?;
    fruit.seek_to_first()?;
    while fruit.valid() {
        println!(
            "{} = {}",
            fruit.key().escape_ascii(),
            fruit.value().escape_ascii()
        );
        fruit.next()?;
    }
    store.close()
}
