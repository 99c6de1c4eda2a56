//! What the runtime says: CNI_* variables and the network configuration on stdin, checked.
//!
//! Invariant: what leaves here as a request has a container id and an interface name that are safe in a file name and
//! that the kernel takes. What only the agent can judge (ports, addresses) is left to it.

use tartan_api::cni::{CniError, CniRequest, Command, NetConf, NetnsFile, PodName, Version, code};

/// Looks up an environment variable.
pub(crate) type Var<'a> = &'a dyn Fn(&str) -> Option<String>;

/// CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Version,
    Agent(Command),
}

/// What is asked of this plugin.
pub(crate) enum Asked {
    /// Which versions there are, asked in this one.
    Version(String),
    /// Something for the agent. Of the namespace only the path is known yet.
    Agent(Box<CniRequest>),
}

/// An error, and the version to say it in.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) version: Version,
    pub(crate) error: CniError,
}

/// Longest container id, in bytes: with an interface name it is a file name.
const CONTAINER_ID_MAX: usize = 200;
/// Longest interface name, in bytes (IFNAMSIZ less the final 0).
const IFNAME_MAX: usize = 15;

/// Reads CNI_COMMAND.
pub(crate) fn command(var: Var<'_>) -> Result<Verb, CniError> {
    let known = "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION; a container runtime sets it";
    let Some(command) = var("CNI_COMMAND").filter(|command| !command.is_empty()) else {
        return Err(CniError::new(code::BAD_ENVIRONMENT, "CNI_COMMAND is missing", known));
    };
    match &*command {
        "ADD" => Ok(Verb::Agent(Command::Add)),
        "DEL" => Ok(Verb::Agent(Command::Del)),
        "CHECK" => Ok(Verb::Agent(Command::Check)),
        "GC" => Ok(Verb::Agent(Command::Gc)),
        "STATUS" => Ok(Verb::Agent(Command::Status)),
        "VERSION" => Ok(Verb::Version),
        _ => Err(CniError::new(code::BAD_ENVIRONMENT, format!("CNI_COMMAND={command} is unknown"), known)),
    }
}

/// Reads the configuration, then the variables that the command needs.
pub(crate) fn asked(verb: Verb, var: Var<'_>, stdin: &[u8]) -> Result<Asked, Refused> {
    let command = match verb {
        Verb::Agent(command) => command,
        // Runtimes older than the spec ask without a configuration.
        Verb::Version if stdin.trim_ascii().is_empty() => return Ok(Asked::Version(Version::NEWEST.to_string())),
        Verb::Version => return Ok(Asked::Version(asked_version(&netconf(stdin)?).into())),
    };
    let netconf = netconf(stdin)?;
    let version = version(command, &netconf)?;
    let refused = |error| Refused { version, error };
    check_netconf(command, &netconf).map_err(refused)?;
    request(command, version, var, netconf).map(|request| Asked::Agent(Box::new(request))).map_err(refused)
}

fn netconf(stdin: &[u8]) -> Result<NetConf, CniError> {
    let form = "stdin is to hold the network configuration, a JSON object";
    match stdin.trim_ascii_start() {
        [] => return Err(CniError::new(code::DECODE, "stdin is empty", form)),
        // The parser would take a list for the values of the keys.
        [b'[', ..] => return Err(CniError::new(code::DECODE, "stdin: a list", form)),
        _ => {}
    }
    let mut text = serde_json::Deserializer::from_slice(stdin);
    let netconf: Result<NetConf, _> = serde_path_to_error::deserialize(&mut text);
    let end = |netconf| text.end().map(|()| netconf).map_err(|error| format!("stdin: {error}"));
    let netconf = netconf.map_err(|error| match error.path().to_string() {
        // Not inside any key, or inside one that is cut off.
        path if path == "." || path == "?" => format!("stdin: {}", error.inner()),
        path => format!("stdin: {path}: {}", error.inner()),
    });
    netconf.and_then(end).map_err(|msg| CniError::new(code::DECODE, msg, form))
}

/// The version a configuration asks in: before 0.2.0 nobody said it.
fn asked_version(netconf: &NetConf) -> &str {
    if netconf.cni_version.is_empty() { Version::V0_1_0.as_str() } else { &netconf.cni_version }
}

fn version(command: Command, netconf: &NetConf) -> Result<Version, CniError> {
    let asked = asked_version(netconf);
    let wrong = |msg, fix| CniError::new(code::INCOMPATIBLE_VERSION, msg, fix);
    let supported = || Version::ALL.map(Version::as_str).join(", ");
    let version = Version::parse(asked).ok_or_else(|| {
        wrong(format!("cniVersion {asked:?} is not supported"), format!("it is one of {}", supported()))
    })?;
    if version < command.since() {
        let since = command.since();
        return Err(wrong(format!("cniVersion {version} has no {command}"), format!("{command} came with {since}")));
    }
    Ok(version)
}

fn check_netconf(command: Command, netconf: &NetConf) -> Result<(), CniError> {
    let wrong = |msg: String, fix: &str| Err(CniError::new(code::BAD_NETCONF, msg, fix));
    if !is_name(&netconf.name) {
        if netconf.name.is_empty() {
            return wrong("name is missing".into(), "give the network a name");
        }
        let fix = "it is letters, digits, `_`, `.` and `-`, and begins with a letter or a digit";
        return wrong(format!("name {:?} is no name of a network", netconf.name), fix);
    }
    for (key, path) in [("socket", &netconf.socket), ("stateDir", &netconf.state_dir)] {
        if let Some(path) = path.as_ref().filter(|path| !path.starts_with('/')) {
            return wrong(format!("{key} {path:?} is no absolute path"), "write it from / on, or leave it out");
        }
    }
    match command {
        Command::Check if netconf.prev_result.is_none() => {
            wrong("prevResult is missing".into(), "CHECK compares with the result of ADD, which the runtime keeps")
        }
        Command::Gc if netconf.valid_attachments.is_none() => {
            let fix = "without it GC would remove every pod; an empty list says that none is to stay";
            wrong("cni.dev/valid-attachments is missing".into(), fix)
        }
        _ => Ok(()),
    }
}

fn request(command: Command, version: Version, var: Var<'_>, netconf: NetConf) -> Result<CniRequest, CniError> {
    let needed: &[&str] = match command {
        Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
        Command::Gc | Command::Status => &[],
    };
    let set = |name: &str| var(name).filter(|value| !value.is_empty());
    let missing: Vec<&str> = needed.iter().copied().filter(|name| set(name).is_none()).collect();
    if !missing.is_empty() {
        let verb = if missing.len() == 1 { "is" } else { "are" };
        let msg = format!("{} {verb} missing", missing.join(", "));
        return Err(CniError::new(code::BAD_ENVIRONMENT, msg, format!("{command} needs {}", needed.join(", "))));
    }
    let value = |name: &str| if needed.contains(&name) { set(name) } else { None };
    let container = value("CNI_CONTAINERID").unwrap_or_default();
    let ifname = value("CNI_IFNAME").unwrap_or_default();
    if !needed.is_empty() {
        check_container(&container)?;
        check_ifname(&ifname)?;
    }
    let netns = value("CNI_NETNS").map(|path| NetnsFile { path, dev: 0, ino: 0 });
    let pod =
        if command == Command::Add { pod_name(&var("CNI_ARGS").unwrap_or_default())? } else { PodName::default() };
    Ok(CniRequest { command, version, container, ifname, netns, pod, netconf, given: None })
}

fn check_container(container: &str) -> Result<(), CniError> {
    if is_name(container) && container.len() <= CONTAINER_ID_MAX {
        return Ok(());
    }
    let shown: String = container.chars().take(CONTAINER_ID_MAX).collect();
    let fix = format!(
        "it is letters, digits, `_`, `.` and `-`, begins with a letter or a digit, and has at most {CONTAINER_ID_MAX} of them"
    );
    Err(CniError::new(code::BAD_ENVIRONMENT, format!("CNI_CONTAINERID={shown} is no container id"), fix))
}

/// As the kernel's `dev_valid_name`, and no `%`: the kernel would take that for a pattern of a name.
fn check_ifname(ifname: &str) -> Result<(), CniError> {
    let fits = ifname.len() <= IFNAME_MAX && ifname != "." && ifname != "..";
    let forbidden = |b: u8| matches!(b, b'/' | b':' | b'%' | 0x0b) || b.is_ascii_whitespace();
    if fits && !ifname.bytes().any(forbidden) {
        return Ok(());
    }
    let fix = format!("it has at most {IFNAME_MAX} bytes, no blank, `/`, `:` or `%`, and is not `.` or `..`");
    Err(CniError::new(code::BAD_ENVIRONMENT, format!("CNI_IFNAME={ifname} is no name of an interface"), fix))
}

/// What names containers and networks in the spec.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The pod's names in CNI_ARGS, `KEY=VALUE;…`; other keys are for other plugins.
fn pod_name(args: &str) -> Result<PodName, CniError> {
    let mut pod = PodName::default();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            let msg = format!("CNI_ARGS={args}: {pair:?} is no KEY=VALUE");
            return Err(CniError::new(code::BAD_ENVIRONMENT, msg, "write KEY=VALUE, with `;` between two of them"));
        };
        match key {
            "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
            "K8S_POD_NAME" => pod.name = value.into(),
            "K8S_POD_UID" => pod.uid = value.into(),
            _ => {}
        }
    }
    Ok(pod)
}

#[cfg(test)]
mod fuzz;
