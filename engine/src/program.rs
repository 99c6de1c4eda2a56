//! The engine as a program: takes what the holder has for it, carries packets, and does what agents say.
//!
//! Invariant: what an agent was told is done, the holder has: an engine that is started in this one's place has it too.

mod handover;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::holder::{CONTROL, Channel, GO, PROGRAM};
use crate::link::{Link, Queue, are_attached};
use crate::table::{Remote, Remotes};
use crate::wire::{Answer, Ask, Device, Identity, Program, Question, Socket, Step, VERSION};
use crate::{rights, socket, tun, wire, wireguard};

/// The name of what the engine was told, with the holder.
const TABLE: &str = "table";
/// Queues of a device at most; a processor each.
const QUEUES: usize = 4;
/// Devices, and remotes of one, at most.
const DEVICES: usize = 16;
const REMOTES: usize = 200_000;
/// An engine that has no device, and is given none in this time, ends.
const IDLE_MILLIS: u16 = 2_000;

/// What the holder keeps of a device.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    devices: Devices,
    #[serde(default)]
    encrypted: BTreeMap<String, wireguard::Stored>,
    #[serde(default)]
    held: BTreeMap<String, Socket>,
}

struct Engine {
    holder: Channel,
    /// Written to when this process is to end.
    over: Arc<EventFd>,
    /// It has said so, and what it is told now would end with it.
    ends: bool,
    /// To the program that the holder was given.
    gives_way: Option<Haste>,
    /// Another one makes itself ready.
    has_next: bool,
    devices: BTreeMap<String, Carried>,
    encrypted: BTreeMap<String, wireguard::Device>,
    /// Sockets that it only has to keep, as the holder does.
    held: BTreeMap<String, (Socket, OwnedFd)>,
}

/// When an engine gives way to another program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// When the next one has session keys of its own: what comes under this one's is lost to it.
    WithoutLoss,
    /// Now: whoever asks speaks another language, and can have nothing changed.
    AtOnce,
}

#[derive(Default)]
struct Carried {
    socket: Option<Socket>,
    remotes: Remotes,
    queues: Vec<Arc<Queue>>,
    link: Option<Link>,
}

/// Runs until nothing is left to be carried; the holder is the other end of standard input.
///
/// # Errors
/// There is no holder.
pub fn run() -> io::Result<()> {
    let _named = nix::sys::prctl::set_name(c"tartan-engine");
    let holder = Channel::new(io::stdin().as_fd().try_clone_to_owned()?);
    let mut kept = all_kept(&holder)?;
    let mut ready = BTreeMap::new();
    if handover::is_beside(&kept) {
        ready = handover::make_ready(&holder, kept)?;
        // Once the engine before has ended.
        kept = all_kept(&holder)?;
    }
    let control = kept.remove(CONTROL).ok_or_else(|| io::Error::other("the holder has no socket for agents"))?;
    let control = UnixListener::from(control);
    let over = Arc::new(EventFd::new()?);
    let mut engine = Engine {
        holder,
        over: over.clone(),
        ends: false,
        gives_way: None,
        has_next: false,
        devices: BTreeMap::new(),
        encrypted: BTreeMap::new(),
        held: BTreeMap::new(),
    };
    engine.go_on(kept, ready);
    let engine = Arc::new(Mutex::new(engine));
    loop {
        let mut fds = [control.as_fd(), over.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let idle = lock(&engine).carries_nothing();
        let timeout = if idle { PollTimeout::from(IDLE_MILLIS) } else { PollTimeout::NONE };
        if poll(&mut fds, timeout) == Ok(0) {
            lock(&engine).end_if_due();
            continue;
        }
        if fds[1].any() == Some(true) {
            // Who is being answered hears the end of it.
            drop(lock(&engine));
            return Ok(());
        }
        if fds[0].any() != Some(true) {
            continue;
        }
        let (stream, _) = control.accept()?;
        let engine = engine.clone();
        thread::Builder::new().name("agent".into()).spawn(move || {
            // An agent that hangs up, or says what cannot be read, is left to itself.
            let _hung_up = talk(stream, &engine);
        })?;
    }
}

/// All that a holder has for an engine.
fn all_kept(holder: &Channel) -> io::Result<BTreeMap<String, OwnedFd>> {
    let mut kept = BTreeMap::new();
    loop {
        match holder.hear()? {
            Some((word, None)) if word == GO => return Ok(kept),
            Some((name, Some(fd))) => drop(kept.insert(name, fd)),
            other => {
                return Err(io::Error::other(format!("a holder says {other:?}; run `tartan hold`, which starts this")));
            }
        }
    }
}

fn lock(engine: &Mutex<Engine>) -> std::sync::MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn talk(mut stream: UnixStream, engine: &Arc<Mutex<Engine>>) -> io::Result<()> {
    loop {
        let question: Question = match wire::read(&mut stream) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData || error.kind() == io::ErrorKind::Other => {
                return wire::write(&mut stream, &Answer::Refused(error.to_string()));
            }
            other => other?,
        };
        let answer = match question.ask {
            Ask::Succeed(program) => {
                // The file itself comes after the question: who asks may be in a pid namespace of its own.
                let (_, file) = rights::receive(&stream, &mut [0])?;
                let haste = if question.version == VERSION { Haste::WithoutLoss } else { Haste::AtOnce };
                let answer = lock(engine).give_way(file, program, haste);
                handover::begin_if_due(engine);
                answer
            }
            _ if question.version != VERSION => {
                Answer::Refused(format!("this engine speaks version {VERSION}, not {}", question.version))
            }
            Ask::Read => Answer::Holds(lock(engine).holds()),
            Ask::Apply(steps) => {
                let with_key = steps.iter().filter(|step| matches!(step, Step::Identify { .. }));
                let keys: Result<Vec<_>, _> = with_key.map(|_| rights::receive(&stream, &mut [0])).collect();
                let keys = keys?.into_iter().map(|(_, key)| key).collect();
                lock(engine).apply(steps, keys)
            }
            Ask::Watch => {
                stream.read_exact(&mut [0])?;
                continue;
            }
        };
        // Who has been answered may ask again at once, and is not to be taken by one that is on its way out.
        let mut ends = (!matches!(answer, Answer::Holds(_))).then(|| lock(engine));
        ends.iter_mut().for_each(|engine| engine.end_if_due());
        wire::write(&mut stream, &answer)?;
    }
}

impl Engine {
    /// Takes up where the one before left off; some devices are `ready`.
    fn go_on(&mut self, mut kept: BTreeMap<String, OwnedFd>, mut ready: BTreeMap<String, wireguard::Device>) {
        let stored = kept.remove(TABLE).map(load).unwrap_or(Ok(Stored::default()));
        let Stored { devices, encrypted, held, .. } = stored.unwrap_or_else(|error| {
            eprintln!(
                "tartan engine: what the one before was told cannot be read, and the agent is to say it again: {error}"
            );
            Stored::default()
        });
        for (name, socket) in held {
            if let Some(udp) = kept.remove(&held_name(&name)) {
                self.held.insert(name, (socket, udp));
            }
        }
        for (name, stored) in encrypted {
            let (queues, key) = (queues_of(&name, &mut kept), kept.remove(&key_name(&name)));
            let ready = ready.remove(&name).and_then(|device| device.succeed(stored.clone()));
            let device = ready.unwrap_or_else(|| wireguard::Device::go_on(&name, stored, queues, key));
            self.encrypted.insert(name, device);
        }
        for (name, (socket, remotes)) in devices {
            let queues = queues_of(&name, &mut kept);
            let mut carried = Carried { socket, remotes, queues, link: None };
            if let Err(error) = carried.start() {
                eprintln!("tartan engine: {name} is not carried: {error}");
            }
            self.devices.insert(name, carried);
        }
        // What no device of the table has.
        kept.keys().filter(|name| *name != PROGRAM).for_each(|name| self.holder.let_go(name));
    }

    fn holds(&self) -> BTreeMap<String, Device> {
        let device = |carried: &Carried| Device {
            socket: carried.socket.filter(|_| carried.is_running()),
            remotes: carried.remotes.iter().map(|(dst, remote)| (*dst, remote.address)).collect(),
            ..Device::default()
        };
        let in_clear = self.devices.iter().map(|(name, carried)| (name.clone(), device(carried)));
        let encrypted = self
            .encrypted
            .iter()
            .map(|(name, device)| (name.clone(), Device { encrypted: Some(device.holds()), ..Device::default() }));
        let held = self.held.iter();
        let held = held.map(|(name, (socket, _))| (name.clone(), Device { held: Some(*socket), ..Device::default() }));
        in_clear.chain(encrypted).chain(held).collect()
    }

    fn carries_nothing(&self) -> bool {
        self.devices.is_empty() && self.encrypted.is_empty() && self.held.is_empty()
    }

    /// `keys` are files with private keys, one for each step that takes one.
    fn apply(&mut self, steps: Vec<Step>, keys: Vec<Option<OwnedFd>>) -> Answer {
        if self.ends {
            return Answer::Applied((0..steps.len()).map(|index| (index, wire::GIVES_WAY.to_owned())).collect());
        }
        let mut keys = keys.into_iter();
        let mut failures = BTreeMap::new();
        let mut changed = std::collections::BTreeSet::new();
        for (index, step) in steps.into_iter().enumerate() {
            let key = matches!(step, Step::Identify { .. }).then(|| keys.next().flatten()).flatten();
            let done = match step {
                // What this one would have sessions for, the next one would not.
                Step::Identify { .. } | Step::Meet { .. } | Step::Allow { .. } if self.has_next => {
                    Err(io::Error::other(wire::GIVES_WAY))
                }
                Step::Open { link, socket } => self.open(&link, socket),
                Step::Hold { link, socket } => self.hold(link, socket),
                Step::Close { link } => {
                    self.close(&link);
                    Ok(())
                }
                Step::Identify { link, identity } => self.identify(&link, identity, key),
                Step::Meet { link, public_key, peer } => {
                    let device = self.encrypted.get_mut(&link);
                    let done = device.map_or_else(|| Err(not_carried(&link)), |device| device.meet(public_key, peer));
                    changed.insert(link);
                    done
                }
                Step::Allow { link, dst, public_key } => {
                    let device = self.encrypted.get_mut(&link);
                    let done = device.map_or_else(|| Err(not_carried(&link)), |device| device.allow(dst, public_key));
                    changed.insert(link);
                    done
                }
                Step::Forget { link, public_key } => {
                    self.encrypted.get_mut(&link).into_iter().for_each(|device| device.forget(public_key));
                    changed.insert(link);
                    Ok(())
                }
                Step::Deny { link, dst } => {
                    self.encrypted.get_mut(&link).into_iter().for_each(|device| device.deny(dst));
                    changed.insert(link);
                    Ok(())
                }
                Step::Put { link, dst, address } => self.put(link, dst, address, &mut changed),
                Step::Take { link, dst } => {
                    if self.devices.get_mut(&link).is_some_and(|carried| carried.remotes.remove(&dst).is_some()) {
                        changed.insert(link);
                    }
                    Ok(())
                }
            };
            if let Err(error) = done {
                failures.insert(index, error.to_string());
            }
        }
        for carried in changed.iter().filter_map(|name| self.devices.get(name)) {
            carried.link.iter().for_each(|link| link.set(&carried.remotes));
        }
        changed.iter().filter_map(|name| self.encrypted.get(name)).for_each(wireguard::Device::refresh);
        // What could not be opened, and has nothing else to it, is nothing.
        self.devices.retain(|_, carried| carried.link.is_some() || !carried.remotes.is_empty());
        self.encrypted.retain(|_, device| !device.is_nothing());
        match self.store() {
            Ok(()) => Answer::Applied(failures),
            Err(error) => Answer::Refused(format!("the holder does not take what was told: {error}")),
        }
    }

    fn open(&mut self, name: &str, socket: Socket) -> io::Result<()> {
        self.has_room_for(name)?;
        let carried = self.devices.entry(name.to_owned()).or_default();
        if carried.socket == Some(socket) && carried.is_running() {
            return Ok(());
        }
        if carried.socket.map(Socket::hears) == Some(socket.hears()) && carried.is_running() {
            // What is heard meanwhile waits in the same sockets.
            carried.link = None;
            carried.socket = Some(socket);
            return carried.start();
        }
        // Whatever was open is of a device that is gone, or of another port.
        carried.link = None;
        carried.queues.clear();
        carried.socket = Some(socket);
        carried.queues = open_queues(&self.holder, name, || socket::listening(socket.source.is_ipv6(), socket.port))?;
        carried.start()
    }

    fn hold(&mut self, name: String, socket: Socket) -> io::Result<()> {
        self.has_room_for(&name)?;
        match self.held.get_mut(&name) {
            Some((there, _)) if there.hears() == socket.hears() => *there = socket,
            // One at another port stays until there is a new one: the new port may be somebody's.
            _ => {
                let udp = socket::of_esp(socket.source.is_ipv6(), socket.port)?;
                self.holder.keep(&held_name(&name), &udp)?;
                self.held.insert(name, (socket, udp));
            }
        }
        Ok(())
    }

    fn has_room_for(&self, name: &str) -> io::Result<()> {
        let all = || self.devices.keys().chain(self.encrypted.keys()).chain(self.held.keys());
        if all().all(|there| there != name) && all().count() >= DEVICES {
            return Err(io::Error::other(format!("an engine carries {DEVICES} devices at most")));
        }
        Ok(())
    }

    fn identify(&mut self, name: &str, identity: Identity, key: Option<OwnedFd>) -> io::Result<()> {
        let key = key.ok_or_else(|| io::Error::other("its private key did not come along"))?;
        self.has_room_for(name)?;
        // One whose device is gone would take packets from the one that has its port now.
        let at_its_port = |(other, device): (&String, &wireguard::Device)| {
            let is_over = other != name && device.port() == Some(identity.port) && !device.is_running();
            is_over.then(|| other.clone())
        };
        for over in self.encrypted.iter().filter_map(at_its_port).collect::<Vec<_>>() {
            self.close(&over);
        }
        let holder = &self.holder;
        let device = self.encrypted.entry(name.to_owned()).or_default();
        device.identify(name, identity, &key, || open_queues(holder, name, || socket::of_both(identity.port)))?;
        Ok(self.holder.keep(&key_name(name), &key)?)
    }

    fn close(&mut self, name: &str) {
        if self.held.remove(name).is_some() {
            self.holder.let_go(&held_name(name));
        }
        let in_clear = self.devices.remove(name).map(|carried| carried.queues.len());
        let encrypted = self.encrypted.remove(name).map(|device| device.queues());
        if encrypted.is_some() {
            self.holder.let_go(&key_name(name));
        }
        if let Some(queues) = in_clear.or(encrypted) {
            (0..queues).flat_map(|index| names(name, index)).for_each(|name| self.holder.let_go(&name));
        }
    }

    fn put(
        &mut self,
        link: String,
        dst: IpNet,
        address: std::net::IpAddr,
        changed: &mut std::collections::BTreeSet<String>,
    ) -> io::Result<()> {
        let Some(carried) = self.devices.get_mut(&link) else {
            return Err(not_carried(&link));
        };
        if carried.remotes.len() >= REMOTES {
            return Err(io::Error::other(format!("{link} has {REMOTES} remotes already")));
        }
        let before = carried.remotes.get(&dst).copied();
        if before.is_none_or(|before| before.address != address) {
            carried.remotes.insert(dst, Remote::at(address, before));
            changed.insert(link);
        }
        Ok(())
    }

    /// Gives the holder all that it takes to go on.
    fn store(&self) -> io::Result<()> {
        let devices = self.devices.iter();
        let devices =
            devices.map(|(name, carried)| (name.clone(), (carried.socket, carried.remotes.clone()))).collect();
        let mut table = File::from(memfd_create(c"tartan-engine", MFdFlags::MFD_CLOEXEC)?);
        let encrypted = self.encrypted.iter().map(|(name, device)| (name.clone(), device.told().clone())).collect();
        let held = self.held.iter().map(|(name, (socket, _))| (name.clone(), *socket)).collect();
        table.write_all(&serde_json::to_vec(&Stored { version: VERSION, devices, encrypted, held })?)?;
        Ok(self.holder.keep(TABLE, &table.into())?)
    }

    /// Lets the agent's program go on in this one's place, where it is another.
    fn give_way(&mut self, file: Option<OwnedFd>, theirs: Program, haste: Haste) -> Answer {
        if self.has_next || self.ends {
            return Answer::Refused("it is giving way to another program".into());
        }
        match successor(file, theirs) {
            Ok(None) => {
                // Whoever came between was taken back.
                let stays = self.gives_way.take().map_or(Ok(()), |_| {
                    let (own, _) = own_program()?;
                    Ok::<(), io::Error>(self.holder.keep(PROGRAM, &own)?)
                });
                stays.map_or_else(|error| Answer::Refused(error.to_string()), |()| Answer::Done)
            }
            Ok(Some(program)) => {
                if let Err(error) = self.holder.keep(PROGRAM, &program) {
                    return Answer::Refused(error.to_string());
                }
                self.gives_way = Some(haste);
                if self.is_to_give_way() {
                    self.stop();
                }
                Answer::Done
            }
            Err(error) => Answer::Refused(format!("its program: {error}")),
        }
    }

    /// Each device with no packet in its hands; what comes now waits for the next engine.
    fn stop(&mut self) {
        self.devices.values_mut().for_each(|carried| carried.link = None);
        self.encrypted.values_mut().for_each(wireguard::Device::stop);
    }

    fn is_to_give_way(&self) -> bool {
        match self.gives_way {
            None => false,
            Some(Haste::AtOnce) => true,
            Some(Haste::WithoutLoss) => self.encrypted.is_empty(),
        }
    }

    /// Once whoever has asked has the answer.
    fn end_if_due(&mut self) {
        if self.is_to_give_way() {
            // What made it so may be the end of the last device that encrypts, with others at work.
            self.stop();
            self.end();
        } else if self.carries_nothing() {
            let _gone = self.holder.end();
            self.end();
        }
    }

    fn end(&mut self) {
        self.ends = true;
        // It cannot fail: the number is far from its end.
        let _written = self.over.write(1);
    }
}

impl Carried {
    fn start(&mut self) -> io::Result<()> {
        let Some(socket) = self.socket.filter(|_| !self.queues.is_empty()) else {
            return Err(io::Error::other("its descriptors are gone"));
        };
        self.link = Some(Link::start(self.queues.clone(), socket, &self.remotes)?);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.link.is_some() && are_attached(&self.queues)
    }
}

/// The program to go on in this one's place; none if it is this one.
fn successor(file: Option<OwnedFd>, theirs: Program) -> io::Result<Option<OwnedFd>> {
    if program_of(&File::open("/proc/self/exe")?)? == theirs {
        return Ok(None);
    }
    let file = File::from(file.ok_or_else(|| io::Error::other("it did not come along"))?);
    if program_of(&file)? != theirs {
        return Err(io::Error::other("it is not the one that was told of"));
    }
    Ok(Some(file.into()))
}

fn not_carried(link: &str) -> io::Error {
    io::Error::other(format!("{link} is not carried"))
}

/// A queue for each processor, of which the holder has the descriptors.
fn open_queues(holder: &Channel, name: &str, udp: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Vec<Arc<Queue>>> {
    let open = |index: usize| {
        let queue = Queue { tun: tun::open(name)?, udp: udp()? };
        let [tun, udp] = names(name, index);
        holder.keep(&tun, &queue.tun)?;
        holder.keep(&udp, &queue.udp)?;
        Ok(Arc::new(queue))
    };
    (0..thread::available_parallelism().map_or(1, usize::from).min(QUEUES)).map(open).collect()
}

/// Those that the holder had.
fn queues_of(name: &str, kept: &mut BTreeMap<String, OwnedFd>) -> Vec<Arc<Queue>> {
    let queue = |index: usize| {
        let [tun, udp] = names(name, index).map(|name| kept.remove(&name));
        Some(Arc::new(Queue { tun: tun?, udp: udp? }))
    };
    (0..QUEUES).map_while(queue).collect()
}

/// How the holder calls the file with a device's private key.
fn key_name(link: &str) -> String {
    format!("key {link}")
}

/// How the holder calls a socket that is only kept.
fn held_name(link: &str) -> String {
    format!("held {link}")
}

/// How the holder calls a queue's two descriptors.
fn names(link: &str, index: usize) -> [String; 2] {
    [format!("tun {link} {index}"), format!("udp {link} {index}")]
}

type Devices = BTreeMap<String, (Option<Socket>, Remotes)>;

fn load(table: OwnedFd) -> io::Result<Stored> {
    use std::io::Seek;
    let mut table = File::from(table);
    table.rewind()?;
    let mut text = Vec::new();
    table.read_to_end(&mut text)?;
    let stored: Stored = serde_json::from_slice(&text)?;
    match stored.version {
        VERSION => Ok(stored),
        other => Err(io::Error::other(format!("it is of version {other}, not {VERSION}"))),
    }
}

/// What tells a program's file from another.
pub(crate) fn program_of(file: &File) -> io::Result<Program> {
    let about = file.metadata()?;
    Ok(Program { size: about.size(), modified: (about.mtime(), about.mtime_nsec()) })
}

/// This process's, and what tells it from others.
pub(crate) fn own_program() -> io::Result<(OwnedFd, Program)> {
    let file = File::open("/proc/self/exe")?;
    let program = program_of(&file)?;
    Ok((file.into(), program))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    /// One that carries nothing, and its holder's end.
    fn engine() -> (OwnedFd, Engine) {
        let (holders, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let engine = Engine {
            holder: Channel::new(theirs),
            over: Arc::new(EventFd::new().unwrap()),
            ends: false,
            gives_way: None,
            has_next: false,
            devices: BTreeMap::new(),
            encrypted: BTreeMap::new(),
            held: BTreeMap::new(),
        };
        (holders, engine)
    }

    #[test]
    fn a_port_that_is_somebodys_costs_no_socket_that_is_held() {
        let (_holders, mut engine) = engine();
        let theirs = UdpSocket::bind("0.0.0.0:0").unwrap();
        let at = |port| Socket { source: "192.0.2.1".parse().unwrap(), port };
        let before = (at(4500), UdpSocket::bind("127.0.0.1:0").unwrap().into());
        engine.held.insert("ttx0".into(), before);
        let taken = at(theirs.local_addr().unwrap().port());
        let error = engine.hold("ttx0".into(), taken).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        assert_eq!(engine.holds()["ttx0"].held, Some(at(4500)));
    }

    #[test]
    fn who_comes_while_an_engine_gives_way_is_for_the_next_one() {
        let (_holders, mut engine) = engine();
        let public_key = wire::PublicKey([7; 32]);
        let peer = wire::Peer { endpoint: "192.0.2.1:51820".parse().unwrap(), keepalive: 0 };
        let link = || "ttw0".to_owned();
        engine.encrypted.insert(link(), wireguard::Device::default());
        let mut told = |has_next: bool| {
            engine.has_next = has_next;
            let steps = vec![
                Step::Identify { link: link(), identity: Identity { port: 51820, public_key } },
                Step::Meet { link: link(), public_key, peer },
                Step::Allow { link: link(), dst: "10.0.0.0/24".parse().unwrap(), public_key },
                Step::Hold { link: "ttx0".into(), socket: Socket { source: "192.0.2.1".parse().unwrap(), port: 0 } },
            ];
            match engine.apply(steps, vec![None]) {
                Answer::Applied(failures) => failures.into_iter().collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        let refused = told(true);
        assert_eq!(refused.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(refused.iter().all(|(_, says)| says == wire::GIVES_WAY), "{refused:?}");
        // As ever: what is wrong with them is what is said.
        let refused = told(false);
        assert!(refused[0].1.contains("private key") && refused[1].1.contains("is not carried"), "{refused:?}");
    }

    /// Its holder knows that nothing is left: it would keep nothing of what came now.
    #[test]
    fn an_engine_that_ends_takes_nothing_more() {
        let (_holders, mut engine) = engine();
        engine.end_if_due();
        let hold = Step::Hold { link: "ttx0".into(), socket: Socket { source: "127.0.0.1".parse().unwrap(), port: 0 } };
        let Answer::Applied(failures) = engine.apply(vec![hold], Vec::new()) else { panic!("it says no to each") };
        assert_eq!(failures, BTreeMap::from([(0, wire::GIVES_WAY.to_owned())]));
        let (_, own) = own_program().unwrap();
        let answer = engine.give_way(None, own, Haste::AtOnce);
        assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
        assert!(engine.carries_nothing());
    }

    #[test]
    fn who_has_been_answered_finds_no_engine_that_is_about_to_end() {
        for _ in 0..1000 {
            let (_holders, engine) = engine();
            let over = engine.over.clone();
            let (mut stream, ours) = UnixStream::pair().unwrap();
            let talking = thread::spawn(move || talk(ours, &Arc::new(Mutex::new(engine))));
            wire::write(&mut stream, &Question { version: VERSION, ask: Ask::Apply(Vec::new()) }).unwrap();
            let answer: Answer = wire::read(&mut stream).unwrap();
            let is_over = poll(&mut [PollFd::new(over.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1);
            assert!(is_over, "{answer:?} came before it was known that nothing is left to be carried");
            drop(stream);
            assert!(talking.join().unwrap().is_err(), "nobody asks any more");
        }
    }
}
