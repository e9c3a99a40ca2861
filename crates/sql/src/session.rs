//! Sessions: whose writes a read must see.

use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::Pool;

use crate::backend::Backend;
use crate::database::{Inner, Member, Wanted};
use crate::pool::{Lease, Place};
use crate::route::{Need, Read};
use crate::token::{Position, Token};
use crate::{Error, ErrorKind, Result};

/// What becomes of a read whose rule no replica meets in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Otherwise {
    /// The primary serves it, which meets every rule.
    #[default]
    Primary,
    /// It fails with [`ErrorKind::Stale`], or [`ErrorKind::TokenLost`] if the session's token is of another
    /// system or timeline: so a lagging replica does not turn all of its load onto the primary.
    Fail,
}

/// Settings of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// How long a read waits for a replica to reach what the session wrote, and a synchronous write for all
    /// of them.
    pub patience: Duration,
    /// What then.
    pub otherwise: Otherwise,
    /// How long a commit may take until its outcome is given up as unknown.
    pub commit_max: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            patience: Duration::from_millis(500),
            otherwise: Otherwise::Primary,
            commit_max: Duration::from_secs(30),
        }
    }
}

/// What the session has done.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// What it has written.
    pub token: Option<Token>,
    /// When it last wrote.
    pub wrote: Option<Instant>,
    /// Commits under way or of unknown outcome: what they wrote has no token.
    pub doubts: usize,
}

/// One user's or one request's view: what it has written, its later reads see. Cheap to clone; clones are the
/// same session.
pub struct Session<DB: Backend> {
    pub(crate) inner: Arc<Inner<DB>>,
    pub(crate) options: SessionOptions,
    pub(crate) past: Arc<Mutex<Past>>,
}

impl<DB: Backend> Clone for Session<DB> {
    fn clone(&self) -> Self {
        Session {
            inner: Arc::clone(&self.inner),
            options: self.options,
            past: Arc::clone(&self.past),
        }
    }
}

impl<DB: Backend> std::fmt::Debug for Session<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("past", &*self.past.lock())
            .finish_non_exhaustive()
    }
}

/// Who serves a read.
enum Served<'s, DB: Backend> {
    Primary,
    Replica(&'s Member<DB>, Need),
}

impl<DB: Backend> Session<DB> {
    pub(crate) fn new(
        inner: Arc<Inner<DB>>,
        options: SessionOptions,
        token: Option<Token>,
    ) -> Session<DB> {
        let past = Past {
            token,
            // When it was written is not known: perhaps just now.
            wrote: token.map(|_| Instant::now()),
            doubts: 0,
        };
        Session {
            inner,
            options,
            past: Arc::new(Mutex::new(past)),
        }
    }

    /// What the session has written so far; `None` if it has written nothing, or the database has no tokens.
    /// Transactions of unknown outcome are not in it.
    pub fn token(&self) -> Option<Token> {
        self.past.lock().token
    }

    /// A connection to a server that meets the rule, for reading.
    ///
    /// Errors: `Stale` and `TokenLost` if the session does not let it go to the primary; `Unavailable`,
    /// `Exhausted`; `Unsupported` for a rule that the database's replicas can't be proved to meet.
    #[track_caller]
    pub fn read(&self, rule: Read) -> impl Future<Output = Result<Lease<DB>>> + Send + '_ {
        self.lease(rule, Location::caller())
    }

    /// The same for who was called from elsewhere.
    pub(crate) async fn lease(
        &self,
        rule: Read,
        at: &'static Location<'static>,
    ) -> Result<Lease<DB>> {
        match self.serve(rule).await? {
            Served::Replica(member, need) => match self.on_replica(member, need, at).await {
                // It went away just now: as if it had not been there.
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    self.elsewhere(&error)?;
                    self.on_primary(rule, at).await
                }
                leased => leased,
            },
            Served::Primary => self.on_primary(rule, at).await,
        }
    }

    /// The pool of a server that meets the rule now. For what works on sqlx's pools, which goes past the limit
    /// on leases. Ask anew for each unit of work: a rule that speaks of time is met now only, and a replica
    /// that crashes may come back with less than it had.
    pub async fn pool(&self, rule: Read) -> Result<(Place, Pool<DB>)> {
        match self.serve(rule).await? {
            Served::Replica(member, _) => {
                Ok((Place::Replica(member.name.clone()), member.lane.pool()))
            }
            Served::Primary => {
                drop(self.on_primary(rule, Location::caller()).await?);
                Ok((Place::Primary, self.inner.primary.pool()))
            }
        }
    }

    /// Notes that something was written on the primary without this session's knowing, by SeaORM on the
    /// pool for one. Answers the token that stands for it.
    pub async fn wrote(&self) -> Result<Option<Token>> {
        self.past.lock().wrote = Some(Instant::now());
        let mut lease = self.inner.on_primary(Location::caller()).await?;
        let position = DB::standing(&mut lease).await?.position;
        let mut past = self.past.lock();
        if let Some(position) = position {
            past.token = Some(Token::raise(past.token, Token::new(position)));
        }
        Ok(past.token)
    }

    async fn on_replica(
        &self,
        member: &Member<DB>,
        need: Need,
        at: &'static Location<'static>,
    ) -> Result<Lease<DB>> {
        let place = Place::Replica(member.name.clone());
        let lease = member.lane.lease(at, place, self.options.patience).await?;
        // It may have begun another run since it was chosen, of which nothing is proved.
        if member.state.view(0).meets(&need) {
            return Ok(lease);
        }
        let text = format!("{} restarted while it was asked", member.lane.name());
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// A connection to the primary that is not behind what the session wrote.
    async fn on_primary(&self, rule: Read, at: &'static Location<'static>) -> Result<Lease<DB>> {
        let mut lease = self.inner.on_primary(at).await?;
        let token = self.past.lock().token;
        if let (Read::Session, Some(token)) = (rule, token) {
            let standing = DB::standing(&mut lease).await?;
            behind(&token, standing.position)?;
        }
        Ok(lease)
    }

    /// Whether the primary may serve instead.
    fn elsewhere(&self, why: &Error) -> Result<()> {
        match self.options.otherwise {
            Otherwise::Primary => Ok(()),
            Otherwise::Fail => Err(why.clone()),
        }
    }

    async fn serve(&self, rule: Read) -> Result<Served<'_, DB>> {
        if rule == Read::Primary || self.inner.members.is_empty() {
            return Ok(Served::Primary);
        }
        if !DB::POSITIONS && rule != Read::Any {
            let what =
                "proof of what a replica holds: only Primary and Any are served with replicas";
            return crate::backend::unsupported(what, DB::NAME);
        }
        let need = match self.need(rule) {
            Ok(Some(need)) => need,
            Ok(None) => return Ok(Served::Primary),
            Err(error) => {
                self.elsewhere(&error)?;
                return Ok(Served::Primary);
            }
        };
        if let Some(member) = self.inner.choose(&need) {
            return Ok(Served::Replica(member, need));
        }
        if let Need::Reached(position) = need
            && let Some(member) = self.wait(position).await
        {
            return Ok(Served::Replica(member, need));
        }
        let error = format!("no replica meets {rule:?} ({})", self.inner.troubles());
        self.elsewhere(&Error::new(ErrorKind::Stale, error))?;
        Ok(Served::Primary)
    }

    /// What a replica must be proved to be; `None` for the primary.
    fn need(&self, rule: Read) -> Result<Option<Need>> {
        let past = self.past.lock();
        Ok(match rule {
            Read::Primary => None,
            Read::Any => Some(Need::Serving),
            Read::Synchronous => Some(Need::Settled),
            Read::Bounded(bound) => Some(fresh(bound)),
            Read::AfterWrite(window) => {
                let recent = past.wrote.is_some_and(|wrote| wrote.elapsed() <= window);
                (!recent && past.doubts == 0).then(|| fresh(window))
            }
            Read::Session => {
                #[cfg(test)]
                if self.inner.blind.load(std::sync::atomic::Ordering::Relaxed) {
                    return Ok(Some(Need::Serving));
                }
                if past.doubts > 0 {
                    return Err(Error::new(
                        ErrorKind::Stale,
                        "a commit of this session has an unknown outcome: only the primary can tell",
                    ));
                }
                match past.token {
                    None => Some(Need::Serving),
                    Some(token) => {
                        let last = self.inner.marks.lock().last();
                        lost(&token, last.map(|(_, position)| position))?;
                        Some(Need::Reached(token.position()))
                    }
                }
            }
        })
    }

    async fn wait(&self, position: Position) -> Option<&Member<DB>> {
        let need = Need::Reached(position);
        let mut changes = self.inner.changes();
        let _wanted: Vec<Wanted> = self
            .inner
            .members
            .iter()
            .map(|member| member.state.want(position))
            .collect();
        let found = async {
            loop {
                changes.mark_unchanged();
                if let Some(member) = self.inner.choose(&need) {
                    return Some(member);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(self.options.patience, found)
            .await
            .ok()
            .flatten()
    }
}

fn fresh(bound: Duration) -> Need {
    match Instant::now().checked_sub(bound) {
        Some(since) => Need::Fresh(since),
        // Older than the clock: everything is fresh enough.
        None => Need::Serving,
    }
}

/// An error if a token is of another system, or of a timeline that a fail-over ended.
fn lost(token: &Token, primary: Option<Position>) -> Result<()> {
    let Some(primary) = primary else {
        return Ok(());
    };
    let position = token.position();
    let why = if position.system != primary.system {
        "it is of another system"
    } else if position.timeline < primary.timeline {
        "a fail-over ended its timeline: what it stands for may be lost"
    } else {
        return Ok(());
    };
    let text = format!("the session's token {token} is of no use here: {why}");
    Err(Error::new(ErrorKind::TokenLost, text))
}

/// An error if the primary itself has less than the token stands for: it is an old one, or was restored.
fn behind(token: &Token, primary: Option<Position>) -> Result<()> {
    let Some(primary) = primary else {
        return Ok(());
    };
    let position = token.position();
    let same = position.system == primary.system;
    let older = (primary.timeline, primary.lsn) < (position.timeline, position.lsn);
    if same && older {
        let text = format!(
            "the primary has less than the session's token {token} stands for: it was restored, or is one \
             that was replaced"
        );
        return Err(Error::new(ErrorKind::TokenLost, text));
    }
    Ok(())
}
