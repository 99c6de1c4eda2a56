//! When to ask what, and what the answers come to, path by path.
//!
//! A round asks through the fabric: a small echo, one as large as pods' packets may be, a datagram with a checksum and one
//! without. If something is missing the next rounds follow at once and ask several times, also past the fabric, and for the
//! largest packet that passes; [`ROUNDS`] of one kind in a row are a finding, two that are well end it. A round in which all
//! that could tell was lost is neither.
//!
//! Invariant: no more than [`RATE`] rounds begin in a second, however many paths there are and however ill they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher13;
use tartan_netstate::LinkName;

use super::judge::{Finding, Outcome, judge};
use super::{Path, Target};

/// Between two rounds of a path that is well, unless there are so many paths that it takes longer.
pub const PERIOD: Duration = Duration::from_secs(3);
/// Rounds that begin in a second, over all paths.
const RATE: u32 = 50;
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long after a path came a finding may come: the peer may not have heard of this node yet.
const GRACE: Duration = Duration::from_secs(6);
/// Rounds in a row that show the same.
const ROUNDS: usize = 4;
/// Rounds in a row that are well and end a finding.
const WELL: u8 = 2;
/// Rounds in a row that follow at once. Where that many show now this, now that, they have the time of all others.
const URGENT: u8 = 10;
/// Bytes of a small packet, IP header included.
const SMALL: u32 = 64;
/// How many sizes are tried at once.
const SIZES: u32 = 16;
/// How often each thing is asked once something is missing: one packet may get lost.
const AGAIN: usize = 3;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// An echo request of so many bytes, IP header included, that may not be fragmented; by a link, or as packets go.
    Echo { to: IpAddr, bytes: u32, nonce: u64, by: Option<LinkName> },
    /// A datagram that the peer's agent answers; its checksum is left to the device, or there is none.
    Datagram { to: IpAddr, checksum: bool, nonce: u64 },
}

/// How things stand on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub target: Target,
    /// None while it is well, or not known yet.
    pub finding: Option<Finding>,
    /// Of the last small echo that was answered.
    pub round_trip: Option<Duration>,
    /// Probes so far, and how many of them were not answered.
    pub asked: u64,
    pub lost: u64,
    /// Rounds in a row that were well.
    pub well: u8,
    /// A packet as large as pods may send got there, and no finding since speaks against it.
    pub full: bool,
}

/// See the module.
pub struct Prober {
    /// Makes nonces, which nobody must guess.
    secret: [u64; 2],
    /// What is asked goes by the target's link, whatever carries packets; datagrams cannot, and are left out.
    bound: bool,
    count: u64,
    tracks: BTreeMap<Path, Track>,
    due: BTreeSet<(Instant, Path)>,
    open: BTreeMap<u64, Path>,
    peers: BTreeMap<IpAddr, Path>,
    /// When the present second began, and the rounds that began in it.
    second: Option<(Instant, u32)>,
}

/// What is known of a path.
struct Track {
    standing: Standing,
    since: Instant,
    round: Option<Round>,
    /// The last rounds that were not well, none well between.
    bad: VecDeque<Outcome>,
    /// Rounds in a row that asked at once again.
    urgent: u8,
    heard: Option<Instant>,
    /// Packets of this size pass, and of this one do not.
    passes: u32,
    fails: u32,
}

struct Round {
    began: Instant,
    asked: Vec<Asked>,
}

struct Asked {
    nonce: u64,
    what: What,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Small,
    Full,
    Plain,
    Summed,
    Underlay,
    Size(u32),
}

// === impl Prober ===

impl Prober {
    /// `secret` is random.
    pub fn new(secret: [u64; 2]) -> Prober {
        Prober {
            secret,
            bound: false,
            count: 0,
            tracks: BTreeMap::new(),
            due: BTreeSet::new(),
            open: BTreeMap::new(),
            peers: BTreeMap::new(),
            second: None,
        }
    }

    /// One for ways that carry nothing: every probe is bound to the target's link.
    pub fn bound(secret: [u64; 2]) -> Prober {
        Prober { bound: true, ..Prober::new(secret) }
    }

    /// Probes these from now on, and nothing else.
    pub fn want(&mut self, targets: BTreeMap<Path, Target>, now: Instant) {
        self.tracks
            .retain(|path, track| targets.get(path).is_some_and(|target| track.standing.target.same_way(target)));
        self.due.retain(|(_, path)| self.tracks.contains_key(path));
        self.open.retain(|_, path| self.tracks.contains_key(path));
        self.peers = targets.iter().map(|(path, target)| (target.fabric_address, path.clone())).collect();
        for (path, target) in targets {
            match self.tracks.get_mut(&path) {
                Some(track) => track.retarget(target),
                None => {
                    self.due.insert((now, path.clone()));
                    self.tracks.insert(path, Track::new(target, now));
                }
            }
        }
        self.open.retain(|_, path| self.tracks.get(path).is_some_and(|track| track.round.is_some()));
    }

    /// When there is something to do next.
    pub fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Ends the rounds whose time is over and begins those that are due.
    pub fn step(&mut self, now: Instant) -> Vec<Probe> {
        let mut probes = Vec::new();
        while let Some((at, path)) = self.due.first().cloned()
            && at <= now
        {
            self.due.remove(&(at, path.clone()));
            let next = if self.tracks[&path].round.is_some() {
                self.end(&path, now)
            } else if let Some(later) = self.beyond_rate(now) {
                later
            } else {
                self.begin(&path, now, &mut probes);
                now + PATIENCE
            };
            self.due.insert((next, path));
        }
        probes
    }

    /// An answer came.
    pub fn answered(&mut self, nonce: u64, from: IpAddr, now: Instant) {
        let Some(track) = self.open.get(&nonce).and_then(|path| self.tracks.get_mut(path)) else { return };
        let target = &track.standing.target;
        let Some(round) = &mut track.round else { return };
        let Some(asked) = round.asked.iter_mut().find(|asked| asked.nonce == nonce && asked.to(target) == from) else {
            return;
        };
        asked.answered = true;
        if asked.what == What::Small {
            track.standing.round_trip = Some(now.saturating_duration_since(round.began));
        }
    }

    /// A peer asked, through the fabric.
    pub fn heard(&mut self, from: IpAddr, now: Instant) {
        if let Some(track) = self.peers.get(&from).and_then(|path| self.tracks.get_mut(path)) {
            track.heard = Some(now);
        }
    }

    /// Whether it is the fabric address of a peer that is probed.
    pub fn is_peer(&self, address: IpAddr) -> bool {
        self.peers.contains_key(&address)
    }

    /// How things stand, on all paths.
    pub fn standings(&self) -> BTreeMap<Path, Standing> {
        self.tracks.iter().map(|(path, track)| (path.clone(), track.standing.clone())).collect()
    }

    fn period(&self) -> Duration {
        PERIOD.max(Duration::from_secs(1) * u32::try_from(self.tracks.len()).unwrap_or(u32::MAX) / RATE)
    }

    /// When the next round may begin, if none may now; else one has.
    fn beyond_rate(&mut self, now: Instant) -> Option<Instant> {
        let second = Duration::from_secs(1);
        match &mut self.second {
            Some((began, _)) if *began + second <= now => self.second = Some((now, 1)),
            Some((began, rounds)) if *rounds >= RATE => return Some(*began + second),
            Some((_, rounds)) => *rounds += 1,
            None => self.second = Some((now, 1)),
        }
        None
    }

    fn begin(&mut self, path: &Path, now: Instant, probes: &mut Vec<Probe>) {
        let Some(track) = self.tracks.get_mut(path) else { return };
        let mut round = Round { began: now, asked: Vec::new() };
        for what in track.questions().into_iter().filter(|what| !(self.bound && what.is_datagram())) {
            self.count += 1;
            let nonce = nonce(self.secret, self.count);
            round.asked.push(Asked { nonce, what, answered: false });
            self.open.insert(nonce, path.clone());
        }
        probes.extend(round.asked.iter().map(|asked| asked.probe(&track.standing.target, self.bound)));
        track.round = Some(round);
    }

    /// Ends a path's round. Returns when the next one is due.
    fn end(&mut self, path: &Path, now: Instant) -> Instant {
        let period = self.period();
        let Some(track) = self.tracks.get_mut(path) else { return now };
        let Some(round) = track.round.take() else { return now };
        for asked in &round.asked {
            self.open.remove(&asked.nonce);
        }
        track.take(&round, now);
        if track.is_in_doubt() { now } else { now.max(round.began + period) }
    }
}

/// The same for nobody else: a keyed hash of a number that is used once.
fn nonce(secret: [u64; 2], count: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(secret[0], secret[1]);
    hasher.write_u64(count);
    hasher.finish()
}

// === impl Target ===

impl Target {
    /// Whether packets take the same way there; how large they may be is another matter.
    fn same_way(&self, other: &Target) -> bool {
        let way = |target: &Target| (target.at, target.fabric_address, target.underlay, target.device.clone());
        way(self) == way(other)
    }
}

// === impl Track ===

impl Track {
    fn new(target: Target, now: Instant) -> Track {
        let fails = target.mtu;
        let standing = Standing { target, finding: None, round_trip: None, asked: 0, lost: 0, well: 0, full: false };
        Track { standing, since: now, round: None, bad: VecDeque::new(), urgent: 0, heard: None, passes: SMALL, fails }
    }

    /// Packets may be larger or smaller than before.
    fn retarget(&mut self, target: Target) {
        if self.standing.target.mtu != target.mtu {
            (self.passes, self.fails) = (SMALL, target.mtu);
            self.bad.clear();
            // What was asked for the old size says nothing.
            (self.round, self.standing.full) = (None, false);
        }
        self.standing.target = target;
    }

    /// Whether the last round shows something else than what was found. Counts how often that was so.
    fn is_in_doubt(&mut self) -> bool {
        let any = |shows: fn(&Outcome) -> bool| self.bad.iter().any(shows);
        let last = self.bad.back().map(|last| Outcome { heard: any(|round| round.heard), ..*last });
        let shows = last.and_then(|last| judge(std::iter::once(&last), self.passes));
        self.urgent = if shows == self.standing.finding { 0 } else { self.urgent.saturating_add(1) };
        (1..URGENT).contains(&self.urgent)
    }

    fn questions(&self) -> Vec<What> {
        let all = [What::Small, What::Full, What::Plain, What::Summed];
        if self.bad.is_empty() && self.standing.finding.is_none() {
            return all.to_vec();
        }
        let mut questions: Vec<What> = (0..AGAIN).flat_map(|_| all).collect();
        questions.extend([What::Underlay; AGAIN]);
        if self.bad.back().is_some_and(Outcome::narrow) {
            questions.extend(self.sizes().into_iter().map(What::Size));
        }
        questions
    }

    /// Sizes between what passes and what does not; once there are none, these two.
    fn sizes(&self) -> Vec<u32> {
        let (passes, fails) = (self.passes, self.fails);
        let between = fails.saturating_sub(passes);
        if between <= 1 {
            return vec![passes, fails];
        }
        let sizes: BTreeSet<u32> = (1..=SIZES).map(|i| passes + between * i / (SIZES + 1)).collect();
        sizes.into_iter().filter(|size| (passes + 1..fails).contains(size)).collect()
    }

    /// What a round that has ended shows.
    fn take(&mut self, round: &Round, now: Instant) {
        let answered = |what: What| round.asked.iter().any(|asked| asked.what == what && asked.answered);
        let outcome = Outcome {
            small: answered(What::Small),
            full: answered(What::Full),
            plain: answered(What::Plain),
            summed: answered(What::Summed),
            underlay: answered(What::Underlay),
            // Since the last round; what came before the first that was not well may be from before it broke.
            heard: self.heard.take().is_some_and(|at| !self.bad.is_empty() || at >= round.began),
        };
        self.standing.asked += round.asked.len() as u64;
        self.standing.lost += round.asked.iter().filter(|asked| !asked.answered).count() as u64;
        self.standing.full |= outcome.full;
        if outcome.is_well() {
            if !self.bad.back().is_none_or(|bad| outcome.refutes(bad)) {
                return;
            }
            self.bad.clear();
            (self.passes, self.fails) = (SMALL, self.standing.target.mtu);
            self.standing.well = self.standing.well.saturating_add(1);
            if self.standing.well >= WELL {
                self.standing.finding = None;
            }
            return;
        }
        self.standing.well = 0;
        self.measure(round);
        self.bad.push_back(outcome);
        if self.bad.len() > ROUNDS {
            self.bad.pop_front();
        }
        if self.bad.len() == ROUNDS && now >= self.since + GRACE {
            self.standing.finding = judge(self.bad.iter(), self.passes).or(self.standing.finding);
            self.standing.full = self.bad.iter().any(|bad| bad.full);
        }
    }

    /// Narrows down the largest packet that passes.
    fn measure(&mut self, round: &Round) {
        let sized = |answered| {
            let size = move |asked: &Asked| match asked.what {
                What::Size(size) if asked.answered == answered => Some(size),
                _ => None,
            };
            round.asked.iter().filter_map(size)
        };
        let (largest, lost) = (sized(true).max(), sized(false));
        if largest.is_none() && sized(false).next().is_none() {
            return;
        }
        let again = sized(false).any(|size| size == self.passes);
        self.passes = largest.unwrap_or(if again { SMALL } else { self.passes });
        let known = if self.fails > self.passes { self.fails } else { self.standing.target.mtu };
        self.fails = lost.filter(|size| *size > self.passes).min().unwrap_or(known);
    }
}

// === impl What ===

impl What {
    fn is_datagram(self) -> bool {
        matches!(self, What::Plain | What::Summed)
    }
}

// === impl Asked ===

impl Asked {
    fn to(&self, target: &Target) -> IpAddr {
        if self.what == What::Underlay { target.underlay } else { target.fabric_address }
    }

    fn probe(&self, target: &Target, bound: bool) -> Probe {
        let (to, nonce) = (self.to(target), self.nonce);
        let bytes = match self.what {
            What::Plain => return Probe::Datagram { to, checksum: false, nonce },
            What::Summed => return Probe::Datagram { to, checksum: true, nonce },
            What::Small | What::Underlay => SMALL,
            What::Full => target.mtu,
            What::Size(bytes) => bytes,
        };
        let by = target.device.clone().filter(|_| bound && self.what != What::Underlay);
        Probe::Echo { to, bytes, nonce, by }
    }
}
