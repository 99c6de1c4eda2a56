//! The thread of the path self-test: asks the loop which paths there are, probes them, and tells how they stand.
//!
//! What is asked when, and what answers come to, is `tartan_fabric::selftest`'s; the sockets are the kernel door's.
//! Invariant: the loop never waits for it, nor packets of pods for anything of it. It changes one thing: where a device of
//! ours has packets leave with wrong checksums, it has the kernel compute them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, PipeWriter, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_fabric::selftest::{self, Finding, Path, Probe, Prober, Sample, Standing, Target};
use tartan_kernel::conntrack::Conntrack;
use tartan_kernel::echo::{Echo, Heard};
use tartan_kernel::offload;
use tartan_model::{Condition, Passes, PerFamily};
use tartan_netstate::LinkName;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::run::Input;

/// Between two questions to the loop, and where there are more paths than are probed.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_AT_MANY: Duration = Duration::from_secs(10);
/// How long each of more paths than are probed has its turn.
const TURN: Duration = Duration::from_secs(60);
/// How long until the loop's answer is looked for, and until numbers are told that say nothing new.
const SOON: Duration = Duration::from_millis(50);
const NUMBERS: Duration = Duration::from_secs(10);

/// What there is to probe.
#[derive(Debug, Default)]
pub struct Paths {
    /// This node's own among its pods', as far as its kernel has them.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// None: there are so many that it has to be said who is talked to.
    pub targets: Option<BTreeMap<Path, Target>>,
    /// Ways that carry nothing while a fallback does.
    pub standbys: BTreeMap<Path, Target>,
}

/// How the paths stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tested {
    pub standings: BTreeMap<Path, Standing>,
    /// Of ways that carry nothing.
    pub standbys: BTreeMap<Path, Standing>,
    /// What follows from them.
    pub passes: Arc<Passes>,
    /// Devices of ours for which the kernel computes checksums.
    pub by_software: BTreeSet<LinkName>,
    /// Why nothing is tested, or not all.
    pub unable: Option<String>,
}

/// The thread; it ends when this is dropped.
pub struct SelfTest {
    _stop: PipeWriter,
}

struct Tester {
    inbox: mpsc::Sender<Input>,
    echo: Echo,
    prober: Prober,
    standby: Prober,
    since: Instant,
    asked: Option<oneshot::Receiver<Paths>>,
    look_at: Instant,
    tell_at: Instant,
    tested: Tested,
    told: Tested,
}

/// Starts the thread, in the network namespace of the caller.
///
/// # Errors
/// There is no thread to be had.
pub fn start(inbox: mpsc::Sender<Input>) -> io::Result<SelfTest> {
    let (stopped, stop) = io::pipe()?;
    let work = move || match Tester::new(inbox.clone()) {
        Ok(mut tester) => tester.run(stopped.as_fd()),
        Err(error) => {
            let unable = Some(format!("the kernel gives it no sockets: {error}"));
            let _ended = inbox.blocking_send(Input::Tested(Box::new(Tested { unable, ..Tested::default() })));
        }
    };
    std::thread::Builder::new().name("self-test".into()).spawn(work)?;
    Ok(SelfTest { _stop: stop })
}

/// What is wrong with paths, and with testing them.
pub fn conditions(node: &str, tested: &Tested) -> Vec<Condition> {
    let unable = tested.unable.as_ref().map(|why| Condition {
        about: format!("Node/{node}"),
        field: String::new(),
        reason: "SelfTestIncomplete",
        message: format!("paths to other nodes are not all tested: {why}"),
        fix: "give the agent CAP_NET_RAW, and see who else has UDP port 7474".into(),
    });
    selftest::conditions(node, &tested.standings, &tested.standbys, &tested.by_software)
        .into_iter()
        .chain(unable)
        .collect()
}

// === impl Tester ===

impl Tester {
    fn new(inbox: mpsc::Sender<Input>) -> io::Result<Tester> {
        let mut random = [[0; 8]; 5];
        File::open("/dev/urandom")?.read_exact(random.as_flattened_mut())?;
        let [cookie, a, b, c, d] = random.map(u64::from_ne_bytes);
        let now = Instant::now();
        Ok(Tester {
            inbox,
            echo: Echo::open(cookie)?,
            prober: Prober::new([a, b]),
            standby: Prober::bound([c, d]),
            since: now,
            asked: None,
            look_at: now,
            tell_at: now,
            tested: Tested::default(),
            told: Tested::default(),
        })
    }

    fn run(&mut self, stop: BorrowedFd<'_>) {
        while let Some(until) = self.turn(Instant::now()) {
            let prober = &mut self.prober;
            let heard = match self.echo.wait(until, stop, |address| prober.is_peer(address)) {
                Ok(Some(heard)) => heard,
                Ok(None) => return,
                Err(error) => return warn!("the path self-test ends: {error}"),
            };
            let now = Instant::now();
            for it in heard {
                match it {
                    // To the one that did not ask, the number says nothing.
                    Heard::Answer { nonce, from } => {
                        prober.answered(nonce, from, now);
                        self.standby.answered(nonce, from, now);
                    }
                    Heard::Question { from } => prober.heard(from, now),
                }
            }
        }
    }

    /// Does what is due. Returns when something is again; none once the loop has ended.
    fn turn(&mut self, now: Instant) -> Option<Instant> {
        self.look(now)?;
        for probe in self.prober.step(now).into_iter().chain(self.standby.step(now)) {
            match probe {
                Probe::Echo { to, bytes, nonce, by } => self.echo.request(to, bytes, nonce, by.as_ref()),
                Probe::Datagram { to, checksum, nonce } => self.echo.ask(to, checksum, nonce),
            }
        }
        self.tested.standings = self.prober.standings();
        self.tested.standbys = self.standby.standings();
        let passes = selftest::passes(&self.tested.standings, &self.tested.standbys);
        if passes != *self.tested.passes {
            self.tested.passes = passes.into();
        }
        self.mend();
        self.tell(now)?;
        let soon = self.asked.is_some().then(|| now + SOON);
        [self.prober.next(), self.standby.next(), soon, Some(self.look_at)].into_iter().flatten().min()
    }

    /// Asks the loop which paths there are, and takes its answer.
    fn look(&mut self, now: Instant) -> Option<()> {
        if let Some(asked) = &mut self.asked {
            match asked.try_recv() {
                Ok(paths) => {
                    self.asked = None;
                    self.take(paths, now)?;
                }
                Err(oneshot::error::TryRecvError::Empty) => return Some(()),
                Err(oneshot::error::TryRecvError::Closed) => return None,
            }
        }
        if self.look_at <= now {
            self.look_at = now + LOOK;
            self.ask(None)?;
        }
        Some(())
    }

    fn ask(&mut self, sample: Option<Sample>) -> Option<()> {
        let (reply, asked) = oneshot::channel();
        match self.inbox.try_send(Input::Paths(sample, reply)) {
            Ok(()) => self.asked = Some(asked),
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Closed(_)) => return None,
        }
        Some(())
    }

    fn take(&mut self, paths: Paths, now: Instant) -> Option<()> {
        let refused = self.echo.listen(paths.fabric_addresses).err();
        self.tested.unable = refused.map(|error| format!("nobody can be asked at this node's own addresses: {error}"));
        self.standby.want(paths.standbys, now);
        let Some(targets) = paths.targets else {
            self.look_at = now + LOOK_AT_MANY;
            match Conntrack::open().and_then(|mut conntrack| conntrack.ends()) {
                Ok(talked_to) => return self.ask(Some(self.sample(talked_to, now))),
                Err(error) => self.tested.unable = Some(error.to_string()),
            }
            return Some(());
        };
        let devices: BTreeSet<LinkName> = targets.values().filter_map(|target| target.device.clone()).collect();
        // A device that went, or that cannot say, has nothing switched off.
        let off = |device: &LinkName| offload::tx_checksum(device).is_ok_and(|on| !on);
        self.tested.by_software = devices.into_iter().filter(off).collect();
        self.prober.want(targets, now);
        Some(())
    }

    fn sample(&self, talked_to: BTreeSet<IpAddr>, now: Instant) -> Sample {
        let ill = self.tested.standings.iter().filter(|(_, standing)| standing.finding.is_some());
        let turn = now.saturating_duration_since(self.since).as_secs() / TURN.as_secs();
        Sample { talked_to, kept: ill.map(|((peer, _), _)| peer.clone()).collect(), turn }
    }

    /// Has the kernel compute checksums for devices of ours whose packets leave with wrong ones.
    fn mend(&mut self) {
        for device in selftest::lose_checksums(&self.tested.standings).difference(&self.tested.by_software.clone()) {
            match offload::set_tx_checksum(device, false) {
                Ok(()) => {
                    info!("{device}: what it sends has wrong checksums; the kernel computes them from now on");
                    self.tested.by_software.insert(device.clone());
                }
                Err(error) => warn!("{device}: switching its checksum offload off: {error}"),
            }
        }
    }

    /// Tells the loop what is new at once, and the numbers once in a while.
    fn tell(&mut self, now: Instant) -> Option<()> {
        let findings = |tested: &Tested| -> BTreeMap<Path, (Option<Finding>, bool)> {
            let finding = |it: &Standing| (it.finding, it.round_trip.is_some());
            tested.standings.iter().map(|(path, it)| (path.clone(), finding(it))).collect()
        };
        let (is, was) = (&self.tested, &self.told);
        let news = findings(is) != findings(was)
            || is.passes != was.passes
            || is.standbys.keys().ne(was.standbys.keys())
            || (&is.by_software, &is.unable) != (&was.by_software, &was.unable);
        if is == was || (!news && now < self.tell_at) {
            return Some(());
        }
        match self.inbox.try_send(Input::Tested(Box::new(is.clone()))) {
            Ok(()) => {
                self.told = self.tested.clone();
                self.tell_at = now + NUMBERS;
                Some(())
            }
            Err(TrySendError::Full(_)) => Some(()),
            Err(TrySendError::Closed(_)) => None,
        }
    }
}
