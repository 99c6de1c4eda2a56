//! Texts of the store. Laws: nothing panics; what is taken is written and read back as the same; what is refused names
//! a place in the text.

use super::*;

/// Decodes, and checks the laws on whatever came out.
pub(super) fn check(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut outcome = String::new();
    for document in documents("fuzz", &text) {
        match document {
            Ok(document) => {
                let written = serde_yaml_ng::to_string(&encode(&document.id, &document.object)).unwrap();
                let again = documents("fuzz", &written);
                let same = matches!(again.as_slice(), [Ok(d)] if d.id == document.id && d.object == document.object);
                assert!(same, "{document:?} was written as\n{written}\nand read as {again:?}");
                outcome += document.id.kind.as_str();
            }
            Err(refused) => {
                assert!(refused.range.end <= text.len(), "{refused:?}");
                outcome += &format!("{} {}", refused.condition.field, refused.condition.message);
            }
        }
    }
    outcome
}

#[test]
fn stored_texts_keep_the_laws() {
    let outcomes = tartan_fuzz::replay("yaml", check);
    for kind in Kind::ALL {
        assert!(outcomes.iter().any(|(_, outcome)| outcome == kind.as_str()), "{kind}: {outcomes:#?}");
    }
    // As editors on other systems write them.
    for name in ["crlf-lines", "byte-order-mark"] {
        assert!(outcomes.iter().any(|(stored, outcome)| stored == name && outcome == "Node"), "{name}: {outcomes:#?}");
    }
}

#[test]
#[ignore = "runs for a while: the group `fuzz`"]
fn made_texts_keep_the_laws() {
    tartan_fuzz::run("yaml", check);
}
