//! Images: exact for every type, and what is undone with them, as a pure plan.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::support::*;
use crate::ErrorKind;
use crate::at::image::{Change, Image, RowName, Treatment, plan};
use crate::at::{Ending, Insert, Rows, Value};

const LONG: Duration = Duration::from_secs(120);

/// Deletes every row and undoes that; then changes every column that can be, and undoes that.
async fn round_trip(db: &Db, table: &str, digest: &str, set: &[(&str, Value)]) {
    let before = db.texts(digest).await;
    assert!(!before.is_empty());
    let coordinator = db.coordinator().await;
    let global = coordinator.begin(LONG);
    let mut tx = db.begin(&global, "delete").await.expect("begins");
    let all = Rows::of(table).all();
    let count = tx.delete(&all.clone().delete()).await.expect("deletes");
    assert_eq!(count as usize, before.len());
    tx.commit().await.expect("commits");
    assert_eq!(
        coordinator.rollback(&global).await.expect("undoes"),
        Ending::Complete
    );
    assert_eq!(
        db.texts(digest).await,
        before,
        "{}: deleted and undone",
        db.kind()
    );
    let global = coordinator.begin(LONG);
    let mut tx = db.begin(&global, "update").await.expect("begins");
    let mut update = all.update();
    for (column, value) in set {
        update = update.set(column, value.clone());
    }
    tx.update(&update).await.expect("updates");
    tx.commit().await.expect("commits");
    assert_ne!(db.texts(digest).await, before);
    assert_eq!(
        coordinator.rollback(&global).await.expect("undoes"),
        Ending::Complete
    );
    assert_eq!(
        db.texts(digest).await,
        before,
        "{}: updated and undone",
        db.kind()
    );
    db.assert_clean("round trip").await;
}

#[tokio::test]
async fn at_images_of_every_postgres_type_come_back_exactly() {
    let db = Db::pg().await;
    db.run(
        r#"CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE DOMAIN positive AS int CHECK (VALUE > 0);
        CREATE TABLE "Odd ""name""" (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            n numeric, n2 numeric(10, 2), f4 real, f8 double precision, i2 smallint, b boolean,
            t text, v varchar(5), c char(6), raw bytea, d date, ti time, tz timestamptz, ts timestamp,
            iv interval, u uuid, j json, jb jsonb, a int[], aa text[], m mood, p positive, ip inet,
            r int4range, pt point, bits bit(5), "Sel""ect" text, x "char",
            double_n numeric GENERATED ALWAYS AS (n * 2) STORED);
        INSERT INTO "Odd ""name""" (n, n2, f4, f8, i2, b, t, v, c, raw, d, ti, tz, ts, iv, u, j, jb, a, aa, m,
            p, ip, r, pt, bits, "Sel""ect", x) VALUES
        (1.10, 1.1, 0.1, 0.1, -1, true, E'a"b\\c\n', 'abcde', 'ab', '\x00ff27', '0044-03-15 BC', '23:59:59.999999',
         '2026-03-29 01:30:00.123456+02', 'infinity', '1 mon -2 days 03:04:05.6', gen_random_uuid(),
         '{"b": 1,  "a" : [1.0, 1.00], "a": null}', '{"x": 1.00}', '{1,NULL,3}', '{"a,b",NULL,"NULL",""}', 'ok',
         7, '10.0.0.1/8', '[1,5)', '(1.5,-0)', B'10101', 'quoted', 'y'),
        ('NaN', -0.05, '-Infinity', '-0', 32767, false, '', '', '', '', '5874897-12-31', '00:00',
         '-infinity', '0001-01-01', '-178000000 years', gen_random_uuid(), 'null', 'null', '{}', '{}', 'sad', 1, '::1',
         'empty', '(0,0)', B'00000', '', ''),
        (12345678901234567890.123456789012345678901234567890, 99999999.99, 1e-37, 1.7976931348623157e308, 0,
         NULL, repeat('long ', 5000), NULL, NULL, decode(repeat('00ff', 5000), 'hex'), NULL, NULL, NULL, NULL,
         NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        INSERT INTO "Odd ""name""" DEFAULT VALUES"#,
    )
    .await;
    // Binary images: what is equal there is equal to the last bit.
    let digest = r#"SELECT encode(record_send(odd), 'hex') FROM "Odd ""name""" odd ORDER BY id"#;
    let set = [
        ("n", Value::from("2.50")),
        ("f8", Value::Real(2.5)),
        ("t", "other".into()),
        ("raw", Value::Bytes(vec![1, 2])),
        ("tz", "2027-01-01 00:00:00+00".into()),
        ("j", "{}".into()),
        ("a", "{9}".into()),
        ("b", Value::Bool(true)),
        ("m", Value::Null),
        ("Sel\"ect", "s".into()),
        ("iv", "1 day".into()),
        ("c", "xyz".into()),
    ];
    round_trip(&db, "Odd \"name\"", digest, &set).await;
    db.end().await;
}

#[tokio::test]
async fn at_images_of_every_sqlite_class_come_back_exactly() {
    let db = Db::lite().await;
    db.run(
        "CREATE TABLE odd (id INTEGER PRIMARY KEY, any_, t TEXT, r REAL, raw BLOB, n NUMERIC, \"Sel\"\"ect\" TEXT,
            twice GENERATED ALWAYS AS (n * 2) STORED);
         INSERT INTO odd (id, any_, t, r, raw, n, \"Sel\"\"ect\") VALUES
            (1, 5, 'it''s', 0.1, X'00FF27', 1.5, 'x'), (2, 5.0, '', -0.0, X'', 9223372036854775807, NULL),
            (3, '5', NULL, 1e999, zeroblob(3000), -9223372036854775808, ''),
            (4, X'35', char(97, 0, 98), 2.2250738585072014e-308, NULL, 1e300, '\"'),
            (-5, NULL, 'X''35''', 1.7976931348623157e308, NULL, NULL, NULL)",
    )
    .await;
    let digest = "SELECT id || '|' || typeof(any_) || quote(any_) || '|' || hex(t) || typeof(t) || '|' || typeof(r)
        || printf('%!.20e', r) || '|' || typeof(raw) || quote(raw) || '|' || typeof(n) || quote(n) || '|'
        || coalesce(\"Sel\"\"ect\", 'null') FROM odd ORDER BY id";
    let set = [
        ("any_", Value::Int(6)),
        ("t", "other".into()),
        ("r", Value::Real(7.5)),
        ("raw", Value::Bytes(vec![9])),
        ("n", Value::Bool(true)),
        ("SEL\"ECT", Value::Null),
    ];
    round_trip(&db, "ODD", digest, &set).await;
    db.end().await;
}

/// Seata's lock table takes 36 characters of a key; here a key may be as long as an index of the table allows.
#[tokio::test]
async fn at_lock_key_longer_than_36_characters_and_composite_is_its_own_lock() {
    for db in Db::both().await {
        let raw = if matches!(db, Db::Pg { .. }) {
            "bytea"
        } else {
            "BLOB"
        };
        db.run(&format!(
            "CREATE TABLE wide (a text, b {raw}, c bigint, v bigint NOT NULL, PRIMARY KEY (c, a, b))"
        ))
        .await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        // Alike in all but the last byte; 2 KiB that do not compress.
        let mut random = Random::new(7);
        let letter = |n: u64| char::from(b'a' + u8::try_from(n).unwrap_or(0));
        let long: String = (0..2000).map(|_| letter(random.below(26))).collect();
        let keys = [
            format!("{long}x"),
            format!("{long}y"),
            "s,\"'\n[".into(),
            String::new(),
        ];
        let mut tx = db.begin(&global, "wide").await.expect("begins");
        for key in &keys {
            let insert = Insert::into("wide").value("a", key.as_str()).value("c", 7);
            let insert = insert.value("b", vec![0u8, 255]).value("v", 1);
            tx.insert(&insert).await.expect("inserts");
        }
        tx.commit().await.expect("commits");
        assert_eq!(db.locks().await, 4, "{}", db.kind());
        coordinator.commit(&global).await.expect("commits");
        let first = coordinator.begin(LONG);
        let row = |key: &str| {
            let key = [Value::Int(7), key.into(), Value::Bytes(vec![0, 255])];
            Rows::of("wide").keys(key).update().add("v", 1)
        };
        db.change(&first, "x", &[row(&keys[0])])
            .await
            .expect("changes");
        let second = coordinator.begin(LONG);
        db.change(&second, "y", &[row(&keys[1])])
            .await
            .expect("another row is free");
        let error = db.change(&second, "x", &[row(&keys[0])]).await;
        assert_kind(error, ErrorKind::Locked, "the same row is not");
        assert_eq!(
            coordinator.rollback(&first).await.expect("undoes"),
            Ending::Complete
        );
        assert_eq!(
            coordinator.rollback(&second).await.expect("undoes"),
            Ending::Complete
        );
        assert_eq!(
            db.number("SELECT CAST(sum(v) AS bigint) FROM wide").await,
            4
        );
        db.assert_clean("wide").await;
        db.end().await;
    }
}

/// A key that is written in another way is the same row: 1.0 and 1.00.
#[tokio::test]
async fn at_lock_key_of_numeric_is_canonical() {
    let db = Db::pg().await;
    db.run("CREATE TABLE price (id numeric PRIMARY KEY, v int); INSERT INTO price VALUES (1.0, 1)")
        .await;
    let coordinator = db.coordinator().await;
    let first = coordinator.begin(LONG);
    let mut tx = db.begin(&first, "a").await.expect("begins");
    tx.delete(&Rows::of("price").key("1.000").delete())
        .await
        .expect("deletes");
    tx.commit().await.expect("commits");
    let second = coordinator.begin(LONG);
    let mut tx = db.begin(&second, "a").await.expect("begins");
    let insert = Insert::into("price").value("id", "1.00").value("v", 2);
    assert_kind(tx.insert(&insert).await, ErrorKind::Locked, "the same key");
    tx.rollback().await.expect("rolls back");
    coordinator.rollback(&first).await.expect("undoes");
    assert_eq!(db.texts("SELECT id::text FROM price").await, ["1.0"]);
    db.end().await;
}

fn image(value: u8) -> Option<Image> {
    (value > 0).then(|| Image::from([("v".to_owned(), Some(value.to_string()))]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history of three rows is undone to where it began; after somebody else's write, nothing is written, or
    /// what the operator wants, and only that row is in question.
    #[test]
    fn at_plan_undoes_any_history_and_stops_at_foreign_writes(
        history in prop::collection::vec((0usize..3, 0u8..4), 1..20),
        foreign in prop::option::of((0usize..3, 4u8..8)),
    ) {
        let name = |row: usize| -> RowName { ("t".into(), row.to_string()) };
        let first = [1u8, 2, 0];
        let mut now = first;
        let mut changes = Vec::new();
        for (row, value) in history {
            if now[row] == value {
                continue;
            }
            let (table, key) = name(row);
            changes.push(Change { table, key, before: image(now[row]), after: image(value) });
            now[row] = value;
        }
        changes.reverse();
        let touched = |row: usize| changes.iter().any(|change| change.key == row.to_string());
        let dirty = foreign.filter(|(row, _)| touched(*row));
        if let Some((row, value)) = dirty {
            now[row] = value;
        }
        let current: HashMap<RowName, Option<Image>> =
            (0..3).map(|row| (name(row), image(now[row]))).collect();
        for treatment in [Treatment::Ask, Treatment::Force, Treatment::Accept] {
            let planned = plan(&changes, &current, treatment);
            prop_assert_eq!(planned.differences.is_empty(), dirty.is_none());
            for difference in &planned.differences {
                prop_assert_eq!(Some(difference.key.clone()), dirty.map(|(row, _)| row.to_string()));
            }
            let mut written = current.clone();
            for step in &planned.steps {
                prop_assert_eq!(&written[&step.name], &step.from);
                written.insert(step.name.clone(), step.to.clone());
            }
            for row in 0..3 {
                let is_kept = treatment != Treatment::Force && dirty.is_some_and(|(kept, _)| kept == row);
                let wanted = if is_kept { image(now[row]) } else { image(first[row]) };
                prop_assert_eq!(&written[&name(row)], &wanted);
            }
        }
    }
}
