//! The kernel with engines beside it: what an engine holds is wanted, read and changed like what the kernel holds, by the
//! same thread, in the same order.
//!
//! Invariant: a step of an engine comes after the kernel's steps before it and before those after it: a route leads to a
//! device only when its engine knows where the packets go.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tartan_engine::client::Client;
use tartan_engine::wire;
use tartan_kernel::{Failure, Kernel, KernelError, Scope, Wake, Waker};
use tartan_model::{Features, Host, Wireguard};
use tartan_netstate::{Change, Key, LinkName, Object, Op, Owner, PodNetns, Socket, State};
use tracing::warn;

/// See the module.
pub(crate) struct WithEngines {
    kernel: Box<dyn Kernel>,
    engine: Client,
    wake: Arc<Mutex<Option<Waker>>>,
    /// The engine that is there has been offered this program.
    offered: bool,
}

/// Where the engine of the agent with this socket listens.
pub(crate) fn socket_beside(agent: &Path) -> PathBuf {
    agent.with_extension("engine.sock")
}

impl WithEngines {
    /// The kernel, and the engine that listens there if one is wanted; `starts` says whether the agent starts what holds it.
    pub(crate) fn new(kernel: Box<dyn Kernel>, socket: &Path, starts: bool) -> WithEngines {
        WithEngines { kernel, engine: Client::new(socket, starts), wake: Arc::default(), offered: false }
    }

    fn read_engine(&mut self) -> Result<State, KernelError> {
        if !std::mem::replace(&mut self.offered, true)
            && let Err(error) = self.engine.succeed()
        {
            warn!("the engine that runs is of another program, and goes on: {error}");
        }
        let devices = self.engine.read().map_err(|error| engine_error("read what it holds", &error))?;
        if !devices.is_empty() {
            self.watch();
        }
        Ok(state(devices))
    }

    fn watch(&self) {
        let wake = self.wake.clone();
        self.engine.watch(move || {
            if let Some(wake) = &*wake.lock().unwrap_or_else(PoisonError::into_inner) {
                wake(Wake::Changed(Scope::Engines));
            }
        });
    }

    fn tell(&mut self, ops: &[(Op, Owner)]) -> Vec<Failure> {
        let may_start = ops.iter().any(|(op, _)| matches!(op, Op::Create(Key::Socket { .. }, _)));
        let steps: Vec<wire::Step> = ops.iter().filter_map(|(op, _)| step(op)).collect();
        let failure = |(op, owner): &(Op, Owner), says: &str| Failure {
            key: op.key().clone(),
            owner: owner.clone(),
            error: KernelError::Engine { doing: format!("have an engine with {}", op.key()), says: says.to_owned() },
        };
        match self.engine.apply(steps, may_start) {
            Ok(failures) => {
                self.watch();
                failures.iter().filter_map(|(index, says)| Some(failure(ops.get(*index)?, says))).collect()
            }
            Err(error) => ops.iter().map(|step| failure(step, &error.to_string())).collect(),
        }
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
        match scope {
            Scope::Engines => self.read_engine(),
            scope => self.kernel.read(scope),
        }
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        self.kernel.host()
    }

    fn wireguard(&mut self) -> Result<Wireguard, KernelError> {
        self.kernel.wireguard()
    }

    fn apply(&mut self, change: &Change) -> Vec<Failure> {
        if !change.ops.iter().any(|(op, _)| op.key().is_in_engine()) {
            return self.kernel.apply(change);
        }
        let runs = change.ops.chunk_by(|(a, _), (b, _)| a.key().is_in_engine() == b.key().is_in_engine());
        let apply = |run: &[(Op, Owner)]| match run[0].0.key().is_in_engine() {
            true => self.tell(run),
            false => self.kernel.apply(&Change { ops: run.to_vec() }),
        };
        runs.flat_map(apply).collect()
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

fn engine_error(doing: &str, error: &tartan_engine::client::EngineError) -> KernelError {
    KernelError::Engine { doing: doing.to_owned(), says: error.to_string() }
}

/// One step for the engine: each says how it is to be, so a replacement is like a creation.
fn step(op: &Op) -> Option<wire::Step> {
    let new = match op {
        Op::Create(_, new) | Op::Replace { new, .. } => Some(new),
        Op::Delete(..) => None,
    };
    Some(match (op.key(), new) {
        (Key::Socket { link }, Some(Object::Socket(Socket { source, port }))) => {
            wire::Step::Open { link: link.to_string(), socket: wire::Socket { source: *source, port: *port } }
        }
        (Key::Socket { link }, _) => wire::Step::Close { link: link.to_string() },
        (Key::Remote { link, dst }, Some(Object::Remote(address))) => {
            wire::Step::Put { link: link.to_string(), dst: *dst, address: *address }
        }
        (Key::Remote { link, dst }, _) => wire::Step::Take { link: link.to_string(), dst: *dst },
        _ => return None,
    })
}

fn state(devices: BTreeMap<String, wire::Device>) -> State {
    let mut state = State::new();
    for (name, wire::Device { socket, remotes }) in devices {
        let Some(link) = LinkName::new(&name) else { continue };
        if let Some(wire::Socket { source, port }) = socket {
            let key = Key::Socket { link: link.clone() };
            state.insert(key, Object::Socket(Socket { source, port }), Owner::Read);
        }
        for (dst, address) in remotes {
            state.insert(Key::Remote { link: link.clone(), dst }, Object::Remote(address), Owner::Read);
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use tartan_kernel::fake::Fake;
    use tartan_netstate::{Link, LinkKind, Netns, Route};

    use super::*;

    /// An engine that has one device, refuses the second step of all that it is told, and says what that was.
    fn engine(socket: &Path) -> std::sync::mpsc::Receiver<Vec<wire::Step>> {
        let listener = UnixListener::bind(socket).unwrap();
        let (told, tells) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let question: wire::Question = wire::read(&mut stream).unwrap();
                let answer = match question.ask {
                    wire::Ask::Apply(steps) => {
                        told.send(steps).unwrap();
                        wire::Answer::Applied(BTreeMap::from([(1, "no room".into())]))
                    }
                    wire::Ask::Read => {
                        let socket = Some(wire::Socket { source: "192.0.2.1".parse().unwrap(), port: 8285 });
                        let remotes = BTreeMap::from([("10.0.0.0/24".parse().unwrap(), "192.0.2.2".parse().unwrap())]);
                        wire::Answer::Holds(BTreeMap::from([("ttx0".into(), wire::Device { socket, remotes })]))
                    }
                    wire::Ask::Succeed(_) => wire::Answer::Done,
                    wire::Ask::Watch => continue,
                };
                wire::write(&mut stream, &answer).unwrap();
            }
        });
        tells
    }

    #[test]
    fn what_an_engine_holds_is_changed_between_the_link_and_the_routes_over_it() {
        let path = std::env::temp_dir().join(format!("tartan-engines-{}.sock", std::process::id()));
        let told = engine(&path);
        let fake = Fake::new();
        let mut both = WithEngines::new(Box::new(fake.clone()), &path, true);

        let link = LinkName::new("ttx0").unwrap();
        let remote = |dst: &str| Key::Remote { link: link.clone(), dst: dst.parse().unwrap() };
        let address = Object::Remote("192.0.2.2".parse().unwrap());
        let kind = LinkKind::Tun { label: "udp".into() };
        let made = Link { kind, mac: None, mtu: 1400, group: 0, up: true };
        let route = Key::Route { ns: Netns::Host, table: 254, dst: "10.0.0.0/24".parse().unwrap(), metric: 1 };
        let of = |key: Key, object: Object| (Op::Create(key, object), Owner::Node);
        let change = Change {
            ops: vec![
                of(Key::Link { ns: Netns::Host, link: link.clone() }, Object::Link(made.into())),
                of(
                    Key::Socket { link: link.clone() },
                    Object::Socket(Socket { source: "192.0.2.1".parse().unwrap(), port: 8285 }),
                ),
                of(remote("10.0.0.0/24"), address.clone()),
                of(route.clone(), Object::Route(Route::on_link(link.clone()).into())),
            ],
        };
        let failures = both.apply(&change);
        assert_eq!(failures.iter().map(|failure| &failure.key).collect::<Vec<_>>(), [&remote("10.0.0.0/24")]);
        assert!(failures[0].error.to_string().contains("no room"), "{}", failures[0].error);
        let steps = told.recv().unwrap();
        assert!(matches!(&steps[..], [wire::Step::Open { .. }, wire::Step::Put { .. }]), "{steps:?}");
        assert!(fake.state().get(&route).is_some() && !fake.state().iter().any(|(key, _)| key.is_in_engine()));

        let read = both.read(&Scope::Engines).unwrap();
        assert!(read.len() == 2 && read.holds(&remote("10.0.0.0/24"), &address), "{read:?}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn where_there_is_no_engine_there_is_nothing_to_take_away() {
        let mut both = WithEngines::new(Box::new(Fake::new()), Path::new("/nonexistent/engine.sock"), true);
        assert!(both.read(&Scope::Engines).unwrap().is_empty());
        let key = Key::Remote { link: LinkName::new("ttx0").unwrap(), dst: "10.0.0.0/24".parse().unwrap() };
        let object = Object::Remote("192.0.2.2".parse().unwrap());
        let apply = |both: &mut WithEngines, op| both.apply(&Change { ops: vec![(op, Owner::Node)] }).len();
        assert_eq!(apply(&mut both, Op::Delete(key.clone(), object.clone())), 0);
        assert_eq!(apply(&mut both, Op::Create(key, object)), 1);
    }
}
