//! Reading a policy document part by part, so that one bad part can be told, with its path, and the rest still counts.
//!
//! Invariant: whatever is not understood is said, and given back as [`Bad`]; nothing is taken for a default in its place.

use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value};
use tartan_model::{Condition, ObjectId, Selector};

/// Items of a list that are read: as many ranges as a cloud has, and far more rules than anybody keeps in mind. One object may
/// hold 700,000 empty ones, and every agent of the cluster has all objects, whoever wrote them.
const MOST_ITEMS: usize = 50_000;
/// Things that are said of one object. More help nobody.
const MOST_SAID: usize = 100;

/// A part that cannot be honoured; why has been said.
#[derive(Debug)]
pub(super) struct Bad;

/// What was read, or [`Bad`].
pub(super) type Read<T> = Result<T, Bad>;

/// A part of a document.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

/// The fields of a part that has some.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// What is said of one object while it is read.
pub(super) struct Reader {
    about: String,
    /// What becomes of the part at hand where it is bad.
    outcome: &'static str,
    said: Vec<Condition>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(about: &ObjectId) -> Reader {
        Reader { about: about.to_string(), outcome: "", said: Vec::new() }
    }

    pub(super) fn into_said(self) -> Vec<Condition> {
        self.said
    }

    /// Reads a part; if it is bad, the outcome is told with the reason.
    pub(super) fn or<T>(&mut self, outcome: &'static str, read: impl FnOnce(&mut Reader) -> T) -> T {
        let around = std::mem::replace(&mut self.outcome, outcome);
        let result = read(self);
        self.outcome = around;
        result
    }

    /// Says what is wrong with a field.
    pub(super) fn wrong(&mut self, path: &str, reason: &'static str, wrong: &str, fix: impl Into<String>) -> Bad {
        if self.said.len() == MOST_SAID {
            return Bad;
        }
        let message = format!("{wrong}; {}", self.outcome);
        self.said.push(Condition {
            about: self.about.clone(),
            field: path.to_owned(),
            reason,
            message,
            fix: fix.into(),
        });
        Bad
    }

    /// Says that a value cannot be meant.
    pub(super) fn bad_value(&mut self, at: &At<'_>, wrong: &str, fix: impl Into<String>) -> Bad {
        let value = shown(at.value);
        self.wrong(&at.path, "BadValue", &format!("{} is {value}: {wrong}", at.path), fix)
    }

    /// Says that a field is not there.
    pub(super) fn missing(&mut self, path: &str, fix: &str) -> Bad {
        self.wrong(path, "Missing", &format!("{path} is missing"), fix)
    }

    /// The fields of a part, and whether all of them are known ones.
    pub(super) fn fields<'a>(&mut self, at: &At<'a>, known: &[&str]) -> Read<(Fields<'a>, Read<()>)> {
        let Value::Object(map) = at.value else {
            return Err(self.bad_value(at, "not a block of keys and values", "write `key: value` lines under it"));
        };
        let mut clean = Ok(());
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let path = join(&at.path, key);
            let fix = match nearest(key, known) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            clean = Err(self.wrong(&path, "UnknownKey", &format!("there is no key {path}"), fix));
        }
        Ok((Fields { map, path: at.path.clone() }, clean))
    }

    /// The fields of a part that has only known ones.
    pub(super) fn known_fields<'a>(&mut self, at: &At<'a>, known: &[&str]) -> Read<Fields<'a>> {
        let (fields, clean) = self.fields(at, known)?;
        clean.map(|()| fields)
    }

    /// The items of a list; an absent one has none.
    pub(super) fn list<'a>(&mut self, at: Option<At<'a>>) -> Read<Vec<At<'a>>> {
        let Some(at) = at else { return Ok(Vec::new()) };
        let Value::Array(items) = at.value else {
            return Err(self.bad_value(&at, "not a list", "write its items as lines that begin with `- `"));
        };
        if items.len() > MOST_ITEMS {
            let wrong = format!("more than {MOST_ITEMS} items, of {}", items.len());
            return Err(self.bad_value(&at, &wrong, "write fewer, larger ranges, or several policies"));
        }
        Ok(items.iter().enumerate().map(|(i, value)| At { value, path: format!("{}[{i}]", at.path) }).collect())
    }

    pub(super) fn text<'a>(&mut self, at: &At<'a>) -> Read<&'a str> {
        at.value.as_str().ok_or_else(|| self.bad_value(at, "not a text", "put it in quotes"))
    }

    pub(super) fn number(&mut self, at: &At<'_>, bounds: RangeInclusive<u16>) -> Read<u16> {
        let number = at.value.as_u64().and_then(|number| u16::try_from(number).ok());
        number.filter(|number| bounds.contains(number)).ok_or_else(|| {
            let (low, high) = (bounds.start(), bounds.end());
            let wrong = format!("not a whole number from {low} to {high}");
            self.bad_value(at, &wrong, format!("write a number from {low} to {high}"))
        })
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, at: &At<'_>, words: &[(&'static str, T)]) -> Read<T> {
        let text = self.text(at)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let fix = match nearest(text, &known) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("write one of {}", known.join(", ")),
        };
        Err(self.bad_value(at, "unknown", fix))
    }

    /// A port's name: an IANA service name (RFC 6335 §5.1), in lower case.
    pub(super) fn port_name<'a>(&mut self, at: &At<'a>) -> Read<&'a str> {
        let name = self.text(at)?;
        if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.bad_value(
                at,
                "a text, so a port's name, and no name has only digits",
                "take the quotes off",
            ));
        }
        let alphabet = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let edges = |name: &str| !name.starts_with('-') && !name.ends_with('-') && !name.contains("--");
        if (1..=15).contains(&name.len()) && name.bytes().all(alphabet) && edges(name) {
            return Ok(name);
        }
        let wrong = "a port's name is 1 to 15 letters in lower case, digits and single `-` between them";
        Err(self.bad_value(at, wrong, "write the name as the pod's container has it"))
    }

    /// An address range. One whose last bits are set is taken as the API server takes it, and said.
    pub(super) fn cidr(&mut self, at: &At<'_>) -> Read<IpNet> {
        let text = self.text(at)?;
        let Ok(net) = text.parse::<IpNet>() else {
            let fix = match text.parse::<std::net::IpAddr>() {
                Ok(address) => format!("write {}", IpNet::from(address)),
                Err(_) => "write an address and a prefix length, e.g. 10.0.0.0/8 or fd00::/8".to_owned(),
            };
            return Err(self.bad_value(at, "not an address range", fix));
        };
        if let Some(v4) = mapped(net) {
            return Err(self.bad_value(at, "no packet has such addresses: IPv4 has its own", format!("write {v4}")));
        }
        if net != net.trunc() {
            self.or("it counts as the whole range", |reader| {
                let wrong = format!("bits are set after the first {}", net.prefix_len());
                reader.bad_value(at, &wrong, format!("write {}", net.trunc()))
            });
        }
        Ok(net.trunc())
    }

    /// A meta/v1 LabelSelector; an empty one selects everything.
    pub(super) fn selector(&mut self, at: &At<'_>) -> Read<Selector> {
        let fields = self.known_fields(at, &["matchLabels", "matchExpressions"])?;
        let mut parts = Vec::new();
        if let Some(labels) = fields.get("matchLabels") {
            let Value::Object(map) = labels.value else {
                return Err(self.bad_value(&labels, "not a block of keys and values", "write `label: value` lines"));
            };
            for (key, value) in map {
                let at = At { value, path: join(&labels.path, key) };
                self.label_key(&at, key)?;
                let value = self.label_value(&at)?;
                parts.push(Selector::is_in(key, [value]));
            }
        }
        for at in self.list(fields.get("matchExpressions"))? {
            parts.push(self.requirement(&at)?);
        }
        Ok(Selector::all_of(parts))
    }

    fn requirement(&mut self, at: &At<'_>) -> Read<Selector> {
        #[derive(Clone, Copy)]
        enum Operator {
            In,
            NotIn,
            Exists,
            DoesNotExist,
        }
        const OPERATORS: [(&str, Operator); 4] = [
            ("In", Operator::In),
            ("NotIn", Operator::NotIn),
            ("Exists", Operator::Exists),
            ("DoesNotExist", Operator::DoesNotExist),
        ];
        let fields = self.known_fields(at, &["key", "operator", "values"])?;
        let key_at = self.required(&fields, "key", "say which label is looked at")?;
        let key = self.text(&key_at)?;
        self.label_key(&key_at, key)?;
        let operator_at = self.required(&fields, "operator", "write In, NotIn, Exists or DoesNotExist")?;
        let operator = self.word(&operator_at, &OPERATORS)?;
        let list = self.list(fields.get("values"))?;
        let values = list.iter().map(|at| self.label_value(at)).collect::<Read<Vec<&str>>>()?;
        match (operator, values.is_empty()) {
            (Operator::In | Operator::NotIn, true) => {
                Err(self.missing(&join(&at.path, "values"), "list at least one value"))
            }
            (Operator::Exists | Operator::DoesNotExist, false) => {
                let values = fields.get("values").unwrap_or_else(|| at.clone());
                Err(self.bad_value(
                    &values,
                    "this operator looks at no value",
                    "take the values away, or write In or NotIn",
                ))
            }
            (Operator::In, false) => Ok(Selector::is_in(key, values)),
            (Operator::NotIn, false) => Ok(Selector::is_not_in(key, values)),
            (Operator::Exists, true) => Ok(Selector::has(key)),
            (Operator::DoesNotExist, true) => Ok(Selector::has(key).negated()),
        }
    }

    /// A field that must be there.
    pub(super) fn required<'a>(&mut self, fields: &Fields<'a>, key: &str, fix: &str) -> Read<At<'a>> {
        fields.get(key).ok_or_else(|| self.missing(&join(&fields.path, key), fix))
    }

    /// Of a part that must have just one of several fields, which it is.
    pub(super) fn one_of<'a>(&mut self, at: &At<'a>, known: &[&'static str]) -> Read<(&'static str, At<'a>)> {
        let fields = self.known_fields(at, known)?;
        let mut there = known.iter().filter_map(|key| Some((*key, fields.get(key)?)));
        match (there.next(), there.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(self.bad_value(at, "empty", format!("write one of {}", known.join(", ")))),
            (Some((one, _)), Some((other, _))) => {
                Err(self.bad_value(at, &format!("both {one} and {other}"), "write them as two items"))
            }
        }
    }

    /// An optional prefix and a name, as labels have them.
    fn label_key(&mut self, at: &At<'_>, key: &str) -> Read<()> {
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("a", key));
        let domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if is_label(name) && !name.is_empty() && !prefix.is_empty() && prefix.bytes().all(domain) && prefix.len() <= 253
        {
            return Ok(());
        }
        let wrong = format!("`{key}` is no label's key");
        Err(self.wrong(
            &at.path,
            "BadValue",
            &wrong,
            "write it as on the object that is meant, e.g. app.kubernetes.io/name",
        ))
    }

    fn label_value<'a>(&mut self, at: &At<'a>) -> Read<&'a str> {
        let value = self.text(at)?;
        if is_label(value) {
            return Ok(value);
        }
        let wrong = "a label's value is at most 63 letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit";
        Err(self.bad_value(at, wrong, "write it as on the object that is meant"))
    }
}

// === impl At ===

impl At<'_> {
    /// The list's length, where it is one.
    pub(super) fn is_empty_list(&self) -> bool {
        self.value.as_array().is_some_and(Vec::is_empty)
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    /// A field; null is as good as absent.
    pub(super) fn get(&self, key: &str) -> Option<At<'a>> {
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        Some(At { value, path: join(&self.path, key) })
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63
            && text.bytes().next().is_some_and(inner)
            && text.bytes().next_back().is_some_and(inner)
            && text.bytes().all(|byte| inner(byte) || b"-_.".contains(&byte)))
}

/// A value as it is shown, cut where it is long.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => format!("`{text}`"),
        Value::Null => "null".to_owned(),
        other => format!("`{other}`"),
    };
    if text.chars().count() <= 80 { text } else { text.chars().take(78).chain("…`".chars()).collect() }
}

/// The candidate that differs least, where it differs little.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
    let near = candidates.iter().map(|candidate| (apart(&word, &candidate.to_lowercase()), *candidate));
    near.filter(|(apart, candidate)| *apart <= 1 + candidate.len() / 5).min().map(|(_, candidate)| candidate)
}

/// The IPv4 range that is written as one of IPv6 (RFC 4291 §2.5.5.2).
fn mapped(net: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(net) = net else { return None };
    Ipv4Net::new(net.addr().to_ipv4_mapped()?, net.prefix_len().checked_sub(96)?).ok()
}

/// How many letters were left out, added, mistaken or swapped with their neighbour.
fn apart(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            let is_swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            row.push(if is_swap { least.min(rows[i - 2][j - 2] + 1) } else { least });
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
