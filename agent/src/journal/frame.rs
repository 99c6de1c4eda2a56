//! The journal's bytes.
//!
//! ```text
//! journal := header record*
//! header  := "tartan-journal " format " " boot-id " " check "\n"     check: 16 hex digits, over what is before it
//! record  := length (u32) check (u64) body                           big-endian; check over length and body
//! body    := JSON, see `body.rs`
//! ```
//!
//! The header is text and keeps this form for ever, so that every build can tell a newer format and refuse it.

use std::hash::Hasher as _;
use std::ops::RangeInclusive;
use std::path::Path;

use siphasher::sip::SipHasher13;

use super::JournalError;
use super::body::Body;

/// The formats this build reads. It writes the lowest that has what is to be written.
pub(super) const FORMATS: RangeInclusive<u32> = 1..=3;

const MAGIC: &str = "tartan-journal ";
/// A boot id has 36 bytes; a first line much longer than ours is not ours.
const HEADER_MAX: usize = 256;
const PREFIX: usize = 12;

/// What a journal begins with.
pub(super) enum Header<'a> {
    /// Nothing, or less than a line: the agent died, or the disk was full, when it was made.
    Torn,
    /// Records of that boot begin at `body`.
    Whole { boot_id: &'a str, format: u32, body: usize },
}

pub(super) fn encode_header(boot_id: &str, format: u32) -> Vec<u8> {
    let text = format!("{MAGIC}{format} {boot_id} ");
    let check = checksum(&[text.as_bytes()]);
    format!("{text}{check:016x}\n").into_bytes()
}

pub(super) fn header<'a>(bytes: &'a [u8], path: &Path) -> Result<Header<'a>, JournalError> {
    let foreign = |why| JournalError::Foreign { path: path.to_owned(), why };
    let head = &bytes[..bytes.len().min(HEADER_MAX)];
    let magic = MAGIC.as_bytes();
    if !head.starts_with(magic) && !magic.starts_with(head) {
        return Err(foreign("it begins with other bytes"));
    }
    let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < HEADER_MAX { Ok(Header::Torn) } else { Err(foreign("its first line does not end")) };
    };
    let line = std::str::from_utf8(&head[..end]).map_err(|_| foreign("its first line is damaged"))?;
    let (text, check) = line.rsplit_once(' ').ok_or_else(|| foreign("its first line is damaged"))?;
    let whole = checksum(&[text.as_bytes(), b" "]);
    if u64::from_str_radix(check, 16) != Ok(whole) {
        return Err(foreign("its first line is damaged"));
    }
    let (format, boot_id) = text[MAGIC.len()..].split_once(' ').ok_or_else(|| foreign("its first line is damaged"))?;
    match format.parse() {
        Ok(format) if FORMATS.contains(&format) => Ok(Header::Whole { boot_id, format, body: end + 1 }),
        Ok(found) if found > *FORMATS.end() => {
            Err(JournalError::Newer { path: path.to_owned(), found, known: *FORMATS.end() })
        }
        _ => Err(foreign("no format has that number")),
    }
}

pub(super) fn encode(body: &Body) -> Vec<u8> {
    around(&serde_json::to_vec(body).expect("strings and numbers always become JSON"))
}

/// The record with that body.
pub(super) fn around(json: &[u8]) -> Vec<u8> {
    let length = u32::try_from(json.len()).expect("an attachment is smaller than the frame it came in").to_be_bytes();
    let check = checksum(&[&length, json]).to_be_bytes();
    [&length[..], &check, json].concat()
}

/// The first record and how many bytes it takes; none where it is torn or damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<(Body, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (check, rest) = rest.split_first_chunk::<8>()?;
    let json = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    if checksum(&[length, json]) != u64::from_be_bytes(*check) {
        return None;
    }
    Some((serde_json::from_slice(json).ok()?, PREFIX + json.len()))
}

fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher13::new();
    for part in parts {
        hasher.write(part);
    }
    hasher.finish()
}
