//! SeaORM and the outbox: an order by an active model and a message about it, in one transaction of
//! SeaORM's; the relay works on the same pool.
//!
//! `cargo run --example sea_orm --features postgres,sqlite` uses an SQLite file; with `QUORATE_POSTGRES` set
//! to a URL it uses that database.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use quorate_outbox::broker::local::{LocalBroker, LocalOptions};
use quorate_outbox::broker::{Broker, Positions, Start};
use quorate_outbox::postgres::{PgOutbox, PgValue};
use quorate_outbox::sqlite::{SQLITE_INSERT, SQLITE_SEQ, SqliteOutbox};
use quorate_outbox::store::{BoxFuture, Store};
use quorate_outbox::{Delivery, Message, Partition, Relay, RelayOptions};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::entity::prelude::*;
use sea_orm::sqlx::postgres::PgPoolOptions;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{
    DatabaseTransaction, DbBackend, Schema, SqlxPostgresConnector, SqlxSqliteConnector, Statement,
    TransactionTrait, Value,
};

type Done<T> = Result<T, Box<dyn Error>>;

mod order {
    //! An order.
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "example_orders")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub customer: String,
        pub cents: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Enqueues in a transaction of SeaORM's on PostgreSQL; answers the message's number within its key.
async fn enqueue(
    outbox: &PgOutbox,
    tx: &DatabaseTransaction,
    message: &Message,
) -> Done<Option<i64>> {
    let statement = outbox.statement(message)?;
    let values = statement.values.map(|value| match value {
        PgValue::Uuid(id) => Value::from(id),
        PgValue::Text(text) => Value::from(text),
        PgValue::Bytes(bytes) => Value::from(bytes),
    });
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, statement.text, values);
    let row = tx.query_one_raw(statement).await?.ok_or("no row")?;
    Ok(row.try_get("", "seq")?)
}

/// The same on SQLite: the number of the key first, then the row.
async fn enqueue_sqlite(
    outbox: &SqliteOutbox,
    tx: &DatabaseTransaction,
    message: &Message,
) -> Done<Option<i64>> {
    let part = outbox.part(message)?;
    let run = |text: &str, values: Vec<Value>| {
        let statement = Statement::from_sql_and_values(DbBackend::Sqlite, text, values);
        async move {
            tx.query_one_raw(statement)
                .await?
                .ok_or(DbErr::RecordNotInserted)
        }
    };
    let mut seq: Option<i64> = None;
    if message.ordered {
        let values = vec![message.topic.clone().into(), message.key.clone().into()];
        seq = Some(run(SQLITE_SEQ, values).await?.try_get("", "n")?);
    }
    let values = vec![
        i64::from(part).into(),
        message.id.into(),
        message.topic.clone().into(),
        message.key.clone().into(),
        seq.into(),
        outbox.headers(message).into(),
        message.payload.to_vec().into(),
    ];
    run(SQLITE_INSERT, values).await?;
    Ok(seq)
}

/// One of the two outboxes.
enum Outbox {
    Postgres(PgOutbox),
    Sqlite(SqliteOutbox),
}

/// Writes an order and a message about it, and commits or rolls back.
async fn buy(
    database: &DatabaseConnection,
    outbox: &Outbox,
    customer: &str,
    cents: i64,
    commit: bool,
) -> Done<Option<i64>> {
    let tx = database.begin().await?;
    let order = order::ActiveModel {
        id: NotSet,
        customer: Set(customer.to_owned()),
        cents: Set(cents),
    };
    let order = order.insert(&tx).await?;
    let body = format!("order {} of {customer}: {cents} cents", order.id);
    let message = Message::keyed("example-orders", customer, body);
    let seq = match outbox {
        Outbox::Postgres(outbox) => enqueue(outbox, &tx, &message).await?,
        Outbox::Sqlite(outbox) => enqueue_sqlite(outbox, &tx, &message).await?,
    };
    if commit {
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    Ok(seq)
}

/// Begins every partition at what was committed.
struct Anywhere;

impl Positions for Anywhere {
    fn assigned(&self, partitions: Vec<Partition>, _: u64) -> BoxFuture<'_, Vec<Start>> {
        let starts = vec![Start::Committed; partitions.len()];
        Box::pin(async move { starts })
    }

    fn revoked(&self, _: Vec<Partition>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Buys four times, of which one is rolled back, and waits for the messages of the others.
async fn run(database: DatabaseConnection, outbox: Outbox) -> Done<Vec<Delivery>> {
    let backend = database.get_database_backend();
    let mut table = Schema::new(backend).create_table_from_entity(order::Entity);
    database.execute(table.if_not_exists()).await?;
    let broker = LocalBroker::in_memory(LocalOptions::default());
    let topics = ["example-orders".to_owned()];
    let mut reader = broker
        .subscribe("example", &topics, Arc::new(Anywhere))
        .await?;
    let store: Arc<dyn Store> = match &outbox {
        Outbox::Postgres(outbox) => Arc::new(outbox.clone()),
        Outbox::Sqlite(outbox) => Arc::new(outbox.clone()),
    };
    let relay = Relay::start(store, Arc::new(broker), RelayOptions::default())?;
    for (cents, commit) in [(100, true), (200, true), (300, false), (400, true)] {
        buy(&database, &outbox, "customer-7", cents, commit).await?;
    }
    let mut found = Vec::new();
    while found.len() < 3 {
        found.extend(reader.next(10, Duration::from_secs(1)).await?);
    }
    relay.drain().await;
    Ok(found)
}

async fn on_postgres(url: &str, options: &str) -> Done<Vec<Delivery>> {
    let connect: sea_orm::sqlx::postgres::PgConnectOptions = url.parse()?;
    let connect = connect.options([("search_path", options)]);
    let pool = PgPoolOptions::new().connect_with(connect).await?;
    let outbox = PgOutbox::migrate(pool.clone(), 4).await?;
    let database = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
    run(database, Outbox::Postgres(outbox)).await
}

async fn on_sqlite() -> Done<Vec<Delivery>> {
    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("example.db"))
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(10));
    let pool = sea_orm::sqlx::SqlitePool::connect_with(options).await?;
    let outbox = SqliteOutbox::migrate(pool.clone(), 1).await?;
    let database = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool);
    run(database, Outbox::Sqlite(outbox)).await
}

#[tokio::main]
async fn main() -> Done<()> {
    let found = match std::env::var("QUORATE_POSTGRES") {
        Ok(url) => on_postgres(&url, "public").await?,
        Err(_) => on_sqlite().await?,
    };
    for delivery in found {
        let text = String::from_utf8_lossy(&delivery.payload);
        println!("number {:?}: {text}", delivery.seq().unwrap_or(0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: Vec<Delivery>) {
        let said = |d: &Delivery| {
            let text = String::from_utf8_lossy(&d.payload).into_owned();
            let cents = text.rsplit_once(": ").map(|(_, cents)| cents.to_owned());
            (d.seq(), cents.unwrap_or_default())
        };
        let said: Vec<_> = found.iter().map(said).collect();
        let expected = [(1, "100 cents"), (2, "200 cents"), (3, "400 cents")];
        let expected = expected.map(|(seq, text)| (Some(seq), text.to_owned()));
        assert_eq!(
            said, expected,
            "what was committed, in order, without a gap"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sea_orm_transaction_carries_a_message_on_sqlite() {
        check(on_sqlite().await.expect("runs"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sea_orm_transaction_carries_a_message_on_postgres() {
        let url = std::env::var("QUORATE_POSTGRES").expect(
            "QUORATE_POSTGRES is not set: run `cargo xtask test`, or `cargo xtask services` and set what it \
             prints",
        );
        let pool = sea_orm::sqlx::PgPool::connect(&url)
            .await
            .expect("connects");
        let schema = format!("quorate_sea_orm_{}", std::process::id());
        let run = async |text: String| {
            let query = sea_orm::sqlx::query(sea_orm::sqlx::AssertSqlSafe(text));
            query.execute(&pool).await.expect("runs");
        };
        run(format!("CREATE SCHEMA {schema}")).await;
        let found = on_postgres(&url, &schema).await;
        run(format!("DROP SCHEMA {schema} CASCADE")).await;
        check(found.expect("runs"));
    }
}
