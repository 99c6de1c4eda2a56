//! Key pairs of this node: one file each, with the private key as `wg genkey` writes it, and in a second line what the cluster's
//! secret gives to it, if the pair's name asks for that by its end: `-pskNUMBER`, which says of which secret.
//!
//! Invariant: a private key is in its file, which root alone can read, in the memory of this process and of an engine, and in the
//! kernel, and nowhere else: it has no text form outside of the file, and no error or state holds it. A pair stays as it was made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tartan_netstate::PublicKey;
use tartan_netstate::claims::{ESP_KEY_PREFIX, PSK_SUFFIX};
use x25519_dalek::StaticSecret;

use crate::secret::{self, Psk, Secret};

/// How the name of a key pair's file ends.
const SUFFIX: &str = ".key";
/// And that of the empty file beside it that says that the pair was used.
const USED: &str = ".used";
/// Twice 32 bytes in base64, each with the end of its line, and one that is too much.
const LONGEST: u64 = 91;

/// Key pairs in a directory.
#[derive(Clone)]
pub struct Keys {
    dir: PathBuf,
    secret: PathBuf,
}

/// Whoever has it is this node to its peers.
pub struct PrivateKey {
    secret: StaticSecret,
    psk: Option<Psk>,
}

/// Bytes that nobody can guess.
pub(crate) fn random<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Keys {
    /// Those in this directory of the state directory, which need not be there yet.
    pub fn of(dir: &Path) -> Keys {
        Keys { dir: dir.to_owned(), secret: secret::path(dir.parent().unwrap_or(dir)) }
    }

    /// Makes a pair of that name, unless there is one. A file that holds no key is none.
    ///
    /// # Errors
    /// The directory cannot be written, or the cluster's secret is not the one that the name speaks of.
    pub fn make(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        if load(&path, secret_of(name).is_some()).is_ok_and(|key| key.is_some()) {
            return Ok(());
        }
        let psk = secret_of(name).map(|id| self.psk(name, id)).transpose()?;
        let bytes = random()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let new = path.with_extension("new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let private = StaticSecret::from(bytes);
        let lines = [Some(private.as_bytes()), psk.as_ref().map(Psk::bytes)];
        for line in lines.into_iter().flatten() {
            file.write_all(format!("{}\n", STANDARD.encode(line)).as_bytes())?;
        }
        // Peers are told of it: it must be there after a power cut.
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Takes the pair of that name away, if it is there.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        // The pair first: without its mark it would look as if it had never been used.
        for path in [self.path(name), self.mark(name)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes that a pair is in use from now on. It is on the disk when this returns.
    ///
    /// # Errors
    /// The directory cannot be written, or there is no such pair.
    pub fn mark_used(&self, of: PublicKey) -> io::Result<()> {
        let mark = self.mark(&self.name_of(of)?);
        File::options().write(true).create(true).truncate(false).mode(0o600).open(mark)?.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    /// Takes that back: it was not used after all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn unmark(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.mark(name))
    }

    /// Whether that was ever noted. If that cannot be seen, it was: no key may be used twice.
    pub fn is_used(&self, name: &str) -> bool {
        self.mark(name).try_exists().unwrap_or(true)
    }

    /// All that are there, by name.
    ///
    /// # Errors
    /// The directory or a file in it cannot be read.
    pub fn all(&self) -> io::Result<BTreeMap<Arc<str>, PrivateKey>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries?,
        };
        let mut keys = BTreeMap::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(name) = name
                && let Some(key) = load(&path, secret_of(name).is_some())?
            {
                keys.insert(Arc::from(name), key);
            }
        }
        Ok(keys)
    }

    /// The secret that the pair was made with that was made last, of those with one.
    ///
    /// # Errors
    /// The directory or a file in it cannot be read.
    pub fn newest_secret(&self) -> io::Result<Option<u32>> {
        let mut newest = None;
        for name in self.all()?.keys() {
            if let Some(secret) = secret_of(name) {
                newest = newest.max(Some((fs::metadata(self.path(name))?.modified()?, secret)));
            }
        }
        Ok(newest.map(|(_, secret)| secret))
    }

    /// The private half of that key.
    ///
    /// # Errors
    /// There is none here.
    pub fn private(&self, of: PublicKey) -> io::Result<PrivateKey> {
        let found = self.all()?.into_values().find(|private| private.public() == of);
        found.ok_or_else(|| self.missing(of))
    }

    /// The file with the private half of that key, for whoever is to have it.
    ///
    /// # Errors
    /// There is none here.
    pub fn file(&self, of: PublicKey) -> io::Result<File> {
        File::open(self.path(&self.name_of(of)?))
    }

    fn name_of(&self, of: PublicKey) -> io::Result<Arc<str>> {
        let found = self.all()?.into_iter().find(|(_, private)| private.public() == of);
        found.map(|(name, _)| name).ok_or_else(|| self.missing(of))
    }

    fn psk(&self, name: &str, id: u32) -> io::Result<Psk> {
        match Secret::read(&self.secret)? {
            Some(secret) if secret.id() == id && name.starts_with(ESP_KEY_PREFIX) => Ok(secret.ipsec()),
            Some(secret) if secret.id() == id => Ok(secret.wireguard_psk()),
            _ => Err(io::Error::other(format!("{} is not the secret {id:08x} any more", self.secret.display()))),
        }
    }

    fn missing(&self, of: PublicKey) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, format!("no key in {} belongs to {of}", self.dir.display()))
    }

    fn mark(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{USED}"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}"))
    }
}

/// Of which secret a pair of that name has something.
fn secret_of(name: &str) -> Option<u32> {
    u32::from_str_radix(name.rsplit_once(PSK_SUFFIX)?.1, 16).ok()
}

/// None where the file does not hold what it should.
fn load(path: &Path, has_psk: bool) -> io::Result<Option<PrivateKey>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut text)?;
    let key = |line: &[u8]| <[u8; 32]>::try_from(STANDARD.decode(line).ok()?).ok();
    let keys: Option<Vec<[u8; 32]>> = text.trim_ascii_end().split(|byte| *byte == b'\n').map(key).collect();
    Ok(match keys.as_deref() {
        Some([secret]) if !has_psk => Some(PrivateKey { secret: (*secret).into(), psk: None }),
        Some([secret, psk]) if has_psk => Some(PrivateKey { secret: (*secret).into(), psk: Some(Psk::new(*psk)) }),
        _ => None,
    })
}

impl PrivateKey {
    /// What peers are told.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.secret).to_bytes())
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        self.secret.as_bytes()
    }

    pub(crate) fn psk(&self) -> Option<Psk> {
        self.psk
    }

    /// What only the two have (RFC 7748 section 6.1).
    pub(crate) fn shared_with(&self, other: PublicKey) -> [u8; 32] {
        self.secret.diffie_hellman(&x25519_dalek::PublicKey::from(other.0)).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory for the keys of one test, and their names.
    fn check(test: &str, body: impl FnOnce(&Path, &Keys)) {
        let state_dir = std::env::temp_dir().join(format!("tartan-keys-{test}-{}", std::process::id()));
        let dir = state_dir.join("keys");
        body(&dir, &Keys::of(&dir));
        fs::remove_dir_all(&state_dir).unwrap();
    }

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }

    #[test]
    fn the_public_half_is_that_of_rfc_7748_section_6_1() {
        check("rfc", |dir, keys| {
            let private = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("alice.key"), format!("{}\n", STANDARD.encode(private))).unwrap();
            let public = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
            assert_eq!(keys.all().unwrap()["alice"].public(), PublicKey(public));
            assert_eq!(*keys.private(PublicKey(public)).unwrap().bytes(), private);
            let mut text = String::new();
            keys.file(PublicKey(public)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text.trim_end(), STANDARD.encode(private));
            assert!(keys.file(PublicKey(private)).is_err());
        });
    }

    #[test]
    fn a_pair_is_made_once_and_for_root_alone() {
        check("once", |dir, keys| {
            assert!(keys.all().unwrap().is_empty());
            keys.make("a").unwrap();
            let first = keys.all().unwrap()["a"].public();
            keys.make("a").unwrap();
            keys.make("b").unwrap();
            let all = keys.all().unwrap();
            assert!(all["a"].public() == first && all["b"].public() != first);
            for (path, mode) in [(dir.to_owned(), 0o700), (dir.join("a.key"), 0o600)] {
                assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
            }
            keys.remove("a").unwrap();
            keys.remove("a").unwrap();
            let lost = keys.private(first).map(drop).unwrap_err().to_string();
            assert!(lost.contains(&first.to_string()), "{lost}");
            assert_eq!(keys.all().unwrap().len(), 1);
        });
    }

    #[test]
    fn a_pair_with_something_of_the_secret_keeps_it_when_the_secret_changes() {
        check("secret", |dir, keys| {
            let path = secret::path(dir.parent().unwrap());
            let change = |byte: u8| {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, [byte; 40]).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                Secret::read(&path).unwrap().unwrap()
            };
            let name = |secret: &Secret| format!("wireguard-3{PSK_SUFFIX}{:08x}", secret.id());
            let first = change(b'a');
            let named = name(&first);
            keys.make(&named).unwrap();
            keys.make("wireguard-3").unwrap();
            let second = change(b'b');
            keys.make(&named).unwrap();
            keys.make(&name(&second)).unwrap();
            let all = keys.all().unwrap();
            assert_eq!(all["wireguard-3"].psk(), None);
            assert_eq!(all[&*named].psk(), Some(first.wireguard_psk()));
            assert_eq!(all[&*name(&second)].psk(), Some(second.wireguard_psk()));
            keys.remove(&named).unwrap();
            let gone = keys.make(&named).unwrap_err().to_string();
            assert!(gone.contains(&format!("{:08x}", first.id())), "{gone}");
            // One that has lost its second line, or has one that it should not have.
            let two = fs::read_to_string(dir.join(format!("{}.key", name(&second)))).unwrap();
            fs::write(dir.join("wireguard-3.key"), &two).unwrap();
            fs::write(dir.join(format!("{}.key", name(&second))), two.lines().next().unwrap()).unwrap();
            assert!(keys.all().unwrap().is_empty());
        });
    }

    #[test]
    fn a_pair_whose_mark_cannot_be_looked_at_counts_as_used() {
        check("used", |dir, keys| {
            for name in ["a", "b"] {
                keys.make(name).unwrap();
                assert!(!keys.is_used(name));
            }
            keys.mark_used(keys.all().unwrap()["a"].public()).unwrap();
            std::os::unix::fs::symlink("b.used", dir.join("b.used")).unwrap();
            assert!(keys.is_used("a") && keys.is_used("b"));
            for name in ["a", "b"] {
                keys.unmark(name).unwrap();
                assert!(!keys.is_used(name));
            }
        });
    }

    #[test]
    fn a_file_that_holds_no_key_is_none_and_becomes_one() {
        check("damaged", |dir, keys| {
            keys.make("a").unwrap();
            for damaged in [&b""[..], b"secret", &[0xff; 300], &b"A".repeat(200)] {
                fs::write(dir.join("a.key"), damaged).unwrap();
                assert!(keys.all().unwrap().is_empty());
                keys.make("a").unwrap();
                assert_eq!(keys.all().unwrap().len(), 1);
            }
        });
    }
}
