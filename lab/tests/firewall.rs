//! Somebody else's firewall on a node: reported by name, opened for pods on request, kept open through its reloads, and
//! left as it was after `uninstall`.
//!
//! The rule sets are those that crate kernel's tests go through rule by rule.

mod common;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, condition, sh, tartan, wait_for_condition, wait_until_steady};
use serde_json::{Map, json};
use tartan_lab::Lab;
use tartan_lab::probe::wait_for;

const DOCKER: &str = include_str!("../../kernel/tests/foreign/docker.rules");
const DOCKER6: &str = include_str!("../../kernel/tests/foreign/docker6.rules");
const UFW: &str = include_str!("../../kernel/tests/foreign/ufw.rules");
const FIREWALLD: &str = include_str!("../../kernel/tests/foreign/firewalld.nft");

/// A firewall of somebody else.
struct Case {
    name: &'static str,
    /// Loads or reloads it.
    load: String,
    /// Shows it whole.
    show: &'static str,
    /// What the report must name: family and table, chain, rule.
    names: &'static str,
}

fn restore(tool: &str, rules: &str) -> String {
    format!("{tool} <<'END'\n{rules}END\n")
}

fn check(case: &Case) -> Result<()> {
    // By host-gw, packets for pods are forwarded and nothing else: input is for the node's owner to allow.
    let mut lab = Lab::builder(case.name)
        .nodes(2)
        .pods_per_node(1)
        .fabric("host-gw")
        .config("hostFirewall", json!("report"))
        .up()?;
    lab.wait_for_matrix(PATIENCE)?;
    wait_until_steady(&lab, "host-gw")?;
    sh(lab.node("n1")?, &case.load)?;
    let untouched = sh(lab.node("n1")?, case.show)?;

    let found = wait_for_condition(lab.node("n1")?, "ForwardBlocked")?;
    let message = found["message"].as_str().unwrap_or_default();
    ensure!(message.contains(case.names), "{:?} is not in {message:?}", case.names);
    ensure!(found["fix"].to_string().contains("set spec.hostFirewall to open, or by hand: "), "{found}");
    ensure!(condition(lab.node("n2")?, "ForwardBlocked").is_none(), "n2 has no firewall");
    ensure!(lab.matrix()?.check().is_err(), "this firewall blocks nothing");
    ensure!(sh(lab.node("n1")?, case.show)? == untouched, "reported is not touched");

    lab.set_config(&Map::from_iter([("hostFirewall".into(), json!("open"))]))?;
    lab.wait_for_matrix(PATIENCE)?;
    let silent = || condition(lab.nodes().first().expect("n1"), "ForwardBlocked").is_none();
    wait_for(PATIENCE, "the condition to go", silent).with_context(|| lab.troubleshooting())?;

    sh(lab.node("n1")?, &case.load)?;
    lab.wait_for_matrix(PATIENCE).context("after their reload")?;

    let node = lab.node("n1")?;
    node.stop_agent()?;
    let boot = node.state_dir().with_file_name("boot.yaml").display().to_string();
    let removed = tartan(node, &["uninstall", "--config", &boot])?;
    ensure!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let after = sh(node, case.show)?;
    ensure!(after == untouched, "uninstall left it changed:\n{after}\nwas\n{untouched}");
    Ok(())
}

#[test]
fn docker_by_iptables_nft() -> Result<()> {
    check(&Case {
        name: "fw-docker-nft",
        load: restore("iptables-nft-restore", DOCKER) + &restore("ip6tables-nft-restore", DOCKER6),
        show: "iptables-nft -S; ip6tables-nft -S",
        names: "ip table filter, chain FORWARD, policy drop",
    })
}

#[test]
fn docker_by_iptables_legacy() -> Result<()> {
    check(&Case {
        name: "fw-docker-legacy",
        load: restore("iptables-legacy-restore", DOCKER) + &restore("ip6tables-legacy-restore", DOCKER6),
        show: "iptables-legacy -S; ip6tables-legacy -S",
        names: "table filter, chain FORWARD, policy drop",
    })
}

#[test]
fn ufw() -> Result<()> {
    check(&Case {
        name: "fw-ufw",
        load: restore("iptables-nft-restore", &UFW.replace("UFW", "ufw"))
            + &restore("ip6tables-nft-restore", &UFW.replace("UFW", "ufw6"))
            + "ip6tables-nft -A INPUT -p icmpv6 -j ACCEPT",
        show: "iptables-nft -S; ip6tables-nft -S",
        names: "ip table filter, chain FORWARD, policy drop",
    })
}

#[test]
fn firewalld() -> Result<()> {
    check(&Case {
        name: "fw-firewalld",
        load: format!("nft -f - <<'END'\n{FIREWALLD}END\n"),
        show: "nft -s list table inet firewalld",
        names: "inet table firewalld, chain filter_FORWARD, rule 9: reject",
    })
}
