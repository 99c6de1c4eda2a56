//! Callers, what the kernel reports, and a clock that only the test moves.

use std::collections::BTreeSet;

use serde_json::json;
use tartan_api::cni::{Command, NetConf, NetnsFile, PodName, Version};
use tartan_model::{Failed, PerFamily, Why};
use tartan_netstate::{LinkName, Mac, PodNetns};
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;

/// A loop in small: World, those who wait, and the hour.
struct Loop {
    world: World,
    waiting: Waiting,
    now: Instant,
    /// Containers of whose pods something is not known yet.
    unknown: BTreeSet<Arc<str>>,
    waited: Waited,
}

impl Loop {
    fn new() -> Loop {
        Loop {
            world: World::default(),
            waiting: Waiting::default(),
            now: Instant::now(),
            unknown: BTreeSet::new(),
            waited: Waited::default(),
        }
    }

    fn add(&mut self, container: &str) -> Receiver<Answer> {
        let (reply, answer) = CniReply::channel();
        let attachment = attachment(container);
        self.waiting.arrive(&attachment, request(container), reply, self.now);
        self.world.attach(attachment);
        answer
    }

    fn del(&mut self, container: &str) -> Receiver<Answer> {
        let (reply, answer) = CniReply::channel();
        let id = Attachment::id_of(container, "eth0");
        self.world.detach(&id, self.now);
        self.waiting.forget(&id);
        self.waiting.depart(reply, self.now);
        answer
    }

    /// The kernel thread reports that it has tried this plan, and that these pods' objects were refused.
    fn applied(&mut self, generation: u64, refused: &[&str]) {
        self.world.programmed.pods_generation = generation;
        let failed = |container: &&str| Failed {
            key: Key::Link { ns: Netns::Host, link: LinkName::new("ttp1").unwrap() },
            owner: Owner::Pod(Attachment::id_of(container, "eth0")),
            error: "File exists (os error 17)".into(),
            why: Why::Refused,
        };
        self.world.programmed.failures = refused.iter().map(failed).collect();
    }

    fn promise(&mut self, generation: u64) {
        self.waiting.promise(generation, lacks(&self.unknown), self.now);
    }

    /// Settles; ids answered and ids undone.
    fn settle(&mut self) -> (Vec<String>, Vec<String>) {
        let Outcome { answered, undone, waited } = self.waiting.settle(&self.world, lacks(&self.unknown), self.now);
        self.waited += waited;
        let texts = |ids: Vec<Arc<str>>| ids.iter().map(ToString::to_string).collect();
        (texts(answered), texts(undone))
    }
}

fn lacks(unknown: &BTreeSet<Arc<str>>) -> impl Fn(&str, &CniRequest) -> Option<String> {
    |id, _| unknown.contains(id).then(|| "this node has not heard of Pod shop/a".to_owned())
}

fn attachment(container: &str) -> Attachment {
    Attachment {
        id: Attachment::id_of(container, "eth0"),
        container: container.into(),
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: 1, path: "/run/netns/a".into() },
        pod_namespace: "".into(),
        pod_name: "".into(),
        addresses: PerFamily::first_of(["10.244.1.9".parse().unwrap()]),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        ports: Vec::new(),
        limits: Default::default(),
        network: None,
        answered: false,
    }
}

fn request(container: &str) -> CniRequest {
    CniRequest {
        command: Command::Add,
        version: Version::NEWEST,
        container: container.into(),
        ifname: "eth0".into(),
        netns: Some(NetnsFile { path: "/run/netns/a".into(), dev: 4, ino: 1 }),
        pod: PodName::default(),
        netconf: NetConf::default(),
        given: None,
    }
}

/// What a caller heard: `waits`, `ok`, or code and message.
fn heard(answer: &mut Receiver<Answer>) -> String {
    match answer.try_recv() {
        Err(TryRecvError::Empty) => "waits".into(),
        Err(TryRecvError::Closed) => "dropped".into(),
        Ok(Ok(_)) => "ok".into(),
        Ok(Err(error)) => format!("{} {}", error.code, error.msg),
    }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

#[test]
fn an_add_is_answered_once_its_own_plan_is_applied() {
    let mut agent = Loop::new();
    agent.applied(6, &[]);
    let mut answer = agent.add("a");
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "there is no plan yet");
    agent.promise(7);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "plan 6 does not hold it");
    assert_eq!(heard(&mut answer), "waits");
    agent.applied(7, &[]);
    assert_eq!(agent.settle(), (ids(&["a/eth0"]), ids(&[])));
    let result = answer.try_recv().unwrap().unwrap();
    assert_eq!(result["ips"], json!([{"address": "10.244.1.9/32", "gateway": "169.254.1.1", "interface": 1}]));
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "once");
}

#[test]
fn an_add_waits_for_its_own_pod_and_no_other() {
    let mut agent = Loop::new();
    let (mut a, mut b) = (agent.add("a"), agent.add("b"));
    agent.promise(2);
    agent.applied(1, &[]);
    agent.world.programmed.pods_ahead = [("a/eth0".into(), 2), ("b/eth0".into(), 1)].into();
    assert_eq!(agent.settle(), (ids(&["a/eth0"]), ids(&[])), "plan 1 does not hold b");
    assert_eq!((heard(&mut a), heard(&mut b)), ("ok".into(), "waits".into()));
    // What was refused of it is known by then.
    agent.applied(1, &["b"]);
    agent.world.programmed.pods_ahead = [("b/eth0".into(), 2)].into();
    assert_eq!(agent.settle(), (ids(&[]), ids(&["b/eth0"])));
}

#[test]
fn what_the_kernel_refuses_of_a_pod_fails_its_add_and_no_other() {
    let mut agent = Loop::new();
    let (mut a, mut b) = (agent.add("a"), agent.add("b"));
    agent.promise(1);
    agent.applied(1, &["a"]);
    assert_eq!(agent.settle(), (ids(&["b/eth0"]), ids(&["a/eth0"])));
    assert_eq!(heard(&mut a), "5 the kernel refused link ttp1 in host");
    assert_eq!(heard(&mut b), "ok");
}

#[test]
fn who_hangs_up_is_undone_at_once() {
    let mut agent = Loop::new();
    drop(agent.add("a"));
    assert_eq!(agent.settle(), (ids(&[]), ids(&["a/eth0"])));
    let answer = agent.add("b");
    agent.promise(1);
    agent.applied(1, &[]);
    drop(answer);
    assert_eq!(agent.settle(), (ids(&[]), ids(&["b/eth0"])), "though it had worked");
}

#[test]
fn nobody_waits_for_ever() {
    let mut agent = Loop::new();
    let (mut add, mut del) = (agent.add("a"), agent.del("b"));
    agent.promise(1);
    let wake_at = agent.waiting.wake_at().unwrap();
    assert_eq!(wake_at, agent.now + PATIENCE);
    agent.now = wake_at - Duration::from_millis(1);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])));
    agent.now = wake_at;
    assert_eq!(agent.settle(), (ids(&[]), ids(&["a/eth0"])));
    for answer in [&mut add, &mut del] {
        assert_eq!(heard(answer), "11 the kernel did not get there in 45 s");
    }
    assert_eq!(agent.waiting.wake_at(), None);
}

#[test]
fn a_del_waits_for_the_plan_without_the_pod() {
    let mut agent = Loop::new();
    agent.applied(3, &[]);
    let mut answer = agent.del("a");
    agent.promise(4);
    agent.settle();
    assert_eq!(heard(&mut answer), "waits");
    agent.applied(4, &["a"]);
    agent.settle();
    assert_eq!(heard(&mut answer), "ok", "what could not be deleted is tried again, and is nothing of the caller's");
}

#[test]
fn while_nothing_can_be_planned_a_del_is_a_record_and_an_add_waits() {
    let mut agent = Loop::new();
    let (mut del, mut add) = (agent.del("a"), agent.add("b"));
    agent.promise(0);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])));
    assert_eq!((heard(&mut del), heard(&mut add)), ("ok".into(), "waits".into()));
    agent.promise(1);
    agent.applied(1, &[]);
    assert_eq!(agent.settle(), (ids(&["b/eth0"]), ids(&[])));
}

#[test]
fn a_plan_that_did_not_change_is_looked_at_without_being_woken() {
    let mut agent = Loop::new();
    agent.promise(5);
    agent.applied(5, &[]);
    let mut answer = agent.del("unheard-of");
    agent.promise(5);
    assert!(agent.waiting.wake_at().unwrap() <= agent.now, "nothing else would wake the loop");
    agent.settle();
    assert_eq!(heard(&mut answer), "ok");
    let _other = agent.add("a");
    agent.promise(6);
    assert!(agent.waiting.wake_at().unwrap() > agent.now, "the kernel thread will report plan 6");
}

#[test]
fn a_del_ends_the_add_it_overtakes() {
    let mut agent = Loop::new();
    let mut add = agent.add("a");
    agent.promise(1);
    let mut del = agent.del("a");
    assert_eq!(heard(&mut add), "11 a/eth0 was given up while it was being added");
    agent.promise(2);
    agent.applied(2, &[]);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])));
    assert_eq!(heard(&mut del), "ok");
}

#[test]
fn of_two_adds_of_one_attachment_one_is_enough_to_keep_it() {
    let mut agent = Loop::new();
    let first = agent.add("a");
    let mut second = agent.add("a");
    drop(first);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "the second one still waits");
    agent.promise(1);
    agent.applied(1, &[]);
    assert_eq!(agent.settle(), (ids(&["a/eth0"]), ids(&[])));
    assert_eq!(heard(&mut second), "ok");
}

#[test]
fn a_check_waits_until_the_kernel_has_been_looked_at() {
    let mut agent = Loop::new();
    agent.applied(9, &[]);
    let (reply, mut answer) = CniReply::channel();
    let number = agent.waiting.check(request("a"), reply, agent.now);
    agent.promise(9);
    agent.settle();
    assert_eq!(heard(&mut answer), "waits", "what was applied long ago is no answer");
    agent.world.programmed.checked = number;
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])));
    assert_eq!(heard(&mut answer), "3 a/eth0 is not attached");
}

#[test]
fn an_add_waits_for_what_is_not_known_of_its_pod_and_then_for_the_kernel() {
    let mut agent = Loop::new();
    agent.unknown.insert(Attachment::id_of("a", "eth0"));
    let (mut a, mut b) = (agent.add("a"), agent.add("b"));
    agent.promise(1);
    agent.applied(1, &[]);
    assert_eq!(agent.settle(), (ids(&["b/eth0"]), ids(&[])), "its link is there, its policies are not");
    assert_eq!((heard(&mut a), heard(&mut b)), ("waits".into(), "ok".into()));
    agent.unknown.clear();
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "there is no plan with it yet");
    agent.now += Duration::from_secs(3);
    agent.promise(2);
    agent.now += Duration::from_secs(1);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "the kernel does not have it yet");
    agent.applied(2, &[]);
    assert_eq!((agent.waiting.count(), agent.waited), (1, Waited::default()), "who was told nothing still waits");
    assert_eq!(agent.settle(), (ids(&["a/eth0"]), ids(&[])));
    assert_eq!(heard(&mut a), "ok");
    assert_eq!(agent.waiting.count(), 0);
    assert_eq!(agent.waited, Waited { plan: Duration::from_secs(3), kernel: Duration::from_secs(1) });
}

#[test]
fn an_add_waits_again_when_what_was_known_is_taken_back() {
    let mut agent = Loop::new();
    let mut answer = agent.add("a");
    agent.promise(1);
    agent.unknown.insert(Attachment::id_of("a", "eth0"));
    agent.applied(1, &[]);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])), "the plan that the kernel has next is one without it");
    agent.promise(2);
    agent.unknown.clear();
    agent.promise(3);
    agent.applied(2, &[]);
    assert_eq!(agent.settle(), (ids(&[]), ids(&[])));
    agent.applied(3, &[]);
    assert_eq!(agent.settle(), (ids(&["a/eth0"]), ids(&[])));
    assert_eq!(heard(&mut answer), "ok");
}

#[test]
fn an_add_of_which_nothing_gets_known_fails_and_says_what() {
    let mut agent = Loop::new();
    agent.unknown.insert(Attachment::id_of("a", "eth0"));
    let mut answer = agent.add("a");
    agent.promise(1);
    agent.applied(1, &[]);
    agent.now = agent.waiting.wake_at().unwrap();
    assert_eq!(agent.settle(), (ids(&[]), ids(&["a/eth0"])));
    let said = "11 pod / cannot start before its policies are known: this node has not heard of Pod shop/a";
    assert_eq!(heard(&mut answer), said);
}
