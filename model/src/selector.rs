//! Label selectors in Calico's language, as IPPool uses them: `all()`, `has(key)`, `zone == "a" && !has(gpu)`.

use std::collections::BTreeMap;

/// A selector that has been parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    expr: Expr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    All,
}

impl Selector {
    /// Matches everything: what an empty text means.
    pub fn all() -> Selector {
        Selector { expr: Expr::All }
    }

    /// Whether something with these labels is meant.
    pub fn matches(&self, _labels: &BTreeMap<String, String>) -> bool {
        match self.expr {
            Expr::All => true,
        }
    }
}
