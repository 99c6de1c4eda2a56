//! The `tartan` binary: every subcommand on one screen.

mod agent;
mod client;
mod cluster;
mod demo;
mod doctor;
mod flows;
mod install;
mod lab;
mod output;
mod policy;
mod status;

/// See docs/decisions.md: musl's own is slow, and glibc's gives nothing back.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use output::Format;

/// One Kubernetes network
#[derive(Debug, Parser)]
#[command(name = "tartan", version, disable_help_subcommand = true)]
enum Tartan {
    /// Run the agent of this node
    Agent {
        /// Boot file (YAML): node, store, stateDir, socket, listen, cniBin, cniConf, log
        #[arg(long, default_value = "/etc/tartan/boot.yaml")]
        config: PathBuf,
        /// This node's name, in place of the boot file's
        #[arg(long)]
        node: Option<String>,
        /// Another process keeps what engines have open: `tartan hold --stay`, in a container of its own
        #[arg(long)]
        no_hold: bool,
    },
    /// Run what is done once for the whole cluster, where this process leads (in Kubernetes)
    Operator {
        /// Boot file (YAML); of its keys store and log count
        #[arg(long, default_value = "/etc/tartan/boot.yaml")]
        config: PathBuf,
        /// Address and port of /metrics, /healthz and /readyz; none: not served
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Namespace of the Lease that decides who leads
        #[arg(long, env = "POD_NAMESPACE", default_value = "tartan-system")]
        namespace: String,
        /// Name of this process, different for each
        #[arg(long, env = "POD_NAME")]
        identity: String,
    },
    /// Show this node, its peers, what is wrong and what to do about it
    Status {
        /// All nodes, from the store, in place of this one; takes until each agent has given a sign of life
        #[arg(long)]
        cluster: bool,
        #[command(flatten)]
        from: cluster::From,
        #[command(flatten)]
        at: client::At,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Put objects into the store, after checking them all
    Apply {
        /// File of one or more YAML documents; - for standard input
        #[arg(short, long)]
        file: PathBuf,
        #[command(flatten)]
        at: client::At,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Change one key of the configuration: `fabric host-gw`, `vxlan.vni 7`
    Set {
        /// Path of the key below NetworkConfig's spec
        key: String,
        /// Its value, as YAML; `null` takes the key out
        value: String,
        #[command(flatten)]
        at: client::At,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Have every node make itself a new WireGuard key and go over to it, now
    Rotate {
        #[command(flatten)]
        at: client::At,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Ask what policies do: to one connection, one pod, or all of them after a change
    #[command(subcommand)]
    Policy(policy::Command),
    /// Show what policy denies on a node, as it happens, until Ctrl-C
    Flows {
        /// Only what is denied; nothing else is reported yet
        #[arg(long, required = true)]
        denied: bool,
        #[command(flatten)]
        at: client::At,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Write down what a node knows of the cluster, for the other commands' `--world`
    Record {
        /// File to write; - for standard output
        #[arg(short, long)]
        out: PathBuf,
        #[command(flatten)]
        at: client::At,
    },
    /// Nodes and pods on this machine, to try things on
    #[command(subcommand)]
    Lab(lab::Command),
    /// Three nodes, shown, broken and repaired
    Demo {
        /// Do not wait for Enter at the end
        #[arg(long)]
        yes: bool,
    },
    /// Look for what keeps the network from working on this node, before it is installed and after, and say what to do
    Doctor {
        /// Boot file (YAML); there need be none
        #[arg(long, default_value = "/etc/tartan/boot.yaml")]
        config: PathBuf,
        /// The cluster, in place of the boot file's: kubernetes:/path/of/kubeconfig
        #[arg(long)]
        store: Option<String>,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
    /// Print the manifest for a cluster: `tartan install --for k3s | kubectl apply -f -`
    Install {
        /// What the cluster was made with
        #[arg(long = "for", value_enum, default_value = "kubeadm")]
        distribution: install::Distribution,
        /// https://HOST:PORT, where Services do not work before the network does
        #[arg(long)]
        api_server: Option<String>,
        /// The image, where it is in your registry
        #[arg(long)]
        image: Option<String>,
    },
    /// Keep what an engine has open, and start it again when it ends; agents run this
    #[command(hide = true)]
    Hold {
        /// Where agents speak to the engine
        #[arg(long)]
        socket: PathBuf,
        /// The socket is standard input
        #[arg(long, conflicts_with = "stay")]
        detached: bool,
        /// Go on when there is nothing to hold, as in a container of its own
        #[arg(long)]
        stay: bool,
    },
    /// Carry packets between nodes; `tartan hold` runs this
    #[command(hide = true)]
    Engine,
    /// Do nothing until killed; a pod whose work is done runs this
    #[command(hide = true)]
    Wait,
    /// Take back everything that Tartan put into this node's kernel, and its state; or print the manifest that does so on
    /// all nodes of a cluster: `tartan uninstall --for kubeadm | kubectl apply -f -`
    Uninstall {
        /// Print the manifest, for a cluster made with this
        #[arg(long = "for", value_enum, conflicts_with = "config")]
        distribution: Option<install::Distribution>,
        /// With --for: the image, where it is in your registry
        #[arg(long, requires = "distribution")]
        image: Option<String>,
        /// With --for: the namespace that Tartan is in
        #[arg(long, requires = "distribution", default_value = install::NAMESPACE)]
        namespace: String,
        /// Boot file (YAML)
        #[arg(long, default_value = "/etc/tartan/boot.yaml")]
        config: PathBuf,
        /// text, json or yaml
        #[arg(short, long, default_value = "text")]
        output: Format,
    },
}

fn main() -> ExitCode {
    let result = match Tartan::parse() {
        Tartan::Agent { config, node, no_hold } => agent::run(&config, node, !no_hold),
        Tartan::Operator { config, listen, namespace, identity } => {
            agent::operate(&config, listen, &namespace, &identity)
        }
        Tartan::Status { cluster: true, from, output, .. } => cluster::run(&from, output),
        Tartan::Status { at, output, .. } => client::status_command(&at, output),
        Tartan::Apply { file, at, output } => client::apply(&at, &file, output),
        Tartan::Set { key, value, at, output } => client::set(&at, &key, &value, output),
        Tartan::Rotate { at, output } => client::rotate(&at, output),
        Tartan::Policy(command) => return policy::run(command),
        Tartan::Flows { denied: _, at, output } => flows::denied(&at, output),
        Tartan::Record { out, at } => policy::record(&at, &out),
        Tartan::Lab(command) => lab::run(command),
        Tartan::Demo { yes } => demo::run(yes),
        Tartan::Doctor { config, store, output } => doctor::run(&config, store.as_deref(), output),
        Tartan::Install { distribution, api_server, image } => {
            install::run(distribution, api_server.as_deref(), image.as_deref())
        }
        Tartan::Hold { socket, stay: true, .. } => agent::hold(&socket, &agent::Hold::Stay),
        Tartan::Hold { socket, detached: true, .. } => agent::hold(&socket, &agent::Hold::Detached),
        Tartan::Hold { socket, .. } => agent::hold(&socket, &agent::Hold::Start),
        Tartan::Engine => agent::engine(),
        Tartan::Wait => loop {
            std::thread::park();
        },
        Tartan::Uninstall { distribution: Some(distribution), image, namespace, .. } => {
            install::take_back(distribution, image.as_deref(), &namespace)
        }
        Tartan::Uninstall { config, output, .. } => agent::uninstall(&config, output),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tartan: {error:#}");
            ExitCode::FAILURE
        }
    }
}
