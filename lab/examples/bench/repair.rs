//! What somebody deletes by hand, and how long until it is there again with all that hung on it.
//!
//! The time includes a look every few milliseconds with the tools a person would use, so it is an upper bound.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tartan_lab::probe::wait_for;
use tartan_lab::{Lab, NFT_LISTING, Node};

use crate::{PATIENCE, Series, Subject, lab, ms, unknown};

/// Two nodes with a pod each, by vxlan.
pub(crate) struct Repair {
    lab: Lab,
}

/// Something to delete: its name in questions, the command that deletes it, and what must look the same afterwards.
/// `$dev` is the vxlan device. A listing names no interface index and no count: those may differ.
struct Damage {
    name: &'static str,
    delete: &'static str,
    listing: &'static str,
}

const ROUTES: &str = "ip route show proto 84; ip -6 route show proto 84";
const ON_DEVICE: &str = "ip route show proto 84 dev $dev; ip -6 route show proto 84 dev $dev; \
                         ip neigh show dev $dev nud permanent; bridge fdb show dev $dev | grep dst";

const DAMAGES: [Damage; 7] = [
    Damage { name: "vxlan-device", delete: "ip link del $dev", listing: ON_DEVICE },
    Damage {
        name: "route",
        delete: "ip route del $(ip route show proto 84 dev $dev | head -1 | cut -d' ' -f1)",
        listing: ROUTES,
    },
    Damage {
        name: "neighbour",
        delete: "ip neigh del $(ip neigh show dev $dev nud permanent | head -1 | cut -d' ' -f1) dev $dev",
        listing: ON_DEVICE,
    },
    Damage {
        name: "fdb-entry",
        delete: "bridge fdb del $(bridge fdb show dev $dev | grep dst | head -1 | cut -d' ' -f1) dev $dev",
        listing: ON_DEVICE,
    },
    Damage { name: "nft-table", delete: "nft delete table inet tartan", listing: NFT_LISTING },
    Damage {
        name: "node-address",
        delete: "ip addr del $(ip -4 -o addr show dev lo | grep -o '10[.]244[.][0-9./]*' | head -1) dev lo",
        listing: "ip -o addr show dev lo | sed 's/.* inet/inet/'; ip route show proto 84; ip -6 route show proto 84",
    },
    Damage {
        name: "forwarding",
        delete: "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        listing: "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding",
    },
];

impl Repair {
    pub(crate) fn up() -> Result<Self> {
        Ok(Self { lab: lab("repair", 2, 1, "vxlan")? })
    }
}

impl Subject for Repair {
    /// The name of a damage → ms until everything is as before.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let damage = DAMAGES.iter().find(|damage| [damage.name] == question).with_context(|| unknown(question))?;
        let node = self.lab.node("n1")?;
        if damage.name == "nft-table" {
            node.disown_nft_table()?;
        }
        let took = damage.do_and_wait(node).with_context(|| node.troubleshooting())?;
        self.lab.wait_for_matrix(PATIENCE)?;
        Ok(vec![vec![took]])
    }
}

impl Damage {
    fn do_and_wait(&self, node: &Node) -> Result<f64> {
        let links = node.output(&["ip", "-o", "link", "show", "type", "vxlan"])?;
        let device = links.split_whitespace().nth(1).context("no vxlan device")?.trim_end_matches(':').to_owned();
        let shell = |script: &str| node.output(&["sh", "-c", &format!("dev={device}; {script}")]);
        let look = || -> Result<BTreeSet<String>> { Ok(shell(self.listing)?.lines().map(str::to_owned).collect()) };
        let before = look()?;
        ensure!(!before.is_empty(), "{}: there is nothing to delete", self.listing);
        shell(self.delete)?;
        let gone = Instant::now();
        let mut after = BTreeSet::new();
        let whole = || {
            // While the device is away, looking at it fails.
            after = look().unwrap_or_default();
            after == before
        };
        let repaired = wait_for(PATIENCE, &format!("{} to be repaired", self.name), whole);
        repaired.with_context(|| format!("before: {before:#?}\nafter: {after:#?}"))?;
        Ok(ms(gone.elapsed()))
    }
}
