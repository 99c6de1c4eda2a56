//! The plugin's whole input: a stored one is its variables, `NAME=VALUE` a line, an empty line, and stdin. Laws: nothing
//! panics; whatever becomes a request is safe to name a file and a link after, and is in a version that has the command.

use std::collections::BTreeMap;

use super::*;

fn check(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let (variables, stdin) = text.split_once("\n\n").unwrap_or((&text, ""));
    let variables: BTreeMap<&str, &str> = variables.lines().filter_map(|line| line.split_once('=')).collect();
    let var = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    let verb = match command(&var) {
        Ok(verb) => verb,
        Err(error) => return error.to_string(),
    };
    match asked(verb, &var, stdin.as_bytes()) {
        Ok(Asked::Version(_)) => "version".into(),
        Ok(Asked::Agent(request)) => {
            let CniRequest { command, version, container, ifname, .. } = &*request;
            assert!(!container.contains(['/', '@']) && container != ".." && container.len() <= CONTAINER_ID_MAX);
            assert!(!ifname.contains('/') && ifname != ".." && ifname.len() <= IFNAME_MAX);
            assert!(*version >= command.since());
            format!("{command} in {}", version.as_str().replace(|c: char| c.is_ascii_digit(), "i"))
        }
        Err(Refused { error, .. }) => error.to_string(),
    }
}

#[test]
fn stored_inputs_of_the_plugin_keep_the_laws() {
    let outcomes = tartan_fuzz::replay("netconf", check);
    for version in Version::ALL {
        let name = format!("add-{version}");
        assert!(outcomes.iter().any(|(stored, outcome)| *stored == name && outcome.starts_with("ADD")), "{name}");
    }
    for verb in ["DEL", "CHECK", "GC", "STATUS", "version"] {
        assert!(outcomes.iter().any(|(_, outcome)| outcome.starts_with(verb)), "{verb}: {outcomes:#?}");
    }
}

#[test]
#[ignore = "runs for a while: the group `fuzz`"]
fn made_inputs_of_the_plugin_keep_the_laws() {
    tartan_fuzz::run("netconf", check);
}
