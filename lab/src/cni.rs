//! The container runtime's half of CNI (spec 1.1.0): a plugin list, run on a node as a runtime would run it.
//!
//! A plugin gets its environment, its netconf on stdin and nothing else; its raw answer is kept, so a test can look at
//! the exit code and the bytes, and a bench at the time.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::netns::feed;
use crate::node::Node;

/// The version a netconf asks for.
pub const CNI_VERSION: &str = "1.1.0";

/// A plugin list, as in /etc/cni/net.d.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The network's name.
    pub name: String,
    /// Where the plugins' binaries are: CNI_PATH.
    pub path: Vec<PathBuf>,
    /// The plugins in order; `type` names the binary.
    pub plugins: Vec<Value>,
}

/// One interface of one container: what a runtime keeps between ADD and DEL.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS; empty when the namespace is gone.
    pub netns: PathBuf,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_ARGS.
    pub args: String,
    /// Values for the capabilities a plugin declares: portMappings, ips, mac.
    pub runtime_config: Map<String, Value>,
}

/// CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Remove what is not in the list of valid attachments.
    Gc,
    /// Could an ADD work now?
    Status,
    /// Which versions?
    Version,
}

/// What a plugin said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// How it exited.
    pub status: ExitStatus,
    /// Its result or its error, as printed.
    pub stdout: String,
    /// Its log.
    pub stderr: String,
    /// From its start to its exit.
    pub elapsed: Duration,
}

// === impl Verb ===

impl Verb {
    /// As CNI_COMMAND spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }

    fn concerns_an_attachment(self) -> bool {
        matches!(self, Verb::Add | Verb::Del | Verb::Check)
    }
}

// === impl Answer ===

impl Answer {
    /// The result of a success (`Null` when a verb prints none), or the plugin's error with its code.
    pub fn result(&self) -> Result<Value> {
        let said: Value = match self.stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("JSON from the plugin: {text}"))?,
        };
        if self.status.success() {
            return Ok(said);
        }
        let field = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        bail!("{} (code {}) {} {}", field("msg"), said["code"], field("details"), self.stderr.trim())
    }

    /// The spec's error code of a failure.
    pub fn error_code(&self) -> Option<u64> {
        serde_json::from_str::<Value>(&self.stdout).ok()?["code"].as_u64()
    }
}

// === impl Network ===

impl Network {
    /// Tartan on `node`: the one plugin, asking that node's agent.
    pub fn tartan(node: &Node, binary: &std::path::Path) -> Result<Self> {
        let (Some(directory), Some(kind)) = (binary.parent(), binary.file_name().and_then(|n| n.to_str())) else {
            bail!("{} is no path of a plugin binary", binary.display());
        };
        let plugin = json!({
            "type": kind,
            "socket": node.socket(),
            "stateDir": node.state_dir(),
            "capabilities": {"portMappings": true, "ips": true, "mac": true, "bandwidth": true},
        });
        Ok(Self { name: "tartan".into(), path: vec![directory.to_owned()], plugins: vec![plugin] })
    }

    /// ADD through the whole list; the last plugin's result. On a failure what was attached stays, for the caller's
    /// DEL, as with a real runtime.
    pub fn add(&self, node: &Node, at: &Attachment) -> Result<Value> {
        ensure!(!self.plugins.is_empty(), "network {} has no plugins", self.name);
        let mut previous = None;
        for plugin in &self.plugins {
            let answer = self.call(node, plugin, Verb::Add, Some(at), previous.as_ref())?;
            previous = Some(answer.result().with_context(|| format!("ADD by {}", plugin["type"]))?);
        }
        Ok(previous.unwrap_or_default())
    }

    /// CHECK through the whole list.
    pub fn check(&self, node: &Node, at: &Attachment, result: &Value) -> Result<()> {
        for plugin in &self.plugins {
            let answer = self.call(node, plugin, Verb::Check, Some(at), Some(result))?;
            answer.result().with_context(|| format!("CHECK by {}", plugin["type"]))?;
        }
        Ok(())
    }

    /// DEL through the whole list, backwards.
    pub fn del(&self, node: &Node, at: &Attachment, result: Option<&Value>) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            let answer = self.call(node, plugin, Verb::Del, Some(at), result)?;
            answer.result().with_context(|| format!("DEL by {}", plugin["type"]))?;
        }
        Ok(())
    }

    /// One plugin, one verb, its raw answer. Keys the caller put into `plugin` win over the derived ones, so a test can
    /// ask in any version or with a broken netconf.
    pub fn call(
        &self,
        node: &Node,
        plugin: &Value,
        verb: Verb,
        at: Option<&Attachment>,
        previous: Option<&Value>,
    ) -> Result<Answer> {
        let kind = plugin["type"].as_str().context("a plugin needs a `type`")?;
        let binary = self.path.iter().map(|dir| dir.join(kind)).find(|file| file.exists());
        let binary = binary.with_context(|| format!("plugin {kind} is not in {:?}", self.path))?;
        let mut command = Command::new(binary);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CNI_COMMAND", verb.as_str()).env("CNI_PATH", std::env::join_paths(&self.path)?);
        if let Some(at) = at.filter(|_| verb.concerns_an_attachment()) {
            command.env("CNI_CONTAINERID", &at.container).env("CNI_NETNS", &at.netns);
            command.env("CNI_IFNAME", &at.ifname).env("CNI_ARGS", &at.args);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let netconf = self.netconf(plugin, at, previous).to_string();
        // The clock runs inside the node: joining its namespaces is the lab's affair, not the plugin's.
        let timed = node.run(|| -> Result<_> {
            let start = Instant::now();
            Ok((feed(command.spawn()?, &netconf)?, start.elapsed()))
        })?;
        let (output, elapsed) = timed.with_context(|| format!("running plugin {kind}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr), elapsed })
    }

    /// The netconf of one plugin, derived as the spec's section 4 says.
    fn netconf(&self, plugin: &Value, at: Option<&Attachment>, previous: Option<&Value>) -> Value {
        let mut netconf = json!({"cniVersion": CNI_VERSION, "name": self.name});
        if let Some(previous) = previous {
            netconf["prevResult"] = previous.clone();
        }
        let declared = |capability: &str| plugin["capabilities"][capability] == true;
        let config: Map<String, Value> = at.map(|at| at.runtime_config.clone()).unwrap_or_default();
        let wanted: Map<String, Value> = config.into_iter().filter(|(name, _)| declared(name)).collect();
        if !wanted.is_empty() {
            netconf["runtimeConfig"] = wanted.into();
        }
        for (key, value) in plugin.as_object().into_iter().flatten() {
            netconf[key] = value.clone();
        }
        netconf
    }
}
