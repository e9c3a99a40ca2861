//! Blocking work from async code: on the job threads, never on those that carry messages.

use quorate_env::{Env, JobClass};
use tokio::sync::oneshot;

/// Runs `work` on a background thread. A job that is dropped unrun, because the machine below stops or
/// a job panicked, never answers; the caller, a task of the node, ends with the node.
pub(crate) async fn run<T: Send + 'static>(
    env: &Env,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = oneshot::channel();
    let job = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    };
    env.jobs.spawn(JobClass::Control, Box::new(job));
    match receiver.await {
        Ok(done) => done,
        Err(_) => std::future::pending().await,
    }
}
