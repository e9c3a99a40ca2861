//! [`Server`]: a connection whose server is known, made anew when it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError, Script,
    ScriptInvocation, ServerErrorKind, Value,
};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::RedisOptions;
use crate::{Error, ErrorKind, Result};

/// How many keys a step of a scan looks at.
const SCAN_KEYS: usize = 1000;

#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    generation: Arc<str>,
    number: u64,
}

pub(super) struct Server {
    client: Client,
    config: AsyncConnectionConfig,
    live: Arc<Mutex<Option<Live>>>,
    connections: Arc<AtomicU64>,
}

impl Server {
    pub fn new(url: &str, options: &RedisOptions) -> Result<Self> {
        let client = Client::open(url).map_err(|error| {
            let message = format!("that is no URL of a Redis server: {error}");
            Error::new(ErrorKind::Invalid, message)
        })?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.response_timeout));
        Ok(Server {
            client,
            config,
            live: Arc::default(),
            connections: Arc::default(),
        })
    }

    /// Another connection to the same server, whose answers may take their time.
    pub fn patient(&self) -> Self {
        Server {
            client: self.client.clone(),
            config: self.config.clone().set_response_timeout(None),
            live: Arc::default(),
            connections: Arc::default(),
        }
    }

    /// Which server it is connected to.
    pub async fn generation(&self) -> Result<Arc<str>> {
        Ok(self.live().await?.generation)
    }

    /// Runs commands one after another, if the server is of a generation and still is afterwards. Longer than
    /// `patience` it does not wait.
    pub async fn run(
        &self,
        of: &str,
        mut commands: Pipeline,
        patience: Duration,
    ) -> Result<Option<Vec<Value>>> {
        let mut live = self.live().await?;
        if *live.generation != *of {
            return Ok(None);
        }
        commands.add_command(info());
        let done = commands.query_async(&mut live.connection);
        let Ok(done) = timeout(patience, done).await else {
            self.give_up(live.number).await;
            let message = format!("Redis did not answer within {patience:?}");
            return Err(Error::new(ErrorKind::Timeout, message));
        };
        let mut answers: Vec<Value> = self.noted(live.number, done).await?;
        let told = answers.pop().map(String::from_redis_value);
        let told = told.and_then(|told| told.ok()).unwrap_or_default();
        if generation(&told).is_ok_and(|now| now == of) {
            return Ok(Some(answers));
        }
        self.give_up(live.number).await;
        Ok(None)
    }

    /// Runs a script on one record. `give` is given the server's generation, and gives the arguments.
    pub async fn call<T: FromRedisValue>(
        &self,
        script: &Script,
        record: &[u8],
        give: impl FnOnce(&str, &mut ScriptInvocation<'_>),
    ) -> Result<T> {
        let mut live = self.live().await?;
        let mut invocation = script.prepare_invoke();
        invocation.key(record);
        give(&live.generation, &mut invocation);
        let done = invocation.invoke_async(&mut live.connection).await;
        self.noted(live.number, done).await
    }

    /// Removes all keys under a prefix that were there when it began.
    pub async fn remove_all(&self, prefix: &[u8]) -> Result<()> {
        let mut live = self.live().await?;
        let pattern = [&escaped(prefix)[..], b"*"].concat();
        let mut cursor = 0u64;
        loop {
            let mut scan = Cmd::new();
            scan.arg("SCAN").arg(cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(SCAN_KEYS);
            let page = scan.query_async(&mut live.connection).await;
            let (next, keys): (u64, Vec<Vec<u8>>) = self.noted(live.number, page).await?;
            if !keys.is_empty() {
                let mut unlink = Cmd::new();
                unlink.arg("UNLINK").arg(keys);
                let done = unlink.query_async(&mut live.connection).await;
                let _: u64 = self.noted(live.number, done).await?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// The connection there is, or a new one. Making one goes on when nobody waits for it any more.
    async fn live(&self) -> Result<Live> {
        let mut place = self.live.clone().lock_owned().await;
        if let Some(live) = &*place {
            return Ok(live.clone());
        }
        let (client, config) = (self.client.clone(), self.config.clone());
        let number = self.connections.fetch_add(1, Relaxed);
        let made = tokio::spawn(async move {
            let live = connect(&client, &config, number).await?;
            *place = Some(live.clone());
            Ok(live)
        });
        made.await.unwrap_or_else(|_| {
            let message = "connecting to Redis was ended";
            Err(Error::new(ErrorKind::Unavailable, message))
        })
    }

    /// Gives a connection up after a failure that may be the connection's or the server's.
    async fn noted<T>(&self, number: u64, done: redis::RedisResult<T>) -> Result<T> {
        let error = match done {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if is_of_the_connection(&error) {
            self.give_up(number).await;
        }
        Err(failed(&error))
    }

    async fn give_up(&self, number: u64) {
        let mut place = self.live.lock().await;
        if place.as_ref().is_some_and(|live| live.number == number) {
            *place = None;
        }
    }
}

fn is_of_the_connection(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, MasterDown, ReadOnly};
    let of_the_server = match error.kind() {
        redis::ErrorKind::Server(kind) => matches!(kind, BusyLoading | MasterDown | ReadOnly),
        _ => false,
    };
    of_the_server
        || error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
}

fn failed(error: &RedisError) -> Error {
    let made = Error::new(ErrorKind::Unavailable, format!("Redis: {error}"));
    match error.is_io_error() || error.is_timeout() || error.is_connection_dropped() {
        true => made.outcome_unknown(),
        false => made,
    }
}

/// Connects, and reads which server that is.
async fn connect(client: &Client, config: &AsyncConnectionConfig, number: u64) -> Result<Live> {
    let connection = client.get_multiplexed_async_connection_with_config(config);
    let mut connection = connection.await.map_err(|error| failed(&error))?;
    let told: redis::RedisResult<String> = info().query_async(&mut connection).await;
    let generation = generation(&told.map_err(|error| failed(&error))?)?;
    Ok(Live {
        connection,
        generation: generation.into(),
        number,
    })
}

/// Asks what [`generation`] reads.
fn info() -> Cmd {
    let mut info = Cmd::new();
    info.arg("INFO").arg("server").arg("replication");
    info
}

/// Names a server for as long as it runs and is the master without a break.
pub(super) fn generation(info: &str) -> Result<String> {
    let field = |name: &str| {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.to_owned());
        info.lines().map(str::trim).find_map(value)
    };
    let version = field("redis_version").unwrap_or_default();
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    if major < 7 {
        let message = format!("Redis 7 or newer is needed, this is {version:?}");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let role = field("role").unwrap_or_default();
    if role != "master" {
        let message = format!("the Redis server is no master but {role:?}");
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    match (field("run_id"), field("master_replid")) {
        (Some(run), Some(replication)) => Ok(format!("{run}:{replication}")),
        _ => {
            let message = "Redis does not say which server it is (INFO)";
            Err(Error::new(ErrorKind::Unsupported, message))
        }
    }
}

/// A prefix as a pattern that matches it alone.
fn escaped(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len());
    for byte in prefix {
        if b"*?[]^-\\".contains(byte) {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern
}
