//! One primary and its replicas.

mod primary;
mod replica;

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Pool;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Result;
use crate::backend::{Backend, Standing};
use crate::pool::{Lane, Lease, Place, PoolOptions, PoolStatus, Welcome};
use crate::route::{Need, View, Watermarks, choose};
use crate::session::{Session, SessionOptions};
use crate::token::{Position, Token};

pub(crate) use primary::Primary;
pub(crate) use replica::{Replica, Wanted};

/// What to connect to, and how. Its debug form has no URLs: they hold passwords.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// The primary's URL, as sqlx reads it.
    pub primary: String,
    /// The replicas: a name for messages, and a URL that leads to one server.
    pub replicas: Vec<(String, String)>,
    /// The pool of each server.
    pub pool: PoolOptions,
    /// How often primary and replicas are looked at. A bound of staleness can't be shorter than about twice
    /// this.
    pub watch_every: Duration,
}

impl Options {
    /// A primary, without replicas.
    pub fn new(primary: impl Into<String>) -> Options {
        Options {
            primary: primary.into(),
            replicas: Vec::new(),
            pool: PoolOptions::default(),
            watch_every: Duration::from_millis(100),
        }
    }

    /// With one replica more.
    pub fn replica(mut self, name: impl Into<String>, url: impl Into<String>) -> Options {
        self.replicas.push((name.into(), url.into()));
        self
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self
            .replicas
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        f.debug_struct("Options")
            .field("replicas", &names)
            .field("pool", &self.pool)
            .field("watch_every", &self.watch_every)
            .finish_non_exhaustive()
    }
}

/// A replica, and the way to it.
pub(crate) struct Member<DB: Backend> {
    pub name: String,
    pub state: Arc<Replica>,
    pub lane: Arc<Lane<DB>>,
}

pub(crate) struct Inner<DB: Backend> {
    pub primary: Arc<Lane<DB>>,
    primary_state: Arc<Primary>,
    pub members: Vec<Member<DB>>,
    pub marks: Arc<Mutex<Watermarks>>,
    changed: Arc<watch::Sender<()>>,
    turn: AtomicUsize,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Reads do not wait for what their session wrote: shows that the tests would notice.
    #[cfg(test)]
    pub blind: std::sync::atomic::AtomicBool,
}

impl<DB: Backend> Drop for Inner<DB> {
    fn drop(&mut self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

/// A primary and its replicas, with their pools and the watch over them. Cheap to clone; the watch ends with
/// the last clone and the last session.
pub struct Database<DB: Backend> {
    pub(crate) inner: Arc<Inner<DB>>,
}

impl<DB: Backend> Clone for Database<DB> {
    fn clone(&self) -> Self {
        Database {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<DB: Backend> std::fmt::Debug for Database<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database ({})", DB::NAME)
    }
}

impl<DB: Backend> Database<DB> {
    /// Connects to the primary, and begins to watch the replicas, which need not be there yet.
    ///
    /// Errors: `Invalid` for what can't be an URL, `Unsupported` for replicas of SQLite, `Unavailable` if the
    /// primary does not answer or takes no writes. REQUIRES: a tokio runtime.
    pub async fn connect(options: Options) -> Result<Database<DB>> {
        if !DB::REPLICAS && !options.replicas.is_empty() {
            return crate::backend::unsupported("replicas", DB::NAME);
        }
        let marks = Arc::new(Mutex::new(Watermarks::default()));
        let pool = || options.pool.clone();
        let primary = Lane::new(
            "the primary".into(),
            &options.primary,
            pool(),
            at_primary::<DB>(),
        )?;
        // A first connection, to say at once what is wrong.
        let connection = primary.connect().await;
        let mut connection = connection.map_err(|error| error.within("the primary"))?;
        let asked = std::time::Instant::now();
        let standing = DB::standing(&mut connection).await?;
        primary::check(&standing).map_err(|error| error.within("the primary"))?;
        if let Some(position) = standing.position {
            marks.lock().add(asked, position);
        }
        let mut members = Vec::new();
        for (name, url) in &options.replicas {
            let state = Arc::new(Replica::default());
            let welcome = at_replica::<DB>(&state, &marks);
            let lane = Lane::new(format!("replica {name}"), url, pool(), welcome)?;
            let name = name.clone();
            members.push(Member { name, state, lane });
        }
        let inner = Arc::new(Inner {
            primary,
            primary_state: Arc::default(),
            members,
            marks,
            changed: Arc::new(watch::Sender::new(())),
            turn: AtomicUsize::new(0),
            tasks: Mutex::default(),
            #[cfg(test)]
            blind: std::sync::atomic::AtomicBool::new(false),
        });
        inner.watch(options.watch_every.max(Duration::from_millis(1)));
        Ok(Database { inner })
    }

    /// A new session, at the default settings.
    pub fn session(&self) -> Session<DB> {
        self.session_with(SessionOptions::default())
    }

    /// A new session.
    pub fn session_with(&self, options: SessionOptions) -> Session<DB> {
        Session::new(Arc::clone(&self.inner), options, None)
    }

    /// A session that has written what a token stands for, made by this process or another.
    ///
    /// Errors: `Unsupported` where the database has no tokens.
    pub fn resume(&self, token: Token, options: SessionOptions) -> Result<Session<DB>> {
        if !DB::POSITIONS {
            return crate::backend::unsupported("tokens here", DB::NAME);
        }
        let inner = Arc::clone(&self.inner);
        Ok(Session::new(inner, options, Some(token)))
    }

    /// The primary's pool, for what works on sqlx's pools, SeaORM for one. It goes past the limit on leases;
    /// a session does not see what is written by it ([`Session::wrote`]).
    pub fn primary(&self) -> Pool<DB> {
        self.inner.primary.pool()
    }

    /// How a statement would be run on the primary, by lines, in the database's own words. It is planned, not
    /// run. REQUIRES: a statement that is not made of what users gave; parameters (`$1`) need PostgreSQL 16.
    pub async fn plan(&self, statement: &str) -> Result<Vec<String>> {
        let mut lease = self.inner.on_primary(Location::caller()).await?;
        Ok(DB::plan(&mut lease, statement.to_owned()).await?)
    }

    /// How servers and pools stand.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let marks = inner.marks.lock();
        let replicas = inner.members.iter().map(|member| {
            let view = member.state.view(member.lane.in_use());
            ReplicaStatus {
                pool: member.lane.status(),
                trouble: member.state.trouble(),
                position: view.position,
                staleness: view.fresh.map(|fresh| fresh.elapsed()),
            }
        });
        Status {
            primary: inner.primary.status(),
            primary_trouble: inner.primary_state.trouble(),
            primary_position: marks.last().map(|(_, position)| position),
            replicas: replicas.collect(),
        }
    }
}

/// How all stands.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// The primary's pool.
    pub primary: PoolStatus,
    /// Why the primary can't be relied on.
    pub primary_trouble: Option<String>,
    /// What its log held when it was last looked at.
    pub primary_position: Option<Position>,
    /// The replicas, in the order in which they were named.
    pub replicas: Vec<ReplicaStatus>,
}

/// How a replica stands.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// Its pool.
    pub pool: PoolStatus,
    /// Why it is out of rotation; `None` while it serves.
    pub trouble: Option<String>,
    /// What it is proved to have replayed.
    pub position: Option<Position>,
    /// What it holds is at most so old. `None` if nothing is proved.
    pub staleness: Option<Duration>,
}

impl<DB: Backend> Inner<DB> {
    fn watch(&self, every: Duration) {
        let mut tasks = self.tasks.lock();
        if DB::POSITIONS || DB::REPLICAS {
            let watch = primary::Watch {
                primary: Arc::clone(&self.primary_state),
                lane: Arc::clone(&self.primary),
                marks: Arc::clone(&self.marks),
                changed: Arc::clone(&self.changed),
                every,
            };
            tasks.push(tokio::spawn(watch.run()));
        }
        for member in &self.members {
            let watch = replica::Watch {
                replica: Arc::clone(&member.state),
                lane: Arc::clone(&member.lane),
                marks: Arc::clone(&self.marks),
                changed: Arc::clone(&self.changed),
                every,
            };
            tasks.push(tokio::spawn(watch.run()));
        }
        let lanes = self.members.iter().map(|member| &member.lane);
        for lane in lanes.chain([&self.primary]) {
            tasks.push(tokio::spawn(reclaim(Arc::clone(lane))));
        }
    }

    /// Hears of everything that the watch finds out from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The replica that meets the need.
    pub fn choose(&self, need: &Need) -> Option<&Member<DB>> {
        let views: Vec<View> = self
            .members
            .iter()
            .map(|member| member.state.view(member.lane.in_use()))
            .collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        choose(need, &views, turn).map(|at| &self.members[at])
    }

    /// A connection to the primary.
    pub async fn on_primary(&self, at: &'static Location<'static>) -> Result<Lease<DB>> {
        let patience = self.primary.options().patience;
        self.primary.lease(at, Place::Primary, patience).await
    }

    /// Why no replica serves, for messages.
    pub fn troubles(&self) -> String {
        let said: Vec<String> = self
            .members
            .iter()
            .map(|member| {
                let view = member.state.view(0);
                let state = match (member.state.trouble(), view.fresh) {
                    (Some(trouble), _) => trouble,
                    (None, Some(fresh)) => format!("at most {:.1?} old", fresh.elapsed()),
                    (None, None) => "nothing is proved of its age".to_owned(),
                };
                format!("{}: {state}", member.lane.name())
            })
            .collect();
        said.join("; ")
    }
}

async fn reclaim<DB: Backend>(lane: Arc<Lane<DB>>) {
    let Some(longest) = lane.options().hold_max else {
        return;
    };
    let every = (longest / 4).clamp(Duration::from_millis(5), Duration::from_secs(10));
    loop {
        tokio::time::sleep(every).await;
        lane.reclaim();
    }
}

fn at_primary<DB: Backend>() -> Welcome<DB> {
    Arc::new(|connection| {
        Box::pin(async move {
            let standing: Standing = DB::standing(connection).await?;
            primary::check(&standing)
        })
    })
}

fn at_replica<DB: Backend>(state: &Arc<Replica>, marks: &Arc<Mutex<Watermarks>>) -> Welcome<DB> {
    let state = Arc::clone(state);
    let marks = Arc::clone(marks);
    Arc::new(move |connection| {
        let state = Arc::clone(&state);
        let marks = Arc::clone(&marks);
        Box::pin(async move {
            let seen = DB::observe(connection).await?;
            let system = marks.lock().last().map(|(_, position)| position.system);
            state.admit(&seen, system)
        })
    })
}
