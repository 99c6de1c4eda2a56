//! The publisher: the executor that writes to the store what the plan wants there, latest wanted value wins.
//!
//! Invariant: one writer for each object. The NodeNetwork of this node is written by nobody else, so it is written
//! without looking; claims on blocks are compare-and-set, and who loses learns it from the watch and plans again.

use std::sync::Arc;
use std::time::Duration;

use tartan_ipam::Claim;
use tartan_model::{Advert, Kind, Object, ObjectId};
use tartan_store::{Expect, Store, WriteError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// What the store should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// This node's word to its peers; none: nothing to say yet.
    pub advert: Option<Advert>,
    /// Between two signs of life.
    pub beat: Duration,
    /// Claims on blocks, each tried once for each time it is wanted anew.
    pub claims: Vec<Claim>,
}

/// Longest wait between two tries of a write that the store did not take.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Starts the task; what is sent into the channel is wanted from then on.
pub fn spawn(store: Arc<dyn Store>) -> watch::Sender<Wanted> {
    let (sender, wanted) = watch::channel(Wanted::default());
    tokio::spawn(Publisher { store, wanted, heartbeat: start_of_heartbeat(), said: None, tried: Vec::new() }.run());
    sender
}

struct Publisher {
    store: Arc<dyn Store>,
    wanted: watch::Receiver<Wanted>,
    heartbeat: u64,
    /// The advert as it was last written, without its heartbeat.
    said: Option<Advert>,
    tried: Vec<Claim>,
}

impl Publisher {
    async fn run(mut self) {
        let mut next_beat = Instant::now();
        let mut backoff = Duration::ZERO;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let beat_due = Instant::now() >= next_beat;
            let result = match self.say(&wanted, beat_due).await {
                Ok(()) => self.claim(&wanted).await,
                failed => failed,
            };
            if let Err(error) = result {
                warn!("{error}; trying again");
                backoff = (backoff * 2).clamp(Duration::from_millis(50), BACKOFF_MAX);
            } else {
                backoff = Duration::ZERO;
                if beat_due && wanted.advert.is_some() {
                    next_beat = Instant::now() + wanted.beat;
                }
            }
            let again = if backoff.is_zero() { next_beat } else { Instant::now() + backoff };
            let idle = wanted.advert.is_none() && backoff.is_zero();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep_until(again), if !idle => {}
            }
        }
    }

    async fn say(&mut self, wanted: &Wanted, beat_due: bool) -> Result<(), WriteError> {
        let Some(advert) = &wanted.advert else { return Ok(()) };
        if self.said.as_ref() == Some(advert) && !beat_due {
            return Ok(());
        }
        self.heartbeat += 1;
        let id = ObjectId { kind: Kind::NodeNetwork, name: advert.node.clone() };
        let object = Object::Advert(Advert { heartbeat: self.heartbeat, ..advert.clone() });
        self.store.put(id, object, Expect::Any).await?;
        self.said = Some(advert.clone());
        Ok(())
    }

    async fn claim(&mut self, wanted: &Wanted) -> Result<(), WriteError> {
        self.tried.retain(|claim| wanted.claims.contains(claim));
        for claim in wanted.claims.iter().filter(|claim| !self.tried.contains(claim)).cloned().collect::<Vec<_>>() {
            let expect = claim.expect.clone().map_or(Expect::Absent, Expect::At);
            let result = match &claim.object {
                Some(object) => self.store.put(claim.id.clone(), object.clone(), expect).await.map(drop),
                None => self.store.delete(claim.id.clone(), expect).await,
            };
            match result {
                Ok(()) => info!("wrote {}", claim.id),
                Err(WriteError::Away(why)) => return Err(WriteError::Away(why)),
                // The watch brings what is there instead, and the next plan wants something else.
                Err(error) => info!("{error}"),
            }
            self.tried.push(claim);
        }
        Ok(())
    }
}

/// Past every heartbeat of earlier lives of this agent, so that the first one is a change.
fn start_of_heartbeat() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |time| time.as_millis() as u64)
}
