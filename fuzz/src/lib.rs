//! Fuzzing: the stored inputs of each parser (`corpus/TARGET/`), and runs over inputs made from them.
//!
//! A target is a test beside its parser: a function from bytes to an outcome that panics where a law of the parser is
//! broken. `replay` runs it over the stored inputs, every day; `run` goes on with mutated ones for a while, in the
//! group `fuzz`. No nightly toolchain, so no coverage: an input whose outcome in words was not seen before is mutated
//! on, and error messages tell branches of a parser apart rather well.
//!
//! Invariant: a run is determined by its seed, which is printed; an input that panics or never returns is written into
//! the corpus, so that it is replayed from then on.

mod mutate;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mutate::{Mutator, Rng};

/// How long a target runs, in seconds, unless said otherwise.
const SECONDS: u64 = 10;
/// An input that takes longer is as bad as one that panics.
const STUCK: Duration = Duration::from_secs(10);
/// Inputs kept for their outcome, beside the stored ones.
const KEPT: usize = 4096;
/// Tries to make a found input smaller.
const TRIES: usize = 400;

/// What a target says of an input, in words.
pub type Outcome = String;

/// The stored inputs of a target, with their names, in the order of these.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = directory(target);
    let names = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut inputs: Vec<(String, Vec<u8>)> = names
        .map(|entry| {
            let entry = entry.expect("the corpus can be read");
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("the corpus can be read"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs the target over every stored input. Returns each one's outcome, by its name.
pub fn replay(target: &str, check: impl Fn(&[u8]) -> Outcome) -> Vec<(String, Outcome)> {
    let judged = |(name, bytes): (String, Vec<u8>)| match catch_unwind(AssertUnwindSafe(|| check(&bytes))) {
        Ok(outcome) => (name, outcome),
        Err(_) => panic!("fuzz/corpus/{target}/{name} breaks a law of the parser, see above"),
    };
    corpus(target).into_iter().map(judged).collect()
}

/// Runs the target over inputs made from the stored ones, for `TARTAN_FUZZ_SECONDS`, from the seed `TARTAN_FUZZ_SEED`.
pub fn run(target: &str, check: impl Fn(&[u8]) -> Outcome) {
    let (seed, time) = (setting("TARTAN_FUZZ_SEED", 1), Duration::from_secs(setting("TARTAN_FUZZ_SECONDS", SECONDS)));
    let mut pool: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
    let mut mutator = Mutator::new(Rng::new(seed), &pool);
    let mut seen: BTreeSet<BTreeSet<String>> = pool.iter().map(|bytes| shape(&check(bytes), bytes)).collect();
    let (stored, watch, start) = (pool.len(), Watch::start(target), Instant::now());
    let mut count = 0_u64;
    while start.elapsed() < time {
        let input = mutator.next(&pool);
        watch.begin(&input);
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| check(&input))) else {
            let smaller = smallest(input, |bytes| catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err());
            let kept = keep(target, &smaller);
            panic!("input {count} of seed {seed} breaks a law of the parser, see above; it is kept as {kept}");
        };
        if seen.insert(shape(&outcome, &input)) && pool.len() < stored + KEPT {
            pool.push(input);
        }
        count += 1;
    }
    eprintln!("{target}: seed {seed}, {stored} stored inputs, {count} made of them, {} outcomes", seen.len());
    assert!(count > 0 && seen.len() > 1, "nothing was tried");
}

fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")),
        Err(_) => otherwise,
    }
}

fn directory(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Writes an input that must not be forgotten; says where.
fn keep(target: &str, bytes: &[u8]) -> String {
    let path = directory(target).join(format!("found-{:016x}", mutate::hash(bytes)));
    match fs::write(&path, bytes) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("nothing ({}: {error}); it is {bytes:?}", path.display()),
    }
}

/// The words of an outcome that the input does not hold itself: what the parser says, without what it repeats.
fn shape(outcome: &str, input: &[u8]) -> BTreeSet<String> {
    let echoed: BTreeSet<&[u8]> = input.split(|byte| !byte.is_ascii_alphabetic()).collect();
    let words = outcome.split(|c: char| !c.is_alphabetic());
    words
        .filter(|word| !word.is_empty() && word.is_ascii() && !echoed.contains(word.as_bytes()))
        .map(str::to_owned)
        .collect()
}

/// The input with as much taken out as can be while it is as bad.
fn smallest(mut input: Vec<u8>, bad: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut tries, mut length) = (0, input.len() / 2);
    while length > 0 {
        let mut at = 0;
        while at < input.len() && tries < TRIES {
            let mut less = input.clone();
            less.drain(at..(at + length).min(input.len()));
            tries += 1;
            if bad(&less) { input = less } else { at += length }
        }
        length /= 2;
    }
    input
}

/// Ends the process, with the input kept, when one takes too long.
struct Watch {
    running: Arc<Mutex<Running>>,
}

/// An input, and since when.
type Running = Option<(Instant, Vec<u8>)>;

impl Watch {
    fn start(target: &str) -> Watch {
        let running = Arc::new(Mutex::new(Running::None));
        let (target, watched) = (target.to_owned(), Arc::downgrade(&running));
        thread::spawn(move || {
            while let Some(running) = watched.upgrade() {
                if let Some((since, bytes)) = &*running.lock().unwrap_or_else(PoisonError::into_inner)
                    && since.elapsed() > STUCK
                {
                    eprintln!("{target}: an input takes more than {STUCK:?}; it is kept as {}", keep(&target, bytes));
                    std::process::abort();
                }
                drop(running);
                thread::park_timeout(STUCK / 10);
            }
        });
        Watch { running }
    }

    fn begin(&self, input: &[u8]) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), input.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_input_is_cut_down_to_what_makes_it_bad() {
        let bad = |bytes: &[u8]| bytes.windows(3).any(|three| three == b"bad");
        assert_eq!(smallest(b"all of this is bad, and long".to_vec(), bad), b"bad");
    }

    #[test]
    fn outcomes_differ_by_what_the_parser_says() {
        assert_eq!(shape("line 7: `abc` is no link", b"abc"), shape("line 12: `x y` is no link", b"{x y}"));
        assert_ne!(shape("line 7: no link", b"abc"), shape("line 7: no name", b"abc"));
    }
}
