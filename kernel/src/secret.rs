//! The cluster's secret: one file that every node has, of which each purpose gets a key of its own.
//!
//! `STATE_DIR/secret/cluster-secret` is 32 to 4096 bytes of any kind, for its owner alone. Keys are derived by HKDF with SHA-256
//! (RFC 5869), so that none of them tells anything of another one or of the secret. Purposes: `wireguard-psk` and `ipsec`, here.
//!
//! Invariant: neither the secret nor what is derived of it has a text form, and no error holds them.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ring::hkdf::{HKDF_SHA256, Prk, Salt};

const FOLDER: &str = "secret";
const FILE: &str = "cluster-secret";
/// In bytes, without blanks at the end.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=4096;
const SALT: &[u8] = b"tartan cluster secret";

/// See the module.
pub struct Secret(Prk);

/// What nodes that have one secret mix into WireGuard's handshakes (the WireGuard paper, section 5.2), or into IPsec's keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Psk([u8; 32]);

/// Where the secret is, in the state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER).join(FILE)
}

impl Secret {
    /// The one in that file; none where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is nothing to rely on.
    pub fn read(path: &Path) -> io::Result<Option<Secret>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let wrong = |why: String| io::Error::new(ErrorKind::InvalidData, format!("{}: {why}", path.display()));
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(wrong(format!("others than its owner may use it (mode {mode:o}); make it 600")));
        }
        let mut bytes = Vec::new();
        file.by_ref().take(*LENGTHS.end() as u64 + 1).read_to_end(&mut bytes)?;
        let bytes = bytes.trim_ascii_end();
        if !LENGTHS.contains(&bytes.len()) {
            let (least, most) = (LENGTHS.start(), LENGTHS.end());
            let fix = "`head -c 32 /dev/urandom | base64` makes one";
            return Err(wrong(format!("it has {} bytes, and a secret has {least} to {most}; {fix}", bytes.len())));
        }
        Ok(Some(Secret(Salt::new(HKDF_SHA256, SALT).extract(bytes))))
    }

    /// What is for WireGuard.
    pub fn wireguard_psk(&self) -> Psk {
        Psk(self.derive("wireguard-psk"))
    }

    /// What is for IPsec.
    pub fn ipsec(&self) -> Psk {
        Psk(self.derive("ipsec"))
    }

    /// Tells it from others, and nothing of it.
    pub fn id(&self) -> u32 {
        let [a, b, c, d, ..] = self.derive("id");
        u32::from_be_bytes([a, b, c, d])
    }

    fn derive(&self, purpose: &str) -> [u8; 32] {
        let mut key = [0; 32];
        let derived = self.0.expand(&[purpose.as_bytes()], HKDF_SHA256).and_then(|key_of| key_of.fill(&mut key));
        derived.expect("HKDF gives 32 bytes and more");
        key
    }
}

impl Psk {
    pub(crate) fn new(bytes: [u8; 32]) -> Psk {
        Psk(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(test: &str, bytes: &[u8], mode: u32) -> io::Result<Option<Secret>> {
        let dir = std::env::temp_dir().join(format!("tartan-secret-{test}-{}", std::process::id()));
        fs::create_dir_all(dir.join(FOLDER)).unwrap();
        let path = path(&dir);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let read = Secret::read(&path);
        fs::remove_dir_all(&dir).unwrap();
        read
    }

    #[test]
    fn one_secret_gives_each_purpose_another_key() {
        let secret = |bytes: &[u8]| read("purpose", bytes, 0o600).unwrap().unwrap();
        let (one, same, other) = (secret(&[7; 32]), secret(b"\x07".repeat(32).as_slice()), secret(&[8; 32]));
        assert!(one.wireguard_psk() == same.wireguard_psk() && one.id() == same.id());
        assert!(one.ipsec() != one.wireguard_psk() && one.ipsec() != other.ipsec());
        assert!(one.wireguard_psk() != other.wireguard_psk() && one.id() != other.id());
        assert_ne!(one.derive("id"), *one.wireguard_psk().bytes());
        assert_eq!(format!("{:?}", one.wireguard_psk()), "Psk(…)");
        let line = [&[b'a'; 40][..], b"\n"].concat();
        assert_eq!(secret(&line).id(), secret(&[b'a'; 40]).id(), "an editor ends a line");
    }

    #[test]
    fn what_is_nothing_to_rely_on_is_refused_and_not_shown() {
        for (bytes, mode, why) in [
            (&b"hunter2"[..], 0o600, "it has 7 bytes"),
            (&[b' '; 64], 0o600, "it has 0 bytes"),
            (&[1; 5000], 0o600, "it has 4097 bytes"),
            (&[1; 32], 0o644, "mode 644"),
            (&[1; 32], 0o640, "mode 640"),
        ] {
            let error = read("refused", bytes, mode).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        assert!(Secret::read(Path::new("/nowhere/cluster-secret")).unwrap().is_none());
    }
}
