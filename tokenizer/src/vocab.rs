//! A vocabulary, and byte-pair merging with it.
//!
//! Merging starts from the bytes of a word. Of all neighbours that form a token together, the pair whose token has the
//! smallest id is joined, the leftmost such pair first, until no pair forms a token.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::RandomState;

use crate::Error;
use crate::table::{Key, ShortMap};

/// Words of more bytes are merged with a heap in O(n log n), shorter ones by scanning all pairs before each merge.
const MAX_SCANNED: usize = 64;

/// Marks a pair that forms no token. It is larger than every id of a token that is merged from two others.
const NONE: u32 = u32::MAX;

/// The integer type of token ids.
pub trait Id: Copy + Default + Send + Sync + 'static {
    /// The number of different ids.
    const NUM: u64;
    /// Convert an id below `NUM`.
    fn new(id: u32) -> Self;
}

impl Id for u16 {
    const NUM: u64 = 1 << 16;
    #[inline]
    fn new(id: u32) -> u16 {
        id as u16
    }
}

impl Id for u32 {
    const NUM: u64 = 1 << 32;
    #[inline]
    fn new(id: u32) -> u32 {
        id
    }
}

/// Tokens and their ids, indexed for encoding.
pub struct Vocab {
    /// The ids of the single bytes.
    bytes: [u32; 256],
    /// The id that two bytes form, at 256 * first + second; `NONE` if they form no token.
    byte_pairs: Vec<u32>,
    /// The id that two tokens form.
    pairs: HashMap<(u32, u32), u32, RandomState>,
    short: ShortMap<u32>,
    long: HashMap<Box<[u8]>, u32, RandomState>,
}

/// Buffers for merging one word, reused for the next.
#[derive(Default)]
pub struct MergeBuffers {
    /// The tokens of the word.
    tokens: Vec<u32>,
    /// The id that each token forms with the next one, or `NONE`.
    formed: Vec<u32>,
    /// For long words: the position of the token before and after each, and the (id, position) of possible merges.
    before: Vec<u32>,
    after: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Vocab {
    /// Index tokens and their ids. Fails when a byte is no token, a token is empty, or a token or id occurs twice.
    pub fn new(tokens: &[(&[u8], u32)]) -> Result<Vocab, Error> {
        let mut ids: HashMap<&[u8], u32, RandomState> = HashMap::default();
        let mut used = foldhash::HashSet::default();
        for &(token, id) in tokens {
            if token.is_empty() || id == NONE || !used.insert(id) || ids.insert(token, id).is_some() {
                return Err(Error::Tokens(format!("the token {id} is empty, or it or its id occurs twice")));
            }
        }
        let mut bytes = [NONE; 256];
        for byte in 0..=255u8 {
            bytes[byte as usize] =
                *ids.get(&[byte][..]).ok_or_else(|| Error::Tokens(format!("the byte {byte} is no token")))?;
        }
        let mut pairs: HashMap<(u32, u32), u32, RandomState> = HashMap::default();
        for (&token, &id) in &ids {
            for middle in 1..token.len() {
                if let (Some(&left), Some(&right)) = (ids.get(&token[..middle]), ids.get(&token[middle..])) {
                    pairs.insert((left, right), id);
                }
            }
        }
        let mut short = ShortMap::with_capacity(ids.len());
        let mut long: HashMap<Box<[u8]>, u32, RandomState> = HashMap::default();
        for (token, id) in ids {
            match Key::new(token, 0, token.len()) {
                Some(key) => *short.entry(key) = id,
                None => drop(long.insert(token.into(), id)),
            }
        }
        let formed = |two: usize| pairs.get(&(bytes[two >> 8], bytes[two & 0xFF])).copied().unwrap_or(NONE);
        Ok(Vocab { bytes, byte_pairs: (0..1 << 16).map(formed).collect(), pairs, short, long })
    }

    /// The id of a short word that is a token.
    pub fn short(&self, key: Key) -> Option<u32> {
        self.short.get(key)
    }

    /// The id of a long word that is a token.
    pub fn long(&self, word: &[u8]) -> Option<u32> {
        self.long.get(word).copied()
    }

    #[inline]
    fn form(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(&(left, right)).copied().unwrap_or(NONE)
    }

    /// Append the ids of a word that is no token itself.
    pub fn merge<I: Id>(&self, word: &[u8], buffers: &mut MergeBuffers, ids: &mut Vec<I>) {
        let MergeBuffers { tokens, formed, .. } = buffers;
        tokens.clear();
        tokens.extend(word.iter().map(|&byte| self.bytes[byte as usize]));
        formed.clear();
        formed.extend(word.windows(2).map(|two| self.byte_pairs[(two[0] as usize) << 8 | two[1] as usize]));
        formed.push(NONE);
        if word.len() <= MAX_SCANNED {
            self.merge_by_scan(tokens, formed);
            ids.extend(tokens.iter().map(|&token| I::new(token)));
        } else {
            self.merge_by_heap(buffers);
            let mut at = 0;
            while at < word.len() {
                ids.push(I::new(buffers.tokens[at]));
                at = buffers.after[at] as usize;
            }
        }
    }

    fn merge_by_scan(&self, tokens: &mut Vec<u32>, formed: &mut Vec<u32>) {
        while let Some((at, &new)) = formed.iter().enumerate().min_by_key(|(_, id)| **id)
            && new != NONE
        {
            tokens[at] = new;
            tokens.remove(at + 1);
            formed.remove(at + 1);
            formed[at] = tokens.get(at + 1).map_or(NONE, |&right| self.form(new, right));
            if at > 0 {
                formed[at - 1] = self.form(tokens[at - 1], new);
            }
        }
    }

    /// Merge without moving tokens: a merged token stays at the position of its first byte, in a doubly linked list.
    fn merge_by_heap(&self, buffers: &mut MergeBuffers) {
        let MergeBuffers { tokens, formed, before, after, heap } = buffers;
        let end = tokens.len() as u32;
        before.clear();
        before.extend((0..end).map(|at| at.wrapping_sub(1)));
        after.clear();
        after.extend(1..=end);
        let possible = formed.iter().zip(0..).filter(|&(&id, _)| id != NONE);
        heap.extend(possible.map(|(&id, at)| Reverse((id, at)))); // empty after every word
        while let Some(Reverse((new, at))) = heap.pop() {
            let left = at as usize;
            if formed[left] != new {
                continue; // out of date: this token or its neighbour has been merged
            }
            let right = after[left] as usize;
            tokens[left] = new;
            formed[right] = NONE;
            after[left] = after[right];
            let mut form_again = |left: usize, right: usize| {
                formed[left] = self.form(tokens[left], tokens[right]);
                if formed[left] != NONE {
                    heap.push(Reverse((formed[left], left as u32)));
                }
            };
            if after[left] < end {
                before[after[left] as usize] = at;
                form_again(left, after[left] as usize);
            }
            if at > 0 {
                form_again(before[left] as usize, left);
            }
            if after[left] == end {
                formed[left] = NONE;
            }
        }
    }
}
