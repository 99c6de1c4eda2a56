//! Twin: a watcher that was told every change knows what one knows that reads the files once, afterwards.

use std::time::Instant;

use proptest::prelude::*;
use tartan_model::{Features, World};

use super::*;

/// What a file is made to hold.
#[derive(Clone, Debug)]
enum Content {
    Gone,
    /// Pools by name, each with the second byte of its range; 0 for one that is no range.
    Pools(Vec<(u8, u8)>),
    Broken,
}

impl Content {
    fn reading(&self) -> Reading {
        match self {
            Content::Gone => Reading::Gone,
            Content::Broken => Reading::Bytes(b"kind: [".to_vec()),
            Content::Pools(pools) => {
                let text: String = pools.iter().map(|(name, byte)| document(*name, *byte)).collect();
                Reading::Bytes(format!("# pools\n{text}").into_bytes())
            }
        }
    }

    /// Every object in it can be read.
    fn is_good(&self) -> bool {
        match self {
            Content::Gone => true,
            Content::Pools(pools) => pools.iter().all(|(_, byte)| *byte != 0),
            Content::Broken => false,
        }
    }
}

fn document(name: u8, byte: u8) -> String {
    let cidr = if byte == 0 { "nonsense".to_owned() } else { format!("10.{byte}.0.0/16") };
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: p{name}}}\nspec: {{cidr: {cidr}}}\n"
    )
}

fn any_content() -> impl Strategy<Value = Content> {
    prop_oneof![
        1 => Just(Content::Gone),
        1 => Just(Content::Broken),
        4 => prop::collection::vec((0..4u8, 0..4u8), 0..4).prop_map(Content::Pools),
    ]
}

/// A change of one of a few files; or a relist, as after a loss of events.
#[derive(Clone, Debug)]
enum Step {
    Change(u8, Content),
    Relist,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3u8, any_content()).prop_map(|(file, content)| Step::Change(file, content)),
        1 => Just(Step::Relist),
    ]
}

fn name(file: u8) -> Arc<str> {
    format!("{file}.yaml").into()
}

fn play(world: &mut World, events: Vec<StoreEvent>) {
    for event in events {
        world.store(event, Instant::now());
    }
}

fn list(view: &mut View, files: &BTreeMap<u8, Content>) -> Vec<StoreEvent> {
    let mut listing = view.begin_list();
    files.iter().for_each(|(file, content)| view.take(&mut listing, name(*file), content.reading()));
    view.end_list(listing).collect()
}

fn fresh(files: &BTreeMap<u8, Content>) -> World {
    let mut world = World::new("n1".into(), Features::default());
    play(&mut world, list(&mut View::new(&Kind::ALL), files));
    world
}

#[test]
fn a_file_cut_off_anywhere_keeps_what_it_held() {
    let text: String = (0..3).map(|name| document(name, 1)).collect();
    let file = name(0);
    let mut view = View::new(&Kind::ALL);
    let mut world = World::new("n1".into(), Features::default());
    play(&mut world, list(&mut view, &BTreeMap::new()));
    // Cut off after its last character it is whole, but for the newline.
    for end in (0..text.len() - 1).filter(|end| !text[..*end].ends_with('\n')) {
        play(&mut world, view.read(&file, Reading::Bytes(text.clone().into_bytes())));
        let whole = world.pools.clone();
        assert!(world.invalid.is_empty() && world.notices.is_empty());
        play(&mut world, view.read(&file, Reading::Bytes(text[..end].into())));
        assert!(whole.keys().all(|name| world.pools.contains_key(name)), "cut off after {:?}", &text[..end]);
        assert!(!world.invalid.is_empty(), "nothing is said of {:?}", &text[..end]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn told_bit_by_bit_or_at_once_is_the_same(steps in prop::collection::vec(any_step(), 0..24)) {
        let mut files: BTreeMap<u8, Content> = BTreeMap::new();
        let mut view = View::new(&Kind::ALL);
        let mut world = World::new("n1".into(), Features::default());
        play(&mut world, list(&mut view, &BTreeMap::new()));
        for step in steps {
            match step {
                Step::Change(file, content) => {
                    let before = world.clone();
                    let broken = matches!(content, Content::Broken);
                    play(&mut world, view.read(&name(file), content.reading()));
                    prop_assert!(!broken || world.pools.keys().eq(before.pools.keys()), "a broken file took away or gave");
                    files.insert(file, content);
                }
                Step::Relist => {
                    let before = world.clone();
                    play(&mut world, list(&mut view, &files));
                    prop_assert!(world.pools.keys().eq(before.pools.keys()), "nothing had changed");
                }
            }
            if files.values().all(Content::is_good) {
                let twin = fresh(&files);
                prop_assert_eq!(&world.pools, &twin.pools);
                prop_assert_eq!(&world.invalid, &twin.invalid);
                prop_assert_eq!(&world.notices, &twin.notices);
                prop_assert!(world.is_synced(Kind::IpPool));
            }
        }
    }
}
