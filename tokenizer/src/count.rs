//! Cut texts into words and count them.

use fancy_regex::Regex;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::Error;

/// How often each word occurs; the words borrow from the texts.
pub type Counts<'a> = FxHashMap<&'a str, i64>;

/// Count the words that `pattern` cuts `texts` into, in parallel over texts.
///
/// The result does not depend on the number of threads nor on how the words are spread over the texts.
pub fn count<'a, T: AsRef<str> + Sync>(texts: &'a [T], pattern: &str) -> Result<Counts<'a>, Error> {
    let regex = Regex::new(pattern).map_err(|e| Error::Pattern(e.to_string()))?;
    texts
        .par_iter()
        .try_fold(Counts::default, |counts, text| {
            count_text(counts, text.as_ref(), &regex)
        })
        .try_reduce(Counts::default, |a, b| Ok(add(a, b)))
}

fn count_text<'a>(
    mut counts: Counts<'a>,
    text: &'a str,
    regex: &Regex,
) -> Result<Counts<'a>, Error> {
    for word in regex.find_iter(text) {
        let word = word.map_err(|e| Error::Split(e.to_string()))?;
        *counts.entry(word.as_str()).or_insert(0) += 1;
    }
    Ok(counts)
}

/// Add up two counts, the smaller into the larger.
fn add<'a>(a: Counts<'a>, b: Counts<'a>) -> Counts<'a> {
    let (mut into, from) = if a.len() < b.len() { (b, a) } else { (a, b) };
    for (word, n) in from {
        *into.entry(word).or_insert(0) += n;
    }
    into
}
