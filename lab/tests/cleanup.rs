//! A lab leaves the machine as it found it: after use, after a panic, and after its process was killed.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tartan_lab::probe::wait_for;
use tartan_lab::{Census, Facts, Lab, Underlay};

/// Labs of other tests come and go meanwhile: only what names this lab counts, and the machine's own namespace.
fn trace_of(lab: &str, before: &Census) -> Vec<String> {
    let difference = Census::take().unwrap().since(before);
    let objects = difference.kinds.into_iter().flat_map(|(kind, (came, went))| {
        came.into_iter().chain(went).map(move |object| format!("{kind}: {object}")).collect::<Vec<_>>()
    });
    let of_others = |object: &String| {
        object.starts_with("namespaces") || object.starts_with("files") || object.starts_with("processes")
    };
    objects.filter(|object| object.contains(lab) || !of_others(object)).collect()
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let before = Census::take().unwrap();
    let lab = Lab::builder("leaves-nothing").nodes(2).underlay(Underlay::L2).build().unwrap();
    let there = trace_of("leaves-nothing", &before);
    assert!(there.iter().any(|o| o.contains("namespaces: tt-leaves-nothing-")), "{there:?}");
    assert!(there.iter().any(|o| o.contains("lab.json")), "{there:?}");
    drop(lab);
    assert_eq!(trace_of("leaves-nothing", &before), [""; 0]);
}

#[test]
fn a_panic_leaves_nothing() {
    let before = Census::take().unwrap();
    let panicked = std::thread::spawn(|| {
        let _lab = Lab::builder("panics").nodes(1).build().unwrap();
        panic!("on purpose");
    });
    panicked.join().unwrap_err();
    assert_eq!(trace_of("panics", &before), [""; 0]);
}

/// What a killed holder leaves: its file, its namespaces, its agents. The next lab takes it all away.
#[test]
fn leftovers_of_a_dead_process_are_removed_and_nothing_else() {
    let living = Lab::builder("living").nodes(1).build().unwrap();

    // The lab of a process that is gone: ours, forged to carry a pid that has ended.
    let mut ended = Command::new("true").spawn().unwrap();
    let dead = ended.id();
    ended.wait().unwrap();
    let facts = Facts {
        name: "dead".into(),
        pid: dead,
        started: 1,
        dir: format!("/run/tartan-lab/dead-{dead}").into(),
        members: Default::default(),
    };
    let netns = tartan_lab::Netns::create(&format!("{}n1", facts.prefix())).unwrap();
    let mut agent = Command::new("ip")
        .args(["netns", "exec", netns.name(), "cat"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let inside = || std::fs::read_link(format!("/proc/{}/ns/net", agent.id())).unwrap();
    let machine = std::fs::read_link("/proc/self/ns/net").unwrap();
    wait_for(Duration::from_secs(5), "cat to be inside", || inside() != machine).unwrap();

    // Only now is it a lab to others, and a leftover.
    std::fs::create_dir_all(&facts.dir).unwrap();
    std::fs::write(facts.dir.join("new"), serde_json::to_vec(&facts).unwrap()).unwrap();
    std::fs::rename(facts.dir.join("new"), facts.dir.join("lab.json")).unwrap();

    // A lab of any name removes it on its way up; so may a lab of a test that runs beside this one.
    let next = Lab::builder("next").nodes(1).build().unwrap();
    tartan_lab::remove(&facts).unwrap();
    let status = agent.wait().unwrap();
    assert!(!status.success(), "the process inside was killed: {status}");
    assert!(!netns.path().exists() && !facts.dir.exists(), "something of the dead lab is left");
    assert!(living.node("n1").unwrap().netns().path().exists(), "the living lab was touched");
    drop((living, next));
}

/// One whose parent has ended, in a session of its own, is what a lab would leave behind.
#[test]
fn a_process_that_was_left_behind_is_counted_until_it_ends() {
    let before = Census::take().unwrap();
    let named = ["-c", "setsid sleep 1234567 >&- 2>&- & echo $!"];
    let said = Command::new("sh").args(named).output().unwrap().stdout;
    let pid = String::from_utf8(said).unwrap().trim().parse().unwrap();
    let left = || trace_of("sleep 1234567", &before);
    let wanted = [format!("processes: {pid} sleep 1234567")];
    wait_for(Duration::from_secs(5), "sleep to be counted", || left() == wanted).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for(Duration::from_secs(5), "the end of sleep", || left().is_empty()).unwrap();
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let build = |name: &'static str| move || Lab::builder(name).nodes(2).build().unwrap();
    let (one, other) = (std::thread::spawn(build("one")), std::thread::spawn(build("other")));
    let (one, other) = (one.join().unwrap(), other.join().unwrap());
    // The same addresses on both sides; each reaches its own.
    for lab in [&one, &other] {
        let (n1, n2) = (lab.endpoint("n1").unwrap(), lab.endpoint("n2").unwrap());
        tartan_lab::probe::ping(&n1, n2.v4.into(), 84, Duration::from_secs(1)).unwrap();
    }
    drop(one);
    let (n1, n2) = (other.endpoint("n1").unwrap(), other.endpoint("n2").unwrap());
    tartan_lab::probe::ping(&n1, n2.v6.into(), 84, Duration::from_secs(1)).unwrap();
    let again = Lab::builder("other").nodes(1).build().unwrap_err();
    assert!(format!("{again:#}").contains("does not hold already"), "{again:#}");
}
