//! Learn byte-pair merges from counted words.
//!
//! The words lie one after the other in one array of cells, a cell a byte. Every occurrence of a pair of neighbouring
//! tokens is the place of its first byte. A merge visits the places of its pair, joins the cells, and collects the pairs
//! that this makes; each of these holds the new token, so that its places and its count are known once and for all, but for
//! those that later merges take away. These are not kept track of: a count in the heap is the most that the pair can have,
//! and when it comes up its places are looked at again. If fewer are left than it says, it goes back with the right count.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::{Counts, Error};

type Pair = (u32, u32);

/// In a cell that is neither the first nor the last of its token.
const INSIDE: u32 = u32::MAX;
/// In the cells before, between and after words.
const END: u32 = u32::MAX - 1;

/// Learn tokens until there are `vocab_size` of them or no pair is left; return their bytes in the order of their ids.
///
/// The first 256 are the single bytes. The most frequent pair is merged first; of equally frequent ones that with the
/// smaller first token, then the smaller second one. The order of the words does not matter, and equal words add up.
pub fn train(words: &Counts, vocab_size: usize) -> Result<Vec<Vec<u8>>, Error> {
    if !(256..END as usize).contains(&vocab_size) {
        return Err(Error::VocabSize(vocab_size));
    }
    check_counts(words)?;
    let mut trainer = Trainer::new(words, vocab_size);
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    while tokens.len() < vocab_size {
        let Some(candidate) = trainer.most_frequent() else {
            break;
        };
        let (a, b) = (&tokens[candidate.pair.0.0 as usize], &tokens[candidate.pair.0.1 as usize]);
        tokens.push([a.as_slice(), b.as_slice()].concat());
        trainer.merge(candidate);
    }
    Ok(tokens)
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

/// One byte of one word.
#[derive(Clone, Copy)]
struct Cell {
    /// The token, in its first and its last cell; else `INSIDE` or `END`.
    token: u32,
    /// Index of the word's count in `weights`.
    weight: u32,
}

/// A pair that may be merged. The largest is the one to merge: most frequent, then smallest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// How often it occurred when it was last counted; not less often than now.
    count: i64,
    pair: Reverse<Pair>,
    /// Its places in `Trainer::places`, ascending.
    start: usize,
    len: usize,
}

impl Candidate {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Pairs of the new token with one other, while they are collected.
#[derive(Clone, Copy, Default)]
struct Made {
    count: i64,
    len: u32,
    /// Where in `places` the next one goes.
    next: usize,
}

struct Trainer {
    cells: Vec<Cell>,
    /// The different counts of words.
    weights: Vec<i64>,
    /// Bytes of each token.
    lengths: Vec<u32>,
    /// Places of all pairs, those of one pair side by side.
    places: Vec<u32>,
    heap: BinaryHeap<Candidate>,
    /// By token: the pairs of it with the new token, to the left and to the right of it. Empty between merges.
    left: Vec<Made>,
    right: Vec<Made>,
    /// Tokens that have a pair in `left` and in `right`.
    in_left: Vec<u32>,
    in_right: Vec<u32>,
}

impl Trainer {
    fn new(words: &Counts, vocab_size: usize) -> Trainer {
        let (cells, weights) = lay_out(words);
        let mut trainer = Trainer {
            cells,
            weights,
            lengths: vec![1; 256],
            places: Vec::new(),
            heap: BinaryHeap::new(),
            left: vec![Made::default(); vocab_size],
            right: vec![Made::default(); vocab_size],
            in_left: Vec::new(),
            in_right: Vec::new(),
        };
        trainer.find_first_pairs();
        trainer
    }

    /// Find the pairs of bytes.
    fn find_first_pairs(&mut self) {
        let mut made = vec![Made::default(); 1 << 16];
        let pairs = || self.cells.windows(2).enumerate().filter(|(_, two)| two[0].token < END && two[1].token < END);
        let index = |two: &[Cell]| (two[0].token << 8 | two[1].token) as usize;
        for (_, two) in pairs() {
            let pair = &mut made[index(two)];
            pair.count += self.weights[two[0].weight as usize];
            pair.len += 1;
        }
        let mut candidates = Vec::new();
        let mut end = 0;
        for (index, pair) in made.iter_mut().enumerate().filter(|(_, pair)| pair.len > 0) {
            (pair.next, end) = (end, end + pair.len as usize);
            let bytes = (index as u32 >> 8, index as u32 & 0xFF);
            candidates.push(Candidate {
                count: pair.count,
                pair: Reverse(bytes),
                start: pair.next,
                len: pair.len as usize,
            });
        }
        let mut places = vec![0; end];
        for (place, two) in pairs() {
            let pair = &mut made[index(two)];
            places[pair.next] = place as u32;
            pair.next += 1;
        }
        self.places = places;
        self.heap = candidates.into();
    }

    /// Take the pair to merge next off the heap, its places being those that are left. None if no pair is left.
    fn most_frequent(&mut self) -> Option<Candidate> {
        loop {
            let mut top = self.heap.pop()?;
            let (a, b) = top.pair.0;
            let length = self.lengths[a as usize] as usize;
            let (mut count, mut len) = (0, 0);
            let places = &mut self.places[top.range()];
            for i in 0..places.len() {
                let place = places[i];
                let cell = self.cells[place as usize];
                // Without a branch, for which places are left is hard to foresee.
                let left = cell.token == a && self.cells[place as usize + length].token == b;
                places[len] = place;
                len += left as usize;
                count += if left { self.weights[cell.weight as usize] } else { 0 };
            }
            let right = count == top.count;
            (top.count, top.len) = (count, len);
            match (right, count) {
                (_, 0) => {}
                (true, _) => return Some(top),
                (false, _) => self.heap.push(top),
            }
        }
    }

    /// Make a new token of the pair, wherever it occurs.
    fn merge(&mut self, candidate: Candidate) {
        let Reverse((a, b)) = candidate.pair;
        let new = self.lengths.len() as u32;
        let (first, second) = (self.lengths[a as usize], self.lengths[b as usize]);
        self.lengths.push(first + second);
        let merged = self.join(candidate.range(), (a, b), new);
        self.collect(merged.clone(), new);
        self.store(merged, new);
    }

    /// Join the cells of the pair from left to right; return where in `places` those places are that were joined. In a row
    /// of equal tokens every second one is.
    fn join(&mut self, range: Range<usize>, (a, b): Pair, new: u32) -> Range<usize> {
        let (first, both) = (self.lengths[a as usize] as usize, self.lengths[new as usize] as usize);
        let mut end = range.start;
        for i in range.clone() {
            let place = self.places[i];
            let (left, middle, right) = (place as usize, place as usize + first, place as usize + both - 1);
            if self.cells[left].token != a || self.cells[middle].token != b {
                continue;
            }
            self.cells[middle - 1].token = INSIDE;
            self.cells[middle].token = INSIDE;
            self.cells[left].token = new;
            self.cells[right].token = new;
            self.places[end] = place;
            end += 1;
        }
        range.start..end
    }

    /// Count the pairs that the new token is in, into `left` and `right`.
    fn collect(&mut self, merged: Range<usize>, new: u32) {
        for i in merged {
            let (weight, [before, after]) = self.neighbours(self.places[i], new);
            for (token, made, seen) in
                [(before, &mut self.left, &mut self.in_left), (after, &mut self.right, &mut self.in_right)]
            {
                if token < END {
                    let pair = &mut made[token as usize];
                    if pair.len == 0 {
                        seen.push(token);
                    }
                    pair.count += weight;
                    pair.len += 1;
                }
            }
        }
    }

    /// Store the places of the pairs that were collected, and put these on the heap.
    fn store(&mut self, merged: Range<usize>, new: u32) {
        let mut end = self.places.len();
        for (left, made, seen) in [(true, &mut self.left, &self.in_left), (false, &mut self.right, &self.in_right)] {
            for &token in seen {
                let pair = &mut made[token as usize];
                (pair.next, end) = (end, end + pair.len as usize);
                let both = if left { (token, new) } else { (new, token) };
                let (start, len) = (pair.next, pair.len as usize);
                self.heap.push(Candidate { count: pair.count, pair: Reverse(both), start, len });
            }
        }
        self.places.resize(end, 0);
        for i in merged {
            let place = self.places[i];
            let (_, [before, after]) = self.neighbours(place, new);
            if before < END {
                let pair = &mut self.left[before as usize];
                self.places[pair.next] = place - self.lengths[before as usize];
                pair.next += 1;
            }
            if after < END {
                let pair = &mut self.right[after as usize];
                self.places[pair.next] = place;
                pair.next += 1;
            }
        }
        self.in_left.drain(..).for_each(|token| self.left[token as usize] = Made::default());
        self.in_right.drain(..).for_each(|token| self.right[token as usize] = Made::default());
    }

    /// The count of the word that the new token at `place` is in, and the tokens before and after it. Two new tokens side by
    /// side are one pair, that of the first with the one after it: to the second, there is nothing before it.
    #[inline]
    fn neighbours(&self, place: u32, new: u32) -> (i64, [u32; 2]) {
        let place = place as usize;
        let before = self.cells[place - 1].token;
        let after = self.cells[place + self.lengths[new as usize] as usize].token;
        let weight = self.weights[self.cells[place].weight as usize];
        (weight, [if before == new { END } else { before }, after])
    }
}

/// Write the words into cells, and their different counts into a list. Words that never occur teach nothing.
///
/// Words with equal ends are neighbours, for they are merged alike: so the places of a pair lie close together in memory.
fn lay_out(words: &Counts) -> (Vec<Cell>, Vec<i64>) {
    let between = Cell { token: END, weight: 0 };
    let mut cells = Vec::with_capacity(words.num_bytes() + words.len() + 1);
    cells.push(between);
    let mut weights = Vec::new();
    let mut index: HashMap<i64, u32, foldhash::fast::RandomState> = HashMap::default();
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
    (cells, weights)
}

/// The last eight bytes of a word, the last one weighing most.
fn last_bytes(word: &[u8]) -> u64 {
    word.iter().rev().take(8).fold((0, 64), |(key, shift), &byte| (key | (byte as u64) << (shift - 8), shift - 8)).0
}
