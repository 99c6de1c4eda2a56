//! What every store must do, whatever it is made of: one suite, run by the tests of each.
//!
//! Watchers are judged by the `World` their events lead to, because that is who reads them.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{Advert, Condition, Features, Kind, Object, ObjectId, PerFamily, Pool, Selector, StoreEvent, World};

use crate::{BoxStream, Expect, Store, WriteError};

/// A store, and what a test does to it behind its back.
pub(crate) trait Rig {
    /// Another handle on the same store, as another process would have it.
    fn store(&self) -> Arc<dyn Store>;
    fn go_away(&self);
    fn come_back(&self);
    /// Takes an object away, also while the store is away.
    fn vanish(&self, id: &ObjectId);
    /// Makes the object's document unreadable.
    fn spoil(&self, id: &ObjectId);
    /// Makes it what it was.
    fn mend(&self, id: &ObjectId);
}

/// Far more than any store needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the suite, each test on a store of its own.
pub(crate) async fn conformance<R: Rig>(make: impl Fn() -> R) {
    an_empty_store_is_complete(&make()).await;
    a_list_is_followed_by_changes(&make()).await;
    only_the_kinds_asked_for(&make()).await;
    writes_find_what_they_expect(&make()).await;
    one_of_many_wins(&make()).await;
    nothing_is_lost_between_writers(&make()).await;
    what_cannot_be_read_stays(&make()).await;
    away_keeps_and_being_back_removes(&make()).await;
    a_late_watcher_misses_nothing(&make()).await;
    of_two_that_heard_themselves_one_has_heard_the_other(&make()).await;
    the_store_refuses_what_nobody_could_read(&make()).await;
}

/// A pool that differs with `seed`.
pub(crate) fn pool(name: &str, seed: u8) -> (ObjectId, Object) {
    let pool = Pool {
        name: name.into(),
        cidr: format!("10.{seed}.0.0/16").parse().unwrap(),
        block_size: 26,
        nodes: Selector::parse("zone == 'a'").unwrap(),
        namespaces: Selector::all(),
        disabled: false,
        encapsulation: None,
    };
    (ObjectId { kind: Kind::IpPool, name: name.into() }, Object::Pool(pool.into()))
}

/// What is said of a document that was spoiled.
pub(crate) fn spoiled(id: &ObjectId) -> Condition {
    let [about, field, message, fix] = [id.to_string().as_str(), "", "spoiled", "mend it"].map(str::to_owned);
    Condition { about, field, reason: "BadSyntax", message, fix }
}

pub(crate) fn advert(name: &str, heartbeat: u64) -> (ObjectId, Object) {
    let advert = Advert {
        node: name.into(),
        node_uid: "u1".into(),
        addresses: PerFamily::default(),
        fabric_addresses: PerFamily::default(),
        blocks: Vec::new(),
        mtu: 1450,
        accepts: Vec::new(),
        sends: Vec::new(),
        joining: false,
        leaving: [].into(),
        acknowledges: None,
        edition: 0,
        heartbeat,
    };
    (ObjectId { kind: Kind::NodeNetwork, name: name.into() }, Object::from(advert))
}

/// A watch, and the world it leads to.
pub(crate) struct Watching {
    stream: BoxStream<'static, StoreEvent>,
    pub world: World,
}

impl Watching {
    pub(crate) fn of(store: &dyn Store, kinds: &[Kind]) -> Watching {
        Watching { stream: store.watch(kinds), world: World::new("n1".into(), Features::default()) }
    }

    pub(crate) async fn next(&mut self) -> StoreEvent {
        self.next_within(PATIENCE).await
    }

    pub(crate) async fn next_within(&mut self, patience: Duration) -> StoreEvent {
        let event = tokio::time::timeout(patience, poll_fn(|cx| self.stream.as_mut().poll_next(cx))).await;
        let event = event.expect("a watch says what happens").expect("a watch never ends");
        self.world.store(event.clone(), Instant::now());
        event
    }

    /// Takes events until the world is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while !wanted(&self.world) {
            assert!(Instant::now() < deadline, "{what} did not come about; there came {seen:?}");
            let next = tokio::time::timeout(PATIENCE, self.next()).await;
            seen.push(next.unwrap_or_else(|_| panic!("{what} did not come about; there came {seen:?}")));
        }
    }

    async fn synced(store: &dyn Store, kinds: &[Kind]) -> Watching {
        let mut watching = Watching::of(store, kinds);
        watching.until("the first list", |world| kinds.iter().all(|kind| world.is_synced(*kind))).await;
        watching
    }

    pub(crate) fn pools(&self) -> Vec<&str> {
        self.world.pools.keys().map(|name| &**name).collect()
    }
}

async fn an_empty_store_is_complete(rig: &dyn Rig) {
    let watching = Watching::synced(&*rig.store(), &Kind::ALL).await;
    assert!(watching.pools().is_empty());
}

async fn a_list_is_followed_by_changes(rig: &dyn Rig) {
    let store = rig.store();
    let (a, pool_a) = pool("a", 1);
    let first = store.put(a.clone(), pool_a.clone(), Expect::Absent).await.unwrap();
    let mut watching = Watching::of(&*rig.store(), &[Kind::IpPool]);
    assert_eq!(watching.next().await, StoreEvent::Init(Kind::IpPool));
    assert_eq!(watching.next().await, StoreEvent::Put(a.clone(), pool_a, first.clone()));
    assert_eq!(watching.next().await, StoreEvent::Synced(Kind::IpPool));

    let (_, changed) = pool("a", 2);
    let second = store.put(a.clone(), changed.clone(), Expect::At(first.clone())).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(watching.next().await, StoreEvent::Put(a.clone(), changed.clone(), second.clone()));

    let same = store.put(a.clone(), changed, Expect::Any).await.unwrap();
    assert_eq!(same, second, "what did not change keeps its revision");
    store.delete(a.clone(), Expect::At(second)).await.unwrap();
    assert_eq!(watching.next().await, StoreEvent::Delete(a), "writing what is there already is not told");
}

async fn only_the_kinds_asked_for(rig: &dyn Rig) {
    let store = rig.store();
    let mut watching = Watching::synced(&*store, &[Kind::NodeNetwork]).await;
    let (id, object) = pool("a", 1);
    store.put(id, object, Expect::Any).await.unwrap();
    let (id, object) = advert("n2", 1);
    let revision = store.put(id.clone(), object.clone(), Expect::Any).await.unwrap();
    assert_eq!(watching.next().await, StoreEvent::Put(id, object, revision));
}

async fn writes_find_what_they_expect(rig: &dyn Rig) {
    let store = rig.store();
    let (id, one) = pool("a", 1);
    let (_, two) = pool("a", 2);
    let conflict = || WriteError::Conflict(id.clone());
    let delete = |expect| store.delete(id.clone(), expect);
    let put = |object: &Object, expect| store.put(id.clone(), object.clone(), expect);

    let old = put(&one, Expect::Absent).await.unwrap();
    assert_eq!(put(&two, Expect::Absent).await, Err(conflict()));
    let new = put(&two, Expect::At(old.clone())).await.unwrap();
    assert_eq!(put(&one, Expect::At(old.clone())).await, Err(conflict()));
    assert_eq!(delete(Expect::At(old.clone())).await, Err(conflict()));
    assert_eq!(delete(Expect::Absent).await, Err(conflict()));
    assert_eq!(put(&one, Expect::Any).await, Ok(old.clone()));
    assert_eq!(put(&two, Expect::Any).await, Ok(new.clone()));
    assert_eq!(delete(Expect::At(new.clone())).await, Ok(()));
    assert_eq!(delete(Expect::At(new.clone())).await, Err(conflict()));
    assert_eq!(delete(Expect::Any).await, Ok(()), "gone already is success");
    assert_eq!(delete(Expect::Absent).await, Ok(()));
    assert_eq!(put(&two, Expect::At(new.clone())).await, Err(conflict()));
    assert_eq!(put(&two, Expect::Absent).await, Ok(new));
}

async fn one_of_many_wins(rig: &dyn Rig) {
    let claims: Vec<_> = (1..=16)
        .map(|seed| {
            let store = rig.store();
            tokio::spawn(async move {
                let (id, object) = pool("claimed", seed);
                store.put(id, object.clone(), Expect::Absent).await.map(|_| object)
            })
        })
        .collect();
    let mut won = Vec::new();
    for claim in claims {
        match claim.await.unwrap() {
            Ok(object) => won.push(object),
            Err(error) => assert!(matches!(error, WriteError::Conflict(_)), "{error}"),
        }
    }
    assert_eq!(won.len(), 1, "exactly one claim must win");
    let watching = Watching::synced(&*rig.store(), &[Kind::IpPool]).await;
    assert_eq!(Object::Pool((*watching.world.pools["claimed"]).clone().into()), won[0]);
}

async fn nothing_is_lost_between_writers(rig: &dyn Rig) {
    const WRITERS: u64 = 4;
    const EACH: u64 = 8;
    let store = rig.store();
    let (id, zero) = advert("n1", 0);
    store.put(id, zero, Expect::Absent).await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = rig.store();
            tokio::spawn(async move {
                let mut watching = Watching::synced(&*store, &[Kind::NodeNetwork]).await;
                for _ in 0..EACH {
                    count_up(&*store, &mut watching).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let watching = Watching::synced(&*store, &[Kind::NodeNetwork]).await;
    assert_eq!(watching.world.adverts["n1"].advert.heartbeat, WRITERS * EACH);
}

/// Adds one by compare-and-set, as often as it takes.
async fn count_up(store: &dyn Store, watching: &mut Watching) {
    loop {
        let heartbeat = watching.world.adverts["n1"].advert.heartbeat;
        let (id, next) = advert("n1", heartbeat + 1);
        let known = watching.world.revisions[&id].clone();
        match store.put(id.clone(), next, Expect::At(known.clone())).await {
            Ok(revision) => {
                watching
                    .until("our own write", |world| world.revisions[&id] == revision || beats(world) > heartbeat)
                    .await;
                return;
            }
            Err(WriteError::Conflict(_)) => {
                watching.until("the other's write", |world| world.revisions[&id] != known).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn beats(world: &World) -> u64 {
    world.adverts["n1"].advert.heartbeat
}

async fn what_cannot_be_read_stays(rig: &dyn Rig) {
    let store = rig.store();
    let (id, object) = pool("a", 1);
    let revision = store.put(id.clone(), object.clone(), Expect::Absent).await.unwrap();
    let mut watching = Watching::synced(&*store, &[Kind::IpPool]).await;
    rig.spoil(&id);
    watching.until("a report", |world| world.invalid.contains_key(&id)).await;
    assert_eq!(watching.pools(), ["a"]);
    let conflict = Err(WriteError::Conflict(id.clone()));
    assert_eq!(store.put(id.clone(), object.clone(), Expect::Absent).await, conflict, "it is there, if unreadable");
    assert_eq!(store.put(id.clone(), object.clone(), Expect::At(revision)).await, conflict);

    let mut newcomer = Watching::of(&*store, &[Kind::IpPool]);
    while newcomer.next().await != StoreEvent::Synced(Kind::IpPool) {}
    assert!(newcomer.world.invalid.contains_key(&id), "it is in the list");

    rig.mend(&id);
    watching.until("it to be read", |world| world.invalid.is_empty()).await;
    rig.spoil(&id);
    watching.until("a report", |world| world.invalid.contains_key(&id)).await;
    store.put(id.clone(), object, Expect::Any).await.unwrap();
    watching.until("a write over it", |world| world.invalid.is_empty()).await;
    assert_eq!(watching.pools(), ["a"]);
}

async fn away_keeps_and_being_back_removes(rig: &dyn Rig) {
    let store = rig.store();
    for (name, seed) in [("goes", 1), ("spoils", 2), ("stays", 3)] {
        let (id, object) = pool(name, seed);
        store.put(id, object, Expect::Absent).await.unwrap();
    }
    let mut watching = Watching::synced(&*store, &[Kind::IpPool]).await;
    rig.go_away();
    watching.until("away", |world| world.store_away().is_some()).await;
    assert_eq!(watching.pools(), ["goes", "spoils", "stays"]);
    let (id, object) = pool("new", 4);
    let refused = store.put(id.clone(), object.clone(), Expect::Any).await;
    assert!(matches!(refused, Err(WriteError::Away(_))), "{refused:?}");

    let mut newcomer = Watching::of(&*store, &[Kind::IpPool]);
    assert!(matches!(newcomer.next().await, StoreEvent::Away(..)));

    rig.vanish(&pool("goes", 1).0);
    rig.spoil(&pool("spoils", 2).0);
    rig.come_back();
    let (goes, spoils) = (pool("goes", 1).0, pool("spoils", 2).0);
    for watching in [&mut watching, &mut newcomer] {
        while watching.next().await != StoreEvent::Synced(Kind::IpPool) {}
        assert!(watching.world.store_away().is_none());
        // Where no list was needed, what was missed comes now.
        let missed = |world: &World| !world.pools.contains_key(&goes.name) && world.invalid.contains_key(&spoils);
        watching.until("what was missed", missed).await;
    }
    assert_eq!(newcomer.pools(), ["stays"]);
    assert_eq!(watching.pools(), ["spoils", "stays"], "what cannot be read has not vanished");
    store.put(id, object, Expect::Absent).await.unwrap();
    watching.until("changes after that", |world| world.pools.contains_key("new")).await;
}

async fn a_late_watcher_misses_nothing(rig: &dyn Rig) {
    const WRITERS: u8 = 4;
    const EACH: u8 = 12;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = rig.store();
            tokio::spawn(async move {
                for turn in 0..EACH {
                    let (id, object) = pool(&format!("w{writer}-{turn}"), turn);
                    store.put(id, object, Expect::Absent).await.unwrap();
                    if turn % 3 == 2 {
                        let (id, _) = pool(&format!("w{writer}-{}", turn - 1), 0);
                        store.delete(id, Expect::Any).await.unwrap();
                    }
                }
            })
        })
        .collect();
    let mut watchings = Vec::new();
    for _ in 0..8 {
        watchings.push(Watching::of(&*rig.store(), &[Kind::IpPool]));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let turns = (0..EACH).filter(|turn| turn % 3 != 1);
    let mut wanted: Vec<String> = turns.flat_map(|turn| (0..WRITERS).map(move |w| format!("w{w}-{turn}"))).collect();
    wanted.sort();
    for mut watching in watchings {
        watching
            .until("everything", |world| world.is_synced(Kind::IpPool) && world.pools.keys().map(|n| &**n).eq(&wanted))
            .await;
    }
}

/// What a change of fabric stands on, see `tartan_fabric`: writes have one order, the same in all eyes. Each node writes
/// its word, and when it hears it back notes what it has heard of the other's.
async fn of_two_that_heard_themselves_one_has_heard_the_other(rig: &dyn Rig) {
    const WORDS: u64 = 240;
    let names = ["a", "b"];
    for name in names {
        let (id, word) = advert(name, 0);
        rig.store().put(id, word, Expect::Absent).await.unwrap();
    }
    // Others in the way of who reads: the more there is, the longer a list takes.
    for other in 0..40 {
        let (id, object) = pool(&format!("aa{other}"), other);
        rig.store().put(id, object, Expect::Absent).await.unwrap();
    }
    let node = |own: &'static str, other: &'static str| {
        let store = rig.store();
        tokio::spawn(async move {
            let mut heard = Vec::new();
            let mut watching = Watching::synced(&*store, &[Kind::NodeNetwork, Kind::IpPool]).await;
            for word in 1..=WORDS {
                let (id, object) = advert(own, word);
                let write = store.put(id, object, Expect::Any);
                if word % 2 == 0 {
                    // Its watch begins while words are written, and what it hears first is a list.
                    let mut late = Watching::of(&*store, &[Kind::NodeNetwork, Kind::IpPool]);
                    write.await.unwrap();
                    let synced = |world: &World| world.is_synced(Kind::NodeNetwork) && said_by(world, own) >= word;
                    late.until("its own word", synced).await;
                    watching = late;
                } else {
                    write.await.unwrap();
                    watching.until("its own word", |world| said_by(world, own) >= word).await;
                }
                heard.push(said_by(&watching.world, other));
            }
            heard
        })
    };
    let (a, b) = (node("a", "b"), node("b", "a"));
    let (a, b) = (a.await.unwrap(), b.await.unwrap());
    for (word_of_a, heard_by_a) in (1..).zip(&a) {
        for (word_of_b, heard_by_b) in (1..).zip(&b) {
            let deaf = *heard_by_a < word_of_b && *heard_by_b < word_of_a;
            assert!(!deaf, "a heard its {word_of_a} with b's {heard_by_a}, b its {word_of_b} with a's {heard_by_b}");
        }
    }
}

fn said_by(world: &World, node: &str) -> u64 {
    world.adverts.get(node).map_or(0, |heard| heard.advert.heartbeat)
}

async fn the_store_refuses_what_nobody_could_read(rig: &dyn Rig) {
    let store = rig.store();
    let (_, object) = pool("a", 1);
    for (kind, name) in [(Kind::IpPool, "../a"), (Kind::IpPool, ""), (Kind::IpPool, "b"), (Kind::Node, "a")] {
        let id = ObjectId { kind, name: name.into() };
        let refused = store.put(id.clone(), object.clone(), Expect::Any).await;
        assert!(matches!(refused, Err(WriteError::Refused(..))), "{id}: {refused:?}");
    }
    let watching = Watching::synced(&*store, &Kind::ALL).await;
    assert!(watching.pools().is_empty());
}
