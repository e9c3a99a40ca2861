//! The database of a service, by its URL.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A database with tables of ours.
pub enum Database {
    /// PostgreSQL.
    Postgres(PgPool),
    /// MySQL or MariaDB.
    MySql(MySqlPool),
    /// SQLite.
    Sqlite(SqlitePool),
}

impl Database {
    /// Connects. The URL is not shown in errors: it may have a password.
    ///
    /// # Errors
    /// When it is not a URL of such a database, or that does not answer.
    pub async fn connect(url: &str) -> Result<Database> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("postgres" | "postgresql") => {
                let options = PgConnectOptions::from_str(url).context("the URL of --database")?;
                let place = format!("{}:{}", options.get_host(), options.get_port());
                let pool = PgPoolOptions::new()
                    .max_connections(2)
                    .acquire_timeout(PATIENCE);
                let pool = pool.connect_with(options).await;
                let pool = pool.with_context(|| format!("connect to PostgreSQL at {place}"))?;
                Ok(Database::Postgres(pool))
            }
            Some("mysql" | "mariadb") => {
                let options =
                    MySqlConnectOptions::from_str(url).context("the URL of --database")?;
                let place = format!("{}:{}", options.get_host(), options.get_port());
                let pool = MySqlPoolOptions::new()
                    .max_connections(2)
                    .acquire_timeout(PATIENCE);
                let pool = pool.connect_with(options).await;
                let pool = pool.with_context(|| format!("connect to MySQL at {place}"))?;
                Ok(Database::MySql(pool))
            }
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(url)
                    .context("the URL of --database")?
                    .busy_timeout(PATIENCE);
                let file = options.get_filename().display().to_string();
                let pool = SqlitePoolOptions::new().max_connections(2);
                let pool = pool.connect_with(options).await;
                let pool = pool.with_context(|| format!("open the database file {file}"))?;
                Ok(Database::Sqlite(pool))
            }
            _ => bail!(
                "--database takes postgres://USER@HOST/NAME, mysql://USER@HOST/NAME or sqlite:FILE"
            ),
        }
    }
}
