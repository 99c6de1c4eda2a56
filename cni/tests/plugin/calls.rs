//! Calls of the plugin with an agent that answers, errs, dies, talks nonsense or is not there.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::runtime::{Dir, agent, call, reply, request};

/// A network namespace that is not the node's own, as long as this lives.
pub(crate) struct Netns {
    pub(crate) path: String,
    _end: mpsc::Sender<()>,
}

impl Netns {
    pub(crate) fn new() -> Netns {
        let (end, ended) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        std::thread::spawn(move || {
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            say.send(made.map(|()| nix::unistd::gettid())).unwrap();
            // Ends with the other end of the channel.
            let _ended = ended.recv();
        });
        let thread = said.recv().unwrap().expect("network namespaces need root: run the tests as root");
        Netns { path: format!("/proc/{}/task/{thread}/ns/net", std::process::id()), _end: end }
    }
}

fn netconf(dir: &Dir, version: &str) -> String {
    json!({
        "cniVersion": version, "name": "tartan", "type": "tartan-cni", "socket": dir.socket(), "stateDir": dir.0,
        "prevResult": {}, "cni.dev/valid-attachments": [],
    })
    .to_string()
}

pub(crate) fn environment<'a>(command: &'a str, netns: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut environment = vec![("CNI_COMMAND", command)];
    if !["GC", "STATUS", "VERSION"].contains(&command) {
        environment.extend([("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns)]);
    }
    environment
}

#[test]
fn an_add_carries_all_that_the_runtime_said_and_the_namespace_itself() {
    let (dir, netns) = (Dir::new(), Netns::new());
    let (seen, see) = mpsc::channel();
    let agent = agent(&dir.socket(), 1, move |stream, _| {
        let (request, fd) = request(stream);
        let inode = fd.map(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino());
        seen.send((request, inode)).unwrap();
        reply(stream, &json!({"result": {"cniVersion": "1.1.0", "ips": []}}));
    });
    let stdin = json!({
        "cniVersion": "1.1.0", "name": "tartan", "type": "tartan-cni", "socket": dir.socket(), "stateDir": dir.0,
        "capabilities": {"mac": true}, "unheard-of": [1, 2],
        "runtimeConfig": {
            "mac": "02:00:5e:10:00:01",
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""}],
        },
        "dns": {"search": ["shop"]},
    });
    let args =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u=1;K8S_POD_INFRA_CONTAINER_ID=c1";
    let mut environment = environment("ADD", &netns.path);
    environment.extend([("CNI_ARGS", args), ("CNI_PATH", "/opt/cni/bin")]);
    let said = call(&environment, &stdin.to_string());
    assert!(said.success && said.stderr.is_empty(), "{said:?}");
    assert_eq!(said.json(), json!({"cniVersion": "1.1.0", "ips": []}));
    let (request, inode) = see.recv().unwrap();
    let stat = File::open(&netns.path).unwrap().metadata().unwrap();
    assert_eq!(inode, Some(stat.ino()));
    let expected = [
        ("ask", json!("cni")),
        ("command", json!("ADD")),
        ("version", json!("1.1.0")),
        ("container", json!("c1")),
        ("ifname", json!("eth0")),
        ("netns", json!({"path": netns.path, "dev": stat.dev(), "ino": stat.ino()})),
        ("pod", json!({"namespace": "shop", "name": "web-1", "uid": "u=1"})),
    ];
    for (key, value) in expected {
        assert_eq!(request[key], value, "{key}");
    }
    for key in ["mac", "portMappings"] {
        assert_eq!(request["netconf"]["runtimeConfig"][key], stdin["runtimeConfig"][key], "{key}");
    }
    assert_eq!(request["netconf"]["dns"], stdin["dns"]);
    agent.join().unwrap();
}

#[test]
fn what_the_agent_says_is_said_to_the_runtime() {
    let netns = Netns::new();
    let result = json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.244.1.9/32"}]});
    let error =
        json!({"code": 101, "msg": "port 80/tcp of this node belongs to pod shop/web", "details": "give it up"});
    let mut printed = error.clone();
    printed["cniVersion"] = json!("0.4.0");
    let rows = [
        ("ADD", json!({"result": result}), true, Some(result)),
        ("ADD", json!({"error": error}), false, Some(printed.clone())),
        ("DEL", json!({"result": null}), true, None),
        ("DEL", json!({"error": error}), false, Some(printed.clone())),
        ("CHECK", json!({"result": null}), true, None),
        ("CHECK", json!({"error": error}), false, Some(printed)),
    ];
    for (command, answer, success, output) in rows {
        let dir = Dir::new();
        let agent = agent(&dir.socket(), 1, move |stream, _| {
            request(stream);
            reply(stream, &answer);
        });
        let said = call(&environment(command, &netns.path), &netconf(&dir, "0.4.0"));
        assert_eq!(said.success, success, "{command} {said:?}");
        match output {
            Some(output) => assert_eq!(said.json(), output, "{command}"),
            None => assert_eq!(said.stdout, "", "{command}"),
        }
        assert!(dir.pending().is_empty());
        agent.join().unwrap();
    }
}

#[test]
fn gc_and_status_need_no_container() {
    for command in ["GC", "STATUS"] {
        let dir = Dir::new();
        let agent = agent(&dir.socket(), 1, move |stream, _| {
            let (request, fd) = request(stream);
            assert_eq!((&request["command"], &request["netns"], fd), (&json!(command), &Value::Null, None));
            reply(stream, &json!({"result": null}));
        });
        let said = call(&environment(command, ""), &netconf(&dir, "1.1.0"));
        assert!(said.success && said.stdout.is_empty(), "{said:?}");
        agent.join().unwrap();
    }
}

#[test]
fn version_echoes_the_version_and_asks_nobody() {
    let supported = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let rows = [
        (r#"{"cniVersion": "1.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion": "0.3.1", "name": "x"}"#, "0.3.1"),
        (r#"{"cniVersion": "7.0.0"}"#, "7.0.0"),
        ("{}", "0.1.0"),
        ("", "1.1.0"),
    ];
    for (stdin, echoed) in rows {
        let said = call(&[("CNI_COMMAND", "VERSION")], stdin);
        assert!(said.success, "{said:?}");
        assert_eq!(said.json(), json!({"cniVersion": echoed, "supportedVersions": supported}), "{stdin}");
    }
}

/// Without an agent; `stale` leaves a socket that nobody listens on.
#[track_caller]
fn check_down(command: &str, stale: bool, code: Option<u64>, pending: &[&str]) {
    let (dir, netns) = (Dir::new(), Netns::new());
    if stale {
        drop(UnixListener::bind(dir.socket()).unwrap());
    }
    // Once is enough: what else runs on the machine is not the plugin's fault.
    let mut took = Vec::new();
    while took.last().is_none_or(|last| *last >= Duration::from_millis(100)) {
        assert!(took.len() < 10, "{command}: {took:?}");
        let said = call(&environment(command, &netns.path), &netconf(&dir, "1.1.0"));
        match code {
            Some(code) => assert_eq!((said.success, said.json()["code"].as_u64()), (false, Some(code)), "{said:?}"),
            None => assert!(said.success && said.stdout.is_empty(), "{said:?}"),
        }
        assert_eq!(dir.pending(), pending, "{command}");
        took.push(said.took);
    }
}

#[test]
fn without_an_agent_del_succeeds_and_the_others_say_so_at_once() {
    for stale in [false, true] {
        check_down("ADD", stale, Some(11), &[]);
        check_down("CHECK", stale, Some(11), &[]);
        check_down("GC", stale, Some(11), &[]);
        check_down("DEL", stale, None, &["c1@eth0"]);
    }
}

/// Runtimes take a node whose STATUS fails out of service, with all its pods: the time between two agents is no reason.
#[test]
fn a_status_waits_for_the_next_agent() {
    let dir = Dir::new();
    let agent = agent(&dir.socket(), 3, |stream, number| match number {
        0 => drop(request(stream)),
        1 => {
            request(stream);
            reply(stream, &json!({"error": {"code": 50, "msg": "the store was not read yet", "details": ""}}));
        }
        _ => {
            request(stream);
            reply(stream, &json!({"result": null}));
        }
    });
    let said = call(&environment("STATUS", ""), &netconf(&dir, "1.1.0"));
    assert!(said.success && said.stdout.is_empty(), "{said:?}");
    agent.join().unwrap();
}

#[test]
fn a_status_does_not_wait_for_ever_nor_with_what_is_broken() {
    let dir = Dir::new();
    let said = call(&environment("STATUS", ""), &netconf(&dir, "1.1.0"));
    assert_eq!((said.success, said.json()["code"].as_u64()), (false, Some(50)), "{said:?}");
    assert!((10..15).contains(&said.took.as_secs()), "{:?}", said.took);

    let agent = agent(&dir.socket(), 1, |stream, _| {
        request(stream);
        reply(stream, &json!({"error": {"code": 51, "msg": "no pod works", "details": ""}}));
    });
    let said = call(&environment("STATUS", ""), &netconf(&dir, "1.1.0"));
    assert_eq!((said.success, said.json()["code"].as_u64()), (false, Some(51)), "{said:?}");
    agent.join().unwrap();
}

#[test]
fn a_del_needs_no_namespace() {
    for netns in [None, Some(""), Some("/run/netns/long-gone")] {
        let dir = Dir::new();
        let mut environment = vec![("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
        environment.extend(netns.map(|netns| ("CNI_NETNS", netns)));
        let stdin = json!({"cniVersion": "1.1.0", "name": "t", "socket": dir.socket(), "stateDir": dir.0});
        for _again in 0..2 {
            let said = call(&environment, &stdin.to_string());
            assert!(said.success && said.stdout.is_empty(), "{said:?}");
        }
        assert_eq!(dir.pending(), ["c1@eth0"]);
    }
}

/// It is gone when it is asked for the first time, and there when it is for the second.
fn agent_that_comes_up(dir: &Dir) -> std::thread::JoinHandle<()> {
    agent(&dir.socket(), 2, |stream, number| {
        request(stream);
        if number == 1 {
            reply(stream, &json!({"result": null}));
        }
    })
}

#[test]
fn a_del_that_cannot_be_noted_is_to_be_tried_again() {
    let dir = Dir::new();
    std::fs::write(dir.0.join("pending-del"), "a file in the way").unwrap();
    let said = call(&environment("DEL", ""), &netconf(&dir, "1.1.0"));
    let msg = format!("the agent is down, and DEL cannot be noted in {}/pending-del: ", dir.0.display());
    assert_eq!((said.success, said.json()["code"].as_u64()), (false, Some(11)));
    assert!(said.json()["msg"].as_str().unwrap().starts_with(&msg), "{said:?}");
    // Nothing has to be noted for an agent that comes up in between.
    let agent = agent_that_comes_up(&dir);
    let said = call(&environment("DEL", ""), &netconf(&dir, "1.1.0"));
    assert!(said.success, "{said:?}");
    agent.join().unwrap();
}

#[test]
fn an_agent_that_dies_before_it_answers_was_down() {
    let netns = Netns::new();
    for (command, code) in [("ADD", Some(11)), ("CHECK", Some(11)), ("DEL", None)] {
        let dir = Dir::new();
        let socket = dir.socket();
        let agent = agent(&dir.socket(), 1, move |stream, _| {
            request(stream);
            std::fs::remove_file(&socket).unwrap();
        });
        let said = call(&environment(command, &netns.path), &netconf(&dir, "1.1.0"));
        match code {
            Some(code) => assert_eq!(said.json()["code"], code, "{said:?}"),
            None => assert!(said.success, "{said:?}"),
        }
        // Of ADD only the answer may be missing: the next agent takes back what it finds of it.
        assert_eq!(dir.pending(), if command == "CHECK" { vec![] } else { vec!["c1@eth0"] }, "{command}");
        agent.join().unwrap();
    }
}

#[test]
fn an_agent_that_comes_up_in_between_is_asked_and_the_note_taken_back() {
    let dir = Dir::new();
    let agent = agent_that_comes_up(&dir);
    let said = call(&environment("DEL", ""), &netconf(&dir, "1.1.0"));
    assert!(said.success, "{said:?}");
    assert!(dir.pending().is_empty());
    agent.join().unwrap();
}

#[test]
fn nonsense_from_the_agent_is_an_error() {
    let netns = Netns::new();
    let framed = |body: &str| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body.as_bytes()].concat();
    let rows: [(Vec<u8>, &str); 7] = [
        (
            framed("HTTP/1.1 400"),
            "cannot be talked to: not a message of Tartan's socket: expected value at line 1 column 1",
        ),
        (framed("{}"), "cannot be talked to: not a message of Tartan's socket: expected value at line 1 column 2"),
        (
            framed(r#"{"answer": 7}"#),
            "cannot be talked to: not a message of Tartan's socket: unknown variant `answer`, expected `result` or `error` at line 1 column 9",
        ),
        (
            framed(r#"{"error": {"code": "x"}}"#),
            "cannot be talked to: not a message of Tartan's socket: invalid type: string \"x\", expected u32 at line 1 column 22",
        ),
        (vec![0xff; 4], "cannot be talked to: a message of 4294967295 bytes; the most is 1048576"),
        (vec![0, 0, 0, 9, b'{'], "went away before it answered: unexpected end of file"),
        (vec![0, 0], "went away before it answered: unexpected end of file"),
    ];
    for (bytes, why) in rows {
        let dir = Dir::new();
        let agent = agent(&dir.socket(), 1, move |stream, _| {
            use std::io::Write;
            request(stream);
            stream.write_all(&bytes).unwrap();
        });
        let said = call(&environment("ADD", &netns.path), &netconf(&dir, "1.1.0"));
        assert!(!said.success);
        assert_eq!(said.json()["msg"], format!("the agent at {} {why}", dir.socket().display()));
        agent.join().unwrap();
    }
}

#[test]
fn two_hundred_calls_at_once_each_get_their_own_answer() {
    let (dir, netns) = (Dir::new(), Netns::new());
    let listener = UnixListener::bind(dir.socket()).unwrap();
    let agent = std::thread::spawn(move || {
        for _ in 0..200 {
            let (mut stream, _) = listener.accept().unwrap();
            std::thread::spawn(move || {
                let (request, _) = request(&stream);
                reply(&mut stream, &json!({"result": {"container": request["container"]}}));
            });
        }
    });
    let netconf = netconf(&dir, "1.1.0");
    std::thread::scope(|scope| {
        for worker in 0..20 {
            let (netconf, netns) = (&netconf, &netns);
            scope.spawn(move || {
                for number in 0..10 {
                    let container = format!("c{worker}-{number}");
                    let mut environment = environment("ADD", &netns.path);
                    environment[1] = ("CNI_CONTAINERID", &container);
                    let said = call(&environment, netconf);
                    assert!(said.success, "{said:?}");
                    assert_eq!(said.json()["container"], container);
                }
            });
        }
    });
    agent.join().unwrap();
}
