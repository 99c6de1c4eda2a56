//! A yardstick: boringtun's own device at each end of a veth pair, set up by `wg`.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tartan_lab::probe::wait_for;
use tartan_lab::{Lab, Netns};

use crate::PATIENCE;
use crate::load::Pair;

/// Where `wg` looks for devices that are not the kernel's.
const SOCKETS: &str = "/var/run/wireguard";
const PORT: u16 = 51820;
/// What fits over IPv4 into 1500 bytes.
const MTU: u32 = 1440;

/// Two devices that know each other.
pub(crate) struct Boringtun {
    pub(crate) pair: Pair,
    ends: Vec<End>,
}

/// Its namespace goes with the lab, whose prefix it has.
struct End {
    netns: Netns,
    underlay: Ipv4Addr,
    /// A name on the whole machine: sockets are found by it alone.
    device: String,
    public_key: String,
    program: Child,
}

impl Boringtun {
    /// The program is that of crate boringtun-cli.
    pub(crate) fn up(lab: &Lab, program: &Path) -> Result<Boringtun> {
        let netns = ["w1", "w2"].map(|name| Netns::create(&format!("{}{name}", lab.facts().prefix())));
        let [client, server] = netns;
        let (client, server) = (client?, server?);
        client.ip(&format!("link add eth0 type veth peer name eth0 netns {}\n", server.name()))?;
        let ends = [(client, 1), (server, 2)].map(|(netns, number)| End::up(lab, netns, number, program));
        let ends = ends.into_iter().collect::<Result<Vec<End>>>()?;
        ends[0].meet(&ends[1])?;
        ends[1].meet(&ends[0])?;
        let [client, server] = [0, 1].map(|end: usize| ends[end].netns.clone());
        Ok(Boringtun { pair: Pair { client, server, address: inside(2) }, ends })
    }
}

fn inside(number: u8) -> Ipv4Addr {
    [10, 9, 2, number].into()
}

impl End {
    fn up(lab: &Lab, netns: Netns, number: u8, program: &Path) -> Result<End> {
        let underlay = Ipv4Addr::from([10, 9, 1, number]);
        netns.ip(&format!("address add {underlay}/24 dev eth0\nlink set eth0 up\n"))?;
        let device = format!("bt{}x{number}", std::process::id());
        let key = lab.facts().dir.join(format!("{device}.key"));
        let private_key = netns.output(&["wg", "genkey"])?;
        File::options().write(true).create_new(true).mode(0o600).open(&key)?.write_all(private_key.as_bytes())?;
        let mut command = Command::new(program);
        command.args(["--foreground", "--disable-drop-privileges", &device]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let program = netns.run(|| command.spawn())?.context("starting boringtun")?;
        // It does not say which it has.
        let key = key.display().to_string();
        let public_key = netns.output(&["sh", "-c", &format!("wg pubkey < {key}")])?.trim().to_owned();
        let end = End { netns, underlay, device, public_key, program };
        wait_for(PATIENCE, "boringtun to listen", || end.socket().exists())?;
        end.netns.output(&["wg", "set", &end.device, "listen-port", &PORT.to_string(), "private-key", &key])?;
        let (device, address) = (&end.device, inside(number));
        end.netns.ip(&format!("address add {address}/24 dev {device}\nlink set {device} mtu {MTU} up\n"))?;
        Ok(end)
    }

    fn meet(&self, other: &End) -> Result<()> {
        let (device, key, at) = (&self.device, &other.public_key, format!("{}:{PORT}", other.underlay));
        let all = ["wg", "set", device, "peer", key, "allowed-ips", "0.0.0.0/0", "endpoint", &at];
        self.netns.output(&all).map(drop)
    }

    fn socket(&self) -> PathBuf {
        Path::new(SOCKETS).join(format!("{}.sock", self.device))
    }
}

impl Drop for Boringtun {
    fn drop(&mut self) {
        for end in &mut self.ends {
            // What is gone already is gone.
            let _gone = end.program.kill();
            let _gone = end.program.wait();
            let _gone = fs::remove_file(end.socket());
        }
    }
}
