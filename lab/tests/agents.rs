//! The agent as a process: started, paused, killed, replaced. A shell script stands in for it, so that only the lab is
//! under test.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tartan_lab::{Binaries, Lab, probe};

/// A program that notes how it was called and what it sees, then lives until SIGTERM.
fn stand_in(directory: &Path, name: &str) -> PathBuf {
    let file = directory.join(name);
    let script = format!(
        "#!/bin/sh\necho \"{name} $*\"\necho links $(ls /sys/class/net)\ntrap 'echo {name} ends; exit 7' TERM\n\
         while :; do read -r line < /proc/sys/kernel/random/uuid; [ -e {}/spin ] || sleep 0.02; done\n",
        directory.display()
    );
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

fn state_of(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').next().unwrap().to_owned()
}

#[test]
fn an_agent_lives_in_its_node_and_obeys_the_lab() {
    let directory = std::env::temp_dir().join(format!("tartan-lab-agents-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let old = stand_in(&directory, "old");
    let binaries = Binaries { tartan: old.clone(), cni: old };
    let lab = Lab::builder("agents").nodes(1).binaries(binaries).build().unwrap();
    let node = lab.node("n1").unwrap();
    assert!(node.agent_pid().unwrap_err().to_string().contains("was not started"));

    let pid = node.start_agent().unwrap();
    let said = |text: &str| node.log_tail().contains(text);
    probe::wait_for(Duration::from_secs(5), "the stand-in to look around", || said("links")).unwrap();
    assert!(said(&format!("old agent --config /run/tartan-lab/agents-{}/n1/boot.yaml", std::process::id())));
    assert!(said("links eth0 lo"), "its /sys shows its own namespace:\n{}", node.log_tail());
    assert!(node.start_agent().unwrap_err().to_string().contains("runs already"));

    node.pause_agent().unwrap();
    probe::wait_for(Duration::from_secs(5), "the agent to stand still", || state_of(pid) == "T").unwrap();
    node.resume_agent().unwrap();
    probe::wait_for(Duration::from_secs(5), "the agent to go on", || state_of(pid) != "T").unwrap();

    fs::write(directory.join("spin"), "").unwrap();
    let used = || node.agent_cpu().unwrap() >= Duration::from_millis(50);
    probe::wait_for(Duration::from_secs(20), "the agent to use processor time", used).unwrap();
    fs::remove_file(directory.join("spin")).unwrap();

    assert_eq!(node.stop_agent().unwrap().code(), Some(7));
    assert!(said("old ends"));

    node.set_program(&stand_in(&directory, "new"));
    let second = node.start_agent().unwrap();
    assert_ne!(pid, second);
    probe::wait_for(Duration::from_secs(5), "the other build to start", || said("new agent")).unwrap();
    node.kill_agent().unwrap();
    assert!(!Path::new(&format!("/proc/{second}")).exists());
    assert!(!said("new ends"), "SIGKILL gives no chance to speak");

    // An agent that dies at once is told at once, with its last words.
    node.set_program(Path::new("/bin/false"));
    node.start_agent().unwrap();
    let error = format!("{:#}", node.wait_ready().unwrap_err());
    assert!(error.contains("exit status: 1") && error.contains("nsenter --net=/run/netns/tt-agents-"), "{error}");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn the_store_holds_nodes_and_configuration() {
    let mut lab = Lab::builder("store").nodes(2).fabric("vxlan").config("mtu", 1400.into()).build().unwrap();
    let read = |lab: &Lab, file: &str| -> serde_json::Value {
        serde_yaml_ng::from_str(&fs::read_to_string(lab.store_dir().join(file)).unwrap()).unwrap()
    };
    let node = read(&lab, "node.n2.yaml");
    assert_eq!(node["spec"]["podCIDRs"], serde_json::json!(["10.244.2.0/24", "fd00:10:244:2::/64"]));
    assert_eq!(node["status"]["addresses"][1]["address"], "fd30::2");
    lab.set_fabric("host-gw").unwrap();
    let config = read(&lab, "networkconfig.default.yaml");
    assert_eq!(config["spec"], serde_json::json!({"fabric": "host-gw", "mtu": 1400}));

    lab.store_away().unwrap();
    assert!(!lab.store_dir().exists());
    assert!(lab.set_fabric("vxlan").is_err());
    lab.store_back().unwrap();
    assert_eq!(read(&lab, "networkconfig.default.yaml")["spec"]["fabric"], "host-gw");
    lab.put(&serde_json::json!({"kind": "Node"})).unwrap_err();
}
