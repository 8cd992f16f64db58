//! Learn byte-pair merges from counted words.
//!
//! Every pair of neighbouring tokens has a count; the largest is merged, everywhere, and only the counts of the pairs next
//! to a merge change. A heap gives the largest; its entries may be out of date and are put right when they come up, which
//! suffices because a count only ever falls once its pair is in the heap: all pairs that a merge makes hold its new token.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::Error;

type Pair = (u32, u32);

/// What is known of one pair of neighbouring tokens.
#[derive(Default)]
struct Occurrences {
    /// In all words together, each as often as it occurs.
    count: i64,
    /// Words that held the pair when it came into being, each once; some may have lost it since.
    words: Vec<u32>,
}

/// Largest count first; of equal counts the smaller pair, which makes the merges independent of the order of words.
#[derive(PartialEq, Eq)]
struct Candidate {
    count: i64,
    pair: Reverse<Pair>,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.count, self.pair).cmp(&(other.count, other.pair))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Learn tokens until there are `vocab_size` of them or no pair is left; return their bytes in the order of their ids.
///
/// The first 256 are the single bytes. Words are bytes with their number of occurrences; equal words add up.
pub fn train<W: AsRef<[u8]> + Sync>(
    words: &[(W, i64)],
    vocab_size: usize,
) -> Result<Vec<Vec<u8>>, Error> {
    if !(256..u32::MAX as usize).contains(&vocab_size) {
        return Err(Error::VocabSize(vocab_size));
    }
    check_counts(words)?;
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let mut state: Vec<Vec<u32>> = words
        .par_iter()
        .map(|(word, _)| word.as_ref().iter().map(|&byte| byte as u32).collect())
        .collect();
    let mut pairs = first_pairs(words);
    let mut heap: BinaryHeap<Candidate> = pairs
        .iter()
        .map(|(&pair, seen)| Candidate {
            count: seen.count,
            pair: Reverse(pair),
        })
        .collect();

    while tokens.len() < vocab_size {
        let Some(Candidate {
            count,
            pair: Reverse(pair),
        }) = heap.pop()
        else {
            break;
        };
        let now = pairs[&pair].count;
        if now == 0 {
            continue;
        }
        if now < count {
            heap.push(Candidate {
                count: now,
                pair: Reverse(pair),
            });
            continue;
        }
        let new = tokens.len() as u32;
        tokens.push(
            [
                tokens[pair.0 as usize].as_slice(),
                tokens[pair.1 as usize].as_slice(),
            ]
            .concat(),
        );
        let merged = pairs.remove(&pair).expect("the pair was just looked up");
        for (made, seen) in
            merge_everywhere(&merged.words, pair, new, words, &mut state, &mut pairs)
        {
            heap.push(Candidate {
                count: seen.count,
                pair: Reverse(made),
            });
            pairs.insert(made, seen);
        }
    }
    Ok(tokens)
}

fn check_counts<W: AsRef<[u8]>>(words: &[(W, i64)]) -> Result<(), Error> {
    let mut total: i64 = 0;
    for (word, n) in words {
        if *n < 0 {
            return Err(Error::Count(format!("a word has the negative count {n}")));
        }
        total = i64::try_from(word.as_ref().len())
            .ok()
            .and_then(|len| len.checked_mul(*n))
            .and_then(|pairs| total.checked_add(pairs))
            .ok_or_else(|| Error::Count("the counts add up to more than 2^63 bytes".into()))?;
    }
    Ok(())
}

/// Count the pairs of bytes.
fn first_pairs<W: AsRef<[u8]> + Sync>(words: &[(W, i64)]) -> FxHashMap<Pair, Occurrences> {
    let mut pairs: FxHashMap<Pair, Occurrences> = FxHashMap::default();
    for (index, (word, n)) in words.iter().enumerate().filter(|(_, (_, n))| *n > 0) {
        for two in word.as_ref().windows(2) {
            see(
                pairs.entry((two[0] as u32, two[1] as u32)).or_default(),
                *n,
                index as u32,
            );
        }
    }
    pairs
}

fn see(seen: &mut Occurrences, n: i64, word: u32) {
    seen.count += n;
    if seen.words.last() != Some(&word) {
        seen.words.push(word);
    }
}

/// Merge `pair` into `new` in the given words, take the pairs that vanish off `pairs`, and return those that appear.
fn merge_everywhere<W: AsRef<[u8]> + Sync>(
    indices: &[u32],
    pair: Pair,
    new: u32,
    words: &[(W, i64)],
    state: &mut [Vec<u32>],
    pairs: &mut FxHashMap<Pair, Occurrences>,
) -> FxHashMap<Pair, Occurrences> {
    let mut made: FxHashMap<Pair, Occurrences> = FxHashMap::default();
    for &index in indices {
        let n = words[index as usize].1;
        merge_word(&mut state[index as usize], pair, new, |vanished, gone| {
            if gone {
                // The merged pair itself is no longer in `pairs`.
                if let Some(seen) = pairs.get_mut(&vanished) {
                    seen.count -= n;
                } else if let Some(seen) = made.get_mut(&vanished) {
                    seen.count -= n;
                }
            } else {
                see(made.entry(vanished).or_default(), n, index);
            }
        });
    }
    made
}

/// Merge `pair` into `new` in one word, left to right, telling of each pair that vanishes (true) or appears (false).
fn merge_word(word: &mut Vec<u32>, pair: Pair, new: u32, mut tell: impl FnMut(Pair, bool)) {
    let (mut read, mut write) = (0, 0);
    while read < word.len() {
        if read + 1 < word.len() && (word[read], word[read + 1]) == pair {
            if write > 0 {
                tell((word[write - 1], pair.0), true);
                tell((word[write - 1], new), false);
            }
            if read + 2 < word.len() {
                tell((pair.1, word[read + 2]), true);
                tell((new, word[read + 2]), false);
            }
            word[write] = new;
            read += 2;
        } else {
            word[write] = word[read];
            read += 1;
        }
        write += 1;
    }
    word.truncate(write);
}
