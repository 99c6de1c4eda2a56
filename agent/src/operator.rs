//! `tartan operator`: what is done once for the whole cluster, by the one of several processes that leads.
//!
//! ```text
//! store ──watch──► World ──plan──► publisher (claims, words → store), while this one leads
//! ```
//!
//! Invariant: nothing here is needed for packets to flow; every write is a compare-and-set, so that a leader that does not
//! know yet that it is none does no harm.

mod metrics;
mod plan;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tartan_api::boot::Boot;
use tartan_model::{Family, Features, Kind, World};
use tartan_store::{KubernetesStore, Store};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use self::metrics::Seen;
use crate::http::{self, Asked};
use crate::publish::{Wanted, Writes, publisher};
use crate::status::Counters;

/// Events that may wait, and that are taken at one go.
const WAITING: usize = 1024;
/// Questions that may wait.
const QUESTIONS: usize = 16;
/// Name of the Lease.
const LEASE: &str = "tartan-operator";
/// Between two tries to have an address that another process has.
const AGAIN: Duration = Duration::from_secs(1);

/// For so many times as long as a plan took it rests: large clusters cost a fifth of a processor.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Somebody wants to know how an operator stands.
pub type Question = oneshot::Sender<Seen>;

/// Runs the operator until SIGTERM or SIGINT. `me` is different for every process. `address`: of /metrics, /healthz and
/// /readyz.
///
/// # Errors
/// The store is not Kubernetes or has no credentials; or a part without which there is no operator has ended.
pub fn run(boot: &Boot, address: Option<SocketAddr>, namespace: &str, me: &str) -> Result<()> {
    let Some(place) = boot.store.strip_prefix("kubernetes:") else {
        bail!("store: '{}': an operator is for Kubernetes; agents that share a directory need none", boot.store)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = KubernetesStore::open(place).context("store: no way to Kubernetes")?;
        let leads = store.lead(namespace, LEASE, me);
        let service = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok());
        let (sender, questions) = mpsc::channel(QUESTIONS);
        if let Some(address) = address {
            tokio::spawn(serve(address, sender));
        }
        tokio::select! {
            result = operate(Arc::new(store), leads, service, questions) => result,
            result = crate::stopped() => result,
        }
    })
}

/// Serves at an address of the node, from when it can be had: another operator of this node may have it, and is asked in
/// this one's place until it goes.
async fn serve(address: SocketAddr, inbox: mpsc::Sender<Question>) {
    let mut complained = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !complained => {
                complained = true;
                warn!(
                    "--listen: cannot bind {address}: {error}; another operator of this node may have it. Trying again"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    let answer = move |asked| {
        let inbox = inbox.clone();
        async move {
            let seen = http::ask(&inbox, |question: Question| question).await?;
            Some(match asked {
                Asked::Metrics => seen.metrics(),
                Asked::WaitingFor => seen.waiting_for,
            })
        }
    };
    http::serve(listener, answer).await;
}

/// Operates on any store, while it is told that it leads. `service`: the address of a Service.
///
/// # Errors
/// Nobody can tell any more whether it leads, or the publisher has ended.
pub async fn operate(
    store: Arc<dyn Store>,
    mut leads: watch::Receiver<bool>,
    service: Option<IpAddr>,
    mut questions: mpsc::Receiver<Question>,
) -> Result<()> {
    let (sender, mut events) = mpsc::channel(WAITING);
    tokio::spawn(crate::listen(store.watch(&Kind::ALL), move |event| {
        let sender = sender.clone();
        async move { sender.send(event).await.is_ok() }
    }));
    let writes = Arc::<Writes>::default();
    let (wanted, publishing) = publisher(store, writes.clone());
    tokio::spawn(publishing);
    let mut world = World::new("".into(), Features::default());
    let (mut memo, mut without_since) = (plan::Memo::default(), BTreeMap::<Family, Instant>::new());
    let (mut batch, mut plan, mut counters) = (Vec::with_capacity(WAITING), plan::Plan::default(), Counters::default());
    info!("operator starts");
    loop {
        tokio::select! {
            received = events.recv_many(&mut batch, WAITING) => if received == 0 { bail!("the watch of the store has ended") },
            changed = leads.changed() => changed.context("nobody can tell whether this operator leads")?,
            Some(question) = questions.recv() => {
                counters.writes = writes.so_far();
                // Who asked and went away again is owed nothing.
                let _gone = question.send(Seen::of(&world, &plan, *leads.borrow(), counters.clone()));
                continue;
            }
            () = until(plan.wake_at) => {}
        }
        let now = Instant::now();
        counters.waiting = (batch.len() + events.len()) as u64;
        for event in batch.drain(..) {
            counters.event(&event);
            world.store(event, now);
        }
        if !*leads.borrow_and_update() {
            // Whoever leads next has to see for itself.
            (plan, without_since) = (plan::Plan::default(), BTreeMap::new());
            want(&wanted, Wanted::default())?;
            continue;
        }
        plan = plan::plan(&mut memo, &world, &without_since, service, now);
        counters.plan(now.elapsed());
        without_since.retain(|family, _| plan.without.contains(family));
        for family in &plan.without {
            without_since.entry(*family).or_insert(now);
        }
        let (claims, words) = (plan.claims.clone(), plan.words.clone());
        want(&wanted, Wanted { claims, words, beat: Duration::MAX, ..Wanted::default() })?;
        // Nodes tell of themselves all the time, and nothing here is in a hurry.
        tokio::time::sleep((now.elapsed() * REST).min(LONGEST_REST)).await;
    }
}

fn want(to: &watch::Sender<Wanted>, wanted: Wanted) -> Result<()> {
    if to.is_closed() {
        bail!("the publisher has ended");
    }
    to.send_if_modified(|last| {
        let differs = *last != wanted;
        *last = wanted;
        differs
    });
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
