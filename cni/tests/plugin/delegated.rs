//! Calls with addresses of another plugin: who is asked when, and what is given back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::calls::{Netns, environment};
use crate::runtime::{Dir, Said, agent, call, reply, request};

/// A plugin that notes what it is asked; its configuration says whether it has an address.
const CHOOSER: &str = r#"#!/bin/sh
read -r config
echo "ipam $CNI_COMMAND" >> "$LOG"
case "$CNI_COMMAND $config" in
ADD*"no sense"*) echo '{"ips": '; exit 0;;
*"nothing left"*) echo '{"code": 11, "msg": "no address left", "details": "wait"}'; exit 1;;
ADD*) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.7/24", "gateway": "10.0.0.1"}], "dns": {}}';;
esac
"#;

/// What was asked of whom, in order, and what the runtime was told. The agent gives this answer.
fn asked(command: &str, ipam: &Value, answer: Option<Value>) -> (String, Said) {
    let (dir, netns) = (Dir::new(), Netns::new());
    let (log, program) = (dir.0.join("log"), dir.0.join("chooser"));
    std::fs::write(&program, CHOOSER).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let agent = answer.map(|answer| {
        let log = log.clone();
        agent(&dir.socket(), 1, move |stream, _| {
            let (request, _) = request(stream);
            let given = request["given"]["ips"][0]["address"].as_str().unwrap_or("nothing").to_owned();
            note(&log, &format!("agent {} {given}", request["command"].as_str().unwrap()));
            reply(stream, &answer);
        })
    });
    let stdin = json!({
        "cniVersion": "1.1.0", "name": "tartan", "type": "tartan-cni", "socket": dir.socket(), "stateDir": dir.0,
        "prevResult": {}, "cni.dev/valid-attachments": [], "ipam": ipam,
    });
    let (folder, log_name) = (dir.0.display().to_string(), log.display().to_string());
    let mut environment = environment(command, &netns.path);
    environment.extend([("CNI_PATH", &*folder), ("LOG", &log_name)]);
    let said = call(&environment, &format!("{stdin}\n"));
    if let Some(agent) = agent {
        agent.join().unwrap();
    }
    let log = std::fs::read_to_string(log).unwrap_or_default();
    (log.lines().collect::<Vec<_>>().join(", "), said)
}

fn note(log: &Path, line: &str) {
    let there = std::fs::read_to_string(log).unwrap_or_default();
    std::fs::write(log, format!("{there}{line}\n")).unwrap();
}

#[test]
fn each_is_asked_in_its_turn_and_what_is_not_used_is_given_back() {
    let ok = || json!({"result": null});
    let error = |code: u32| json!({"error": {"code": code, "msg": "no", "details": ""}});
    for (command, answer, wanted) in [
        ("ADD", ok(), "ipam ADD, agent ADD 10.0.0.7/24"),
        ("ADD", error(102), "ipam ADD, agent ADD 10.0.0.7/24, ipam DEL"),
        // Who has the interface has its addresses.
        ("ADD", error(100), "ipam ADD, agent ADD 10.0.0.7/24"),
        ("DEL", ok(), "agent DEL nothing, ipam DEL"),
        ("DEL", error(11), "agent DEL nothing"),
        ("CHECK", ok(), "ipam CHECK, agent CHECK nothing"),
        ("GC", ok(), "agent GC nothing, ipam GC"),
        ("STATUS", ok(), "agent STATUS nothing, ipam STATUS"),
    ] {
        let worked = answer.get("result").is_some();
        let (asked, said) = asked(command, &json!({"type": "chooser"}), Some(answer));
        assert_eq!((asked.as_str(), said.success), (wanted, worked), "{command}: {said:?}");
        assert!(said.stderr.is_empty(), "{said:?}");
    }
}

#[test]
fn what_the_other_plugin_refuses_the_runtime_is_told() {
    for (ipam, wanted, log) in [
        (json!({"type": "nobody"}), "ipam.type nobody: there is no such plugin in CNI_PATH=", ""),
        (json!({"type": "../chooser"}), "ipam.type \"../chooser\" is no name of a plugin", ""),
        (json!({"type": "chooser", "note": "nothing left"}), "ipam.type chooser: no address left", "ipam ADD"),
        (json!({"type": "chooser", "note": "no sense"}), "ipam.type chooser: its result: EOF", "ipam ADD, ipam DEL"),
    ] {
        let (asked, said) = asked("ADD", &ipam, None);
        assert_eq!((&*asked, said.success), (log, false), "{said:?}");
        assert!(said.json()["msg"].as_str().unwrap().starts_with(wanted), "{said:?}");
    }
    let (asked, said) = asked("DEL", &json!({"type": "nobody"}), Some(json!({"result": null})));
    assert_eq!(
        (&*asked, said.success),
        ("agent DEL nothing", false),
        "the pod goes, and what it had stays taken: {said:?}"
    );
}
