//! The parser of selectors: one function a line of the grammar, each leaving the cursor behind what it took.
//!
//! Invariant: never panics, and ends on any text: every step takes a character or fails, and nesting is bounded.

use std::collections::BTreeSet;

use super::{Expr, SelectorError, Test};

/// Parentheses and negations inside each other; more would be an attack on the stack.
const MAX_DEPTH: usize = 64;
/// Longest label, in bytes.
const MAX_LABEL: usize = 512;

pub(super) struct Parser<'a> {
    text: &'a str,
    /// Byte offset of what comes next.
    at: usize,
    depth: usize,
}

type Parsed<T> = Result<T, SelectorError>;

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Parser<'a> {
        Parser { text, at: 0, depth: 0 }
    }

    pub(super) fn selector(mut self) -> Parsed<Expr> {
        self.blanks();
        if self.rest().is_empty() {
            return Ok(Expr::All);
        }
        let expr = self.or()?;
        if self.rest().is_empty() { Ok(expr) } else { self.expected("`&&`, `||` or the end") }
    }

    fn or(&mut self) -> Parsed<Expr> {
        self.list("||", Parser::and, Expr::Or)
    }

    fn and(&mut self) -> Parsed<Expr> {
        self.list("&&", Parser::op, Expr::And)
    }

    fn list(
        &mut self,
        between: &str,
        part: fn(&mut Self) -> Parsed<Expr>,
        join: fn(Vec<Expr>) -> Expr,
    ) -> Parsed<Expr> {
        let first = part(self)?;
        let mut parts = vec![first];
        while self.take(between) {
            parts.push(part(self)?);
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { join(parts) })
    }

    fn op(&mut self) -> Parsed<Expr> {
        if self.depth == MAX_DEPTH {
            return self.expected("at most 64 parentheses and `!` inside each other");
        }
        self.depth += 1;
        let expr = self.op_inside();
        self.depth -= 1;
        expr
    }

    fn op_inside(&mut self) -> Parsed<Expr> {
        if self.take("!") {
            return Ok(Expr::Not(Box::new(self.op()?)));
        }
        if self.take("(") {
            let inner = self.or()?;
            return self.close(inner);
        }
        if self.take("has(") {
            let label = self.label()?;
            return self.close(Expr::Has(label));
        }
        if self.take("all(") {
            return self.close(Expr::All);
        }
        let label = self.label()?;
        Ok(Expr::Label(label, self.test()?))
    }

    fn close(&mut self, inner: Expr) -> Parsed<Expr> {
        if self.take(")") { Ok(inner) } else { self.expected("`)`") }
    }

    fn label(&mut self) -> Parsed<String> {
        let rest = self.rest();
        let len = rest.find(|c: char| !is_label(c)).unwrap_or(rest.len());
        if len == 0 || len > MAX_LABEL {
            return self.expected("a label, `has(`, `all()`, `!` or `(`");
        }
        self.at += len;
        self.blanks();
        Ok(rest[..len].to_owned())
    }

    fn test(&mut self) -> Parsed<Test> {
        if self.take("==") {
            return Ok(Test::Equal(self.quoted()?));
        }
        if self.take("!=") {
            return Ok(Test::NotEqual(self.quoted()?));
        }
        if self.word("contains") {
            return Ok(Test::Contains(self.quoted()?));
        }
        if self.words("starts", "with") {
            return Ok(Test::StartsWith(self.quoted()?));
        }
        if self.words("ends", "with") {
            return Ok(Test::EndsWith(self.quoted()?));
        }
        if self.words("not", "in") {
            return Ok(Test::NotIn(self.set()?));
        }
        if self.word("in") {
            return Ok(Test::In(self.set()?));
        }
        self.expected("`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`")
    }

    fn set(&mut self) -> Parsed<BTreeSet<String>> {
        if !self.take("{") {
            return self.expected("`{`");
        }
        let mut texts = BTreeSet::new();
        loop {
            if self.take("}") {
                return Ok(texts);
            }
            texts.insert(self.quoted()?);
            if !self.take(",") && !self.rest().starts_with('}') {
                return self.expected("`,` or `}`");
            }
        }
    }

    fn quoted(&mut self) -> Parsed<String> {
        let rest = self.rest();
        let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return self.expected("a text in quotes");
        };
        let Some(len) = rest[1..].find(quote) else {
            self.at = self.text.len();
            return self.expected("a closing quote");
        };
        self.at += len + 2;
        self.blanks();
        Ok(rest[1..=len].to_owned())
    }

    /// Two words, with or without a blank between them.
    fn words(&mut self, first: &str, second: &str) -> bool {
        let before = self.at;
        let both = self.take(first) && self.word(second);
        if !both {
            self.at = before;
        }
        both
    }

    /// A word that ends where a label would.
    fn word(&mut self, word: &str) -> bool {
        let ends = self.rest().strip_prefix(word).is_some_and(|after| !after.starts_with(is_label));
        ends && self.take(word)
    }

    fn take(&mut self, token: &str) -> bool {
        let there = self.rest().starts_with(token);
        if there {
            self.at += token.len();
            self.blanks();
        }
        there
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn expected<T>(&self, expected: &'static str) -> Parsed<T> {
        let rest: String = self.rest().chars().take(16).collect();
        let found = if rest.is_empty() { "the end".to_owned() } else { format!("`{rest}`") };
        Err(SelectorError { at: self.text[..self.at].chars().count() + 1, expected, found })
    }
}

fn is_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}
