//! The path self-test on broken paths: each is named for what it is within ten seconds, and no other path is said to be ill.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, lab, wait_until_steady};
use serde_json::Value;
use tartan_lab::probe::wait_for;
use tartan_lab::{Family, Lab};

/// Reasons that the self-test has.
const REASONS: [&str; 6] =
    ["FabricBlocked", "PathOneWay", "PeerSilent", "ChecksumsLost", "PathMtuTooSmall", "ChecksumOffloadOff"];

/// What a fault should be called: by whom, about whom, and by which name.
type Named = (&'static str, &'static str, &'static str);

/// All that is said now.
fn said(lab: &Lab) -> Result<BTreeSet<(String, String, String)>> {
    let mut said = BTreeSet::new();
    for node in lab.nodes() {
        let status = node.status()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().trim_start_matches("Node/").to_owned();
        for condition in status["conditions"].as_array().into_iter().flatten() {
            if REASONS.iter().any(|reason| condition["reason"] == *reason) {
                said.insert((node.name().to_owned(), text(&condition["about"]), text(&condition["reason"])));
            }
        }
    }
    Ok(said)
}

/// Waits until exactly this is said, and that it is within ten seconds.
fn named(lab: &Lab, since: Instant, wanted: &[Named]) -> Result<()> {
    let wanted: BTreeSet<_> = wanted.iter().map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into())).collect();
    let mut last = BTreeSet::new();
    let right = || {
        last = said(lab).unwrap_or_default();
        last == wanted
    };
    wait_for(PATIENCE, "the fault to be named", right)
        .with_context(|| format!("{wanted:?} was wanted and {last:?} is said\n{}", lab.troubleshooting()))?;
    let took = since.elapsed();
    ensure!(took < Duration::from_secs(10), "it took {took:?} until it said {wanted:?}");
    Ok(())
}

/// Three nodes by this fabric, whose paths have all been tested and are well.
fn tested(name: &str, fabric: &str) -> Result<Lab> {
    let lab = lab(name, fabric)?;
    wait_until_steady(&lab, fabric)?;
    let well = |path: &Value| path["roundTripMicros"].is_u64() && path["fault"].is_null();
    let all_well = || {
        lab.nodes().iter().all(|node| {
            let peers = node.status().map(|status| status["peers"].as_array().cloned().unwrap_or_default());
            let of = |peer: &Value| peer["paths"].as_array().cloned().unwrap_or_default();
            peers.is_ok_and(|peers| peers.iter().all(|peer| of(peer).len() == 2 && of(peer).iter().all(well)))
        })
    };
    wait_for(PATIENCE, "every path to be tested", all_well).with_context(|| lab.troubleshooting())?;
    ensure!(said(&lab)?.is_empty(), "{:?}", said(&lab)?);
    Ok(lab)
}

#[test]
fn a_blocked_port_is_named_and_its_end_is_seen() -> Result<()> {
    let lab = tested("st-port", "vxlan")?;
    let since = Instant::now();
    lab.underlay().block_udp_port(Some(8472))?;
    let pairs = [("n1", "n2"), ("n1", "n3"), ("n2", "n1"), ("n2", "n3"), ("n3", "n1"), ("n3", "n2")];
    named(&lab, since, &pairs.map(|(by, about)| (by, about, "FabricBlocked")))?;
    let since = Instant::now();
    lab.underlay().block_udp_port(None)?;
    named(&lab, since, &[])
}

#[test]
fn loss_one_way_is_named_by_both_ends_as_each_sees_it() -> Result<()> {
    for fabric in ["vxlan", "host-gw"] {
        let lab = tested(&format!("st-way-{fabric}"), fabric)?;
        let since = Instant::now();
        lab.underlay().drop_one_way("n1", "n2")?;
        named(&lab, since, &[("n1", "n2", "PathOneWay"), ("n2", "n1", "PeerSilent")])?;
    }
    Ok(())
}

#[test]
fn a_hole_in_the_mtu_is_measured_to_the_byte() -> Result<()> {
    let lab = tested("st-mtu", "vxlan")?;
    let since = Instant::now();
    lab.underlay().set_path_mtu(Some(1399))?;
    let pairs = [("n1", "n2"), ("n1", "n3"), ("n2", "n1"), ("n2", "n3"), ("n3", "n1"), ("n3", "n2")];
    named(&lab, since, &pairs.map(|(by, about)| (by, about, "PathMtuTooSmall")))?;
    let said = lab.node("n1")?.status()?;
    let text = said["conditions"].to_string();
    // What the switch counts begins after the Ethernet header.
    ensure!(text.contains("more than 1349 bytes") && text.contains("underlayMTU to 1399"), "{text}");
    ensure!(said["peers"][0]["paths"][0]["largest"] == 1349, "{said}");
    Ok(())
}

#[test]
fn checksums_that_a_driver_leaves_undone_are_seen_and_computed_by_the_kernel() -> Result<()> {
    let lab = tested("st-sum", "vxlan")?;
    let since = Instant::now();
    let card = lab.underlay().break_checksums("n1")?;
    let switched_off = ("n1".to_owned(), "n1".to_owned(), "ChecksumOffloadOff".to_owned());
    wait_for(PATIENCE, "the offload to be off", || said(&lab).is_ok_and(|said| said.contains(&switched_off)))
        .with_context(|| lab.troubleshooting())?;
    let took = since.elapsed();
    ensure!(took < Duration::from_secs(10), "it took {took:?} until the offload was off");
    wait_for(PATIENCE, "nothing else to be wrong", || said(&lab).is_ok_and(|said| said.len() == 1))
        .with_context(|| format!("{:?}\n{}", said(&lab), lab.troubleshooting()))?;
    // And pods' connections, which a card of this kind breaks, work again.
    lab.wait_for_matrix(PATIENCE)?.check()?;
    let (a, b) = (lab.pod("a1")?.endpoint(), lab.pod("b1")?.endpoint());
    for family in Family::BOTH {
        let (status, _) = tartan_lab::probe::http_get(&a, (b.address(family), tartan_lab::HTTP_PORT).into(), "/")?;
        ensure!(status == 200, "{family}: {status}");
    }
    drop(card);
    Ok(())
}
