//! The publisher: the executor that writes to the store what the plan wants there, latest wanted value wins.
//!
//! Invariant: one writer for each object. The NodeNetwork of this node is written by nobody else, so it is written
//! without looking; claims on blocks are compare-and-set, and who loses learns it from the watch and plans again. What
//! stays wanted is tried again, later and later, whatever became of it; a write without an answer is given up, and holds
//! up nothing else for longer than that takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use tartan_ipam::Claim;
use tartan_model::{Advert, Kind, NodeCondition, NodeNetwork, Object, ObjectId, World};
use tartan_store::{Expect, Store, Word, WriteError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

/// What the store should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// This node's word to its peers; none: nothing to say yet.
    pub advert: Option<Advert>,
    /// What it says of itself.
    pub conditions: Vec<NodeCondition>,
    /// Between two signs of life.
    pub beat: Duration,
    /// How long an acknowledgement waits for a sign of life to go with.
    pub acknowledging: Duration,
    /// For others than Tartan, about these objects.
    pub words: BTreeSet<(ObjectId, Word)>,
    /// Claims on blocks.
    pub claims: Vec<Claim>,
}

/// How many writes came to what.
#[derive(Debug, Default)]
pub struct Writes {
    done: AtomicU64,
    refused: AtomicU64,
    away: AtomicU64,
}

/// Waits between two tries of a write that the store did not take, or of a claim that is still wanted after it was
/// tried: twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// What is refused takes people to change that.
const LONGEST_REFUSED: Duration = Duration::from_secs(60);
/// Between two writes for conditions alone, which may come and go quickly.
const CONDITIONS_REST: Duration = Duration::from_secs(1);
/// A node that joins makes every other one write; so they do it at this distance, all together.
const ACKNOWLEDGING: Duration = Duration::from_millis(10);
/// How long a store may take for one write. A late one does no harm: see [`Store::put`].
const PATIENCE: Duration = Duration::from_secs(10);

/// The task that writes; what is sent into the channel is wanted from then on. Ends when the channel is closed.
pub fn publisher(store: Arc<dyn Store>, writes: Arc<Writes>) -> (watch::Sender<Wanted>, impl Future<Output = ()>) {
    let (sender, wanted) = watch::channel(Wanted::default());
    (sender, Publisher::new(store, writes, wanted).run())
}

/// How often a node gives a sign of life: a few may be late before its lease is over.
pub fn beat(lease: Duration) -> Duration {
    (lease / 4).max(Duration::from_millis(100))
}

/// How long an acknowledgement may wait in a cluster of that many nodes, so that a node that joins is not the reason for
/// more than a hundred writes a second.
pub fn acknowledging(nodes: usize) -> Duration {
    ACKNOWLEDGING.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX))
}

/// The word of a node that may not let go of a range yet: of its Node's podCIDRs it has what it last said it has. Blocks
/// are let go of by claims alone. The edition is the last one's if nothing else is new.
pub fn holding_on(advert: &Advert, world: &World) -> Advert {
    let heard = || world.adverts.get(&world.local).map(|heard| &heard.advert);
    let Some(last) = world.said.as_ref().map(|said| &said.last).or_else(heard) else { return advert.clone() };
    let pod_cidrs = world.local_node().map(|node| &*node.pod_cidrs).unwrap_or_default();
    let kept = last.blocks.iter().filter(|block| pod_cidrs.contains(block) && !advert.blocks.contains(block));
    let mut blocks: Vec<IpNet> = advert.blocks.iter().chain(kept).copied().collect();
    blocks.sort();
    let advert = Advert { blocks, ..advert.clone() };
    let edition = if last.same_but_heartbeat(&advert) { last.edition } else { advert.edition };
    Advert { edition, ..advert }
}

impl Writes {
    /// What they came to, and how often.
    pub fn so_far(&self) -> [(&'static str, u64); 3] {
        let Writes { done, refused, away } = self;
        [("done", done), ("refused", refused), ("away", away)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    fn count<T>(&self, written: &Result<T, WriteError>) {
        let count = match written {
            Ok(_) => &self.done,
            Err(WriteError::Away(_)) => &self.away,
            Err(_) => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

struct Publisher {
    store: Arc<dyn Store>,
    writes: Arc<Writes>,
    wanted: watch::Receiver<Wanted>,
    heartbeat: u64,
    /// What was last written, without the heartbeat, and when.
    said: Option<(NodeNetwork, Instant)>,
    /// Claims that are wanted and have been tried.
    tried: Vec<Tried>,
    /// What others have been told, as long as it is wanted: they are not told twice.
    told: BTreeSet<(ObjectId, Word)>,
    /// What the store refused to tell, as long as it is wanted: when it is asked again, and how long that was put off.
    refused: BTreeMap<(ObjectId, Word), (Instant, Duration)>,
}

struct Tried {
    claim: Claim,
    /// If it is still wanted then, what the watch brought did not change the plan: somebody undid the change meanwhile.
    again: Instant,
    wait: Duration,
}

impl Publisher {
    fn new(store: Arc<dyn Store>, writes: Arc<Writes>, wanted: watch::Receiver<Wanted>) -> Publisher {
        Publisher {
            store,
            writes,
            wanted,
            heartbeat: start_of_heartbeat(),
            said: None,
            tried: Vec::new(),
            told: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    async fn run(mut self) {
        let mut wait = None;
        let mut complaint = String::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let said = self.say(&wanted).await;
            let claimed = self.claim(&wanted).await;
            let again = match said.and(claimed).and(self.tell(&wanted).await) {
                Ok(()) => {
                    wait = None;
                    complaint.clear();
                    self.next(&wanted)
                }
                Err(error) => {
                    // A store that stays away is complained of once.
                    let message = error.to_string();
                    if complaint != message {
                        warn!("{message}; trying again");
                        complaint = message;
                    }
                    Some(Instant::now() + *wait.insert(longer(wait, LONGEST_WAIT)))
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = until(again) => {}
            }
        }
    }

    /// When there is something to do though nothing new is wanted.
    fn next(&self, wanted: &Wanted) -> Option<Instant> {
        let refused = self.refused.values().map(|(again, _)| *again);
        self.tried.iter().map(|tried| tried.again).chain(refused).chain(self.due(wanted)).min()
    }

    /// When this node's own object is to be written again; none: at once, if there is anything to say.
    fn due(&self, wanted: &Wanted) -> Option<Instant> {
        let ((said, at), advert) = (self.said.as_ref()?, wanted.advert.as_ref()?);
        let rests = [
            Some(wanted.beat),
            (said.conditions != wanted.conditions).then_some(CONDITIONS_REST),
            (said.advert.acknowledges != advert.acknowledges).then_some(wanted.acknowledging),
        ];
        let rest = rests.into_iter().flatten().min().unwrap_or(wanted.beat);
        let same_word = advert.edition == said.advert.edition && advert.same_but_heartbeat(&said.advert);
        same_word.then(|| *at + rest)
    }

    async fn tell(&mut self, wanted: &Wanted) -> Result<(), WriteError> {
        self.told.retain(|told| wanted.words.contains(told));
        self.refused.retain(|refused, _| wanted.words.contains(refused));
        for told in wanted.words.difference(&self.told.clone()) {
            let before = self.refused.get(told).copied();
            if before.is_some_and(|(again, _)| Instant::now() < again) {
                continue;
            }
            let (about, word) = told;
            match self.in_time(self.store.tell(about.clone(), word.clone())).await {
                Ok(()) => debug!("told of {about}: {word:?}"),
                Err(WriteError::Away(why)) => return Err(WriteError::Away(why)),
                // Rights may come late, and a policy of the cluster's may be mended. Or it is another one by now, and the
                // watch brings that.
                Err(error @ WriteError::Refused(..)) => {
                    if before.is_none() {
                        info!("{error}");
                    }
                    let wait = longer(before.map(|(_, wait)| wait), LONGEST_REFUSED);
                    self.refused.insert(told.clone(), (Instant::now() + wait, wait));
                    continue;
                }
                // It has gone: the watch brings it.
                Err(error) => info!("{error}"),
            }
            self.refused.remove(told);
            self.told.insert(told.clone());
        }
        Ok(())
    }

    async fn say(&mut self, wanted: &Wanted) -> Result<(), WriteError> {
        let Some(advert) = &wanted.advert else { return Ok(()) };
        if self.due(wanted).is_some_and(|due| Instant::now() < due) {
            return Ok(());
        }
        self.heartbeat += 1;
        let id = ObjectId { kind: Kind::NodeNetwork, name: advert.node.clone() };
        let network = NodeNetwork {
            advert: advert.clone().into(),
            conditions: wanted.conditions.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let beating = Advert { heartbeat: self.heartbeat, ..advert.clone() };
        let object = Object::NodeNetwork(NodeNetwork { advert: beating.into(), ..network.clone() });
        self.in_time(self.store.put(id, object, Expect::Any)).await?;
        self.said = Some((network, Instant::now()));
        Ok(())
    }

    async fn claim(&mut self, wanted: &Wanted) -> Result<(), WriteError> {
        self.tried.retain(|tried| wanted.claims.contains(&tried.claim));
        for claim in &wanted.claims {
            let before = self.tried.iter().position(|tried| tried.claim == *claim);
            if before.is_some_and(|at| Instant::now() < self.tried[at].again) {
                continue;
            }
            match self.write(claim).await {
                Ok(()) => info!("wrote {}", claim.id),
                Err(WriteError::Away(why)) => return Err(WriteError::Away(why)),
                // The watch brings what is there instead, and the next plan wants something else.
                Err(error) if before.is_none() => info!("{error}"),
                Err(error) => debug!("{error}"),
            }
            let wait = longer(before.map(|at| self.tried.remove(at).wait), LONGEST_WAIT);
            self.tried.push(Tried { claim: claim.clone(), again: Instant::now() + wait, wait });
        }
        Ok(())
    }

    async fn write(&self, claim: &Claim) -> Result<(), WriteError> {
        let expect = claim.expect.clone().map_or(Expect::Absent, Expect::At);
        match &claim.object {
            Some(object) => self.in_time(self.store.put(claim.id.clone(), object.clone(), expect)).await.map(drop),
            None => self.in_time(self.store.delete(claim.id.clone(), expect)).await,
        }
    }

    async fn in_time<T>(&self, write: impl Future<Output = Result<T, WriteError>>) -> Result<T, WriteError> {
        let late = |_| Err(WriteError::Away(format!("a write got no answer within {} seconds", PATIENCE.as_secs())));
        let written = timeout(PATIENCE, write).await.unwrap_or_else(late);
        self.writes.count(&written);
        written
    }
}

/// How long to wait after another failure.
pub(crate) fn longer(wait: Option<Duration>, longest: Duration) -> Duration {
    wait.map_or(FIRST_WAIT, |wait| (wait * 2).min(longest))
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Past every heartbeat of earlier lives of this agent, so that the first one is a change.
fn start_of_heartbeat() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use tartan_model::{Block, Features, Node};
    use tartan_store::MemoryStore;

    use super::*;
    use crate::hanging::Hanging;

    fn wanted() -> Wanted {
        let advert = Advert { node: "n1".into(), node_uid: "u1".into(), mtu: 1450, edition: 1, ..Advert::default() };
        let block = Block {
            cidr: "10.0.0.0/26".parse().unwrap(),
            pool: "p".into(),
            node: "n1".into(),
            node_uid: "u1".into(),
            parts: Vec::new(),
        };
        let id = ObjectId { kind: Kind::IpBlock, name: "10-0-0-0-26".into() };
        let claim = Claim { id, object: Some(Object::Block(block.into())), expect: None };
        Wanted {
            advert: Some(advert),
            beat: Duration::from_secs(3600),
            acknowledging: Duration::from_secs(1),
            claims: vec![claim],
            ..Wanted::default()
        }
    }

    #[test]
    fn a_word_holds_on_to_podcidrs_and_to_nothing_else() {
        let ranges = |text: &str| text.split_whitespace().map(|it| it.parse().unwrap()).collect::<Vec<IpNet>>();
        let word = |edition, blocks: &str| Advert { edition, blocks: ranges(blocks), ..wanted().advert.unwrap() };
        let mut world = World::new("n1".into(), Features::default());
        let pod_cidrs_are = |world: &mut World, text: &str| {
            let node = Node {
                name: "n1".into(),
                uid: "u1".into(),
                internal_ips: Vec::new(),
                external_ips: Vec::new(),
                pod_cidrs: ranges(text),
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                placement: Default::default(),
            };
            world.nodes.insert("n1".into(), node.into());
        };
        pod_cidrs_are(&mut world, "10.1.0.0/24");
        world.say(&word(7, "10.1.0.0/24 10.2.0.0/26"));
        let held = holding_on(&word(8, "10.3.0.0/26"), &world);
        assert_eq!(
            (&held.blocks, held.edition),
            (&ranges("10.1.0.0/24 10.3.0.0/26"), 8),
            "a block's claim stands by itself"
        );
        world.say(&held);
        assert_eq!(holding_on(&word(9, "10.3.0.0/26"), &world), held, "nothing new is said");
        pod_cidrs_are(&mut world, "10.4.0.0/24");
        assert_eq!(
            holding_on(&word(9, "10.3.0.0/26"), &world),
            word(9, "10.3.0.0/26"),
            "another node may have it by now"
        );
    }

    /// Whoever is cut off from the API server must know that before it takes its peers for dead, and must have had the
    /// time to be heard by another connection before they take it for dead. A sign of life is a beat old at worst when
    /// the silence begins; a write that fails with the connection is tried again a wait later.
    #[test]
    fn a_silent_api_server_is_noticed_well_within_a_lease() {
        let lease = tartan_model::Config::default().lease;
        let worst = beat(lease) + tartan_store::KubernetesStore::NOTICED + LONGEST_WAIT;
        assert!(worst <= lease * 3 / 4, "{worst:?} of {lease:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_hangs_is_given_up_tried_again_and_holds_up_no_other() {
        let word = ObjectId { kind: Kind::NodeNetwork, name: "n1".into() };
        let claim = ObjectId { kind: Kind::IpBlock, name: "10-0-0-0-26".into() };
        for (hangs, goes_on) in [(&word, &claim), (&claim, &word)] {
            let store = MemoryStore::new();
            let hanging = Arc::new(Hanging::at(&store, hangs.kind));
            let writes = Arc::new(Writes::default());
            let (sender, publishing) = publisher(hanging.clone(), writes.clone());
            let publishing = tokio::spawn(publishing);
            sender.send(wanted()).unwrap();
            tokio::time::sleep(PATIENCE + FIRST_WAIT).await;
            assert!(store.get(goes_on).is_some(), "{goes_on} waits for {hangs}");
            assert!(store.get(hangs).is_none());
            hanging.answer_again();
            tokio::time::sleep(PATIENCE + LONGEST_WAIT).await;
            assert!(store.get(hangs).is_some(), "{hangs} was not tried again");
            let [(_, done), _, (_, away)] = writes.so_far();
            assert!(done >= 2 && away >= 1, "{writes:?}");
            drop(sender);
            publishing.await.unwrap();
        }
    }

    /// Its Node is gone: nothing is due, or it would be all the time.
    #[tokio::test]
    async fn who_has_nothing_to_say_is_not_in_a_hurry() {
        let (_sender, receiver) = watch::channel(Wanted::default());
        let mut publisher = Publisher::new(Arc::new(MemoryStore::new()), Arc::default(), receiver);
        publisher.say(&wanted()).await.unwrap();
        assert!(publisher.next(&Wanted { beat: Duration::from_secs(10), ..wanted() }).is_some());
        assert_eq!(publisher.next(&Wanted { advert: None, ..wanted() }), None);
    }

    /// Rights that are not there yet, a webhook that said no once: or the node would never be placed on.
    #[tokio::test(start_paused = true)]
    async fn a_word_that_is_refused_is_said_again_and_holds_up_no_other() {
        let store = MemoryStore::new();
        let refusing = Arc::new(Hanging::refusing(&store, Kind::IpPool));
        let (sender, publishing) = publisher(refusing.clone(), Arc::default());
        let publishing = tokio::spawn(publishing);
        let about = |kind| ObjectId { kind, name: "a".into() };
        let words = [Kind::IpPool, Kind::NetworkPolicy].map(|kind| (about(kind), Word::Diagnosis(Vec::new())));
        sender.send(Wanted { words: words.into(), ..wanted() }).unwrap();
        tokio::time::sleep(LONGEST_REFUSED).await;
        assert!(store.diagnosis(&about(Kind::NetworkPolicy)).is_some(), "it waits for the other");
        assert_eq!(store.diagnosis(&about(Kind::IpPool)), None);
        refusing.answer_again();
        tokio::time::sleep(LONGEST_REFUSED).await;
        assert!(store.diagnosis(&about(Kind::IpPool)).is_some(), "it was not said again");
        drop(sender);
        publishing.await.unwrap();
    }
}
