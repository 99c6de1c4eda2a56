//! The file store as its users know it: a directory, an editor, and several processes.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tartan_model::World;

use super::*;
use crate::conformance::{self, Rig, Watching};

mod twin;

/// A directory of its own, gone with the test; `away` is where it is moved to.
struct Dir {
    root: PathBuf,
    dir: PathBuf,
    away: PathBuf,
}

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("tartan-store-{}-{count}", std::process::id()));
        let dir = root.join("parent/store");
        fs::create_dir_all(&dir).unwrap();
        Dir { away: root.join("away"), root, dir }
    }

    fn holding(files: &[(&str, &str)]) -> Dir {
        let dir = Dir::new();
        files.iter().for_each(|(name, text)| dir.write(name, text));
        dir
    }

    fn handle(&self) -> FileStore {
        FileStore::new(&self.dir)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        Directory::open(&self.dir).unwrap().names().unwrap().iter().map(ToString::to_string).collect()
    }

    /// The file that holds the object, wherever the directory is now.
    fn file_of(&self, id: &ObjectId) -> PathBuf {
        let dir = if self.dir.exists() { &self.dir } else { &self.away };
        dir.join(format!("{}.{}.yaml", id.kind.as_str().to_lowercase(), id.name))
    }
}

#[test]
fn a_file_is_as_it_was_if_all_its_bytes_are() {
    let dir = Dir::new();
    let of = Directory::open(&dir.dir).unwrap();
    for length in [0, 1, 8191, 8192, 8193, 100_000] {
        let text = "x".repeat(length);
        dir.write("pods.yaml", &text);
        let is_still = |text: &str| watch::is_still(&of, "pods.yaml", &view::hash(text.as_bytes()));
        assert!(is_still(&text), "{length} bytes");
        assert!(!is_still(&format!("{text}x")), "{length} bytes are not one more");
        assert!(length == 0 || !is_still(&format!("{}y", &text[1..])), "the last of {length} is another");
    }
    fs::remove_file(dir.dir.join("pods.yaml")).unwrap();
    assert!(!watch::is_still(&of, "pods.yaml", &view::hash(b"")), "it is gone");
}

impl Drop for Dir {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.root);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

impl Rig for Dir {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.handle())
    }

    fn go_away(&self) {
        fs::rename(&self.dir, &self.away).unwrap();
    }

    fn come_back(&self) {
        fs::rename(&self.away, &self.dir).unwrap();
    }

    fn vanish(&self, id: &ObjectId) {
        fs::remove_file(self.file_of(id)).unwrap();
    }

    fn spoil(&self, id: &ObjectId) {
        let text = fs::read_to_string(self.file_of(id)).unwrap();
        fs::write(self.file_of(id), text.replace("cidr: ", "cidr: spoiled ")).unwrap();
    }

    fn mend(&self, id: &ObjectId) {
        let text = fs::read_to_string(self.file_of(id)).unwrap();
        fs::write(self.file_of(id), text.replace("cidr: spoiled ", "cidr: ")).unwrap();
    }
}

fn watch(dir: &Dir) -> Watching {
    Watching::of(&dir.handle(), &Kind::ALL)
}

async fn until_pools(watching: &mut Watching, wanted: &[&str]) {
    let names = |world: &World| world.pools.keys().map(|name| &**name).eq(wanted.iter().copied());
    watching.until(&format!("pools {wanted:?}"), names).await;
}

fn pool(name: &str, seed: u8) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: {name}\nspec:\n  cidr: 10.{seed}.0.0/16\n"
    )
}

fn id(name: &str) -> ObjectId {
    conformance::pool(name, 0).0
}

fn message(world: &World, id: &ObjectId) -> String {
    world.invalid.get(id).map(|condition| condition.message.clone()).unwrap_or_default()
}

#[tokio::test]
async fn conforms() {
    conformance::conformance(Dir::new).await;
}

#[tokio::test]
async fn users_edit_files() {
    let dir =
        Dir::holding(&[("pools.yaml", &format!("{}---\n{}", pool("a", 1), pool("b", 2))), ("notes.txt", "kind: no")]);
    let mut watching = watch(&dir);
    until_pools(&mut watching, &["a", "b"]).await;
    dir.write("more.yml", &pool("c", 3));
    until_pools(&mut watching, &["a", "b", "c"]).await;
    dir.write("pools.yaml", &pool("b", 2));
    until_pools(&mut watching, &["b", "c"]).await;
    fs::rename(dir.dir.join("more.yml"), dir.dir.join("more.off")).unwrap();
    until_pools(&mut watching, &["b"]).await;
    fs::hard_link(dir.dir.join("more.off"), dir.dir.join("linked.yaml")).unwrap();
    until_pools(&mut watching, &["b", "c"]).await;
    fs::remove_file(dir.dir.join("pools.yaml")).unwrap();
    until_pools(&mut watching, &["c"]).await;
}

#[tokio::test]
async fn a_broken_file_keeps_all_its_objects() {
    let both = format!("{}---\n{}", pool("a", 1), pool("b", 2));
    let dir = Dir::holding(&[("pools.yaml", &both)]);
    let mut watching = watch(&dir);
    until_pools(&mut watching, &["a", "b"]).await;
    // what is written, what is said of `a`, what is said of `b`
    let table = [
        (
            both.replace("10.2.0.0/16", "10.2.0.0/99"),
            "",
            "pools.yaml:13: spec.cidr is `10.2.0.0/99`: not an address range",
        ),
        (both.replace("name: b", "{"), "", "pools.yaml:13: did not find expected"),
        (both.replace("kind: IPPool", "kind: IPPol"), "does not read objects of kind IPPol", "IPPol"),
        (String::new(), "pools.yaml: the file is empty", "pools.yaml: the file is empty"),
        (format!("\u{0}{both}"), "pools.yaml:1: ", ""),
    ];
    for (text, of_a, of_b) in table {
        dir.write("pools.yaml", &text);
        let said = |world: &World, name: &str, text: &str| {
            let message = message(world, &id(name));
            if text.is_empty() { message.is_empty() } else { message.contains(text) }
        };
        watching
            .until(&format!("{of_a:?} and {of_b:?}"), |world| said(world, "a", of_a) && said(world, "b", of_b))
            .await;
        assert_eq!(watching.pools(), ["a", "b"]);
        dir.write("pools.yaml", &both);
        watching.until("mended", |world| world.invalid.is_empty() && world.notices.is_empty()).await;
    }
    fs::remove_file(dir.dir.join("pools.yaml")).unwrap();
    until_pools(&mut watching, &[]).await;
}

#[tokio::test]
async fn what_was_never_read_holds_up_the_first_list() {
    let dir =
        Dir::holding(&[("a.yaml", &pool("a", 1)), ("b.yaml", "kind: IPPool\nmeta"), ("values.yaml", "replicas: 3\n")]);
    fs::create_dir(dir.dir.join("c.yaml")).unwrap();
    let mut watching = watch(&dir);
    watching.until("a notice", |world| world.notices.contains_key("b.yaml")).await;
    assert_eq!(watching.pools(), ["a"]);
    assert!(!watching.world.is_synced(Kind::IpPool), "b.yaml may hold anything");
    dir.write("b.yaml", &pool("b", 2));
    until_pools(&mut watching, &["a", "b"]).await;
    assert!(!watching.world.is_synced(Kind::IpPool) && watching.world.notices.contains_key("c.yaml"));
    fs::remove_dir(dir.dir.join("c.yaml")).unwrap();
    watching.until("the list", |world| world.is_synced(Kind::IpPool)).await;
    assert_eq!(watching.pools(), ["a", "b"]);
    let noticed: Vec<&str> = watching.world.notices.keys().map(|file| &**file).collect();
    assert_eq!(noticed, ["values.yaml"], "which is no object's beginning, so that nothing waits for it");
}

#[tokio::test]
async fn the_first_of_two_files_counts() {
    let dir = Dir::holding(&[("b.yaml", &pool("a", 2)), ("c.yaml", &pool("a", 3))]);
    let mut watching = watch(&dir);
    let third = |world: &World, seed: u8| {
        world.pools.get("a").is_some_and(|pool| pool.cidr.to_string() == format!("10.{seed}.0.0/16"))
    };
    watching.until("the first", |world| third(world, 2) && world.notices.contains_key("c.yaml")).await;
    let said = &watching.world.notices["c.yaml"][0];
    assert_eq!(said.message, "IPPool/a is in b.yaml, which counts, and again in c.yaml");
    dir.write("a.yaml", &pool("a", 1));
    watching.until("one before it", |world| third(world, 1) && world.notices.contains_key("b.yaml")).await;
    fs::remove_file(dir.dir.join("a.yaml")).unwrap();
    fs::remove_file(dir.dir.join("b.yaml")).unwrap();
    watching.until("the last", |world| third(world, 3) && world.notices.is_empty()).await;
    dir.handle().delete(id("a"), Expect::Any).await.unwrap();
    until_pools(&mut watching, &[]).await;
}

#[tokio::test]
async fn the_directory_comes_and_goes() {
    let dir = Dir::holding(&[("a.yaml", &pool("a", 1))]);
    let nested = dir.root.join("x/y/z");
    let mut missing = Watching::of(&FileStore::new(&nested), &Kind::ALL);
    let mut watching = watch(&dir);
    until_pools(&mut watching, &["a"]).await;
    // Moved away under its parent's feet, and back.
    fs::create_dir(&dir.away).unwrap();
    fs::rename(&dir.dir, dir.away.join("store")).unwrap();
    watching.until("away", |world| world.store_away().is_some()).await;
    fs::rename(dir.away.join("store"), &dir.dir).unwrap();
    watching.until("back", |world| world.store_away().is_none()).await;
    // An empty one in its place: this could be a lost mount.
    fs::rename(&dir.dir, dir.away.join("store")).unwrap();
    watching.until("away", |world| world.store_away().is_some()).await;
    fs::create_dir(&dir.dir).unwrap();
    watching.until("doubt", |world| world.store_away().as_ref().is_some_and(|why| why.contains("not mounted"))).await;
    assert_eq!(watching.pools(), ["a"]);
    dir.write("b.yaml", &pool("b", 2));
    until_pools(&mut watching, &["b"]).await;
    // One that was never there.
    assert!(matches!(missing.next().await, StoreEvent::Away(..)));
    fs::create_dir_all(&nested).unwrap();
    fs::write(nested.join("c.yaml"), pool("c", 3)).unwrap();
    until_pools(&mut missing, &["c"]).await;
}

#[tokio::test]
async fn what_was_moved_with_its_directory_is_not_gone() {
    let names: Vec<String> = (0..200).map(|n| format!("p{n}")).collect();
    let dir = Dir::new();
    let write = || names.iter().for_each(|name| dir.write(&format!("{name}.yaml"), &pool(name, 1)));
    write();
    let mut watching = watch(&dir);
    watching.until("all", |world| world.pools.len() == names.len()).await;
    for _ in 0..20 {
        // One while it is read for what was written, one while it is listed.
        write();
        dir.go_away();
        dir.come_back();
        dir.go_away();
        watching.until("away", |world| world.store_away().is_some()).await;
        assert_eq!(watching.pools().len(), names.len());
        dir.come_back();
        watching.until("back", |world| world.store_away().is_none()).await;
        assert_eq!(watching.pools().len(), names.len());
    }
}

#[tokio::test]
async fn a_moved_ancestor_is_noticed() {
    let dir = Dir::holding(&[("a.yaml", &pool("a", 1))]);
    let [parent, elsewhere] = ["parent", "elsewhere"].map(|name| dir.root.join(name));
    let mut watching = watch(&dir);
    until_pools(&mut watching, &["a"]).await;
    fs::rename(&parent, &elsewhere).unwrap();
    watching.until("away", |world| world.store_away().is_some()).await;
    fs::rename(&elsewhere, &parent).unwrap();
    watching.until("back", |world| world.store_away().is_none()).await;
}

#[tokio::test]
async fn a_flood_of_changes_is_read_anew() {
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    let many: String = (0..1500).map(|n| format!("---\n{}", pool(&format!("p{n}"), 1))).collect();
    let dir = Dir::holding(&[("many.yaml", &many)]);
    let mut watching = watch(&dir);
    assert_eq!(watching.next().await, StoreEvent::Init(Kind::Node));
    // The list is longer than the watch reads ahead: it waits for us, and changes pile up until the kernel drops them.
    for n in 0..=most {
        dir.write(if n % 2 == 0 { "a.yaml" } else { "b.yaml" }, "# nothing\n");
    }
    fs::remove_file(dir.dir.join("many.yaml")).unwrap();
    dir.write("last.yaml", &pool("last", 1));
    until_pools(&mut watching, &["last"]).await;
}

#[tokio::test]
async fn writes_go_where_the_object_is() {
    let users = format!(
        "# Pools of the cluster.\n{}  disableBGPExport: true # not ours\n---\n# Second.\n{}",
        pool("a", 1),
        pool("b", 2)
    );
    let dir = Dir::holding(&[("pools.yaml", &users)]);
    let store = dir.handle();
    let (a, changed) = conformance::pool("a", 7);
    store.put(a.clone(), changed, Expect::Any).await.unwrap();
    let text = dir.read("pools.yaml");
    for kept in
        ["# Pools of the cluster.\n", "disableBGPExport: true", "\n---\n# Second.\n", &pool("b", 2), "10.7.0.0/16"]
    {
        assert!(text.contains(kept), "{kept:?} is not in\n{text}");
    }
    let (c, new) = conformance::pool("c", 3);
    store.put(c, new, Expect::Absent).await.unwrap();
    assert_eq!(dir.names(), ["ippool.c.yaml", "pools.yaml"]);
    store.delete(id("b"), Expect::Any).await.unwrap();
    assert!(!dir.read("pools.yaml").contains("---"));
    store.delete(a, Expect::Any).await.unwrap();
    assert_eq!(dir.names(), ["ippool.c.yaml"]);
}

#[tokio::test]
async fn what_is_in_the_way_is_refused() {
    let dir = Dir::holding(&[("ippool.a.yaml", &pool("b", 1)), ("elsewhere", &pool("c", 2))]);
    std::os::unix::fs::symlink(dir.dir.join("elsewhere"), dir.dir.join("c.yaml")).unwrap();
    for (name, why) in [("a", "ippool.a.yaml is in the way"), ("c", "symbolic link")] {
        let (id, object) = conformance::pool(name, 3);
        match dir.handle().put(id, object, Expect::Any).await {
            Err(WriteError::Refused(_, text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let read: Vec<String> = texts(&dir.dir).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(read, ["c.yaml", "ippool.a.yaml"], "a link is read as what it leads to");
}

#[tokio::test]
async fn an_object_is_found_in_whatever_file_holds_it() {
    let files = ["pools.yaml", "pools.yml", "ippool.0.yaml", "ippool.a.yaml", "ippool.b.yaml", "node.a.yaml"];
    for file in files {
        let dir = Dir::holding(&[(file, &format!("{}---\n{}", pool("a", 1), pool("b", 2))), ("ippool.c.yaml", "# c")]);
        let mut watching = watch(&dir);
        until_pools(&mut watching, &["a", "b"]).await;
        for name in ["a", "b"] {
            let seen = watching.world.revisions[&id(name)].clone();
            let (id, object) = conformance::pool(name, 7);
            let anew = dir.handle().put(id.clone(), object.clone(), Expect::Absent).await;
            assert_eq!(anew, Err(WriteError::Conflict(id.clone())), "{file}");
            let written = dir.handle().put(id.clone(), object, Expect::At(seen)).await.expect(file);
            watching.until(file, |world| world.revisions.get(&id) == Some(&written)).await;
        }
        let mut both = vec!["ippool.c.yaml", file];
        both.sort_unstable();
        assert_eq!(dir.names(), both);
        for name in ["a", "b"] {
            dir.handle().delete(id(name), Expect::Any).await.expect(file);
        }
        assert_eq!(dir.names(), ["ippool.c.yaml"], "{file}");
    }
}

#[tokio::test]
async fn what_is_no_file_is_named_and_holds_nobody_up() {
    type Make = fn(&Path);
    let table: [(&str, Make); 3] = [
        ("named pipe", |at| mkfifo(at, Mode::S_IRWXU).unwrap()),
        ("directory", |at| fs::create_dir(at).unwrap()),
        ("socket", |at| drop(UnixListener::bind(at).unwrap())),
    ];
    for (what, make) in table {
        let dir = Dir::holding(&[("a.yaml", &pool("a", 1))]);
        let mut watching = watch(&dir);
        until_pools(&mut watching, &["a"]).await;
        let at = dir.dir.join("z.yaml");
        make(&at);
        let named = |said: &str| said.contains("z.yaml: ") && said.contains(what);
        let noted = |world: &World| world.notices.get("z.yaml").is_some_and(|said| named(&said[0].message));
        watching.until(what, noted).await;
        assert!(named(&texts(&dir.dir).unwrap_err().to_string()), "{what}");
        let store = dir.handle();
        let (new, object) = conformance::pool("b", 2);
        let put = tokio::time::timeout(Duration::from_secs(5), store.put(new, object, Expect::Any)).await;
        if put.is_err() {
            // Who waits for the other end of a pipe would wait on after the test.
            drop(fs::File::options().write(true).open(&at));
        }
        assert!(matches!(&put, Ok(Err(WriteError::Away(why))) if named(why)), "{what}: {put:?}");
        let (there, object) = conformance::pool("a", 3);
        store.put(there, object, Expect::Any).await.expect("what is found before it is written");
    }
}

#[tokio::test]
async fn a_held_lock_is_waited_for() {
    let dir = Dir::new();
    let held = fs::File::create(dir.dir.join(write::LOCK)).unwrap();
    held.lock().unwrap();
    let (id, object) = conformance::pool("a", 1);
    let hasty = FileStore { patience: Duration::from_millis(30), ..dir.handle() };
    let refused = hasty.put(id.clone(), object.clone(), Expect::Any).await;
    assert!(matches!(&refused, Err(WriteError::Away(why)) if why.contains("holds the lock")), "{refused:?}");
    let store = dir.handle();
    let put = tokio::spawn(async move { store.put(id, object, Expect::Any).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!put.is_finished());
    held.unlock().unwrap();
    put.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_write_is_nothing() {
    let dir = Dir::holding(&[(".tartan.tmp", "apiVersion: proj"), (".lock", "")]);
    let (id, object) = conformance::pool("a", 1);
    dir.handle().put(id, object, Expect::Absent).await.unwrap();
    assert_eq!(dir.names(), ["ippool.a.yaml"]);
    assert!(!dir.dir.join(".tartan.tmp").exists());
}

#[tokio::test]
async fn a_dropped_watch_ends_its_thread() {
    let dir = Dir::new();
    let store = dir.handle();
    let stream = store.watch(&[Kind::Node]);
    assert!(Arc::strong_count(&store.dir) > 1, "the thread holds the path");
    drop(stream);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&store.dir) > 1 {
        assert!(std::time::Instant::now() < deadline, "the thread goes on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
