//! A stand-in for Flannel's CNI plugin: what flanneld has written about this node becomes a configuration for `bridge` with
//! `host-local`, which is called with it, and kept under the container's name for as long as the container is attached.
//!
//! Invariant: what `bridge` says is what the runtime hears, that it failed too; DEL of what is not attached succeeds.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const SUBNET_ENV: &str = "/run/flannel/subnet.env";
const KEPT: &str = "/var/lib/cni/flannel";

/// Does what the runtime asks for by the environment.
pub(crate) fn run() -> Result<()> {
    let mut said = String::new();
    io::stdin().read_to_string(&mut said)?;
    let verb = env::var("CNI_COMMAND").context("CNI_COMMAND")?;
    if verb == "VERSION" {
        println!("{}", json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}));
        return Ok(());
    }
    let kept = Path::new(KEPT).join(env::var("CNI_CONTAINERID").context("CNI_CONTAINERID")?);
    match verb.as_str() {
        "ADD" => {
            let text = fs::read_to_string(SUBNET_ENV).with_context(|| format!("{SUBNET_ENV}: does flanneld run?"))?;
            let wanted = delegate(&serde_json::from_str(&said)?, &variables(&text))?.to_string();
            fs::create_dir_all(KEPT)?;
            fs::write(&kept, &wanted)?;
            call(&wanted)
        }
        _ => {
            let Ok(wanted) = fs::read_to_string(&kept) else { return Ok(()) };
            call(&wanted)?;
            if verb == "DEL" { Ok(fs::remove_file(kept)?) } else { Ok(()) }
        }
    }
}

/// Has `bridge` do it.
fn call(wanted: &str) -> Result<()> {
    let folders = env::var_os("CNI_PATH").context("CNI_PATH")?;
    let mut files = env::split_paths(&folders).map(|folder| folder.join("bridge"));
    let bridge: PathBuf = files.find(|file| file.exists()).context("the plugin bridge is not in CNI_PATH")?;
    let mut child = Command::new(bridge).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("piped")?.write_all(wanted.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "bridge: {status}");
    Ok(())
}

fn variables(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// The configuration of `bridge`, where the netconf's `delegate` leaves room.
fn delegate(netconf: &Value, env: &BTreeMap<&str, &str>) -> Result<Value> {
    let of = |key: &str| env.get(key).copied().filter(|value| !value.is_empty());
    let subnets: Vec<&str> = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().filter_map(of).collect();
    let networks = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"].into_iter().filter_map(of);
    // host-local wants a range's own address; flanneld tells the bridge's.
    let range = |subnet: &&str| -> Result<Value> {
        let net: ipnet::IpNet = subnet.parse().with_context(|| format!("{subnet} in {SUBNET_ENV}"))?;
        Ok(json!([{"subnet": net.trunc()}]))
    };
    let ranges = subnets.iter().map(range).collect::<Result<Vec<_>>>()?;
    let routes: Vec<Value> = networks.map(|network| json!({"dst": network})).collect();
    let mtu: u32 = of("FLANNEL_MTU").context("FLANNEL_MTU")?.parse()?;
    let mut wanted = json!({
        "name": netconf["name"], "cniVersion": netconf["cniVersion"], "type": "bridge",
        // Whoever masquerades already has the bridge leave it.
        "ipMasq": of("FLANNEL_IPMASQ") != Some("true"), "mtu": mtu, "isGateway": true,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    for (key, value) in netconf["delegate"].as_object().into_iter().flatten() {
        wanted[key] = value.clone();
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::{delegate, variables};
    use serde_json::json;

    #[test]
    fn a_bridge_is_told_what_flanneld_wrote() {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/56\n\
                    FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let netconf = json!({"name": "cbr0", "cniVersion": "1.0.0", "delegate": {"hairpinMode": true, "mtu": 1400}});
        let wanted = delegate(&netconf, &variables(text)).unwrap();
        assert_eq!(wanted["ipam"]["ranges"], json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]]));
        assert_eq!(wanted["ipam"]["routes"], json!([{"dst": "10.244.0.0/16"}, {"dst": "fd00::/56"}]));
        assert_eq!(
            [&wanted["mtu"], &wanted["ipMasq"], &wanted["hairpinMode"]],
            [&json!(1400), &json!(false), &json!(true)]
        );
        assert!(delegate(&netconf, &variables("")).is_err());
    }
}
