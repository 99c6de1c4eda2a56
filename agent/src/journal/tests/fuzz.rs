//! Files that are opened as the journal. Laws: nothing panics; a file that opens takes records on, and opens again with
//! all of them and without a word about damage.
//!
//! A stored input is a file as it is, or, from `{` on, records' JSON, one a line, which get their frames here: random
//! changes would never hit a checksum.

use super::*;

fn check(bytes: &[u8]) -> String {
    let dir = Dir::new();
    fs::write(dir.journal(), file(bytes)).unwrap();
    let (mut journal, first) = match Journal::open(&dir.journal(), BOOT) {
        Ok(opened) => opened,
        Err(error) => return error.to_string().replace(&dir.0.display().to_string(), ""),
    };
    journal.append(Record::Add(pod(7))).unwrap();
    let (_, again) = Journal::open(&dir.journal(), BOOT).unwrap();
    assert_eq!(again.warnings, [""; 0]);
    let mut expected: BTreeMap<Arc<str>, Attachment> =
        first.attachments.into_iter().map(|at| (at.id.clone(), at)).collect();
    expected.insert(pod(7).id, pod(7));
    assert_eq!(again.attachments, expected.into_values().collect::<Vec<_>>());
    let warnings: String = first.warnings.join(" ").replace(&dir.0.display().to_string(), "");
    format!(
        "{} pods, {} at rest, {warnings}",
        "i".repeat(again.attachments.len()),
        "i".repeat(first.released.len().min(9))
    )
}

fn file(bytes: &[u8]) -> Vec<u8> {
    if !bytes.starts_with(b"{") {
        return bytes.to_vec();
    }
    let records = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    [frame::encode_header(BOOT, 1), records.flat_map(frame::around).collect()].concat()
}

#[test]
fn stored_journals_keep_the_laws() {
    let outcomes = tartan_fuzz::replay("journal", check);
    for part in [
        "ii pods, ii at rest, ",
        "cut off within its first line",
        "torn or damaged",
        "not a journal",
        "has format",
        "last boot",
    ] {
        assert!(outcomes.iter().any(|(_, outcome)| outcome.contains(part)), "{part:?}: {outcomes:#?}");
    }
}

#[test]
#[ignore = "runs for a while: the group `fuzz`"]
fn made_journals_keep_the_laws() {
    tartan_fuzz::run("journal", check);
}
