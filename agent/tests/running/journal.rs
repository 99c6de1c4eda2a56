//! What the journal says of pods that have gone, whatever became of agent and disk.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tartan_api::cni::{Command, code};

use crate::rig::{NAMESPACE, Rig, Running, addresses, link, pod, request};

async fn pods(agent: &Running) -> Vec<String> {
    agent.status().await.pods.iter().map(|pod| pod.pod.split('/').next_back().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn noted_dels_are_carried_out_at_once_and_undo_no_later_add() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    for name in ["a", "b"] {
        agent.add(name).await;
    }
    agent.kill().await;
    let agent = rig.ready().await;
    // What the kernel does not do may take any time.
    rig.kernel.pause();
    let written = agent.noted(&["a", "b", "never"]).await;
    let anew = agent.call(Command::Add, "a").await;
    written.await.expect("the journal has them");
    assert_eq!(pods(&agent).await, ["a"]);
    rig.kernel.resume();
    anew.await.unwrap().expect("the next one of its name is not the one that is gone");
    agent.kill().await;
    let agent = rig.ready().await;
    assert_eq!(pods(&agent).await, ["a"]);
    agent.until("the other one is gone", |_| rig.kernel.state().get(&link("b")).is_none()).await;
    agent.kill().await;
}

#[tokio::test]
async fn what_an_unfinished_add_had_and_is_not_to_have_again_rests() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    rig.kernel.pause();
    let first = agent.call(Command::Add, "a").await;
    let mut other = request(Command::Add, "a");
    let wanted = ["10.127.0.9", "fd00:10:127::9"];
    other.netconf.runtime_config.ips = wanted.map(String::from).into();
    let other = agent.ask(other).await;
    let first = first.await.unwrap().unwrap_err();
    assert!(first.code == code::TRY_LATER && first.details.contains("again for other addresses"), "{first:?}");
    rig.kernel.resume();
    assert_eq!(addresses(&other.await.unwrap().unwrap()), wanted.map(|ip| ip.parse::<IpAddr>().unwrap()));
    agent.kill().await;
    let agent = rig.ready().await;
    let next = ["10.127.0.2", "fd00:10:127::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(agent.add("b").await, next, "the lowest that has rested");
    agent.stop().await.unwrap();
}

/// A file that takes all the room there is.
struct Filler(PathBuf, File);

impl Filler {
    fn on(dir: &Path) -> Filler {
        let path = dir.join("filler");
        let file = File::create(&path).unwrap();
        Filler(path, file)
    }

    fn fill(&mut self) {
        while self.1.write(&[0; 4096]).is_ok() {}
    }

    fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }
}

/// On a disk of its own, seen by this thread and those that it starts.
fn on_a_small_disk(dir: &Path) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a tmpfs in a mount namespace of its own: run it as root"
    );
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
}

#[tokio::test]
async fn an_end_that_a_full_disk_does_not_take_is_written_later() {
    let rig = Rig::new().await;
    on_a_small_disk(&rig.dir);
    let names: Vec<String> = (10..60).map(|number| format!("p{number}")).collect();
    for name in &names {
        rig.put_pod(name, pod("n1")).await;
    }
    let agent = rig.ready().await;
    rig.kernel.fail(link("bad"), Some(Errno::EBUSY));
    rig.kernel.pause();
    let bad = agent.call(Command::Add, "bad").await;
    rig.snapshot("all pods", |world| names.iter().all(|name| world.pods.contains_key(&*format!("{NAMESPACE}/{name}"))))
        .await;
    let mut filler = Filler::on(&rig.dir);
    // The journal's last page has room: for some more pods, then for the ends of some.
    let (mut waiting, mut refused) = (Vec::new(), None);
    for name in &names {
        filler.fill();
        let mut answer = agent.call(Command::Add, name).await;
        agent.look().await;
        match answer.try_recv() {
            Ok(answer) => {
                refused = Some(answer.unwrap_err());
                break;
            }
            Err(_) => waiting.push((name, answer)),
        }
    }
    let refused = refused.expect("the disk is full");
    assert!(refused.code == code::TRY_LATER && refused.to_string().contains("journal"), "{refused}");
    let mut ended = Vec::new();
    for (name, _) in &waiting {
        filler.fill();
        let mut answer = agent.call(Command::Del, name).await;
        agent.look().await;
        if answer.try_recv().is_ok() {
            break;
        }
        ended.push(*name);
    }
    assert!(ended.len() < waiting.len(), "all the ends of {} pods have found room", waiting.len());
    rig.kernel.resume();
    assert_eq!(bad.await.unwrap().unwrap_err().code, code::IO);
    let is_said = |status: &tartan_api::status::Status| {
        status
            .conditions
            .iter()
            .any(|said| said.reason == "JournalNotWritten" && said.message.contains("No space left"))
    };
    agent.until("it is said", is_said).await;
    assert!(agent.look().await.counters.owed > 0);
    let again = agent.cni(Command::Del, "bad").await.unwrap_err();
    assert_eq!(again.code, code::TRY_LATER, "an agent that starts now would know it again");
    filler.remove();
    agent.until("it is written", |status| !is_said(status)).await;
    agent.cni(Command::Del, "bad").await.expect("it is gone for good");
    agent.kill().await;
    let agent = rig.ready().await;
    assert!(!pods(&agent).await.contains(&"bad".to_owned()));
    agent.kill().await;
    umount2(&rig.dir, MntFlags::MNT_DETACH).unwrap();
}
