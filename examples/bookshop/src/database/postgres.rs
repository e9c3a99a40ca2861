//! A service's database as a schema of PostgreSQL.

use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use quorate_outbox::inbox::PgInbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::store::Store;
use quorate_saga::journal::{Journal, PgJournal};
use quorate_saga::participant::PgFences;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};

use super::Database;
use crate::Settings;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Processes that begin at the same time make tables one after the other.
const ONE_BY_ONE: &str = "SELECT pg_advisory_xact_lock(hashtextextended('bookshop', 0))";

/// The schema `<name>_<service>`.
#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
    outbox: PgOutbox,
    fences: PgFences,
    inbox: PgInbox,
}

impl Database for Postgres {
    type Connection = PgConnection;
    type Inbox = PgInbox;
    type Fences = PgFences;

    async fn open(
        settings: &Settings,
        service: &'static str,
        tables: &'static str,
    ) -> Result<Self> {
        // The URL is not shown: it may have a password.
        let url = settings.postgres.as_deref().unwrap_or_default();
        let known = ["postgres://", "postgresql://"];
        if !known.iter().any(|scheme| url.starts_with(scheme)) {
            bail!("--postgres takes postgres://USER@HOST/DATABASE");
        }
        let options: PgConnectOptions = url.parse().context("the URL of --postgres")?;
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let schema = settings.schema(service);
        let options = options.options([("search_path", schema.as_str())]);
        let first = tokio::time::timeout(PATIENCE, options.connect()).await;
        let first = first.map_err(|_| anyhow!("it does not answer within {PATIENCE:?}"));
        let first = first.and_then(|first| Ok(first?));
        let first = first.with_context(|| format!("connect to PostgreSQL at {place}"))?;
        let pool = PgPoolOptions::new().max_connections(6);
        let pool = pool.acquire_timeout(PATIENCE).connect_lazy_with(options);
        let opened = Postgres::migrate(first, pool, &schema, tables).await;
        opened.with_context(|| format!("the schema `{schema}` of PostgreSQL at {place}"))
    }

    fn outbox(&self) -> Arc<dyn Store> {
        Arc::new(self.outbox.clone())
    }

    fn inbox(&self) -> PgInbox {
        self.inbox.clone()
    }

    fn fences(&self) -> PgFences {
        self.fences.clone()
    }

    async fn journal(&self) -> Result<Arc<dyn Journal>> {
        Ok(Arc::new(PgJournal::migrate(self.outbox.clone()).await?))
    }

    async fn connection(&self) -> Result<impl DerefMut<Target = PgConnection> + Send> {
        Ok(self.pool.acquire().await?)
    }
}

impl Postgres {
    async fn migrate(
        mut first: PgConnection,
        pool: PgPool,
        schema: &str,
        tables: &'static str,
    ) -> Result<Postgres> {
        let mut tx = first.begin().await?;
        sqlx::query(ONE_BY_ONE).execute(&mut *tx).await?;
        let make = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
        sqlx::query(AssertSqlSafe(make)).execute(&mut *tx).await?;
        sqlx::raw_sql(tables).execute(&mut *tx).await?;
        tx.commit().await?;
        first.close().await?;
        let outbox = PgOutbox::migrate(pool.clone(), 2).await?;
        Ok(Postgres {
            fences: PgFences::migrate(outbox.clone()).await?,
            inbox: PgInbox::migrate(pool.clone()).await?,
            outbox,
            pool,
        })
    }
}
