//! Where `wg show` asks a device that is not the kernel's (https://www.wireguard.com/xplatform/): a Unix socket that root alone
//! may use. It is asked only: who wants a device otherwise tells the agent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::link::Shared;
use super::tunnel::Tunnel;
use crate::socket;
use crate::wire::PublicKey;

/// Where programs look.
const DIR: &str = "/var/run/wireguard";
/// Who asks says so at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest question.
const LONGEST: u64 = 64 << 10;

/// See the module.
pub(crate) struct Uapi {
    listener: UnixListener,
    path: PathBuf,
    port: u16,
}

impl Uapi {
    /// For a device of that name; in place of one that an engine before left behind.
    pub(crate) fn open(link: &str, port: u16) -> io::Result<Uapi> {
        let dir = Path::new(DIR);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(format!("{link}.sock"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Uapi { listener, path, port })
    }

    /// Until it is time to stop.
    pub(crate) fn answer(self, shared: &Shared, stop: &EventFd) {
        while socket::wait(self.listener.as_fd(), stop.as_fd()) {
            let talk = self.listener.accept().and_then(|(stream, _)| self.talk(&stream, &shared.now()));
            // Who hangs up is left alone.
            drop(talk);
        }
    }

    fn talk(&self, mut stream: &UnixStream, tunnel: &Tunnel) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut question = String::new();
        let mut lines = BufReader::new(stream.take(LONGEST));
        // It ends with an empty line.
        while lines.read_line(&mut question)? > 1 {}
        let answer = match question.as_str() {
            "get=1\n\n" => self.get(tunnel),
            _ => format!("errno={}\n\n", Errno::EPERM as i32),
        };
        stream.write_all(answer.as_bytes())
    }

    fn get(&self, tunnel: &Tunnel) -> String {
        let mut text = format!("private_key={}\nlisten_port={}\n", hex(tunnel.identity().private_bytes()), self.port);
        let psk = tunnel.identity().psk().map(|psk| format!("preshared_key={}\n", hex(psk))).unwrap_or_default();
        let mut allowed: BTreeMap<PublicKey, String> = BTreeMap::new();
        for (net, key) in tunnel.allowed() {
            *allowed.entry(*key).or_default() += &format!("allowed_ip={net}\n");
        }
        for (key, peer) in tunnel.peers() {
            let is = peer.standing();
            let at = is.age.map_or(Duration::ZERO, |age| since_1970().saturating_sub(age));
            let nets = allowed.get(key).map_or("", String::as_str);
            // It cannot fail: it is a string.
            let _written = write!(
                text,
                "public_key={}\n{psk}endpoint={}\nlast_handshake_time_sec={}\nlast_handshake_time_nsec={}\ntx_bytes={}\n\
                 rx_bytes={}\npersistent_keepalive_interval={}\n{nets}",
                hex(&key.0),
                is.endpoint,
                at.as_secs(),
                at.subsec_nanos(),
                is.sent,
                is.received,
                is.keepalive,
            );
        }
        text + "errno=0\n\n"
    }
}

impl Drop for Uapi {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wire::Peer;
    use crate::wireguard::tunnel::Identity;

    #[test]
    fn who_asks_is_told_and_who_wants_it_otherwise_is_refused() {
        let key = PublicKey([0xab; 32]);
        let peers = [(key, Peer { endpoint: "[2001:db8::1]:51820".parse().unwrap(), keepalive: 25 })].into();
        let allowed = ["10.0.0.0/24", "fd00::/64"].map(|net| (net.parse().unwrap(), key)).into();
        let identity = Arc::new(Identity::new([1; 32].into(), Some([2; 32])).unwrap());
        let (tunnel, _) = Tunnel::new(identity, None, &peers, &allowed);
        let path = std::env::temp_dir().join(format!("tartan-uapi-{}.sock", std::process::id()));
        let uapi = Uapi { listener: UnixListener::bind(&path).unwrap(), path: path.clone(), port: 51820 };
        let check = |question: &str, wanted: &str| {
            let (mut asks, is_asked) = UnixStream::pair().unwrap();
            asks.write_all(question.as_bytes()).unwrap();
            uapi.talk(&is_asked, &tunnel).unwrap();
            drop(is_asked);
            let mut answer = String::new();
            asks.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, wanted, "{question:?}");
        };
        let (private, public, psk) = ("01".repeat(32), "ab".repeat(32), "02".repeat(32));
        let told = format!(
            "private_key={private}\nlisten_port=51820\npublic_key={public}\npreshared_key={psk}\nendpoint=[2001:db8::1]:51820\n\
             last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/24\nallowed_ip=fd00::/64\nerrno=0\n\n"
        );
        check("get=1\n\n", &told);
        for otherwise in ["set=1\nlisten_port=1\n\n", "get=2\n\n", "\n", "set=1\nprivate_key=00\n\n"] {
            check(otherwise, "errno=1\n\n");
        }
        drop(uapi);
        assert!(!path.exists());
    }
}
