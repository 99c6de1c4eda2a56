//! What selectors mean, what is refused and where, and the law that printing and parsing are inverse.

use proptest::prelude::*;

use std::collections::BTreeMap;

use super::*;

fn labels(text: &str) -> BTreeMap<String, String> {
    text.split_whitespace()
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[test]
fn means() {
    // selector, labels it matches, labels it does not match
    let table: &[(&str, &[&str], &[&str])] = &[
        ("", &["", "a=b"], &[]),
        (" \t", &["", "a=b"], &[]),
        ("all()", &["", "a=b"], &[]),
        ("!all()", &[], &["", "a=b"]),
        ("has(a)", &["a", "a=b"], &["", "b=a"]),
        ("!has(a)", &["", "b=a"], &["a", "a=b"]),
        ("has( a )", &["a"], &[""]),
        (r#"a == "b""#, &["a=b"], &["", "a=c", "b=b"]),
        ("a=='b'", &["a=b"], &["", "a=c"]),
        ("a == ''", &["a"], &["", "a=b"]),
        (r#"a != "b""#, &["", "a=c"], &["a=b"]),
        ("!a == 'b'", &["", "a=c"], &["a=b"]),
        ("!!a == 'b'", &["a=b"], &["a=c"]),
        ("a in {'b', \"c\"}", &["a=b", "a=c"], &["", "a=d"]),
        ("a in {'b',}", &["a=b"], &["a=c"]),
        ("a in {}", &[], &["", "a=b"]),
        ("a not in {'b'}", &["", "a=c"], &["a=b"]),
        ("a notin{'b'}", &["", "a=c"], &["a=b"]),
        ("a contains 'ee'", &["a=beer"], &["", "a=bar"]),
        ("a starts with 'be'", &["a=beer"], &["", "a=rebe"]),
        ("a startswith 'be'", &["a=beer"], &["a=rebe"]),
        ("a ends with 'er'", &["a=beer"], &["", "a=era"]),
        ("a == 'x' && b == 'y'", &["a=x b=y"], &["a=x", "b=y"]),
        ("a == 'x' || b == 'y'", &["a=x", "b=y"], &["", "a=y"]),
        ("has(a) || has(b) && has(c)", &["a", "b c"], &["b", "c"]),
        ("(has(a) || has(b)) && has(c)", &["a c", "b c"], &["a", "b"]),
        ("!(has(a) && has(b))", &["a", "b", ""], &["a b"]),
        ("kubernetes.io/os == 'linux'", &["kubernetes.io/os=linux"], &["kubernetes.io/os=plan9"]),
        ("in in {'in'}", &["in=in"], &["in=out"]),
        ("contains contains 'contains'", &["contains=contains"], &[""]),
        ("has == 'a'", &["has=a"], &[""]),
        ("all in {'a'}", &["all=a"], &[""]),
    ];
    for (text, yes, no) in table {
        let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        for set in *yes {
            assert!(selector.matches(&labels(set)), "{text:?} should match {set:?}");
        }
        for set in *no {
            assert!(!selector.matches(&labels(set)), "{text:?} should not match {set:?}");
        }
        assert_eq!(Selector::parse(&selector.to_string()).as_ref(), Ok(&selector), "{text:?} printed as {selector}");
    }
}

#[test]
fn values_that_must_be_there() {
    let check = |selector: &str, wanted: &[(&str, &[&str])]| {
        let wanted: Vec<(&str, Vec<&str>)> = wanted.iter().map(|(label, values)| (*label, values.to_vec())).collect();
        assert_eq!(Selector::parse(selector).unwrap().wanted_values(), wanted, "{selector}");
    };
    check("", &[]);
    check("a == 'b'", &[("a", &["b"])]);
    check("has(f) && a in {'b', 'c'} && d == 'e' && g != 'h'", &[("a", &["b", "c"]), ("d", &["e"])]);
    for selector in ["!a == 'b'", "a != 'b'", "a not in {'b'}", "a == 'b' || c == 'd'", "a starts with 'b'"] {
        check(selector, &[]);
    }
}

#[test]
fn refused() {
    let operators = "`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`";
    let label = "a label, `has(`, `all()`, `!` or `(`";
    // selector, position, expected, found
    let table = [
        ("a", 2, operators, "the end"),
        ("a b", 3, operators, "`b`"),
        ("a = 'b'", 3, operators, "`= 'b'`"),
        ("a inn {'b'}", 3, operators, "`inn {'b'}`"),
        ("a == b", 6, "a text in quotes", "`b`"),
        ("a == 'b", 8, "a closing quote", "the end"),
        ("a in ['b']", 6, "`{`", "`['b']`"),
        ("a in {'b' 'c'}", 11, "`,` or `}`", "`'c'}`"),
        ("has(a", 6, "`)`", "the end"),
        ("has (a)", 5, operators, "`(a)`"),
        ("(has(a)", 8, "`)`", "the end"),
        ("has(a))", 7, "`&&`, `||` or the end", "`)`"),
        ("has(a) &&", 10, label, "the end"),
        ("&& has(a)", 1, label, "`&& has(a)`"),
        ("has(a) & has(b)", 8, "`&&`, `||` or the end", "`& has(b)`"),
        ("has(ä)", 5, label, "`ä)`"),
        ("é == 'b'", 1, label, "`é == 'b'`"),
        ("all() || \n", 10, label, "`\n`"),
    ];
    for (text, at, expected, found) in table {
        let error = SelectorError { at, expected, found: found.to_owned() };
        assert_eq!(Selector::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn nesting_is_bounded() {
    for text in ["!".repeat(100_000), "(".repeat(100_000)] {
        let error = Selector::parse(&text).expect_err("too deep");
        assert!(error.expected.starts_with("at most 64"), "{error}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9 ]{0,4}", "[a-z']{0,3}", "[a-z\"]{0,3}"]
}

fn any_test() -> impl Strategy<Value = Test> {
    let set = || prop::collection::btree_set(any_text(), 0..3);
    prop_oneof![
        any_text().prop_map(Test::Equal),
        any_text().prop_map(Test::NotEqual),
        any_text().prop_map(Test::Contains),
        any_text().prop_map(Test::StartsWith),
        any_text().prop_map(Test::EndsWith),
        set().prop_map(Test::In),
        set().prop_map(Test::NotIn),
    ]
}

fn any_expr() -> impl Strategy<Value = Expr> {
    let label = || prop_oneof!["[a-z./_-]{1,4}", Just("in".to_owned()), Just("has".to_owned())];
    let leaf = prop_oneof![
        Just(Expr::All),
        label().prop_map(Expr::Has),
        (label(), any_test()).prop_map(|(label, test)| Expr::Label(label, test)),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let several = || prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            inner.clone().prop_map(|expr| Expr::Not(Box::new(expr))),
            several().prop_map(Expr::And),
            several().prop_map(Expr::Or),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn printed_and_parsed_is_the_same(expr in any_expr()) {
        let selector = Selector { expr };
        prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[a-c!&|(){}'\", =inhas\\u{e9}]{0,40}") {
        if let Ok(selector) = Selector::parse(&text) {
            prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
        }
    }
}
