//! SeaORM with read replicas: entities as they are, on the pool that the read rule chooses.
//!
//! `cargo run --example sea_orm_replicas --features postgres,sqlite` uses an SQLite file; with
//! `QUORATE_POSTGRES` and `QUORATE_POSTGRES_REPLICA` set to URLs it uses that primary and its replica.

use std::error::Error;

use quorate_sql::{Backend, Database, Options, Place, Read, Session};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::entity::prelude::*;
use sea_orm::sqlx::{Pool, Postgres, Sqlite};
use sea_orm::{Schema, SqlxPostgresConnector, SqlxSqliteConnector};

type Done<T> = Result<T, Box<dyn Error>>;

mod order {
    //! An order.
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "example_replica_orders")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub customer: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Buys, and reads what was bought where the session may; answers where that was.
async fn buy<DB: Backend>(
    db: &Database<DB>,
    session: &Session<DB>,
    on: fn(Pool<DB>) -> DatabaseConnection,
    customer: &str,
) -> Done<Place> {
    let order = order::ActiveModel {
        id: NotSet,
        customer: Set(customer.to_owned()),
    };
    let order = order.insert(&on(db.primary())).await?;
    // SeaORM committed by itself: the session is told, and its reads from here on see the order.
    session.wrote().await?;
    let (place, pool) = session.pool(Read::Session).await?;
    let found = order::Entity::find_by_id(order.id).one(&on(pool)).await?;
    if found.as_ref() != Some(&order) {
        return Err(format!("{place} did not have the order").into());
    }
    Ok(place)
}

async fn run<DB: Backend>(
    options: Options,
    on: fn(Pool<DB>) -> DatabaseConnection,
) -> Done<Vec<Place>> {
    let db = Database::<DB>::connect(options).await?;
    let primary = on(db.primary());
    let backend = primary.get_database_backend();
    let mut table = Schema::new(backend).create_table_from_entity(order::Entity);
    primary.execute(table.if_not_exists()).await?;
    let session = db.session();
    let mut places = Vec::new();
    for number in 0..20 {
        places.push(buy(&db, &session, on, &format!("customer-{number}")).await?);
    }
    Ok(places)
}

async fn on_postgres(primary: &str, replica: &str) -> Done<Vec<Place>> {
    let options = Options::new(primary).replica("one", replica);
    run::<Postgres>(options, SqlxPostgresConnector::from_sqlx_postgres_pool).await
}

async fn on_sqlite() -> Done<Vec<Place>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("example.db");
    let options = Options::new(format!("sqlite://{}?mode=rwc", file.display()));
    run::<Sqlite>(options, SqlxSqliteConnector::from_sqlx_sqlite_pool).await
}

#[tokio::main]
async fn main() -> Done<()> {
    let servers = (
        std::env::var("QUORATE_POSTGRES"),
        std::env::var("QUORATE_POSTGRES_REPLICA"),
    );
    let places = match servers {
        (Ok(primary), Ok(replica)) => on_postgres(&primary, &replica).await?,
        _ => on_sqlite().await?,
    };
    for place in places {
        println!("read on {place}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> String {
        std::env::var(name).unwrap_or_else(|_| {
            panic!(
                "{name} is not set: run `cargo xtask services -- cargo test -p quorate-sql --features \
                 postgres,mysql,sqlite`, or set what `cargo xtask services` prints"
            )
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sea_orm_reads_its_writes_on_sqlite() {
        let places = on_sqlite().await.expect("runs");
        assert_eq!(places, vec![Place::Primary; 20]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sea_orm_reads_its_writes_on_a_replica() {
        let primary = variable("QUORATE_POSTGRES");
        let replica = variable("QUORATE_POSTGRES_REPLICA");
        let pool = sea_orm::sqlx::PgPool::connect(&primary)
            .await
            .expect("connects");
        let schema = format!("quorate_sea_orm_replicas_{}", std::process::id());
        let run = async |text: String| {
            let query = sea_orm::sqlx::query(sea_orm::sqlx::AssertSqlSafe(text));
            query.execute(&pool).await.expect("runs");
        };
        run(format!("CREATE SCHEMA {schema}")).await;
        let within = |url: &str| format!("{url}?options=-c%20search_path%3D{schema}");
        let places = on_postgres(&within(&primary), &within(&replica)).await;
        run(format!("DROP SCHEMA {schema} CASCADE")).await;
        let places = places.expect("every order was found");
        assert!(places.contains(&Place::Replica("one".into())), "{places:?}");
    }
}
