//! Labels of objects, each set in one allocation: a node holds those of every pod of the cluster.
//!
//! Invariant: keys are in order, and neither keys nor values hold a NUL, which no API server would take.

use std::collections::BTreeMap;
use std::fmt;

/// Something a selector can look at.
pub trait Labelled {
    /// The value of a label, if it is there.
    fn label(&self, key: &str) -> Option<&str>;
}

/// A set of labels.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// Key, NUL, value, NUL, for each of them.
    text: Box<str>,
}

/// A label that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the label {key:?} holds a NUL")]
pub struct BadLabel {
    pub key: String,
}

// === impl Labels ===

impl Labels {
    /// The labels of a map.
    ///
    /// # Errors
    /// One of them holds a NUL.
    pub fn of(map: &BTreeMap<String, String>) -> Result<Labels, BadLabel> {
        match map.iter().find(|(key, value)| key.contains('\0') || value.contains('\0')) {
            Some((key, _)) => Err(BadLabel { key: key.clone() }),
            None => Ok(map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()),
        }
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.text.split_terminator('\0');
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }

    /// Only the labels whose key is wanted.
    pub fn only(&self, wanted: impl Fn(&str) -> bool) -> Labels {
        self.iter().filter(|(key, _)| wanted(key)).collect()
    }

    /// As a map.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// Keys must come in order and hold no NUL; [`Labels::of`] sees to both.
impl<'a> FromIterator<(&'a str, &'a str)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(labels: I) -> Labels {
        let mut text = String::new();
        for (key, value) in labels {
            text.extend([key, "\0", value, "\0"]);
        }
        Labels { text: text.into() }
    }
}

impl Labelled for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(there, _)| *there == key).map(|(_, value)| value)
    }
}

impl Labelled for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_goes_in_comes_out() {
        for labels in [vec![], vec![("", "")], vec![("a", "")], vec![("a", "1"), ("b", ""), ("c", "ü")]] {
            let labels = map(&labels);
            let packed = Labels::of(&labels).unwrap();
            assert_eq!(packed.to_map(), labels);
            for key in ["", "a", "b", "c", "d", "1"] {
                assert_eq!(packed.label(key), labels.label(key), "{key} of {packed:?}");
            }
            let only = packed.only(|key| key == "b");
            assert_eq!(
                only.to_map(),
                map(&labels.get("b").map(|value| ("b", value.as_str())).into_iter().collect::<Vec<_>>())
            );
        }
    }

    #[test]
    fn a_nul_is_refused() {
        for labels in [[("a\0", "1")], [("a", "1\0")]] {
            assert!(Labels::of(&map(&labels)).is_err());
        }
    }
}
