//! The array of cells in which merges are learned: all words, one cell per byte.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use rayon::prelude::*;

use crate::{Counts, Error};

/// The token of a cell that is neither the first nor the last of its token.
pub const INSIDE: u32 = u32::MAX;
/// The token of the cells before, between and after words.
pub const END: u32 = u32::MAX - 1;

/// One byte of one word.
#[derive(Clone, Copy)]
pub struct Cell {
    /// The token in its first and last cell, otherwise `INSIDE` or `END`.
    pub token: u32,
    /// Index of the word's count in `weights`.
    pub weight: u32,
}

/// Return the cells of the words, and a list of the distinct counts, which the cells refer to.
///
/// Words that end alike merge alike. They are neighbours, so that the places of a pair lie close together in memory.
/// Words that never occur and words of one byte have no pairs and are left out.
pub fn lay_out(words: &Counts) -> Result<(Vec<Cell>, Vec<i64>), Error> {
    check_counts(words)?;
    let between = Cell { token: END, weight: 0 };
    let mut cells = Vec::with_capacity(words.num_bytes() + words.len() + 1);
    cells.push(between);
    let mut weights = Vec::new();
    let mut index: HashMap<i64, u32, RandomState> = HashMap::default();
    let mut order: Vec<(u64, &[u8], i64)> = words
        .iter()
        .filter(|&(word, n)| n > 0 && word.len() > 1)
        .map(|(word, n)| (last_bytes(word), word, n))
        .collect();
    order.par_sort_unstable_by_key(|&(key, ..)| key);
    for (_, word, n) in order {
        let weight = *index.entry(n).or_insert_with(|| {
            weights.push(n);
            weights.len() as u32 - 1
        });
        cells.extend(word.iter().map(|&byte| Cell { token: byte as u32, weight }));
        cells.push(between);
    }
    Ok((cells, weights))
}

/// The last eight bytes of a word, the last one as the most significant.
fn last_bytes(word: &[u8]) -> u64 {
    word.iter().rev().take(8).fold((0, 64), |(key, shift), &byte| (key | (byte as u64) << (shift - 8), shift - 8)).0
}

fn check_counts(words: &Counts) -> Result<(), Error> {
    if words.num_bytes() + words.len() >= END as usize {
        return Err(Error::Count("the words have more than 2^32 bytes: leave the rare ones out".into()));
    }
    let mut total: i64 = 0;
    for (word, n) in words.iter() {
        if n < 0 {
            return Err(Error::Count(format!("a word has the negative count {n}")));
        }
        total = (word.len() as i64)
            .checked_mul(n)
            .and_then(|bytes| total.checked_add(bytes))
            .ok_or_else(|| Error::Count("the words have more than 2^63 bytes, occurrence by occurrence".into()))?;
    }
    Ok(())
}
