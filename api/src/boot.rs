//! The boot file: what an agent has to know before it can read its configuration from the store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// At most eight keys; everything else is in NetworkConfig.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Boot {
    /// This node's name, as its Node object has it. May be left to `--node`: one boot file then serves all nodes.
    #[serde(default)]
    pub node: String,
    /// Where shared state lives: `file:/path/to/directory`; `kubernetes:` for the API server of the pod we run in, with
    /// `kubernetes:https://HOST:PORT` at an address that works before Services do, or with `kubernetes:/path/of/kubeconfig`.
    pub store: String,
    /// What must survive a restart: journal, snapshot, values of sysctls before us.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// The agent's Unix socket.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Address and port of /metrics, /healthz and /readyz; none: not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<std::net::SocketAddr>,
    /// Where to install the plugin, e.g. `/opt/cni/bin`; none: it is installed by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_bin: Option<PathBuf>,
    /// Where to install the network's configuration, e.g. `/etc/cni/net.d`, once the agent is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_conf: Option<PathBuf>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(default = "log")]
    pub log: String,
}

fn state_dir() -> PathBuf {
    "/var/lib/tartan".into()
}

fn socket() -> PathBuf {
    "/run/tartan/tartan.sock".into()
}

fn log() -> String {
    "info".into()
}
