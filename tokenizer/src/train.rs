//! Learn byte-pair merges from counted words.
//!
//! The words lie one after the other in one array of cells, one cell per byte. A pair of neighbouring tokens has a list of
//! places, the cells where it begins. A merge visits the places of its pair, joins the cells, and collects the new pairs.
//! Each of these contains the new token, so no later merge adds places to it; later merges only remove places.
//!
//! Removals are not tracked: a count in the heap is an upper bound. When a pair comes to the top, its places are checked
//! again, and a pair that has lost some goes back into the heap with its exact count.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use crate::cells::{self, Cell, END, INSIDE};
use crate::{Counts, Error};

type Pair = (u32, u32);

/// Learn tokens until there are `vocab_size` or no pair is left; return their bytes in the order of their ids.
///
/// The first 256 tokens are the single bytes. Each merge takes the most frequent pair; among equally frequent pairs the
/// one with the smaller first token, then the smaller second token. The order of the words does not matter.
pub fn train(words: &Counts, vocab_size: usize) -> Result<Vec<Vec<u8>>, Error> {
    if !(256..END as usize).contains(&vocab_size) {
        return Err(Error::VocabSize(vocab_size));
    }
    let mut trainer = Trainer::new(words, vocab_size)?;
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

/// A pair that may be merged. The greatest candidate is merged next: the most frequent, then the smallest pair.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Occurrences when last counted: at least as many as now.
    count: i64,
    pair: Reverse<Pair>,
    /// The range of its places in `Trainer::places`, which are ascending.
    start: usize,
    len: usize,
}

impl Candidate {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// A pair of the new token and one other token, while its places are collected.
#[derive(Clone, Copy, Default)]
struct NewPair {
    count: i64,
    len: u32,
    /// Where in `places` its next place goes.
    next: usize,
}

struct Trainer {
    cells: Vec<Cell>,
    /// The distinct word counts.
    weights: Vec<i64>,
    /// The length of each token in bytes.
    lengths: Vec<u32>,
    /// The places of all pairs; those of one pair are contiguous.
    places: Vec<u32>,
    heap: BinaryHeap<Candidate>,
    /// By token: its pair with the new token, as the left and as the right token. Empty between merges.
    left: Vec<NewPair>,
    right: Vec<NewPair>,
    /// The tokens that have a pair in `left`, and in `right`.
    in_left: Vec<u32>,
    in_right: Vec<u32>,
}

impl Trainer {
    fn new(words: &Counts, vocab_size: usize) -> Result<Trainer, Error> {
        let (cells, weights) = cells::lay_out(words)?;
        let mut trainer = Trainer {
            cells,
            weights,
            lengths: vec![1; 256],
            places: Vec::new(),
            heap: BinaryHeap::new(),
            left: vec![NewPair::default(); vocab_size],
            right: vec![NewPair::default(); vocab_size],
            in_left: Vec::new(),
            in_right: Vec::new(),
        };
        trainer.find_byte_pairs();
        Ok(trainer)
    }

    /// Find all pairs of bytes.
    fn find_byte_pairs(&mut self) {
        let mut made = vec![NewPair::default(); 1 << 16];
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

    /// Take the next pair to merge off the heap, with its exact count and places. None when no pair is left.
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
                // Without a branch: which places are left is hard to predict.
                let is_left = cell.token == a && self.cells[place as usize + length].token == b;
                places[len] = place;
                len += is_left as usize;
                count += if is_left { self.weights[cell.weight as usize] } else { 0 };
            }
            let exact = count == top.count;
            (top.count, top.len) = (count, len);
            match (exact, count) {
                (_, 0) => {}
                (true, _) => return Some(top),
                (false, _) => self.heap.push(top),
            }
        }
    }

    /// Make a new token of the pair wherever it occurs.
    fn merge(&mut self, candidate: Candidate) {
        let Reverse((a, b)) = candidate.pair;
        let new = self.lengths.len() as u32;
        let (first, second) = (self.lengths[a as usize], self.lengths[b as usize]);
        self.lengths.push(first + second);
        let merged = self.join(candidate.range(), (a, b), new);
        self.collect(merged.clone(), new);
        self.store(merged, new);
    }

    /// Join the cells of the pair from left to right; return the range in `places` of the joined places.
    ///
    /// In a run of equal tokens, every second place is joined.
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

    /// Count the pairs of the new token into `left` and `right`.
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

    /// Store the places of the collected pairs and push these pairs onto the heap.
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
        self.in_left.drain(..).for_each(|token| self.left[token as usize] = NewPair::default());
        self.in_right.drain(..).for_each(|token| self.right[token as usize] = NewPair::default());
    }

    /// Return the count of the word around the new token at `place`, and the tokens before and after it.
    ///
    /// Two new tokens side by side are one pair, counted at the first: the second sees `END` before it.
    #[inline]
    fn neighbours(&self, place: u32, new: u32) -> (i64, [u32; 2]) {
        let place = place as usize;
        let before = self.cells[place - 1].token;
        let after = self.cells[place + self.lengths[new as usize] as usize].token;
        let weight = self.weights[self.cells[place].weight as usize];
        (weight, [if before == new { END } else { before }, after])
    }
}
