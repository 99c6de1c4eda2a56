//! The kernel with engines beside it: what an engine holds is wanted, read and changed like what the kernel holds, by the
//! same thread, in the same order.
//!
//! Where the kernel has no WireGuard, an engine does what the kernel would: the same objects are wanted, and kept there.
//!
//! Invariant: a step of an engine comes after the kernel's steps before it and before those after it: a route leads to a
//! device only when its engine knows where the packets go, and the kernel that there is one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tartan_engine::client::Client;
use tartan_engine::wire;
use tartan_kernel::keys::Keys;
use tartan_kernel::{Failure, Kernel, KernelError, Scope, Wake, Waker};
use tartan_model::{EncryptionState, Features, Host};
use tartan_netstate::claims::ENCRYPTED_LINK_PREFIX;
use tartan_netstate::{
    Change, Key, LinkName, Object, Op, Owner, PodNetns, PublicKey, Socket, State, Step, WgDevice, WgPeer,
};
use tracing::warn;

/// See the module.
pub(crate) struct WithEngines {
    kernel: Box<dyn Kernel>,
    engine: Client,
    /// Of this node, for an engine that encrypts.
    keys: Keys,
    /// Whether one does, once that is known: the kernel cannot.
    encrypts: Option<bool>,
    wake: Arc<Mutex<Option<Waker>>>,
    /// From when on the engine that is there is to be offered this program; none: it was. Another one may come at any time.
    offer_at: Arc<Mutex<Option<Instant>>>,
}

/// Before who has refused is asked again: it may have been giving way to somebody else's.
const OFFER_AGAIN: Duration = Duration::from_secs(60);

/// Where the engine of the agent with this socket listens.
pub(crate) fn socket_beside(agent: &Path) -> PathBuf {
    agent.with_extension("engine.sock")
}

impl WithEngines {
    /// The kernel, and the engine that this one speaks to, which has key pairs from there.
    pub(crate) fn new(kernel: Box<dyn Kernel>, engine: Client, keys: Keys) -> WithEngines {
        let offer_at = Arc::new(Mutex::new(Some(Instant::now())));
        WithEngines { kernel, engine, keys, encrypts: None, wake: Arc::default(), offer_at }
    }

    fn encrypts(&mut self) -> bool {
        *self.encrypts.get_or_insert_with(|| !self.kernel.features().wireguard)
    }

    /// Whether the object lives in an engine.
    fn has(&mut self, key: &Key) -> bool {
        key.is_in_engine() || key.is_wireguard() && self.encrypts()
    }

    fn read_engine(&mut self) -> Result<State, KernelError> {
        self.offer();
        let devices = self.devices()?;
        if !devices.is_empty() {
            self.watch();
        }
        if !self.encrypts() {
            self.close_encrypted(&devices);
        }
        Ok(in_clear(devices))
    }

    /// An engine of another program gives way to this one's: one from before this agent, or one that a holder from before has
    /// started again.
    fn offer(&self) {
        let offer_at = || self.offer_at.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(due) = offer_at().take_if(|at| *at <= Instant::now()) else { return };
        let again = match self.engine.succeed() {
            Ok(true) => return,
            Ok(false) => due,
            Err(error) => {
                warn!("the engine that runs is of another program, and goes on: {error}");
                Instant::now() + OFFER_AGAIN
            }
        };
        // Its end may have been told of meanwhile.
        offer_at().get_or_insert(again);
    }

    /// The kernel has learned WireGuard: what an engine did before, it does.
    fn close_encrypted(&self, devices: &BTreeMap<String, wire::Device>) {
        let over = devices.iter().filter(|(_, device)| device.encrypted.is_some());
        let over: Vec<wire::Step> = over.map(|(name, _)| wire::Step::Close { link: name.clone() }).collect();
        if !over.is_empty()
            && let Err(error) = self.engine.apply(over, &[], false)
        {
            warn!("an engine goes on encrypting what the kernel could: {error}");
        }
    }

    fn devices(&self) -> Result<BTreeMap<String, wire::Device>, KernelError> {
        self.engine.read().map_err(|error| engine_error("read what it holds", &error))
    }

    /// What encrypting devices have, beside what was read of the kernel.
    fn add_encrypted(&self, state: &mut State, is_meant: impl Fn(&LinkName) -> bool) -> Result<(), KernelError> {
        for (name, device) in self.devices()? {
            if let (Some(link), Some(device)) = (LinkName::new(&name).filter(&is_meant), device.encrypted) {
                put_encrypted(&link, device, state);
            }
        }
        Ok(())
    }

    fn watch(&self) {
        let (wake, offer_at) = (self.wake.clone(), self.offer_at.clone());
        self.engine.watch(move || {
            *offer_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            if let Some(wake) = &*wake.lock().unwrap_or_else(PoisonError::into_inner) {
                wake(Wake::Changed(Scope::Engines));
                wake(Wake::Changed(Scope::Encryption));
            }
        });
    }

    fn tell(&mut self, steps: &[Step]) -> Vec<Failure> {
        let opened = |step: &Step| match step.op() {
            Op::Create(Key::Socket { link } | Key::WgDevice { link }, _) => Some(link.clone()),
            _ => None,
        };
        let opened: Vec<LinkName> = steps.iter().filter_map(opened).collect();
        let may_start = !opened.is_empty();
        let (mut told, mut about, mut keys, mut failures) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            let of_it = wire_steps(step.op());
            if let [wire::Step::Identify { identity, .. }] = &of_it[..] {
                match self.keys.file(PublicKey(identity.public_key.0)) {
                    Ok(file) => keys.push(file.into()),
                    Err(error) => {
                        failures.push(failure(step, &error.to_string()));
                        continue;
                    }
                }
            }
            about.extend(of_it.iter().map(|_| step));
            told.extend(of_it);
        }
        self.offer();
        match self.engine.apply(told, &keys, may_start) {
            Ok(failed) => {
                self.watch();
                opened.iter().for_each(|link| self.kernel.wait_for_carrier(link));
                let failed = failed.iter().filter_map(|(index, says)| Some(failure(about.get(*index)?, says)));
                failures.extend(failed);
            }
            Err(error) => failures.extend(about.into_iter().map(|told| failure(told, &error.to_string()))),
        }
        failures
    }
}

impl Kernel for WithEngines {
    fn features(&mut self) -> Features {
        self.kernel.features()
    }

    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError> {
        *self.wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
        let wake = self.wake.clone();
        self.kernel.subscribe(Box::new(move |news| {
            if let Some(wake) = &*wake.lock().unwrap_or_else(PoisonError::into_inner) {
                wake(news);
            }
        }))
    }

    fn read(&mut self, scope: &Scope) -> Result<State, KernelError> {
        let mut state = match scope {
            Scope::Engines => return self.read_engine(),
            scope => self.kernel.read(scope)?,
        };
        match scope {
            Scope::Encryption if self.encrypts() => self.add_encrypted(&mut state, |_| true)?,
            Scope::Link(name) if name.as_str().starts_with(ENCRYPTED_LINK_PREFIX) && self.encrypts() => {
                self.add_encrypted(&mut state, |link| link == name)?;
            }
            _ => {}
        }
        Ok(state)
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        self.kernel.host()
    }

    fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
        let mut encryption = self.kernel.encryption()?;
        if self.encrypts() {
            for (name, device) in self.devices()? {
                let (Some(link), Some(device)) = (LinkName::new(&name), device.encrypted) else { continue };
                let met = |key: &wire::PublicKey| ((link.clone(), PublicKey(key.0)), device.met.contains(key));
                encryption.handshakes.extend(device.peers.keys().map(met));
            }
        }
        Ok(encryption)
    }

    fn apply(&mut self, change: &Change) -> Vec<Failure> {
        let in_engine: Vec<bool> = change.steps.iter().map(|step| self.has(step.key())).collect();
        let (mut failures, mut from) = (Vec::new(), 0);
        for run in in_engine.chunk_by(|a, b| a == b) {
            let steps = &change.steps[from..from + run.len()];
            from += run.len();
            failures.extend(match run[0] {
                true => self.tell(steps),
                false if steps.len() == change.steps.len() => self.kernel.apply(change),
                false => self.kernel.apply(&Change { steps: steps.to_vec() }),
            });
        }
        failures
    }

    fn wait_for_carrier(&mut self, link: &LinkName) {
        self.kernel.wait_for_carrier(link);
    }

    fn bury(&mut self) {
        self.kernel.bury();
    }

    fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.kernel.lend(ns, fd);
    }

    fn give_back(&mut self, ns: &PodNetns) {
        self.kernel.give_back(ns);
    }
}

fn failure(step: &Step, says: &str) -> Failure {
    let doing = format!("have an engine with {}", step.key());
    let error = match says {
        wire::GIVES_WAY => KernelError::EngineGivesWay { doing },
        says => KernelError::Engine { doing, says: says.to_owned() },
    };
    Failure::of(step, error)
}

fn engine_error(doing: &str, error: &tartan_engine::client::EngineError) -> KernelError {
    KernelError::Engine { doing: doing.to_owned(), says: error.to_string() }
}

/// What the engine is told, all at once: each step says how it is to be, so a replacement is like a creation.
fn wire_steps(op: Op<'_>) -> Vec<wire::Step> {
    let (old, new) = op.sides();
    vec![match (op.key(), new) {
        (Key::Socket { link }, Some(Object::Socket(Socket { source, port, esp }))) => {
            let (link, socket) = (link.to_string(), wire::Socket { source: *source, port: *port });
            if *esp { wire::Step::Hold { link, socket } } else { wire::Step::Open { link, socket } }
        }
        (Key::Socket { link }, _) => wire::Step::Close { link: link.to_string() },
        (Key::Remote { link, dst }, Some(Object::Remote(address))) => {
            wire::Step::Put { link: link.to_string(), dst: *dst, address: *address }
        }
        (Key::Remote { link, dst }, _) => wire::Step::Take { link: link.to_string(), dst: *dst },
        (Key::WgDevice { link }, Some(Object::WgDevice(WgDevice { listen_port, public_key }))) => {
            let identity = wire::Identity { port: *listen_port, public_key: wire::PublicKey(public_key.0) };
            wire::Step::Identify { link: link.to_string(), identity }
        }
        (Key::WgDevice { link }, _) => wire::Step::Close { link: link.to_string() },
        (Key::WgPeer { link, public_key }, Some(Object::WgPeer(new))) => {
            return of_peer(link, *public_key, old.and_then(Object::as_wg_peer), new);
        }
        (Key::WgPeer { link, public_key }, _) => {
            wire::Step::Forget { link: link.to_string(), public_key: wire::PublicKey(public_key.0) }
        }
        _ => return Vec::new(),
    }]
}

fn of_peer(link: &LinkName, public_key: PublicKey, old: Option<&WgPeer>, new: &WgPeer) -> Vec<wire::Step> {
    let (link, public_key) = (link.to_string(), wire::PublicKey(public_key.0));
    let peer = wire::Peer { endpoint: new.endpoint, keepalive: new.keepalive };
    let allow = |dst: &IpNet| wire::Step::Allow { link: link.clone(), dst: *dst, public_key };
    let deny = |dst: &IpNet| wire::Step::Deny { link: link.clone(), dst: *dst };
    let mut steps = vec![wire::Step::Meet { link: link.clone(), public_key, peer }];
    steps.extend(new.allowed.iter().map(allow));
    steps.extend(old.into_iter().flat_map(|old| old.beyond(Some(new))).map(deny));
    steps
}

fn in_clear(devices: BTreeMap<String, wire::Device>) -> State {
    let mut state = State::new();
    for (name, wire::Device { socket, remotes, held, .. }) in devices {
        let Some(link) = LinkName::new(&name) else { continue };
        if let Some(wire::Socket { source, port }) = socket.or(held) {
            let key = Key::Socket { link: link.clone() };
            state.insert(key, Object::Socket(Socket { source, port, esp: held.is_some() }), Owner::Read);
        }
        for (dst, address) in remotes {
            state.insert(Key::Remote { link: link.clone(), dst }, Object::Remote(address), Owner::Read);
        }
    }
    state
}

fn put_encrypted(link: &LinkName, device: wire::Encrypted, state: &mut State) {
    let mut put = |key, object| state.insert(key, object, Owner::Read);
    if let Some(wire::Identity { port, public_key }) = device.identity {
        let made = WgDevice { listen_port: port, public_key: PublicKey(public_key.0) };
        put(Key::WgDevice { link: link.clone() }, Object::WgDevice(made));
    }
    let mut allowed: BTreeMap<wire::PublicKey, Vec<IpNet>> = BTreeMap::new();
    for (range, of) in device.allowed {
        allowed.entry(of).or_default().push(range);
    }
    for (key, wire::Peer { endpoint, keepalive }) in device.peers {
        let peer = WgPeer::of(endpoint, keepalive, allowed.remove(&key).unwrap_or_default());
        put(Key::WgPeer { link: link.clone(), public_key: PublicKey(key.0) }, Object::WgPeer(peer.into()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc::Receiver;
    use std::thread;

    use tartan_kernel::fake::Fake;
    use tartan_netstate::{Link, LinkKind, Netns, Route};

    use super::*;

    /// An engine that has one device, refuses the second step of all that it is told, and says what that was and which files came
    /// along.
    fn engine(socket: &Path, has: (&'static str, wire::Device)) -> Receiver<(Vec<wire::Step>, Vec<String>)> {
        let listener = UnixListener::bind(socket).unwrap();
        let (told, tells) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let question: wire::Question = wire::read(&mut stream).unwrap();
                let answer = match question.ask {
                    wire::Ask::Apply(steps) => {
                        let with_key = steps.iter().filter(|step| matches!(step, wire::Step::Identify { .. }));
                        let files = with_key.map(|_| file_from(&stream)).collect();
                        told.send((steps, files)).unwrap();
                        wire::Answer::Applied(BTreeMap::from([(1, "no room".into())]))
                    }
                    wire::Ask::Read => wire::Answer::Holds(BTreeMap::from([(has.0.into(), has.1.clone())])),
                    wire::Ask::Succeed(_) => wire::Answer::Done,
                    wire::Ask::Watch => continue,
                };
                wire::write(&mut stream, &answer).unwrap();
            }
        });
        tells
    }

    fn file_from(stream: &UnixStream) -> String {
        let mut text = String::new();
        let file = tartan_engine::rights::receive(stream, &mut [0]).unwrap().1.unwrap();
        File::from(file).read_to_string(&mut text).unwrap();
        text
    }

    fn path(test: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tartan-engines-{test}-{}", std::process::id()))
    }

    fn with_engine(kernel: &Fake, socket: &Path, keys: &Path) -> WithEngines {
        WithEngines::new(Box::new(kernel.clone()), Client::new(socket, true), Keys::of(keys))
    }

    fn create(key: Key, object: Object) -> Step {
        Step::create(key, object, Owner::Node)
    }

    fn tun(link: &LinkName) -> Step {
        let made = Link { kind: LinkKind::Tun { label: "udp".into() }, mac: None, mtu: 1400, group: 0, up: true };
        create(Key::Link { ns: Netns::Host, link: link.clone() }, Object::Link(made.into()))
    }

    fn route(link: &LinkName) -> Step {
        let key = Key::Route { ns: Netns::Host, table: 254, dst: "10.0.0.0/24".parse().unwrap(), metric: 1 };
        create(key, Object::Route(Route::on_link(link.clone()).into()))
    }

    #[test]
    fn what_an_engine_holds_is_changed_between_the_link_and_the_routes_over_it() {
        let path = path("udp");
        let socket = Some(wire::Socket { source: "192.0.2.1".parse().unwrap(), port: 8285 });
        let remotes = BTreeMap::from([("10.0.0.0/24".parse().unwrap(), "192.0.2.2".parse().unwrap())]);
        let told = engine(&path, ("ttx0", wire::Device { socket, remotes, ..wire::Device::default() }));
        let fake = Fake::new();
        let mut both = with_engine(&fake, &path, Path::new("/nonexistent"));

        let link = LinkName::new("ttx0").unwrap();
        let remote = Key::Remote { link: link.clone(), dst: "10.0.0.0/24".parse().unwrap() };
        let address = Object::Remote("192.0.2.2".parse().unwrap());
        let socket = Object::Socket(Socket { source: "192.0.2.1".parse().unwrap(), port: 8285, esp: false });
        let steps = vec![
            tun(&link),
            create(Key::Socket { link: link.clone() }, socket),
            create(remote.clone(), address.clone()),
            route(&link),
        ];
        let failures = both.apply(&Change { steps });
        assert_eq!(failures.iter().map(|failure| &failure.key).collect::<Vec<_>>(), [&remote]);
        assert!(failures[0].error.to_string().contains("no room"), "{}", failures[0].error);
        let (steps, _) = told.recv().unwrap();
        assert!(matches!(&steps[..], [wire::Step::Open { .. }, wire::Step::Put { .. }]), "{steps:?}");
        assert!(fake.state().get(route(&link).key()).is_some() && fake.state().len() == 2);
        // The engine has the device open by then, and no packet is led there yet.
        let [(of, there)] = &fake.waits()[..] else { panic!("waited not once: {:?}", fake.waits()) };
        assert!(*of == link && there.len() == 1 && there.get(tun(&link).key()).is_some(), "{there:?}");

        let read = both.read(&Scope::Engines).unwrap();
        assert!(read.len() == 2 && read.holds(&remote, &address), "{read:?}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn where_the_kernel_has_no_wireguard_an_engine_has_what_it_would() {
        let (path, dir) = (path("wireguard"), path("wireguard-keys"));
        let keys = Keys::of(&dir);
        keys.make("wireguard-0").unwrap();
        let own = keys.all().unwrap()["wireguard-0"].public();
        let (link, peer) = (LinkName::new("ttxs0").unwrap(), PublicKey([7; 32]));
        let net = "10.0.0.0/24".parse().unwrap();
        let encrypted = wire::Encrypted {
            identity: Some(wire::Identity { port: 51820, public_key: wire::PublicKey(own.0) }),
            peers: [(
                wire::PublicKey(peer.0),
                wire::Peer { endpoint: "192.0.2.2:51820".parse().unwrap(), keepalive: 25 },
            )]
            .into(),
            allowed: [(net, wire::PublicKey(peer.0))].into(),
            met: [wire::PublicKey(peer.0)].into(),
        };
        let has = wire::Device { encrypted: Some(encrypted), ..wire::Device::default() };
        let told = engine(&path, ("ttxs0", has));

        let device = Key::WgDevice { link: link.clone() };
        let made = |public_key| Object::WgDevice(WgDevice { listen_port: 51820, public_key });
        let of_peer = Key::WgPeer { link: link.clone(), public_key: peer };
        let is = Object::WgPeer(WgPeer::of("192.0.2.2:51820".parse().unwrap(), 25, [net]).into());
        let wanted = [(device.clone(), made(own)), (of_peer, is)];
        let steps = |of: &[(Key, Object)]| -> Vec<Step> {
            let engine = of.iter().map(|(key, object)| create(key.clone(), object.clone()));
            [tun(&link)].into_iter().chain(engine).chain([route(&link)]).collect()
        };
        let fake = Fake::without_wireguard();
        let mut both = with_engine(&fake, &path, &dir);
        let failures = both.apply(&Change { steps: steps(&wanted) });
        assert_eq!(failures.len(), 1, "{failures:?}");
        let (heard, files) = told.recv().unwrap();
        assert!(
            matches!(&heard[..], [wire::Step::Identify { .. }, wire::Step::Meet { .. }, wire::Step::Allow { .. }]),
            "{heard:?}"
        );
        assert_eq!(files, [std::fs::read_to_string(dir.join("wireguard-0.key")).unwrap()]);
        assert!(fake.state().get(route(&link).key()).is_some() && fake.state().len() == 2);

        for scope in [Scope::Encryption, Scope::Link(link.clone())] {
            let read = both.read(&scope).unwrap();
            assert!(wanted.iter().all(|(key, object)| read.holds(key, object)), "{scope:?}: {read:?}");
        }
        assert!(both.read(&Scope::Engines).unwrap().is_empty());
        assert!(!both.read(&Scope::Link(LinkName::new("ttxs1").unwrap())).unwrap().holds(&device, &made(own)));
        assert_eq!(both.encryption().unwrap().handshakes, [((link.clone(), peer), true)].into());

        // Of a key that is not here nothing is told.
        let failures = both.apply(&Change { steps: steps(&[(device.clone(), made(peer))]) });
        assert!(failures.len() == 1 && failures[0].error.to_string().contains("no key in"), "{failures:?}");

        // A kernel that can does it, and the engine no longer.
        let able = Fake::new();
        let mut both = with_engine(&able, &path, &dir);
        while told.try_recv().is_ok() {}
        assert!(both.read(&Scope::Engines).unwrap().is_empty());
        assert_eq!(told.recv().unwrap().0, [wire::Step::Close { link: link.to_string() }]);
        let failures = both.apply(&Change { steps: vec![tun(&link), create(device.clone(), made(own))] });
        assert!(failures.is_empty(), "{failures:?}");
        assert!(able.state().holds(&device, &made(own)) && both.encryption().unwrap().handshakes.is_empty());
        std::fs::remove_file(path).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_engine_that_gives_way_is_told_from_one_that_cannot() {
        let step = tun(&LinkName::new("ttxs0").unwrap());
        let gives_way = |says: &str| matches!(failure(&step, says).error, KernelError::EngineGivesWay { .. });
        assert!(gives_way(wire::GIVES_WAY) && !gives_way("no room"));
    }

    #[test]
    fn where_there_is_no_engine_there_is_nothing_to_take_away() {
        let mut both = with_engine(&Fake::new(), Path::new("/nonexistent/engine.sock"), Path::new("/nonexistent"));
        assert!(both.read(&Scope::Engines).unwrap().is_empty());
        let key = Key::Remote { link: LinkName::new("ttx0").unwrap(), dst: "10.0.0.0/24".parse().unwrap() };
        let object = Object::Remote("192.0.2.2".parse().unwrap());
        let apply = |both: &mut WithEngines, step| both.apply(&Change { steps: vec![step] }).len();
        assert_eq!(apply(&mut both, Step::delete(key.clone(), object.clone(), Owner::Node)), 0);
        assert_eq!(apply(&mut both, Step::create(key, object, Owner::Node)), 1);
    }
}
