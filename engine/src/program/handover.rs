//! How an engine that encrypts gives way to another program without a lost packet.
//!
//! Session keys cannot be taken along, so for a moment there are two engines. The one that gives way begins no handshake any more,
//! and has the holder start the next one beside it, with a way to it for each device. The next one greets all peers; what they
//! answer, and all else that is not for the first one's sessions, that one passes on. When the next one has sessions with the
//! peers it sends, and the first one does not. What was on its way under the first one's sessions has a while to come in; then that
//! one ends, and the holder gives the next one once more all that is kept.
//!
//! Invariant: whatever becomes of the next one, the first one has its sessions, and can go on. Nobody gets a session with the first
//! one meanwhile that the next one knows nothing of: new peers and devices are refused, and told again when there is one engine.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

use super::{Engine, Haste, TABLE, key_name, load, lock, queues_of};
use crate::holder::Channel;
use crate::passage::Passage;
use crate::wireguard;

/// How the holder calls the way to the engine before: this, and a device.
const BEFORE: &str = "before ";
/// A peer that has not answered by then is not there: a handshake was tried twice (REKEY_TIMEOUT, section 6.1 of the paper).
const HANDSHAKES: Duration = Duration::from_secs(8);
/// An engine that does not send by then has not started.
const PATIENCE: Duration = Duration::from_secs(20);
/// What peers have sent to sessions of the engine that gives way has come by then.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// Between two looks.
const LOOK_MILLIS: u16 = 10;

// === the one that gives way ===

/// Begins to give way, if something is encrypted and that is to be without loss.
pub(super) fn begin_if_due(engine: &Arc<Mutex<Engine>>) {
    let mut first = lock(engine);
    if first.gives_way != Some(Haste::WithoutLoss) || first.has_next || first.encrypted.is_empty() {
        return;
    }
    let engine = engine.clone();
    let begun = first.have_next_started().and_then(|()| {
        first.has_next = true;
        thread::Builder::new().name("gives-way".into()).spawn(move || give_way(&engine)).map(drop)
    });
    if let Err(error) = begun {
        first.go_on_alone(&error.to_string());
    }
}

fn give_way(engine: &Mutex<Engine>) {
    let (begun, mut sent_by_next) = (Instant::now(), None);
    loop {
        let _over = poll(&mut [], PollTimeout::from(LOOK_MILLIS));
        let mut first = lock(engine);
        match first.next_sends() {
            Ok(true) => {
                if sent_by_next.get_or_insert_with(Instant::now).elapsed() >= UNDER_WAY {
                    first.gives_way = Some(Haste::AtOnce);
                    first.stop();
                    return first.end();
                }
            }
            Ok(false) if begun.elapsed() < PATIENCE => {}
            Ok(false) => return first.go_on_alone("it makes no sessions"),
            Err(errno) => return first.go_on_alone(&errno.to_string()),
        }
    }
}

impl Engine {
    fn have_next_started(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.encrypted.keys().map(|link| format!("{BEFORE}{link}")).collect();
        for (name, device) in names.iter().zip(self.encrypted.values_mut()) {
            let (ours, theirs) = Passage::pair()?;
            device.give_way(ours);
            self.holder.keep(name, &theirs)?;
        }
        self.holder.start_next()?;
        // The next one has them. When it ends nobody has.
        names.iter().for_each(|name| self.holder.let_go(name));
        Ok(())
    }

    /// For all devices that are encrypted.
    fn next_sends(&self) -> nix::Result<bool> {
        self.encrypted.values().try_fold(true, |all, device| Ok(all & device.next_sends()?))
    }

    fn go_on_alone(&mut self, why: &str) {
        eprintln!("tartan engine: the engine that was to be next does not go on, and this one does: {why}");
        self.holder.end_next();
        self.encrypted.iter_mut().for_each(|(name, device)| device.go_on_alone(name));
        self.has_next = false;
    }
}

// === the next one ===

/// Whether there is another engine that gives way to this one.
pub(super) fn is_beside(kept: &BTreeMap<String, OwnedFd>) -> bool {
    kept.keys().any(|name| name.starts_with(BEFORE))
}

/// Devices that have sessions with their peers and send to them. Before that is over if the holder says more: there is no other
/// engine any more.
///
/// # Errors
/// It is not to be the next one.
pub(super) fn make_ready(
    holder: &Channel,
    mut kept: BTreeMap<String, OwnedFd>,
) -> io::Result<BTreeMap<String, wireguard::Device>> {
    let table = kept.remove(TABLE).ok_or_else(|| io::Error::other("nobody knows what to carry"))?;
    let mut devices = BTreeMap::new();
    for (name, stored) in load(table)?.encrypted {
        let (queues, key) = (queues_of(&name, &mut kept), kept.remove(&key_name(&name)));
        if let Some(way) = kept.remove(&format!("{BEFORE}{name}")) {
            devices.insert(name.clone(), wireguard::Device::beside(&name, stored, queues, key, Passage::of(way))?);
        }
    }
    let begun = Instant::now();
    let mut waits = true;
    while waits && !holder.has_word(LOOK_MILLIS) {
        waits = false;
        for device in devices.values_mut() {
            waits |= !device.send_if(begun.elapsed() >= HANDSHAKES)?;
        }
    }
    Ok(devices)
}
