//! Source files: how long, how they open, what they may not contain.

use super::{
    Problem, Tree,
    crates::{CRATES, Crate},
};

/// Code lines that one sitting can hold.
const FILE_LINES: usize = 600;

/// Files that are longer for a reason: path, reason.
const LONGER: &[(&str, &str)] = &[];

/// The crates in which `unsafe` can be needed: system calls, and descriptors handed to engines.
const UNSAFE: &[&str] = &["kernel", "engine"];

/// Endings that say nothing of what a type is.
const EMPTY_NAMES: [&str; 6] = ["Manager", "Handler", "Helper", "Helpers", "Util", "Utils"];

/// Folders of the machines this is developed on. Put together here, so that this file does not contain them.
const MACHINE_PATHS: [&str; 3] = [concat!("/", "work/"), concat!("/", "root/"), concat!("/tmp/", "bash")];

/// Each crate's code lines stay under its row's ceiling.
pub(super) fn ceilings(tree: &Tree) -> Vec<Problem> {
    let over = |krate: &Crate| {
        let folder = format!("{}/", krate.name);
        let files = tree.with_extension("rs").filter(|(path, _)| path.starts_with(&folder));
        let lines: usize = files.map(|(_, text)| code_lines(text)).sum();
        (lines > krate.ceiling).then(|| {
            let Crate { name, ceiling, .. } = krate;
            format!("{name} has {lines} code lines, over its ceiling of {ceiling}: take out, or raise it with a line in docs/decisions.md")
        })
    };
    CRATES.iter().filter_map(over).collect()
}

/// No file is longer than `FILE_LINES`, but those of `LONGER`, which must be.
pub(super) fn lengths(tree: &Tree) -> Vec<Problem> {
    let wrong = |(path, text): (&str, &str)| {
        let lines = code_lines(text);
        let excused = LONGER.iter().any(|(longer, _)| *longer == path);
        match lines > FILE_LINES {
            true if !excused => Some(format!("{path} has {lines} code lines, over {FILE_LINES}: split it")),
            false if excused => Some(format!("{path} is short enough now: drop its row in LONGER")),
            _ => None,
        }
    };
    tree.with_extension("rs").filter_map(wrong).collect()
}

/// Every source file opens with `//!`.
pub(super) fn openings(tree: &Tree) -> Vec<Problem> {
    let silent = tree.with_extension("rs").filter(|(_, text)| !text.starts_with("//! "));
    silent.map(|(path, _)| format!("{path}: open with `//!`: what the file is for, and its invariant")).collect()
}

/// The workspace denies `unsafe_code`; only some crates lift that.
pub(super) fn unsafe_code(tree: &Tree) -> Vec<Problem> {
    // Put together here, so that this file does not contain them.
    let lifted = [concat!("allow(", "unsafe_code"), concat!("expect(", "unsafe_code")];
    let allowed = |path: &str| UNSAFE.iter().any(|krate| path.split('/').next() == Some(krate));
    let all =
        tree.with_extension("rs").filter(|(path, text)| !allowed(path) && lifted.iter().any(|l| text.contains(l)));
    all.map(|(path, _)| format!("{path}: unsafe belongs in {}, behind a safe function", UNSAFE.join(" or "))).collect()
}

/// No type's name ends in a word of `EMPTY_NAMES`.
pub(super) fn names(tree: &Tree) -> Vec<Problem> {
    on_lines(tree, |line| {
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        let mut words = words.skip_while(|word| ["pub", "crate", "super"].contains(word));
        words.next().filter(|word| ["struct", "enum", "trait", "type"].contains(word))?;
        let name = words.next().filter(|name| EMPTY_NAMES.iter().any(|empty| name.ends_with(empty)))?;
        Some(format!("{name}: name it for what it is"))
    })
}

/// Every ignored test carries its reason.
pub(super) fn ignored(tree: &Tree) -> Vec<Problem> {
    let bare = |line: &str| line.trim() == "#[ignore]";
    on_lines(tree, |line| bare(line).then(|| "say why: `#[ignore = \"long: …\"]`".into()))
}

/// The problems of single lines of code, each with its place.
fn on_lines(tree: &Tree, problem: impl Fn(&str) -> Option<Problem>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.with_extension("rs") {
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        problems.extend(code.filter_map(|(index, line)| Some(format!("{path}:{}: {}", index + 1, problem(line)?))));
    }
    problems
}

/// No file names a folder that exists on one machine only.
pub(super) fn machine_paths(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in &tree.files {
        for (index, line) in text.lines().enumerate() {
            for folder in MACHINE_PATHS.iter().filter(|folder| names_absolute(line, folder)) {
                problems.push(format!("{path}:{}: {folder} exists on one machine only", index + 1));
            }
        }
    }
    problems
}

/// `folder` stands in `line` as the beginning of a path, not in the middle of one.
fn names_absolute(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/}".contains(c))
    })
}

/// Lines that are neither empty nor only a comment.
pub(super) fn code_lines(text: &str) -> usize {
    text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{assert_problems, tree},
        *,
    };

    #[test]
    fn only_code_counts() {
        assert_eq!(code_lines("//! Doc\n\n// why\nfn f() {\n    // why\n    g(); // said\n}\n"), 3);
    }

    #[test]
    fn files_and_crates_have_ceilings() {
        let long = "x;\n".repeat(FILE_LINES + 1);
        let fits = "x;\n".repeat(FILE_LINES) + "// not code\n";
        assert_problems(
            &lengths(&tree(&[("api/src/a.rs", &long), ("api/src/b.rs", &fits)])),
            &["api/src/a.rs has 601"],
        );
        let all: Vec<(String, &str)> = (0..6).map(|i| (format!("cni/src/{i}.rs"), fits.as_str())).collect();
        let all: Vec<(&str, &str)> = all.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert_problems(&ceilings(&tree(&all)), &["cni has 3600 code lines, over its ceiling of 1500"]);
    }

    #[test]
    fn a_file_that_does_not_say_what_it_is_for_is_refused() {
        let files =
            [("a.rs", "//! What it is for.\n"), ("b.rs", "use x;\n"), ("c.rs", "// Not a doc.\n"), ("d.md", "")];
        assert_problems(&openings(&tree(&files)), &["b.rs: open", "c.rs: open"]);
    }

    #[test]
    fn lifting_the_ban_on_unsafe_is_refused_outside_its_crates() {
        let lift = format!("#![allow({}_code)]", "unsafe");
        let files =
            [("kernel/src/sys.rs", lift.as_str()), ("agent/src/run.rs", &lift), ("ipam/src/lib.rs", "// unsafe")];
        assert_problems(&unsafe_code(&tree(&files)), &["agent/src/run.rs: unsafe belongs in kernel or engine"]);
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        let files =
            [("a.rs", "pub(crate) struct LinkManager<T>;\n// struct XHelper\nenum Handlers {}\ntrait Route {}\n")];
        assert_problems(&names(&tree(&files)), &["a.rs:1: LinkManager"]);
    }

    #[test]
    fn tests_ignored_without_a_reason_are_refused() {
        let files = [("a.rs", "#[ignore = \"long: 10 minutes\"]\nfn a() {}\n    #[ignore]\nfn b() {}\n")];
        assert_problems(&ignored(&tree(&files)), &["a.rs:3: say why"]);
    }

    #[test]
    fn folders_of_one_machine_are_refused() {
        let check = |line: &str, wanted: &[&str]| {
            assert_problems(&machine_paths(&tree(&[("a.yaml", &line.replace('~', "/"))])), wanted);
        };
        check("stateDir: ~work~main", &["a.yaml:1: "]);
        check("first\nrun \"~root~.cargo\"", &["a.yaml:2: "]);
        check("log ~tmp~bash_jobs", &["a.yaml:1: "]);
        check("proc~self~root~x, net~work~x, ~workspace~, {dir}~work~x", &[]);
    }
}
