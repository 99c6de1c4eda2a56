//! Label selectors, which can say all that Calico's language can and so all that Kubernetes' own can: `all()`, `has(key)`, `zone == "a" && !has(gpu)`.
//!
//! Grammar (blanks and tabs allowed between tokens; `!` binds to what follows it directly; no escapes in texts):
//!
//! ```text
//! or  := and ("||" and)*            and := op ("&&" op)*
//! op  := "!"* ( "has(" label ")" | "all()" | label test | "(" or ")" )
//! test := ("==" | "!=" | "contains" | "starts with" | "ends with") text | ("in" | "not in") "{" text,* "}"
//! text := "…" | '…'                 label := [A-Za-z0-9_./-]{1,512}
//! ```
//!
//! Invariant: `Selector::parse(s.to_string()) == s`. As in Calico, `!=` and `not in` hold where the label is absent, and
//! an operator's word is one only after a label, so that a label may be named `in` or `contains`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::Labelled;
use crate::selector::parse::Parser;

mod parse;

/// A selector that has been parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    expr: Expr,
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at} of the selector: expected {expected}, found {found}")]
pub struct SelectorError {
    /// Counted from 1.
    pub at: usize,
    pub expected: &'static str,
    pub found: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Expr {
    All,
    Has(String),
    Label(String, Test),
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    Equal(String),
    NotEqual(String),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

// === impl Selector ===

impl Selector {
    /// Matches everything: what an empty text means.
    pub fn all() -> Selector {
        Selector { expr: Expr::All }
    }

    /// Reads a selector; an empty or blank text is [`Selector::all`].
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        Ok(Selector { expr: Parser::new(text).selector()? })
    }

    /// Matches where each of these does; all of them none is [`Selector::all`].
    pub fn all_of(parts: impl IntoIterator<Item = Selector>) -> Selector {
        let mut parts: Vec<Expr> = parts.into_iter().map(|part| part.expr).collect();
        Selector { expr: if parts.len() == 1 { parts.swap_remove(0) } else { Expr::and(parts) } }
    }

    /// Matches where the label is there.
    pub fn has(label: &str) -> Selector {
        Selector { expr: Expr::Has(label.to_owned()) }
    }

    /// Matches where this one does not.
    pub fn negated(self) -> Selector {
        Selector { expr: Expr::Not(Box::new(self.expr)) }
    }

    /// Matches where the label has one of these values.
    pub fn is_in<'a>(label: &str, values: impl IntoIterator<Item = &'a str>) -> Selector {
        Selector { expr: Expr::Label(label.to_owned(), Test::In(values.into_iter().map(str::to_owned).collect())) }
    }

    /// Matches where the label is absent or has another value.
    pub fn is_not_in<'a>(label: &str, values: impl IntoIterator<Item = &'a str>) -> Selector {
        Selector { expr: Expr::Label(label.to_owned(), Test::NotIn(values.into_iter().map(str::to_owned).collect())) }
    }

    /// Whether something with these labels is meant.
    pub fn matches(&self, labels: &impl Labelled) -> bool {
        self.expr.matches(labels)
    }

    /// Labels with values, of which whatever it matches has one value each.
    pub fn wanted_values(&self) -> Vec<(&str, Vec<&str>)> {
        let parts = match &self.expr {
            Expr::And(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        parts.iter().filter_map(Expr::wanted_values).collect()
    }

    /// Tells every label it looks at; some more than once.
    pub fn each_label<'a>(&'a self, tell: &mut impl FnMut(&'a str)) {
        self.expr.each_label(tell);
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        Selector::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt(f)
    }
}

// === impl Expr ===

impl Expr {
    fn and(parts: Vec<Expr>) -> Expr {
        if parts.is_empty() { Expr::All } else { Expr::And(parts) }
    }

    fn wanted_values(&self) -> Option<(&str, Vec<&str>)> {
        match self {
            Expr::Label(label, Test::Equal(value)) => Some((label, vec![value])),
            Expr::Label(label, Test::In(values)) => Some((label, values.iter().map(String::as_str).collect())),
            _ => None,
        }
    }

    fn each_label<'a>(&'a self, tell: &mut impl FnMut(&'a str)) {
        match self {
            Expr::All => {}
            Expr::Has(label) | Expr::Label(label, _) => tell(label),
            Expr::Not(inner) => inner.each_label(tell),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| part.each_label(tell)),
        }
    }

    fn matches(&self, labels: &impl Labelled) -> bool {
        match self {
            Expr::All => true,
            Expr::Has(label) => labels.label(label).is_some(),
            Expr::Label(label, test) => test.holds(labels.label(label)),
            Expr::Not(inner) => !inner.matches(labels),
            Expr::And(parts) => parts.iter().all(|part| part.matches(labels)),
            Expr::Or(parts) => parts.iter().any(|part| part.matches(labels)),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Expr], between: &str| {
            for (i, part) in parts.iter().enumerate() {
                let lead = if i == 0 { "(" } else { between };
                write!(f, "{lead}{part}")?;
            }
            f.write_str(")")
        };
        match self {
            Expr::All => f.write_str("all()"),
            Expr::Has(label) => write!(f, "has({label})"),
            Expr::Label(label, test) => write!(f, "{label} {test}"),
            Expr::Not(inner) => write!(f, "!{inner}"),
            Expr::And(parts) => joined(f, parts, " && "),
            Expr::Or(parts) => joined(f, parts, " || "),
        }
    }
}

// === impl Test ===

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let has = |test: &dyn Fn(&str) -> bool| value.is_some_and(test);
        match self {
            Test::Equal(text) => has(&|v| v == text),
            Test::NotEqual(text) => !has(&|v| v == text),
            Test::Contains(text) => has(&|v| v.contains(text)),
            Test::StartsWith(text) => has(&|v| v.starts_with(text)),
            Test::EndsWith(text) => has(&|v| v.ends_with(text)),
            Test::In(texts) => has(&|v| texts.contains(v)),
            Test::NotIn(texts) => !has(&|v| texts.contains(v)),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |texts: &BTreeSet<String>| texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ");
        match self {
            Test::Equal(text) => write!(f, "== {}", quoted(text)),
            Test::NotEqual(text) => write!(f, "!= {}", quoted(text)),
            Test::Contains(text) => write!(f, "contains {}", quoted(text)),
            Test::StartsWith(text) => write!(f, "starts with {}", quoted(text)),
            Test::EndsWith(text) => write!(f, "ends with {}", quoted(text)),
            Test::In(texts) => write!(f, "in {{{}}}", set(texts)),
            Test::NotIn(texts) => write!(f, "not in {{{}}}", set(texts)),
        }
    }
}

/// A text holds at most one kind of quote, because it was written between quotes of the other.
fn quoted(text: &str) -> String {
    if text.contains('"') { format!("'{text}'") } else { format!("\"{text}\"") }
}

#[cfg(test)]
mod tests;
