//! The socket from its callers' side; the loop's part is played by the test.

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tartan_api::cni::{NetConf, NetnsFile, PodName, Version};
use tartan_kernel::nflog::{Report, Told};
use tartan_model::{Config, Kind, Object, ObjectId};
use tartan_store::{Expect, MemoryStore};
use tokio::io::AsyncReadExt;
use tokio::sync::broadcast;

use super::*;

mod bad;
mod fuzz;

/// A socket that is served, and the inputs it makes for the loop. Its directory goes with it.
struct Served {
    dir: PathBuf,
    inputs: mpsc::Receiver<Input>,
    store: MemoryStore,
    reports: broadcast::Sender<Told>,
}

impl Served {
    fn new() -> Served {
        Served::with_notes(&[])
    }

    /// With these files in `pending-del` from the time without an agent.
    fn with_notes(notes: &[&str]) -> Served {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tartan-socket-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("pending-del")).unwrap();
        for note in notes {
            File::create(dir.join("pending-del").join(note)).unwrap();
        }
        let store = MemoryStore::default();
        let (inbox, inputs) = mpsc::channel(1024);
        let (reports, _) = broadcast::channel(4);
        let socket = dir.join("run/tartan.sock");
        serve(&socket, &dir, inbox, Arc::new(store.clone()), Reports::of(reports.clone())).unwrap();
        Served { dir, inputs, store, reports }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/tartan.sock")
    }

    /// What is left in `pending-del`.
    fn notes(&self) -> Vec<String> {
        let notes = fs::read_dir(self.dir.join("pending-del")).unwrap();
        notes.map(|note| note.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.unwrap()
    }

    /// The next CNI request for the loop.
    async fn cni(&mut self) -> (CniRequest, Option<OwnedFd>, CniReply) {
        match self.inputs.recv().await {
            Some(Input::Cni(request, netns, reply)) => (*request, netns, reply),
            Some(_) => panic!("a CNI request was due"),
            None => panic!("nobody serves any more"),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.dir);
    }
}

fn add(container: &str) -> CniRequest {
    CniRequest {
        command: Command::Add,
        version: Version::NEWEST,
        container: container.into(),
        ifname: "eth0".into(),
        netns: Some(NetnsFile { path: "/run/netns/a".into(), dev: 1, ino: 1 }),
        pod: PodName::default(),
        netconf: NetConf::default(),
        given: None,
    }
}

fn del(container: &str) -> CniRequest {
    CniRequest { command: Command::Del, netns: None, ..add(container) }
}

/// Sends a request, its first byte with a descriptor.
fn send(stream: &UnixStream, request: CniRequest, netns: Option<RawFd>) {
    let frame = encode(&Request::Cni(Box::new(request))).unwrap();
    let descriptors: Vec<RawFd> = netns.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let with = if netns.is_some() { &rights[..] } else { &[] };
    let sent = sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(&frame)], with, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(frame.len()));
}

async fn receive(stream: &mut UnixStream) -> Reply {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await.unwrap();
    let mut body = vec![0; body_length(header).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    decode(&body).unwrap()
}

async fn ask(served: &Served, request: &Request) -> Reply {
    let mut stream = served.connect().await;
    stream.write_all(&encode(request).unwrap()).await.unwrap();
    receive(&mut stream).await
}

#[tokio::test]
async fn the_socket_is_roots_and_nothing_else_is_left() {
    let served = Served::new();
    let found = fs::metadata(served.socket()).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(served.dir.join("run")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
    let served = Served::new();
    let living = listen::at(&served.socket()).unwrap_err();
    let place = format!("socket {}", served.socket().display());
    let expected = format!(
        "{place}: change `socket` in the boot file if that is not where it is to be: another agent listens there; end it first"
    );
    assert_eq!(format!("{living:#}"), expected);
    let stale = served.dir.join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    drop(listen::at(&stale).unwrap());
    let other = served.dir.join("other");
    fs::write(&other, "precious").unwrap();
    let refused = format!("{:#}", listen::at(&other).unwrap_err());
    assert!(refused.ends_with("something else has that name; it is left alone"), "{refused}");
    assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
}

#[tokio::test]
async fn what_nobody_listens_on_is_removed_and_nothing_else() {
    let served = Served::new();
    let [folder, file] = ["left", "kept"].map(|name| served.dir.join(name));
    [&folder, &file].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    fs::write(file.join("s"), "precious").unwrap();
    drop(UnixListener::bind(folder.join("s")).unwrap());
    for socket in [served.socket(), folder.join("s"), file.join("s"), served.dir.join("absent/s")] {
        listen::remove(&socket).unwrap();
    }
    assert!(served.socket().exists() && file.join("s").exists() && !folder.exists());
}

#[tokio::test]
async fn an_add_comes_with_the_namespace_itself_and_hears_the_result() {
    let mut served = Served::new();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let mut stream = served.connect().await;
    send(&stream, add("a"), Some(netns.as_raw_fd()));
    let (request, passed, reply) = served.cni().await;
    let stat = netns.metadata().unwrap();
    let expected = NetnsFile { path: "/run/netns/a".into(), dev: stat.dev(), ino: stat.ino() };
    assert_eq!(request, CniRequest { netns: Some(expected), ..add("a") }, "which namespace it is, the descriptor says");
    assert_eq!(File::from(passed.unwrap()).metadata().unwrap().ino(), stat.ino());
    reply.answer(json!({"ips": []}));
    assert_eq!(receive(&mut stream).await, Reply::Result(json!({"ips": []})));
}

#[tokio::test]
async fn an_error_of_the_loop_reaches_the_caller() {
    let mut served = Served::new();
    let mut stream = served.connect().await;
    send(&stream, del("a"), None);
    let (_, passed, reply) = served.cni().await;
    assert!(passed.is_none());
    let error = CniError::new(code::TRY_LATER, "not now", "later");
    reply.fail(error.clone());
    assert_eq!(receive(&mut stream).await, Reply::Error(error));
}

#[tokio::test]
async fn a_caller_that_hangs_up_is_known_to_be_gone() {
    let mut served = Served::new();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let stream = served.connect().await;
    send(&stream, add("a"), Some(netns.as_raw_fd()));
    let (_, _, reply) = served.cni().await;
    drop(stream);
    let woken = served.inputs.recv().await;
    assert!(matches!(woken, Some(Input::Heard(Command::Add, Outcome::Unheard, _))), "the loop is to be woken");
    let mut waiting = crate::waiting::Waiting::default();
    waiting.depart(reply, Instant::now());
    waiting.settle(&tartan_model::World::default(), |_, _| None, Instant::now());
    assert_eq!(waiting.wake_at(), None, "nobody waits any more");
}

#[tokio::test]
async fn a_success_that_nobody_heard_is_undone() {
    let mut served = Served::new();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let stream = served.connect().await;
    send(&stream, add("a"), Some(netns.as_raw_fd()));
    let (_, _, reply) = served.cni().await;
    // Both before the socket's task runs again: the answer is on its way and the caller is gone.
    drop(stream);
    reply.answer(json!({}));
    let Some(Input::LetGo(undone, _)) = served.inputs.recv().await else { panic!("the undo is due") };
    assert_eq!(undone, [Attachment::id_of("a", "eth0")]);
}

#[tokio::test]
async fn dels_noted_without_an_agent_come_before_any_caller_and_hold_up_none() {
    let mut served = Served::with_notes(&["b@eth0", "a@net@1", "no note", "c@eth0"]);
    let mut stream = served.connect().await;
    let Some(Input::LetGo(ids, written)) = served.inputs.recv().await else { panic!("the notes are due") };
    assert_eq!(ids.iter().map(|id| &**id).collect::<Vec<_>>(), ["a/net@1", "b/eth0", "c/eth0"]);
    send(&stream, del("c"), None);
    let (request, _, reply) = timeout(Duration::from_secs(5), served.cni()).await.expect("notes hold up a caller");
    assert_eq!(request.container, "c");
    reply.answer(Value::Null);
    assert_eq!(receive(&mut stream).await, Reply::Result(Value::Null));
    assert_eq!(served.notes().len(), 4, "the journal does not have them yet");
    // Its plugin found an agent after all.
    fs::remove_file(served.dir.join("pending-del/c@eth0")).unwrap();
    written.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while served.notes() != ["no note"] {
        assert!(Instant::now() < deadline, "left: {:?}", served.notes());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn notes_stay_where_the_agent_ends_before_the_journal_has_them() {
    let mut served = Served::with_notes(&["a@eth0"]);
    let Some(Input::LetGo(_, written)) = served.inputs.recv().await else { panic!("the notes are due") };
    drop(written);
    let stream = served.connect().await;
    send(&stream, del("c"), None);
    assert_eq!(served.cni().await.0.container, "c");
    assert_eq!(served.notes(), ["a@eth0"]);
}

#[tokio::test]
async fn slow_and_silent_callers_hold_up_nobody() {
    let mut served = Served::new();
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = served.connect().await;
        stream.write_all(&[0, 0]).await.unwrap();
        slow.push(stream);
    }
    let mut stream = served.connect().await;
    send(&stream, del("a"), None);
    let (_, _, reply) = timeout(Duration::from_secs(5), served.cni()).await.expect("100 silent callers are in the way");
    reply.answer(Value::Null);
    assert_eq!(receive(&mut stream).await, Reply::Result(Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_never_finishes_its_request_is_dropped() {
    let served = Served::new();
    let mut stream = served.connect().await;
    stream.write_all(&[0, 0, 1, 0, b'{']).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn two_hundred_callers_at_once_each_get_their_own_answer() {
    let mut served = Served::new();
    let socket = served.socket();
    let callers: Vec<_> = (0..200)
        .map(|number| {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut stream = UnixStream::connect(socket).await.unwrap();
                send(&stream, del(&format!("c{number}")), None);
                assert_eq!(receive(&mut stream).await, Reply::Result(json!(format!("c{number}"))));
            })
        })
        .collect();
    let mut replies = Vec::new();
    for _ in 0..200 {
        let (request, _, reply) = loop {
            match served.inputs.recv().await {
                Some(Input::Cni(request, netns, reply)) => break (request, netns, reply),
                Some(_) => {}
                None => panic!("nobody serves any more"),
            }
        };
        replies.push((request.container, reply));
    }
    for (container, reply) in replies.into_iter().rev() {
        reply.answer(json!(container));
    }
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn documents_are_written_to_the_store() {
    let served = Served::new();
    let documents =
        "apiVersion: tartan.dev/v1alpha1\nkind: NetworkConfig\nmetadata: {name: default}\nspec: {fabric: host-gw}\n";
    let apply = Request::Apply { source: "a.yaml".into(), documents: documents.into() };
    assert_eq!(ask(&served, &apply).await, Reply::Result(json!(["NetworkConfig/default"])));
    let id = ObjectId { kind: Kind::NetworkConfig, name: "default".into() };
    let again = served.store.put(id.clone(), Object::Config(Config::default().into()), Expect::Absent).await;
    assert!(again.is_err(), "it is there");
}

#[tokio::test]
async fn a_world_is_told_in_as_many_frames_as_it_takes() {
    let mut served = Served::new();
    let mut stream = served.connect().await;
    stream.write_all(&encode(&Request::World).unwrap()).await.unwrap();
    let Some(Input::Record(reply)) = served.inputs.recv().await else { panic!("the loop is asked") };
    let mut world = tartan_model::World::new("n1".into(), tartan_model::Features::default());
    let note = "x".repeat(700 << 10);
    let text = tartan_model::PolicyText { json: format!("{{\"spec\":{{\"note\":\"{note}\"}}}}").into() };
    let id = ObjectId { kind: Kind::NetworkPolicy, name: "a/p".into() };
    world.policies.insert(id.clone(), text.into());
    assert!(reply.send(world).is_ok());
    let mut frames = Vec::new();
    stream.read_to_end(&mut frames).await.unwrap();
    let (mut rest, mut texts) = (&*frames, Vec::new());
    while let Some((header, after)) = rest.split_first_chunk::<4>() {
        let (body, after) = after.split_at(body_length(*header).unwrap());
        match decode(body).unwrap() {
            Reply::Result(Value::String(text)) => texts.push(text),
            other => panic!("{other:?}"),
        }
        rest = after;
    }
    assert!(texts.len() > 2, "{}", texts.len());
    let told = crate::snapshot::decode_all(texts.concat().as_bytes(), Path::new("told")).unwrap();
    assert_eq!(told.0, "n1");
    assert!(told.1.iter().any(|(told, _)| *told == id));
}

#[tokio::test]
async fn who_asks_for_a_world_of_an_agent_that_ends_is_told() {
    let mut served = Served::new();
    let mut stream = served.connect().await;
    stream.write_all(&encode(&Request::World).unwrap()).await.unwrap();
    drop(served.inputs.recv().await);
    let mut frame = Vec::new();
    stream.read_to_end(&mut frame).await.unwrap();
    let Ok(Reply::Error(error)) = decode(&frame[4..]) else { panic!("an error was due") };
    assert_eq!(error.code, code::TRY_LATER);
}

#[tokio::test]
async fn what_is_denied_is_told_with_names_and_what_went_by() {
    let mut served = Served::new();
    let mut stream = served.connect().await;
    stream.write_all(&encode(&Request::Denied).unwrap()).await.unwrap();
    while served.reports.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    let report = |port| {
        Told::Packet(Report {
            mark: 2 << 24 | 7,
            source: "192.0.2.7".parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            protocol: 6,
            source_port: 40_000,
            destination_port: port,
        })
    };
    // One that the kernel lost, and more than may wait.
    for told in [Told::Lost, report(1), report(2), report(3), report(4), report(5)] {
        served.reports.send(told).unwrap();
    }
    for (port, lost) in [(2, 2), (3, 0)] {
        let Some(Input::Names(reply)) = served.inputs.recv().await else { panic!("the loop is asked") };
        let id = ObjectId { kind: Kind::NetworkPolicy, name: "a/p".into() };
        let rule = tartan_policy::ir::RuleRef { source: id, path: "spec.podSelector".into() };
        let world = tartan_model::World::new("n1".into(), tartan_model::Features::default());
        assert!(reply.send((world, [(7_u32, Arc::new(rule))].into_iter().collect())).is_ok());
        let mut header = [0; 4];
        stream.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; body_length(header).unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let Ok(Reply::Result(value)) = decode(&body) else { panic!("{body:?}") };
        let denied: tartan_api::explain::Denied = serde_json::from_value(value).unwrap();
        assert_eq!((&*denied.packet, denied.lost), (&*format!("{port}/tcp"), lost));
        assert_eq!((&*denied.object, &*denied.field), ("NetworkPolicy/a/p", "spec.podSelector"));
        assert_eq!((&*denied.from.name, &*denied.to.address), ("world", "10.0.0.1"));
        assert_eq!(denied.verdict, tartan_api::explain::Verdict::Denied);
    }
    drop(stream);
    while served.reports.receiver_count() > 0 {
        // Whoever is being told of another packet learns of the end when it is written.
        match served.inputs.try_recv() {
            Ok(Input::Names(reply)) => drop(reply),
            _ => tokio::task::yield_now().await,
        }
    }
}
