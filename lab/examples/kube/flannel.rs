//! Flannel on every node, as its users install it: a DaemonSet of the real flanneld, its plugin and the stock plugins that
//! it calls. Nodes are its own by a label, which can be moved.
//!
//! The plugin itself is a stand-in (`flannel_plugin.rs`): Go's module proxy does not serve the real one.

use std::fs;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::control::PODS;
use crate::image;
use crate::this_program;

/// Which network a node is of: the value is `flannel` or another one.
pub(crate) const LABEL: &str = "network";
pub(crate) const NETWORK: &str = "flannel";
const PLUGINS: &str = "/opt/cni/bin";
/// What Flannel's plugin calls in the end.
const STOCK: [&str; 3] = ["bridge", "host-local", "portmap"];
const NAMESPACE: &str = "kube-flannel";
const HEALTHZ_PORT: u16 = 8081;

/// How Flannel carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Vxlan,
    HostGw,
}

impl Backend {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host-gw",
        }
    }
}

/// Gives every node to Flannel. The nodes get ready then.
pub(crate) fn install(cluster: &Cluster, backend: Backend) -> Result<()> {
    let nodes = cluster.wait_for_pod_cidrs()?;
    cluster.kubectl(&["label", "nodes", "--all", &format!("{LABEL}={NETWORK}")])?;
    let stand_in = format!("#!/bin/sh\nexec {} flannel-plugin\n", this_program()?.display());
    for machine in cluster.machines() {
        for plugin in STOCK {
            let program = fs::read(cluster.programs().find(plugin)?)?;
            machine.write(&format!("{PLUGINS}/{plugin}"), &program, "0755")?;
        }
        machine.write(&format!("{PLUGINS}/flannel"), stand_in.as_bytes(), "0755")?;
        machine.write("/etc/cni/net.d/10-flannel.conflist", conflist().to_string().as_bytes(), "0644")?;
    }
    cluster.kubectl(&["apply", "--filename", &manifest(cluster, backend)?])?;
    cluster.route_to_pods(&nodes)
}

/// What is applied: its path.
pub(crate) fn manifest(cluster: &Cluster, backend: Backend) -> Result<String> {
    let server = cluster.server()?.trim_start_matches("https://");
    let Some((host, port)) = server.rsplit_once(':') else { bail!("{server} has no port") };
    let items = [accounts(), vec![net_conf(backend), daemon_set(host, port)]].concat();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.file("flannel.json", list.to_string().as_bytes())
}

fn conflist() -> Value {
    json!({
        "name": "cbr0", "cniVersion": "1.0.0",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn accounts() -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io";
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "flannel", "namespace": NAMESPACE}}),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "flannel"},
            "rules": [
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
            ],
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "flannel"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "flannel"},
            "subjects": [{"kind": "ServiceAccount", "name": "flannel", "namespace": NAMESPACE}],
        }),
    ]
}

fn net_conf(backend: Backend) -> Value {
    let net_conf = json!({
        "Network": PODS[0], "EnableIPv6": true, "IPv6Network": PODS[1], "Backend": {"Type": backend.as_str()},
    });
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-flannel-cfg", "namespace": NAMESPACE},
        "data": {"net-conf.json": net_conf.to_string()},
    })
}

/// The API server by its own address: a cluster without kube-proxy serves none of a Service.
fn daemon_set(host: &str, port: &str) -> Value {
    let labels = json!({"app": "flannel"});
    let on_node = |path: &str| json!({"path": path, "type": "DirectoryOrCreate"});
    let container = json!({
        "name": "kube-flannel", "image": image::FLANNEL,
        "args": ["--ip-masq", "--kube-subnet-mgr", "--iface=eth0", format!("--healthz-port={HEALTHZ_PORT}")],
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "KUBERNETES_SERVICE_HOST", "value": host}, {"name": "KUBERNETES_SERVICE_PORT", "value": port},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": HEALTHZ_PORT}, "periodSeconds": 1},
        "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
        "volumeMounts": [
            {"name": "run", "mountPath": "/run/flannel"}, {"name": "config", "mountPath": "/etc/kube-flannel"},
        ],
    });
    let pod = json!({
        "hostNetwork": true, "priorityClassName": "system-node-critical", "serviceAccountName": "flannel",
        "nodeSelector": {LABEL: NETWORK}, "tolerations": [{"operator": "Exists"}], "containers": [container],
        "volumes": [
            {"name": "run", "hostPath": on_node("/run/flannel")},
            {"name": "config", "configMap": {"name": "kube-flannel-cfg"}},
        ],
    });
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-flannel-ds", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    })
}
