//! Twin: whatever is written, the directory answers as the store in memory does.

use proptest::prelude::*;

use super::*;
use crate::MemoryStore;

/// A write, by what it expects: the revision of a version, nothing, or anything.
#[derive(Clone, Debug)]
enum Op {
    Put {
        name: u8,
        version: u8,
        expect: Want,
    },
    Delete {
        name: u8,
        expect: Want,
    },
    /// A user puts all pools of these names into one of these files, and takes them out of where they were.
    Gather(&'static str, Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
enum Want {
    Absent,
    Any,
    Version(u8),
}

fn any_op() -> impl Strategy<Value = Op> {
    let want = || prop_oneof![Just(Want::Absent), Just(Want::Any), (1..3u8).prop_map(Want::Version)];
    let file = prop::sample::select(vec!["mine.yaml", "ippool.mine.yaml"]);
    prop_oneof![
        4 => (0..3u8, 1..3u8, want()).prop_map(|(name, version, expect)| Op::Put { name, version, expect }),
        2 => (0..3u8, want()).prop_map(|(name, expect)| Op::Delete { name, expect }),
        1 => (file, prop::collection::vec(0..3u8, 1..3)).prop_map(|(file, names)| Op::Gather(file, names)),
    ]
}

fn object(name: u8, version: u8) -> (ObjectId, Object) {
    conformance::pool(&format!("p{name}"), version)
}

fn expected(name: u8, want: Want) -> Expect {
    match want {
        Want::Absent => Expect::Absent,
        Want::Any => Expect::Any,
        Want::Version(version) => {
            let (id, object) = object(name, version);
            Expect::At(crate::decode::revision(&id, &object))
        }
    }
}

async fn play(dir: &Dir, ops: &[Op]) {
    let (file, memory) = (dir.handle(), MemoryStore::new());
    for op in ops {
        match op {
            Op::Put { name, version, expect } => {
                let (id, object) = object(*name, *version);
                let expect = expected(*name, *expect);
                let one = file.put(id.clone(), object.clone(), expect.clone()).await;
                assert_eq!(one, memory.put(id, object, expect).await, "{op:?} of {ops:?}");
            }
            Op::Delete { name, expect } => {
                let (id, _) = object(*name, 1);
                let expect = expected(*name, *expect);
                let one = file.delete(id.clone(), expect.clone()).await;
                assert_eq!(one, memory.delete(id, expect).await, "{op:?} of {ops:?}");
            }
            Op::Gather(file, names) => gather(dir, &memory, file, names).await,
        }
    }
    let mut watching = watch(dir);
    watching.until("the list", |world| world.is_synced(Kind::IpPool)).await;
    for name in 0..3 {
        let (id, _) = object(name, 1);
        let there = watching.world.revisions.get(&id).cloned();
        assert_eq!(there, memory.get(&id).map(|(_, revision)| revision), "{id} after {ops:?}");
    }
    assert!(watching.world.notices.is_empty() && watching.world.invalid.is_empty(), "after {ops:?}");
}

async fn gather(dir: &Dir, memory: &MemoryStore, file: &str, names: &[u8]) {
    let mut text = fs::read_to_string(dir.dir.join(file)).unwrap_or_else(|_| "# Mine.\n".to_owned());
    for name in names {
        let (id, _) = object(*name, 1);
        let own = dir.file_of(&id);
        if let (Some(_), Ok(document)) = (memory.get(&id), fs::read_to_string(&own)) {
            fs::remove_file(own).unwrap();
            text.push_str(&format!("--- # {name}\n{document}"));
        }
    }
    dir.write(file, &text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn does_as_the_memory_store_does(ops in prop::collection::vec(any_op(), 1..24)) {
        let dir = Dir::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(play(&dir, &ops));
    }
}
