//! `tartan operator`: what is done once for the whole cluster, by the one of several processes that leads.
//!
//! ```text
//! store ──watch──► World ──plan──► publisher (claims, words → store), while this one leads
//! ```
//!
//! Invariant: nothing here is needed for packets to flow; every write is a compare-and-set, so that a leader that does not
//! know yet that it is none does no harm.

mod plan;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tartan_api::boot::Boot;
use tartan_model::{Family, Features, Kind, StoreEvent, World};
use tartan_store::{KubernetesStore, Store};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::publish::{Wanted, publisher};

/// Events that may wait, and that are taken at one go.
const WAITING: usize = 1024;
/// Name of the Lease.
const LEASE: &str = "tartan-operator";

/// Runs the operator until SIGTERM or SIGINT. `me` is different for every process.
///
/// # Errors
/// The store is not Kubernetes or has no credentials; or a part without which there is no operator has ended.
pub fn run(boot: &Boot, namespace: &str, me: &str) -> Result<()> {
    let Some(place) = boot.store.strip_prefix("kubernetes:") else {
        bail!("store: '{}': an operator is for Kubernetes; agents that share a directory need none", boot.store)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = KubernetesStore::open(place).context("store: no way to Kubernetes")?;
        let leads = store.lead(namespace, LEASE, me);
        let service = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok());
        tokio::select! {
            result = operate(Arc::new(store), leads, service) => result,
            result = crate::stopped() => result,
        }
    })
}

/// Operates on any store, while it is told that it leads. `service`: the address of a Service.
///
/// # Errors
/// Nobody can tell any more whether it leads, or the publisher has ended.
pub async fn operate(store: Arc<dyn Store>, mut leads: watch::Receiver<bool>, service: Option<IpAddr>) -> Result<()> {
    let (sender, mut events) = mpsc::channel(WAITING);
    tokio::spawn(crate::listen(store.watch(&Kind::ALL), move |event| {
        let sender = sender.clone();
        async move { sender.send(event).await.is_ok() }
    }));
    let (wanted, publishing) = publisher(store, Arc::default());
    tokio::spawn(publishing);
    let mut world = World::new("".into(), Features::default());
    let (mut memo, mut without_since) = (plan::Memo::default(), BTreeMap::<Family, Instant>::new());
    let (mut batch, mut wake_at) = (Vec::with_capacity(WAITING), None::<Instant>);
    info!("operator starts");
    loop {
        tokio::select! {
            received = events.recv_many(&mut batch, WAITING) => if received == 0 { bail!("the watch of the store has ended") },
            changed = leads.changed() => changed.context("nobody can tell whether this operator leads")?,
            () = until(wake_at) => {}
        }
        let now = Instant::now();
        batch.drain(..).for_each(|event: StoreEvent| world.store(event, now));
        if !*leads.borrow_and_update() {
            // Whoever leads next has to see for itself.
            (wake_at, without_since) = (None, BTreeMap::new());
            want(&wanted, Wanted::default())?;
            continue;
        }
        let plan = plan::plan(&mut memo, &world, &without_since, service, now);
        without_since.retain(|family, _| plan.without.contains(family));
        for family in &plan.without {
            without_since.entry(*family).or_insert(now);
        }
        wake_at = plan.wake_at;
        want(&wanted, Wanted { claims: plan.claims, words: plan.words, beat: Duration::MAX, ..Wanted::default() })?;
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
