//! The line on which a field stands in a YAML document, for what is wrong with its meaning rather than its type.
//!
//! The document is parsed once more along the path; at its end the parser is made to fail, and says where it is.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step of a path.
#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Follows the rest of a path; an error is the discovery.
struct Follow<'a>(&'a [Step<'a>]);

/// Line of the field within the document, from 1; of the nearest field around it where it is absent itself.
pub(super) fn line(body: &str, field: &str) -> usize {
    let steps: Vec<Step<'_>> = field.split(['.', '[']).map(step).collect();
    let found = (1..=steps.len()).rev().find_map(|len| {
        let error = Follow(&steps[..len]).deserialize(serde_yaml_ng::Deserializer::from_str(body)).err()?;
        error.location().map(|at| at.line())
    });
    found.unwrap_or_else(|| 1 + body.lines().take_while(|line| line.trim().is_empty()).count())
}

fn step(text: &str) -> Step<'_> {
    match text.strip_suffix(']').and_then(|index| index.parse().ok()) {
        Some(index) => Step::Index(index),
        None => Step::Key(text),
    }
}

impl<'de> DeserializeSeed<'de> for Follow<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Scalars are left to the default methods, which fail where they stand.
impl<'de> Visitor<'de> for Follow<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(de::Error::custom("here")) };
        while let Some(key) = map.next_key::<String>()? {
            if matches!(first, Step::Key(wanted) if *wanted == key) {
                map.next_value_seed(Follow(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(de::Error::custom("here")) };
        for index in 0.. {
            let more = if matches!(first, Step::Index(wanted) if *wanted == index) {
                seq.next_element_seed(Follow(rest))?.is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }
}
