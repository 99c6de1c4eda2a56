//! Writing an object into a document a user wrote: only what changed is touched, keys we do not know stay.

use serde_yaml_ng::{Mapping, Value};

/// `there` with everything that differs from `base` to `new`; `base` is how we would have written what `there` says.
pub(super) fn merge(there: Value, base: Option<&Value>, new: &Value) -> Value {
    match (there, new) {
        (there, new) if base == Some(new) => there,
        (Value::Mapping(there), Value::Mapping(new)) => {
            Value::Mapping(merge_keys(there, base.and_then(Value::as_mapping), new))
        }
        _ => new.clone(),
    }
}

fn merge_keys(mut there: Mapping, base: Option<&Mapping>, new: &Mapping) -> Mapping {
    for (key, _) in base.into_iter().flatten().filter(|(key, _)| !new.contains_key(*key)) {
        there.shift_remove(key);
    }
    for (key, value) in new {
        let base = base.and_then(|base| base.get(key));
        match there.get_mut(key) {
            Some(place) => *place = merge(std::mem::take(place), base, value),
            None if base == Some(value) => {}
            None => drop(there.insert(key.clone(), value.clone())),
        }
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_touched() {
        // what is there, how we would have written it, what it should be now, what comes out
        let table = [
            ("{a: 1, x: 9}", "{a: 1}", "{a: 2}", "{a: 2, x: 9}"),
            ("{x: 9, a: 1}", "{a: 1}", "{a: 1, b: 2}", "{x: 9, a: 1, b: 2}"),
            ("{a: 1, b: 2, x: 9}", "{a: 1, b: 2}", "{b: 2}", "{b: 2, x: 9}"),
            ("{s: {a: 1, x: 9}}", "{s: {a: 1}}", "{s: {a: 2}}", "{s: {a: 2, x: 9}}"),
            ("{s: {a: '01'}}", "{s: {a: 1}}", "{s: {a: 1}, t: 2}", "{s: {a: '01'}, t: 2}"),
            ("{a: default}", "{}", "{}", "{a: default}"),
            ("{a: default}", "{}", "{a: other}", "{a: other}"),
            ("{}", "{alias: 1}", "{alias: 1, b: 2}", "{b: 2}"),
            ("{l: [1, 2]}", "{l: [1, 2]}", "{l: [3]}", "{l: [3]}"),
            ("[]", "{}", "{a: 1}", "{a: 1}"),
        ];
        for (there, base, new, out) in table {
            let value = |text: &str| serde_yaml_ng::from_str::<Value>(text).unwrap();
            assert_eq!(merge(value(there), Some(&value(base)), &value(new)), value(out), "{there} {base} {new}");
        }
    }
}
