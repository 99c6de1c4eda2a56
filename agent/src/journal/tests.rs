//! Every truncation point, random damage, kill and reopen at random, a full disk, and what each one says.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use tartan_model::{Limit, Limits, PerFamily, PortMapping, Protocol};
use tartan_netstate::{Mac, PodNetns};

use super::*;

mod fuzz;

const BOOT: &str = "3c5c2a54-9b0e-4b7e-8a63-0d6f0ba1f4f1";

/// A directory of this test's own, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tartan-journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

fn pod(n: u8) -> Attachment {
    let container: Arc<str> = format!("c{n}").into();
    Attachment {
        id: Attachment::id_of(&container, "eth0"),
        container,
        ifname: "eth0".into(),
        netns: PodNetns { dev: 4, ino: u64::from(n) << 33, path: format!("/run/netns/é-{n}").into() },
        pod_namespace: "default".into(),
        pod_name: format!("pod \"{n}\"\n").into(),
        addresses: PerFamily {
            v4: Some(IpAddr::from([10, 1, 0, n])),
            v6: n.is_multiple_of(2).then(|| format!("fd00::{n:x}").parse().unwrap()),
        },
        mac: Mac([2, 0, 0, 0, 0, n]),
        ports: (0..n % 3)
            .map(|i| PortMapping {
                protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(i)],
                host_ip: (i == 1).then(|| "192.0.2.1".parse().unwrap()),
                host_port: 8000 + u16::from(n),
                container_port: 80,
            })
            .collect(),
        limits: Default::default(),
        network: None,
        answered: false,
    }
}

/// What the records come to: the slow, obvious twin of [`Live`].
fn expected(records: &[Record]) -> Vec<Attachment> {
    let mut pods: Vec<Attachment> = Vec::new();
    for record in records {
        match record {
            Record::Add(pod) => {
                pods.retain(|other| other.id != pod.id);
                pods.push(pod.clone());
            }
            Record::Answered { id } => pods.iter_mut().filter(|pod| pod.id == *id).for_each(|pod| pod.answered = true),
            Record::Del { id } => pods.retain(|pod| pod.id != *id),
        }
    }
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    pods
}

fn some_records() -> Vec<Record> {
    let mut records: Vec<Record> = (1..6).map(|n| Record::Add(pod(n))).collect();
    records.extend([1, 2, 4].map(|n| Record::Answered { id: pod(n).id }));
    records.extend([2, 3, 9].map(|n| Record::Del { id: pod(n).id }));
    records.push(Record::Add(pod(2)));
    records
}

/// The file's bytes after the header and after each record.
fn written(path: &Path, records: &[Record]) -> Vec<Vec<u8>> {
    let (mut journal, _) = Journal::open(path, BOOT).unwrap();
    let mut states = vec![fs::read(path).unwrap()];
    for record in records {
        journal.append(record.clone()).unwrap();
        states.push(fs::read(path).unwrap());
    }
    states
}

#[test]
fn every_truncation_point_keeps_the_records_before_it() {
    let dir = Dir::new();
    let records = some_records();
    let states = written(&dir.journal(), &records);
    let whole = states.last().unwrap();
    for end in 0..=whole.len() {
        fs::write(dir.journal(), &whole[..end]).unwrap();
        let (mut journal, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
        let kept = states.iter().filter(|state| state.len() <= end).count().saturating_sub(1);
        assert_eq!(replayed.attachments, expected(&records[..kept]), "cut at {end}");
        let at_an_end = end == 0 || states.iter().any(|state| state.len() == end);
        assert_eq!(replayed.warnings.is_empty(), at_an_end, "cut at {end}: {:?}", replayed.warnings);

        let more = [&records[..kept], &[Record::Add(pod(7))]].concat();
        journal.append(Record::Add(pod(7))).unwrap();
        let (_, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
        assert_eq!(replayed.attachments, expected(&more), "cut at {end}, then written on");
        assert!(replayed.warnings.is_empty());
    }
}

#[test]
fn the_released_addresses_are_remembered_and_their_age() {
    let dir = Dir::new();
    written(&dir.journal(), &some_records());
    let (_, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
    let addresses: Vec<String> = replayed.released.iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(addresses, ["10.1.0.3"], "10.1.0.2 and fd00::2 were given out again");
    assert!(replayed.released[0].1 < Duration::from_secs(60));
}

/// The end of the one could not be written: the disk was full.
#[test]
fn who_was_given_an_address_last_has_it() {
    let dir = Dir::new();
    let later = Attachment { addresses: pod(2).addresses, ..pod(1) };
    let none = pod(3);
    written(&dir.journal(), &[pod(2), none.clone(), later.clone()].map(Record::Add));
    let (_, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
    assert_eq!(replayed.attachments, [later, none]);
}

#[test]
fn only_its_owner_can_read_it() {
    let dir = Dir::new();
    written(&dir.journal(), &[]);
    assert_eq!(fs::metadata(dir.journal()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_cannot_be_opened_says_why_and_stays_as_it_is() {
    let newer = {
        let text = format!("tartan-journal 7 {BOOT} ");
        let mut hasher = siphasher::sip::SipHasher13::new();
        std::hash::Hasher::write(&mut hasher, text.as_bytes());
        format!("{text}{:016x}\nwhatever", std::hash::Hasher::finish(&hasher))
    };
    let good = String::from_utf8(frame::encode_header(BOOT, 1)).unwrap();
    for (bytes, said) in [
        (newer, "the journal has format 7, this build reads up to 3"),
        ("{\"format\": 1}\n".to_owned(), "not a journal of Tartan (it begins with other bytes)"),
        (format!("tartan-journal 1 {}", "x".repeat(300)), "not a journal of Tartan (its first line does not end)"),
        (good.replace("3c5c", "3c5d"), "not a journal of Tartan (its first line is damaged)"),
        ("tartan-journal \n".to_owned(), "not a journal of Tartan (its first line is damaged)"),
    ] {
        let dir = Dir::new();
        fs::write(dir.journal(), &bytes).unwrap();
        let error = Journal::open(&dir.journal(), BOOT).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("journal:"), "{error}");
        assert_eq!(fs::read_to_string(dir.journal()).unwrap(), bytes);
    }
}

#[test]
fn a_journal_of_another_boot_is_void() {
    let dir = Dir::new();
    written(&dir.journal(), &some_records());
    let (mut journal, replayed) = Journal::open(&dir.journal(), "another").unwrap();
    assert!(replayed.attachments.is_empty() && replayed.released.is_empty());
    assert!(replayed.warnings[0].contains("written before the last boot"), "{:?}", replayed.warnings);
    journal.append(Record::Add(pod(1))).unwrap();
    let (_, replayed) = Journal::open(&dir.journal(), "another").unwrap();
    assert_eq!(replayed, Replayed { attachments: vec![pod(1)], ..Replayed::default() });
}

#[test]
fn it_is_rewritten_when_mostly_dead() {
    let dir = Dir::new();
    let (mut journal, _) = Journal::open(&dir.journal(), BOOT).unwrap();
    let mut longest = 0;
    journal.append(Record::Add(pod(1))).unwrap();
    journal.append(Record::Answered { id: pod(1).id }).unwrap();
    for _ in 0..2000 {
        journal.append(Record::Add(pod(2))).unwrap();
        journal.append(Record::Del { id: pod(2).id }).unwrap();
        longest = longest.max(fs::metadata(dir.journal()).unwrap().len());
    }
    assert!(longest < 600_000, "{longest} bytes for one pod");
    let (_, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
    assert_eq!(replayed.attachments, [Attachment { answered: true, ..pod(1) }]);
    assert_eq!(replayed.released.len(), 2, "both addresses of the second pod rest");
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_full_disk_is_an_error_and_the_journal_goes_on() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a tmpfs in a mount namespace of its own: run it as root"
    );
    // A mount namespace belongs to a thread.
    std::thread::spawn(|| {
        let dir = Dir::new();
        small_disk(&dir.0);
        let filler = dir.0.join("filler");
        let (mut journal, _) = Journal::open(&dir.journal(), BOOT).unwrap();
        fs::write(&filler, vec![0; 32 << 10]).unwrap();
        let mut recorded = Vec::new();
        let error = loop {
            let record = Record::Add(pod(recorded.len() as u8));
            match journal.append(record.clone()) {
                Ok(()) => recorded.push(record),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("cannot append to it") && error.contains("No space left"), "{error}");
        assert!(recorded.len() > 10, "{} records fit", recorded.len());
        journal.append(Record::Add(pod(254))).unwrap_err();
        assert_eq!(Journal::open(&dir.journal(), BOOT).unwrap().1.attachments, expected(&recorded));

        fs::remove_file(&filler).unwrap();
        recorded.push(Record::Add(pod(255)));
        journal.append(recorded.last().unwrap().clone()).unwrap();
        let (_, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
        assert_eq!((replayed.attachments, replayed.warnings), (expected(&recorded), vec![]));
        drop(journal);
        nix::mount::umount(&dir.0).unwrap();
    })
    .join()
    .unwrap();
}

/// 64 KiB, seen by this thread alone.
fn small_disk(at: &Path) {
    use nix::mount::{MsFlags, mount};
    let none: Option<&str> = None;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
}

fn any_record() -> impl Strategy<Value = Record> {
    (0..3, 0..8_u8).prop_map(|(kind, n)| match kind {
        0 => Record::Add(pod(n)),
        1 => Record::Answered { id: pod(n).id },
        _ => Record::Del { id: pod(n).id },
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_panics_and_spares_the_records_before_it(
        records in prop::collection::vec(any_record(), 0..20),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let dir = Dir::new();
        let states = written(&dir.journal(), &records);
        let whole = states.last().unwrap();
        let mut bytes = whole.clone();
        for (at, value) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        let same = bytes.iter().zip(whole).take_while(|(a, b)| a == b).count();
        fs::write(dir.journal(), &bytes).unwrap();
        match Journal::open(&dir.journal(), BOOT) {
            Err(error) => prop_assert!(same < states[0].len(), "{error}"),
            Ok((_, replayed)) => {
                let kept = states.iter().filter(|state| state.len() <= same).count().saturating_sub(1);
                prop_assert_eq!(replayed.attachments, expected(&records[..kept]));
            }
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..400), after_header in any::<bool>()) {
        let dir = Dir::new();
        let header = if after_header { frame::encode_header(BOOT, 1) } else { Vec::new() };
        fs::write(dir.journal(), [header, bytes].concat()).unwrap();
        if let Ok((mut journal, _)) = Journal::open(&dir.journal(), BOOT) {
            journal.append(Record::Add(pod(1))).unwrap();
        }
    }

    #[test]
    fn reopening_at_any_time_loses_nothing(
        lives in prop::collection::vec(prop::collection::vec(any_record(), 0..12), 1..6),
    ) {
        let dir = Dir::new();
        let mut all = Vec::new();
        for records in lives {
            let (mut journal, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
            prop_assert_eq!(replayed.attachments, expected(&all));
            for record in records {
                journal.append(record.clone()).unwrap();
                all.push(record);
            }
        }
    }
}

#[test]
fn only_a_journal_with_a_pod_that_needs_it_has_a_format_that_older_builds_refuse() {
    let dir = Dir::new();
    let limit = Some(Limit { rate_bits: 8000, burst_bits: 0 });
    let limited = Attachment { limits: Some(Limits { to_pod: limit, from_pod: None }.into()), ..pod(2) };
    let of_another = Attachment { network: Some("storage".into()), ..pod(3) };
    let format = || {
        let bytes = fs::read(dir.journal()).unwrap();
        let frame::Header::Whole { format, .. } = frame::header(&bytes, &dir.journal()).unwrap() else { panic!() };
        format
    };
    let (mut journal, _) = Journal::open(&dir.journal(), BOOT).unwrap();
    for (pod, then) in [(pod(1), 1), (limited.clone(), 2), (of_another.clone(), 3)] {
        journal.append(Record::Add(pod)).unwrap();
        assert_eq!(format(), then);
    }
    journal.append(Record::Answered { id: pod(1).id }).unwrap();
    let (mut journal, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
    let answered = Attachment { answered: true, ..pod(1) };
    assert_eq!(replayed.attachments, [answered.clone(), limited.clone(), of_another.clone()]);
    for (pod, then) in [(of_another, 2), (limited, 1)] {
        journal.append(Record::Del { id: pod.id }).unwrap();
        // Until it is rewritten, which it is when mostly dead.
        for _ in 0..2000 {
            journal.append(Record::Answered { id: answered.id.clone() }).unwrap();
        }
        assert_eq!(format(), then);
    }
    let (_, replayed) = Journal::open(&dir.journal(), BOOT).unwrap();
    assert_eq!(replayed.attachments, [answered]);
}
