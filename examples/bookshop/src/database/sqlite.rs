//! A service's database as an SQLite file in the shop's folder.

use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_outbox::inbox::SqliteInbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::Store;
use quorate_saga::journal::{Journal, SqliteJournal};
use quorate_saga::participant::SqliteFences;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions};

use super::Database;
use crate::Settings;

/// The file `<folder>/<service>.db`.
#[derive(Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    outbox: SqliteOutbox,
    fences: SqliteFences,
    inbox: SqliteInbox,
}

impl Database for Sqlite {
    type Connection = SqliteConnection;
    type Inbox = SqliteInbox;
    type Fences = SqliteFences;

    async fn open(
        settings: &Settings,
        service: &'static str,
        tables: &'static str,
    ) -> Result<Self> {
        let file = settings.folder()?.join(format!("{service}.db"));
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(20));
        let opened = async {
            let pool = SqlitePoolOptions::new().max_connections(4);
            let pool = pool.connect_with(options).await?;
            sqlx::raw_sql(tables).execute(&pool).await?;
            let outbox = SqliteOutbox::migrate(pool.clone(), 1).await?;
            anyhow::Ok(Sqlite {
                fences: SqliteFences::migrate(outbox.clone()).await?,
                inbox: SqliteInbox::migrate(pool.clone()).await?,
                outbox,
                pool,
            })
        };
        let opened = opened.await;
        opened.with_context(|| format!("the database of `{service}`, {}", file.display()))
    }

    fn outbox(&self) -> Arc<dyn Store> {
        Arc::new(self.outbox.clone())
    }

    fn inbox(&self) -> SqliteInbox {
        self.inbox.clone()
    }

    fn fences(&self) -> SqliteFences {
        self.fences.clone()
    }

    async fn journal(&self) -> Result<Arc<dyn Journal>> {
        Ok(Arc::new(SqliteJournal::migrate(self.outbox.clone()).await?))
    }

    async fn connection(&self) -> Result<impl DerefMut<Target = SqliteConnection> + Send> {
        Ok(self.pool.acquire().await?)
    }
}
