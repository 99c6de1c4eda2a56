//! A watch of a directory in which nothing happens does nothing: its thread is not woken once. A test binary of its own,
//! so that the thread can be told from others.

use std::fs;
use std::future::poll_fn;
use std::path::PathBuf;
use std::time::Duration;

use tartan_model::{Kind, StoreEvent};
use tartan_store::{FileStore, Store};

/// How often the threads that watch have been woken so far.
fn wakes() -> u64 {
    let mut threads = 0;
    let mut wakes = 0;
    for task in fs::read_dir("/proc/self/task").expect("Linux has it") {
        let path: PathBuf = task.expect("a task of ours").path();
        let (Ok(name), Ok(status)) = (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("status")))
        else {
            continue;
        };
        if name.trim() == "file-store" {
            threads += 1;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            wakes += line.expect("Linux says it").trim().parse::<u64>().expect("a number");
        }
    }
    assert_eq!(threads, 1, "the test watches once");
    wakes
}

#[tokio::test]
async fn an_idle_watch_sleeps() {
    let dir = std::env::temp_dir().join(format!("tartan-store-quiet-{}", std::process::id()));
    fs::create_dir(&dir).expect("a directory of this name is new");
    let mut stream = FileStore::new(&dir).watch(&[Kind::Node]);
    while poll_fn(|cx| stream.as_mut().poll_next(cx)).await != Some(StoreEvent::Synced(Kind::Node)) {}
    // It may still be on its way into poll(2).
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = wakes();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let after = wakes();
    fs::remove_dir_all(&dir).expect("it is ours");
    assert_eq!(after - before, 0, "wakes in a quiet second");
}
