//! The journal of attachments: the only truth about this node's pods.
//!
//! One file, only ever appended to, one write a record; see [`frame`] for its bytes. No fsync: what kills the agent
//! leaves the page cache alone, and what kills the machine ends the pods too, so a journal of another boot is void.
//!
//! Invariant: whatever byte the file ends at, or is damaged at, opening it yields exactly the records before it. The
//! file always ends at a whole record when `append` returns, even if the disk is full.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tartan_model::Attachment;

use body::Body;
use frame::Header;
use owed::Owed;

mod body;
mod frame;
mod owed;

/// Records in the file for each that still matters, before it is rewritten; and how many more are always let be.
const DEAD_RATIO: usize = 4;
const DEAD_FLOOR: usize = 1024;
/// How long a released address is remembered: the longest cool-down that can be configured.
const REMEMBERED: Duration = Duration::from_secs(86_400);

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    boot_id: Arc<str>,
    /// What its header says.
    format: u32,
    /// End of the last whole record.
    len: u64,
    /// A write failed and what it left could not be cut off yet.
    torn: bool,
    /// Records in the file.
    records: usize,
    live: Live,
    /// What the disk did not take.
    owed: Owed,
}

/// Something that happened to an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// It was decided, before anything is made in the kernel.
    Add(Attachment),
    /// The runtime was told that it worked.
    Answered { id: Arc<str> },
    /// It is over; its addresses rest from now on.
    Del { id: Arc<str> },
}

/// What a journal says when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Pods that are attached, by id.
    pub attachments: Vec<Attachment>,
    /// Addresses given back and not given out again, with the time since then.
    pub released: Vec<(IpAddr, Duration)>,
    /// What was wrong with the file, for the log.
    pub warnings: Vec<String>,
}

/// Why a journal cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A later version of Tartan wrote it.
    #[error(
        "{path}: the journal has format {found}, this build reads up to {known}; go back to the newer build, or drain the node, move the file away and start again"
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// Its first line is not ours, or is damaged.
    #[error(
        "{path}: this is not a journal of Tartan ({why}); if the file is not yours to keep, drain the node, move the file away and start again"
    )]
    Foreign { path: PathBuf, why: &'static str },
    /// The file system refused.
    #[error("{path}: cannot {what}: {error}; check that the disk is not full and that the directory is writable")]
    Io { path: PathBuf, what: &'static str, error: io::Error },
}

/// What counts of all that was written.
#[derive(Clone, Debug, Default)]
struct Live {
    attachments: BTreeMap<Arc<str>, Attachment>,
    /// When addresses were given back, in milliseconds since the epoch.
    released: BTreeMap<IpAddr, u64>,
}

// === impl Journal ===

impl Journal {
    /// Opens or makes the journal and replays it. `boot_id` is the kernel's: attachments of another boot are gone.
    pub fn open(path: &Path, boot_id: &str) -> Result<(Journal, Replayed), JournalError> {
        let io = |what| JournalError::io(path, what);
        let mut warnings = Vec::new();
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io("read it")(error)),
        };
        let keep = match frame::header(&bytes, path)? {
            Header::Torn => {
                if !bytes.is_empty() {
                    warnings.push(format!("{}: cut off within its first line; no pod was in it", path.display()));
                }
                None
            }
            Header::Whole { boot_id: ours, format, body } if ours == boot_id => Some((format, body)),
            Header::Whole { .. } => {
                warnings.push(format!("{}: written before the last boot; its pods are gone", path.display()));
                None
            }
        };
        let mut live = Live::default();
        let Some((format, start)) = keep else {
            let (file, len) = write_anew(path, boot_id, &live).map_err(io("write it"))?;
            let (boot_id, format) = (boot_id.into(), live.format());
            let path = path.into();
            let owed = Owed::default();
            let journal = Journal { file, path, boot_id, format, len, torn: false, records: 0, live, owed };
            return Ok((journal, Replayed { warnings, ..Replayed::default() }));
        };
        let (records, end) = replay(&bytes, start, &mut live);
        let file = File::options().write(true).open(path).map_err(io("open it for writing"))?;
        if end < bytes.len() {
            let lost = bytes.len() - end;
            let end_of = path.display();
            warnings
                .push(format!("{end_of}: its last {lost} bytes, from {end} on, are torn or damaged and were cut off"));
            file.set_len(end as u64).map_err(io("cut its damaged end off"))?;
        }
        live.forget_old(now_ms());
        let replayed = live.replayed(now_ms(), warnings);
        let len = end as u64;
        let (path, boot_id) = (path.into(), boot_id.into());
        let owed = Owed::default();
        Ok((Journal { file, path, boot_id, format, len, torn: false, records, live, owed }, replayed))
    }

    /// Writes one record, after all that is owed. On an error it was not recorded and the journal can be used on.
    pub fn append(&mut self, record: Record) -> Result<(), JournalError> {
        self.pay()?;
        self.append_body(Body::from_record(&record, now_ms()))
    }

    fn append_body(&mut self, body: Body) -> Result<(), JournalError> {
        if body.format() > self.format {
            return self.write_with(body);
        }
        self.write(&frame::encode(&body))?;
        self.records += 1;
        self.live.apply(body);
        if self.records > DEAD_RATIO * self.live.len() + DEAD_FLOOR {
            self.compact(now_ms());
        }
        Ok(())
    }

    /// A record that the file's format does not have: the file is made anew with it.
    fn write_with(&mut self, body: Body) -> Result<(), JournalError> {
        let mut live = self.live.clone();
        live.apply(body);
        let (file, len) =
            write_anew(&self.path, &self.boot_id, &live).map_err(JournalError::io(&self.path, "write it anew"))?;
        (self.file, self.len, self.torn) = (file, len, false);
        (self.format, self.records, self.live) = (live.format(), live.len(), live);
        Ok(())
    }

    fn write(&mut self, frame: &[u8]) -> Result<(), JournalError> {
        if self.torn {
            let cut = self.file.set_len(self.len);
            cut.map_err(JournalError::io(&self.path, "cut a half-written record off"))?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all_at(frame, self.len) {
            self.torn = self.file.set_len(self.len).is_err();
            return Err(JournalError::io(&self.path, "append to it")(error));
        }
        self.len += frame.len() as u64;
        Ok(())
    }

    /// Replaces the file by one that holds only what counts. A failure costs nothing: the old file is whole.
    fn compact(&mut self, now: u64) {
        self.live.forget_old(now);
        if let Ok((file, len)) = write_anew(&self.path, &self.boot_id, &self.live) {
            (self.file, self.len, self.format) = (file, len, self.live.format());
        }
        // Counted anew even after a failure, so that a full disk is not tried again at each record.
        self.records = self.live.len();
    }
}

// === impl JournalError ===

impl JournalError {
    fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.to_owned();
        move |error| JournalError::Io { path, what, error }
    }
}

// === impl Live ===

impl Live {
    fn apply(&mut self, body: Body) {
        match body {
            Body::Add(pod) => {
                let attachment = Attachment::from(pod);
                for (_, address) in attachment.addresses.iter() {
                    self.released.remove(address);
                }
                // Who had one of them had an end, which could not be written: the disk was full.
                let shares = |other: &Attachment| {
                    other.addresses.iter().any(|(family, theirs)| attachment.addresses.get(family) == Some(theirs))
                };
                self.attachments.retain(|_, other| !shares(other));
                self.attachments.insert(attachment.id.clone(), attachment);
            }
            Body::Answered { id } => {
                if let Some(attachment) = self.attachments.get_mut(&id) {
                    attachment.answered = true;
                }
            }
            Body::Del { id, at } => {
                let gone = self.attachments.remove(&id);
                self.released.extend(gone.iter().flat_map(|pod| pod.addresses.iter()).map(|(_, ip)| (*ip, at)));
            }
            Body::Released { address, at } => drop(self.released.insert(address, at)),
        }
    }

    fn len(&self) -> usize {
        self.attachments.len() + self.released.len()
    }

    /// The lowest format that has all of it.
    fn format(&self) -> u32 {
        self.bodies().map(|body| body.format()).max().unwrap_or(*frame::FORMATS.start())
    }

    fn forget_old(&mut self, now: u64) {
        self.released.retain(|_, at| age(*at, now) < REMEMBERED);
    }

    fn replayed(&self, now: u64, warnings: Vec<String>) -> Replayed {
        Replayed {
            attachments: self.attachments.values().cloned().collect(),
            released: self.released.iter().map(|(address, at)| (*address, age(*at, now))).collect(),
            warnings,
        }
    }

    fn bodies(&self) -> impl Iterator<Item = Body> {
        let pods = self.attachments.values().map(|attachment| Body::Add(attachment.into()));
        pods.chain(self.released.iter().map(|(address, at)| Body::Released { address: *address, at: *at }))
    }
}

/// Applies all whole records from `start` on; how many there were, and where the last one ends.
fn replay(bytes: &[u8], start: usize, live: &mut Live) -> (usize, usize) {
    let (mut records, mut end) = (0, start);
    while let Some((body, length)) = frame::decode(&bytes[end..]) {
        live.apply(body);
        records += 1;
        end += length;
    }
    (records, end)
}

/// Writes a whole journal beside the old one and puts it in its place; open for writing, and its length.
fn write_anew(path: &Path, boot_id: &str, live: &Live) -> io::Result<(File, u64)> {
    let beside = path.with_extension("new");
    // A leftover of a crash may have another owner or mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    let mut bytes = frame::encode_header(boot_id, live.format());
    bytes.extend(live.bodies().flat_map(|body| frame::encode(&body)));
    let written = file.write_all(&bytes).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        let _best_effort = fs::remove_file(&beside);
        return Err(error);
    }
    Ok((file, bytes.len() as u64))
}

/// Wall clock, because it alone goes on across restarts of the agent; a jump makes a cool-down longer or shorter.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn age(at: u64, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(at))
}

#[cfg(test)]
mod tests;
