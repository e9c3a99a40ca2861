//! Aggregates and pages over shards, beside the same question to one database that has all rows.

use futures_util::stream::TryStreamExt;
use sqlx::{MySql, Postgres, Sqlite};

use super::support::{Lite, My, Pg, open, write};
use crate::backend::Backend;
use crate::bulk::Cell;
use crate::shard::{
    Aggregate, Direction, Group, Key, Kind, Listing, PageToken, Router, Shards, Value,
};
use crate::{Database, ErrorKind, Options, Read};

/// A row of the test: its id, a word of few values or none, a number of all sizes or none, a fraction or none.
type Line = (i64, Option<&'static str>, Option<i64>, Option<f64>);

fn line(id: i64) -> Line {
    let words = [
        Some("a"),
        Some("B"),
        Some("é"),
        Some("b"),
        None,
        Some("Z"),
        Some("a "),
    ];
    let n = match id % 11 {
        0 => None,
        1 => Some(i64::MAX),
        2 => Some(-id),
        _ => Some(id * 1_000_003),
    };
    let part = (id % 5 != 0).then_some(id as f64 / 4.0);
    (id, words[(id % 7) as usize], n, part)
}

fn literal<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or("NULL".to_owned(), |value| value.to_string())
}

async fn fill<DB: Backend>(db: &Database<DB>, lines: &[Line]) {
    let double = match DB::NAME {
        "PostgreSQL" => "double precision",
        _ => "double",
    };
    let make = format!(
        "CREATE TABLE marks (id bigint PRIMARY KEY, word varchar(20), n bigint, part {double})"
    );
    write(&db.session(), &[&make]).await;
    for lines in lines.chunks(500) {
        let rows: Vec<String> = lines
            .iter()
            .map(|(id, word, n, part)| {
                let word = literal(word.map(|word| format!("'{word}'")));
                format!("({id}, {word}, {}, {})", literal(*n), literal(*part))
            })
            .collect();
        let text = format!("INSERT INTO marks VALUES {}", rows.join(","));
        write(&db.session(), &[&text]).await;
    }
}

/// Rows 0 to `rows` over databases, of which the last has none.
async fn spread<DB: Backend>(options: Vec<Options>, rows: i64) -> Shards<DB> {
    let filled = options.len() - 1;
    let mut router = vec![0; 64];
    let buckets = router.iter_mut().enumerate();
    buckets.for_each(|(bucket, shard)| *shard = bucket % filled);
    let router = Router::hash(router).expect("a router");
    let mut lines = vec![Vec::new(); filled + 1];
    for id in 0..rows {
        lines[router.for_key(&Key::from(id)).expect("a shard")].push(line(id));
    }
    let mut databases = Vec::new();
    for (options, lines) in options.into_iter().zip(&lines) {
        let db = open::<DB>(options).await;
        fill(&db, lines).await;
        databases.push(db);
    }
    Shards::new(router, databases).expect("shards")
}

fn everything() -> Aggregate {
    Aggregate::over("marks")
        .group_by("word", Kind::Text)
        .count()
        .count_of("n")
        .sum("n", Kind::Int)
        .min("n", Kind::Int)
        .max("part", Kind::Float)
        .average("n", Kind::Int)
        .average("part", Kind::Float)
        .max("word", Kind::Text)
}

/// The same by hand, groups in the order of their bytes.
fn by_hand(rows: i64, nulls_first: bool) -> Vec<Group> {
    let mut words: Vec<Option<&str>> = (0..7).map(|id| line(id).1).collect();
    words.sort_unstable();
    if !nulls_first {
        words.rotate_left(1);
    }
    let group = |word: Option<&'static str>| {
        let lines: Vec<Line> = (0..rows).map(line).filter(|line| line.1 == word).collect();
        let numbers: Vec<i128> = lines
            .iter()
            .filter_map(|line| Some(line.2?.into()))
            .collect();
        let parts: Vec<f64> = lines.iter().filter_map(|line| line.3).collect();
        let sum: i128 = numbers.iter().sum();
        let text = word.map_or(Value::Null, |word| Value::Text(word.to_owned()));
        Group {
            keys: vec![text.clone()],
            values: vec![
                Value::Int(lines.len() as i128),
                Value::Int(numbers.len() as i128),
                Value::Int(sum),
                Value::Int(numbers.iter().copied().min().expect("some")),
                Value::Float(parts.iter().copied().fold(f64::MIN, f64::max)),
                Value::Float(sum as f64 / numbers.len() as f64),
                // Quarters: their sums are exact in any order.
                Value::Float(parts.iter().sum::<f64>() / parts.len() as f64),
                text,
            ],
        }
    };
    words.into_iter().map(group).collect()
}

async fn adds_up<DB: Backend>(options: Vec<Options>) {
    const ROWS: i64 = 2_000;
    let shards = spread::<DB>(options, ROWS).await;
    let groups = shards
        .aggregate(Read::Primary, &everything())
        .expect("asks");
    let groups: Vec<Group> = groups.try_collect().await.expect("adds up");
    let expected = by_hand(ROWS, DB::NULLS_FIRST);
    for (got, expected) in groups.iter().zip(&expected) {
        // The mean of numbers past 2^53 is right to the last bits but one.
        let (Value::Float(a), Value::Float(b)) = (&got.values[5], &expected.values[5]) else {
            panic!("{}: {got:?}", DB::NAME);
        };
        assert!(
            (a - b).abs() <= b.abs() * 1e-15,
            "{}: {a} for {b}",
            DB::NAME
        );
        let mut got = got.clone();
        got.values[5] = expected.values[5].clone();
        assert_eq!(&got, expected, "{}", DB::NAME);
    }
    assert_eq!(groups.len(), expected.len(), "{}: {groups:?}", DB::NAME);
    let none = everything().filter("id < 0", Vec::new());
    let groups = shards.aggregate(Read::Primary, &none).expect("asks");
    let groups: Vec<Group> = groups.try_collect().await.expect("adds up");
    assert_eq!(groups, Vec::new(), "no rows, no groups");
    let condition = format!("id >= {} AND word = {}", DB::parameter(1), DB::parameter(2));
    let cells = vec![Cell::Int(1_000), Cell::Text("Z".into())];
    let whole = Aggregate::over("marks")
        .count()
        .sum("n", Kind::Int)
        .average("part", Kind::Float);
    for (aggregate, count) in [
        (whole.clone().filter("id < 0", Vec::new()), 0),
        (
            whole.filter(condition, cells),
            (1_000..ROWS).filter(|id| id % 7 == 5).count(),
        ),
    ] {
        let groups = shards.aggregate(Read::Primary, &aggregate).expect("asks");
        let groups: Vec<Group> = groups.try_collect().await.expect("adds up");
        assert_eq!(groups.len(), 1, "without keys one group, whatever there is");
        assert_eq!(
            groups[0].values[0],
            Value::Int(count as i128),
            "{}",
            DB::NAME
        );
        let empty = groups[0].values[1..] == [Value::Null, Value::Null];
        assert_eq!(empty, count == 0, "{}: {groups:?}", DB::NAME);
    }
    pages(&shards, ROWS).await;
}

/// All pages of a listing, each by a token that went through its text, and their ids.
async fn pages<DB: Backend>(shards: &Shards<DB>, rows: i64) {
    let listing = Listing::of("marks", ["word"])
        .order_by("word", Kind::Text, Direction::Descending)
        .order_by("id", Kind::Int, Direction::Ascending)
        .filter("word IS NOT NULL", Vec::new());
    let mut expected: Vec<Line> = (0..rows)
        .map(line)
        .filter(|line| line.1.is_some())
        .collect();
    expected.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let expected: Vec<i64> = expected.iter().map(|line| line.0).collect();
    let mut found = Vec::new();
    let mut token: Option<PageToken> = None;
    loop {
        let page = shards
            .page(Read::Primary, &listing, 333, token.as_ref())
            .await;
        let page = page.expect("a page");
        for row in &page.rows {
            let id = DB::value(row, 2, crate::shard::Wire::Plain(Kind::Int)).expect("its id");
            found.push(id.as_i64().expect("a number"));
        }
        let Some(next) = page.next else { break };
        assert_eq!(page.rows.len(), 333);
        token = Some(next.to_string().parse().expect("the token is read again"));
    }
    assert_eq!(found, expected, "{}", DB::NAME);
    let other = listing.clone().filter("id > 5", Vec::new());
    let error = shards
        .page(Read::Primary, &other, 333, token.as_ref())
        .await;
    let error = error.err().expect("a token of another listing");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let twice = Listing::of("marks", ["id"]).order_by("word", Kind::Text, Direction::Ascending);
    let twice = twice.filter("word = 'a'", Vec::new());
    let error = shards.page(Read::Primary, &twice, 10, None).await;
    let error = error.err().expect("words are not unique");
    assert!(error.message().contains("order by more columns"), "{error}");
    let null = Listing::of("marks", ["id"]).order_by("n", Kind::Int, Direction::Ascending);
    let null = null.filter("n IS NULL", Vec::new());
    let error = shards.page(Read::Primary, &null, 10, None).await;
    let error = error.err().expect("some rows have no number");
    assert!(error.message().contains("has no value"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_aggregates_and_pages_on_postgres_are_those_of_all_rows() {
    let schemas = [Pg::new().await, Pg::new().await, Pg::new().await];
    adds_up::<Postgres>(schemas.iter().map(Pg::options).collect()).await;
    for schema in schemas {
        schema.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_aggregates_and_pages_on_mysql_are_those_of_all_rows() {
    let databases = [My::new().await, My::new().await, My::new().await];
    adds_up::<MySql>(databases.iter().map(My::options).collect()).await;
    for database in databases {
        database.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_aggregates_and_pages_on_sqlite_are_those_of_all_rows() {
    let files = [Lite::new(), Lite::new(), Lite::new()];
    adds_up::<Sqlite>(files.iter().map(Lite::options).collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_groups_are_merged_with_few_of_each_shard_in_hand() {
    let files = [Lite::new(), Lite::new()];
    let shards = spread::<Sqlite>(files.iter().map(Lite::options).collect(), 50_000).await;
    // As many groups as rows: who takes none but the first lets no shard read far.
    let each = Aggregate::over("marks").group_by("id", Kind::Int).count();
    let groups = shards.aggregate(Read::Primary, &each).expect("asks");
    let mut groups = std::pin::pin!(groups);
    let mut count: i128 = 0;
    while let Some(group) = groups.try_next().await.expect("adds up") {
        assert_eq!(group.keys, [Value::Int(count)]);
        count += 1;
    }
    assert_eq!(count, 50_000);
    let error = |aggregate: Aggregate| {
        let refused = shards.aggregate(Read::Primary, &aggregate).err();
        let error = refused.expect("can't be");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.message().to_owned()
    };
    assert!(error(Aggregate::over("marks")).contains("something to add up"));
    assert!(error(Aggregate::over("marks").sum("word", Kind::Text)).contains("no sum"));
    let float = Aggregate::over("marks")
        .group_by("part", Kind::Float)
        .count();
    assert!(error(float).contains("read them as text"));
    let null = Aggregate::over("marks")
        .count()
        .filter("n = ?", vec![Cell::Null]);
    assert!(error(null).contains("IS NULL"));
    let lost = Aggregate::over("nowhere").count();
    let groups = shards.aggregate(Read::Primary, &lost).expect("asks");
    let error = groups
        .try_collect::<Vec<Group>>()
        .await
        .expect_err("no such table");
    assert!(error.message().starts_with("shard "), "{error}");
}

#[test]
fn page_token_that_is_none_is_refused() {
    for text in [
        "",
        "page1",
        "page2.0",
        "page1.zz",
        "page1.0.x1",
        "page1.0.i",
        "page1.0.tf",
        "page1.0.té1",
        "page1.0.t+1",
    ] {
        let error = text.parse::<PageToken>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
    }
    let token: PageToken = "page1.ff.i-7.tc3a9".parse().expect("one");
    assert_eq!(token.to_string(), "page1.ff.i-7.tc3a9");
}
