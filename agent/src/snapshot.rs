//! The snapshot: what this node last knew of the cluster, on its disk, for a start while the store cannot be read.
//!
//! ```text
//! {"apiVersion":"tartan.dev/v1alpha1","kind":"Snapshot","metadata":{"name":NODE},"spec":{"format":1}}
//! {"apiVersion":…,"kind":"Node",…}                       one object a line, each as the store would write it
//! {"objects":COUNT,"check":"32 hex digits"}              SipHash-1-3-128 over all lines before this one
//! ```
//!
//! The first line is JSON and keeps this form for ever, so that every build can tell another format and refuse it.
//! Heartbeats are left out: they change all the time and prove nothing later.
//!
//! Invariants: a file that is not whole, or was not written for this node by this format, is refused and never misread;
//! the file is replaced whole, and only by what a whole World knew. Nothing in it is secret, and only root reads it.

use std::fs::{self, File};
use std::hash::Hasher as _;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128 as _, SipHasher13};
use tartan_api::kinds::{Envelope, ObjectMeta};
use tartan_api::tartan::{API_VERSION, CONFIG_NAME};
use tartan_model::{Advert, Block, Kind, Object, ObjectId, World};
use tartan_store::decode;

pub mod keeper;

/// The format this build writes, and the only one it reads.
const FORMAT: u32 = 2;
const KIND: &str = "Snapshot";

/// The file's name in the state directory.
pub const FILE: &str = "snapshot.json";

/// The first line.
type Header = Envelope<HeaderSpec>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct HeaderSpec {
    format: u32,
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct Footer {
    objects: usize,
    check: String,
}

/// Why a snapshot is not used. The agent then starts as if there were none, and its next one takes this one's place.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Its last line is missing or does not match the others.
    #[error("{0}: torn or damaged: {1}; it is not used, and the next one takes its place")]
    Damaged(PathBuf, String),
    /// Its first line is not that of a snapshot.
    #[error("{0}: this is not a snapshot of Tartan; it is not used, and the next one takes its place")]
    Foreign(PathBuf),
    /// Another version of Tartan wrote it.
    #[error(
        "{path}: the snapshot has format {found}, this build reads {FORMAT} only; it is not used, and the next one takes its place"
    )]
    OtherFormat { path: PathBuf, found: u32 },
    /// The state directory has come from another node.
    #[error("{path}: the snapshot is of node {of}, this is {node}; it is not used, and the next one takes its place")]
    OtherNode { path: PathBuf, of: String, node: String },
    /// The file system does not give it out.
    #[error("{0}: cannot be read: {1}")]
    Unreadable(PathBuf, io::Error),
}

/// Writes through to another writer, and hashes what goes by.
struct Checked<W> {
    out: W,
    hasher: SipHasher13,
}

/// What the snapshot holds; none where there is no file.
pub fn load(path: &Path, node: &str) -> Result<Option<Vec<(ObjectId, Object)>>, Refused> {
    match fs::read(path) {
        Ok(bytes) => match decode_all(&bytes, path)? {
            (of, objects) if of == node => Ok(Some(objects)),
            (of, _) => Err(Refused::OtherNode { path: path.to_owned(), of, node: node.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Refused::Unreadable(path.to_owned(), error)),
    }
}

/// Puts a snapshot of the world in the file's place. When this returns without an error it outlives a power cut.
pub fn save(path: &Path, world: &World) -> io::Result<()> {
    let beside = path.with_extension("json.next");
    // A leftover of a crash may have another owner or mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    let mut out = BufWriter::with_capacity(64 << 10, file);
    write_all(&mut out, world)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes a snapshot of the world.
pub fn write_all(out: &mut impl Write, world: &World) -> io::Result<()> {
    let mut out = Checked { out, hasher: SipHasher13::new() };
    let header = Header {
        api_version: API_VERSION.into(),
        kind: KIND.into(),
        metadata: ObjectMeta { name: world.local.to_string(), ..ObjectMeta::default() },
        spec: HeaderSpec { format: FORMAT },
        status: Default::default(),
    };
    out.line(&header)?;
    let mut count = 0;
    for (id, object) in objects(world) {
        out.line(&decode::encode(&id, &object))?;
        count += 1;
    }
    let check = format!("{:032x}", out.hasher.finish128().as_u128());
    out.line(&Footer { objects: count, check })
}

/// Every object that World knows, in an order that does not depend on how it came to know it.
fn objects(world: &World) -> impl Iterator<Item = (ObjectId, Object)> {
    let id = |kind, name: &str| ObjectId { kind, name: name.into() };
    let config = (id(Kind::NetworkConfig, CONFIG_NAME), Object::Config(world.config.clone()));
    let nodes = world.nodes.iter().map(move |(name, it)| (id(Kind::Node, name), Object::Node(it.clone())));
    let adverts = world.adverts.iter().map(move |(name, heard)| {
        let advert = Advert { heartbeat: 0, acknowledges: None, ..(*heard.advert).clone() };
        (id(Kind::NodeNetwork, name), Object::from(advert))
    });
    let pools = world.pools.iter().map(move |(name, it)| (id(Kind::IpPool, name), Object::Pool(it.clone())));
    let reservations = world
        .reservations
        .iter()
        .map(move |(name, it)| (id(Kind::IpReservation, name), Object::Reservation(it.clone())));
    let blocks = world
        .blocks
        .iter()
        .map(move |(range, it)| (id(Kind::IpBlock, &Block::name_of(range)), Object::Block(it.clone())));
    let namespaces =
        world.namespaces.iter().map(move |(name, it)| (id(Kind::Namespace, name), Object::Namespace(it.clone())));
    let pods = world.pods.iter().map(move |(name, it)| (id(Kind::Pod, name), Object::Pod(it.clone())));
    let flannels =
        world.flannels.iter().map(move |(name, it)| (id(Kind::ConfigMap, name), Object::Flannel(it.clone())));
    let policies = world.policies.iter().map(|(id, it)| (id.clone(), Object::Policy(it.clone())));
    let network = std::iter::once(config).chain(nodes).chain(adverts).chain(pools).chain(reservations).chain(blocks);
    network.chain(namespaces).chain(pods).chain(flannels).chain(policies)
}

/// A snapshot's node, and what it holds; `path` names it in errors.
pub fn decode_all(bytes: &[u8], path: &Path) -> Result<(String, Vec<(ObjectId, Object)>), Refused> {
    let damaged = |why: &str| Refused::Damaged(path.to_owned(), why.to_owned());
    let (first, _) = split_line(bytes).ok_or_else(|| damaged("its first line does not end"))?;
    let header: Header = serde_json::from_slice(first).map_err(|_| Refused::Foreign(path.to_owned()))?;
    if header.kind != KIND || header.api_version != API_VERSION {
        return Err(Refused::Foreign(path.to_owned()));
    }
    if header.spec.format != FORMAT {
        return Err(Refused::OtherFormat { path: path.to_owned(), found: header.spec.format });
    }
    let body = bytes.strip_suffix(b"\n").ok_or_else(|| damaged("its last line does not end"))?;
    let last = body.iter().rposition(|byte| *byte == b'\n').ok_or_else(|| damaged("it has one line only"))? + 1;
    let footer: Footer = serde_json::from_slice(&body[last..]).map_err(|_| damaged("its last line is missing"))?;
    let mut hasher = SipHasher13::new();
    hasher.write(&bytes[..last]);
    if footer.check != format!("{:032x}", hasher.finish128().as_u128()) {
        return Err(damaged("its lines do not match its checksum"));
    }
    let text = std::str::from_utf8(&bytes[first.len() + 1..last]).map_err(|_| damaged("it is not UTF-8"))?;
    let objects: Vec<(ObjectId, Object)> = text
        .lines()
        // A whole line of the same format can be an object that this build understands in another way.
        .map(|line| decode::line("snapshot", line).map_err(|refused| damaged(&refused.message)))
        .collect::<Result<_, _>>()?;
    match objects.len() == footer.objects {
        true => Ok((header.metadata.name, objects)),
        false => Err(damaged("it has lost objects")),
    }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

// === impl Checked ===

impl<W: Write> Checked<W> {
    fn line(&mut self, document: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self, document)?;
        self.write_all(b"\n")
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.write(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
