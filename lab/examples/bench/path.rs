//! Our path, two identical yardsticks beside it (`lab/yardstick.sh`), and bare devices.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tartan_lab::{Lab, Netns, cpu_of_all};

use crate::load::Pair;
use crate::{Series, Subject, lab, unknown};

const YARDSTICK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/yardstick.sh");

/// Their names in questions, what they are called among the lab's namespaces, and whether they track connections.
const YARDSTICKS: [(&str, &str, &str); 3] = [("twin1", "y1", "nat"), ("twin2", "y2", "nat"), ("bare", "y3", "bare")];

/// Pairs by arm and by `across` (two nodes) or `local` (one node).
pub(crate) struct Path {
    pairs: BTreeMap<(&'static str, &'static str), Pair>,
    /// Its namespaces and, as they carry its prefix, the yardsticks' go with it.
    _lab: Lab,
}

impl Path {
    pub(crate) fn up(fabric: &str) -> Result<Self> {
        let lab = lab("path", 2, 2, fabric)?;
        let mut pairs = BTreeMap::new();
        let ours = |client: &str, server: &str| -> Result<Pair> {
            let (client, server) = (lab.pod(client)?, lab.pod(server)?.endpoint());
            Ok(Pair { client: client.netns().clone(), server: server.netns, address: server.v4 })
        };
        pairs.insert(("ours", "across"), ours("a1", "b1")?);
        pairs.insert(("ours", "local"), ours("a1", "a2")?);
        for (arm, name, filter) in YARDSTICKS {
            let prefix = format!("{}{name}", lab.facts().prefix());
            by_hand(&prefix, fabric, filter)?;
            let netns = |pod: &str| Netns::named(&format!("{prefix}-{pod}"));
            let pair = |server: &str, address| Pair { client: netns("a1"), server: netns(server), address };
            pairs.insert((arm, "across"), pair("b1", Ipv4Addr::new(10, 244, 2, 2)));
            pairs.insert((arm, "local"), pair("a2", Ipv4Addr::new(10, 244, 1, 3)));
        }
        for pair in pairs.values() {
            // Connections in TIME_WAIT would use up the ephemeral ports of the default range.
            pair.client.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        }
        Ok(Self { pairs, _lab: lab })
    }
}

impl Subject for Path {
    /// `ARM tcp|rr|crr|pps across|local`; of tcp also the seconds of processor time for each Gbit, both ends' included.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let &[arm, what, place] = question else { return Err(unknown(question)) };
        let pair = self.pairs.iter().find(|((a, p), _)| (*a, *p) == (arm, place)).map(|(_, pair)| pair);
        let (pair, before) = (pair.with_context(|| unknown(question))?, cpu_of_all()?);
        let (value, took) = pair.timed(what)?;
        let for_each = (cpu_of_all()? - before).as_secs_f64() / (value * took.as_secs_f64());
        Ok([value].into_iter().chain((what == "tcp").then_some(for_each)).map(|value| vec![value]).collect())
    }
}

fn by_hand(prefix: &str, fabric: &str, filter: &str) -> Result<()> {
    let made = Command::new("sh").args([YARDSTICK, "up", prefix, fabric, filter]).output().context("running sh")?;
    ensure!(made.status.success(), "{YARDSTICK}: {}", String::from_utf8_lossy(&made.stderr).trim());
    Ok(())
}
