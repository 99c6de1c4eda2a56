//! A pod: a network namespace attached through CNI, with the echo server inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::cni::{Attachment, Network};
use crate::echo::Echo;
use crate::netns::{Endpoint, Netns};
use crate::node::Node;

/// Namespace of all pods of a lab, in its store.
pub const NAMESPACE: &str = "lab";

/// What a kubelet has the plugin told of a pod: CNI_ARGS.
pub fn cni_args(pod: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={pod}")
}

/// The Pod as a cluster has it: bound to its node before it starts, with addresses once it has any.
pub(crate) fn object(name: &str, node: &str, labels: &[(&str, &str)], addresses: &[IpAddr]) -> Value {
    let labels: Map<String, Value> =
        [("name", name)].iter().chain(labels).map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"nodeName": node, "serviceAccountName": "default"},
        "status": {"podIPs": addresses},
    })
}

/// One pod of a lab.
#[derive(Debug)]
pub struct Pod {
    node: String,
    endpoint: Endpoint,
    network: Network,
    attachment: Attachment,
    result: Value,
    echo: Option<Echo>,
}

impl Pod {
    /// Makes the namespace, attaches it by `network` on `node` and starts the echo server.
    pub(crate) fn create(
        name: &str,
        netns_name: &str,
        node: &Node,
        network: Network,
        runtime_config: Map<String, Value>,
    ) -> Result<Self> {
        let netns = Netns::create(netns_name)?;
        let attachment = Attachment {
            container: netns_name.to_owned(),
            netns: netns.path(),
            ifname: "eth0".into(),
            args: cni_args(name),
            runtime_config,
        };
        let attached = network.add(node, &attachment).and_then(|result| {
            let (v4, v6) = addresses(&result)?;
            Ok((result, Endpoint { name: name.to_owned(), netns: netns.clone(), v4, v6 }))
        });
        let (result, endpoint) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                // As a runtime does: undo a failed ADD. The first error is the one to tell.
                let _ = network.del(node, &attachment, None);
                let _ = netns.delete();
                return Err(error).with_context(|| format!("attaching pod {name} on {}", node.name()));
            }
        };
        let echo = Some(Echo::serve(&netns, name)?);
        Ok(Self { node: node.name().to_owned(), endpoint, network, attachment, result, echo })
    }

    /// Its name: a1, a2, b1, …
    pub fn name(&self) -> &str {
        &self.endpoint.name
    }

    /// The node it runs on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its namespace and addresses, for probes.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.endpoint.netns
    }

    /// The network it was attached by.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What a runtime remembers of it.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// What ADD answered.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// CHECK.
    pub fn check(&self, node: &Node) -> Result<()> {
        self.network.check(node, &self.attachment, &self.result)
    }

    /// DEL, then the namespace.
    pub(crate) fn remove(mut self, node: &Node) -> Result<()> {
        drop(self.echo.take());
        self.network.del(node, &self.attachment, Some(&self.result))?;
        self.endpoint.netns.delete()
    }
}

/// The first address of each family in a CNI result.
fn addresses(result: &Value) -> Result<(Ipv4Addr, Ipv6Addr)> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bare: Vec<&str> =
        ips.iter().filter_map(|ip| ip["address"].as_str()).map(|a| a.split('/').next().unwrap_or(a)).collect();
    let v4 = bare.iter().find_map(|a| a.parse().ok());
    let v6 = bare.iter().find_map(|a| a.parse().ok());
    let missing = |family: &str| format!("the CNI result has no {family} address (labs are dual stack): {result}");
    Ok((v4.with_context(|| missing("IPv4"))?, v6.with_context(|| missing("IPv6"))?))
}
