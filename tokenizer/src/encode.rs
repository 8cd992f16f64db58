//! Encode text with given tokens.
//!
//! A piece that is a token is that token. Any other is merged as byte-pair encoding says: of all neighbours that make a
//! token together, those that make the one with the smallest id are joined, the leftmost first, until none do.
//! Pieces come back, so that each thread keeps those that it has seen lately with their tokens.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Mutex;

use foldhash::fast::RandomState;
use rayon::prelude::*;

use crate::cache::Cache;
use crate::table::{Key, ShortMap};
use crate::{Error, Splitter, parallel};

/// Pieces of more bytes are merged with a heap, in O(n log n); shorter ones by looking at all pairs before each merge.
const MAX_SCANNED: usize = 64;

/// The integer type that ids are given in.
pub trait Id: Copy + Default + Send + Sync + 'static {
    /// The number of different ids.
    const NUM: u64;
    /// From an id below `NUM`.
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

/// Ids of texts, one text after the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded<I> {
    pub ids: Vec<I>,
    /// Text i has the ids from `offsets[i]` to `offsets[i + 1]`.
    pub offsets: Vec<i64>,
}

/// Encodes text to ids of type `I`.
pub struct Encoder<I> {
    splitter: Splitter,
    tokens: Tokens,
    /// Caches that no thread uses at the moment.
    caches: Mutex<Vec<Cache<I>>>,
}

impl<I: Id> Encoder<I> {
    /// An encoder for tokens with their ids and a split pattern.
    ///
    /// Fails when a byte is no token, a token is empty or occurs twice, an id occurs twice or does not fit `I`.
    pub fn new(tokens: &[(&[u8], u32)], pattern: &str) -> Result<Encoder<I>, Error> {
        if let Some((_, id)) = tokens.iter().find(|(_, id)| *id as u64 >= I::NUM) {
            return Err(Error::Tokens(format!("the id {id} does not fit {} bytes", size_of::<I>())));
        }
        let splitter = Splitter::new(pattern)?;
        Ok(Encoder { splitter, tokens: Tokens::new(tokens)?, caches: Mutex::default() })
    }

    /// Append the ids of a text.
    pub fn encode(&self, text: &str, ids: &mut Vec<I>) -> Result<(), Error> {
        self.with_cache(|cache| self.append(text, cache, ids))
    }

    /// Encode many texts in parallel, each beginning with `first` if there is one. None = as many threads as rayon takes.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        first: Option<I>,
        num_threads: Option<usize>,
    ) -> Result<Encoded<I>, Error> {
        parallel::with_threads(num_threads, |threads| {
            if threads == 1 {
                return self.encode_some(texts, first);
            }
            let parts: Vec<Encoded<I>> = parallel::ranges(texts, 8 * threads)
                .into_par_iter()
                .map(|range| self.encode_some(&texts[range], first))
                .collect::<Result<_, _>>()?;
            Ok(join(parts))
        })
    }

    fn encode_some(&self, texts: &[&str], first: Option<I>) -> Result<Encoded<I>, Error> {
        let mut ids = Vec::with_capacity(texts.iter().map(|text| text.len()).sum::<usize>() / 4);
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        self.with_cache(|cache| {
            for text in texts {
                ids.extend(first);
                self.append(text, cache, &mut ids)?;
                offsets.push(ids.len() as i64);
            }
            Ok(())
        })?;
        Ok(Encoded { ids, offsets })
    }

    fn with_cache<R>(&self, work: impl FnOnce(&mut Cache<I>) -> R) -> R {
        let free = || self.caches.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut cache = free().pop().unwrap_or_default();
        let result = work(&mut cache);
        free().push(cache);
        result
    }

    fn append(&self, text: &str, cache: &mut Cache<I>, ids: &mut Vec<I>) -> Result<(), Error> {
        let bytes = text.as_bytes();
        self.splitter.split(text, |start, end| match Key::new(bytes, start, end) {
            Some(key) => {
                if !cache.copy(key, ids) {
                    let from = ids.len();
                    match self.tokens.short.get(key) {
                        Some(Some(id)) => ids.push(I::new(id)),
                        _ => self.tokens.merge(&bytes[start..end], cache.merging(), ids),
                    }
                    cache.keep(key, &ids[from..]);
                }
            }
            None => {
                let piece = &bytes[start..end];
                if !cache.copy_long(piece, ids) {
                    let from = ids.len();
                    match self.tokens.long.get(piece) {
                        Some(&id) => ids.push(I::new(id)),
                        None => self.tokens.merge(piece, cache.merging(), ids),
                    }
                    cache.keep_long(piece, &ids[from..]);
                }
            }
        })
    }
}

fn join<I: Id>(parts: Vec<Encoded<I>>) -> Encoded<I> {
    let mut ids = Vec::with_capacity(parts.iter().map(|part| part.ids.len()).sum());
    let mut offsets = vec![0];
    for part in parts {
        let before = ids.len() as i64;
        offsets.extend(part.offsets[1..].iter().map(|offset| before + offset));
        ids.extend_from_slice(&part.ids);
    }
    Encoded { ids, offsets }
}

/// The vocabulary, in the forms that encoding asks for.
struct Tokens {
    bytes: [u32; 256],
    /// What two bytes make together, the first one times 256 plus the second one.
    byte_pairs: Vec<u32>,
    short: ShortMap<Option<u32>>,
    long: HashMap<Box<[u8]>, u32, RandomState>,
    /// What two tokens make together.
    pairs: HashMap<(u32, u32), u32, RandomState>,
}

/// Memory to merge a piece in, kept from piece to piece.
#[derive(Default)]
pub struct Merging {
    /// Tokens of the piece, and what each makes with the next one (`NONE` if nothing).
    tokens: Vec<u32>,
    made: Vec<u32>,
    /// For long pieces: the token before and after each, and what may be merged, smallest id first, then leftmost.
    before: Vec<u32>,
    after: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

/// Larger than every id of a token that two others make, for no token at all.
const NONE: u32 = u32::MAX;

impl Tokens {
    fn new(tokens: &[(&[u8], u32)]) -> Result<Tokens, Error> {
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
                Some(key) => *short.entry(key) = Some(id),
                None => drop(long.insert(token.into(), id)),
            }
        }
        let both = |two: usize| pairs.get(&(bytes[two >> 8], bytes[two & 0xFF])).copied().unwrap_or(NONE);
        Ok(Tokens { bytes, byte_pairs: (0..1 << 16).map(both).collect(), short, long, pairs })
    }

    #[inline]
    fn make(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(&(left, right)).copied().unwrap_or(NONE)
    }

    /// Append the tokens of a piece that is no token itself.
    fn merge<I: Id>(&self, piece: &[u8], memory: &mut Merging, ids: &mut Vec<I>) {
        let Merging { tokens, made, .. } = memory;
        tokens.clear();
        tokens.extend(piece.iter().map(|&byte| self.bytes[byte as usize]));
        made.clear();
        made.extend(piece.windows(2).map(|two| self.byte_pairs[(two[0] as usize) << 8 | two[1] as usize]));
        made.push(NONE);
        if piece.len() <= MAX_SCANNED {
            self.merge_scanning(tokens, made);
            ids.extend(tokens.iter().map(|&token| I::new(token)));
        } else {
            self.merge_by_heap(memory);
            let mut at = 0;
            while at < piece.len() {
                ids.push(I::new(memory.tokens[at]));
                at = memory.after[at] as usize;
            }
        }
    }

    fn merge_scanning(&self, tokens: &mut Vec<u32>, made: &mut Vec<u32>) {
        while let Some((at, &new)) = made.iter().enumerate().min_by_key(|(_, id)| **id)
            && new != NONE
        {
            tokens[at] = new;
            tokens.remove(at + 1);
            made.remove(at + 1);
            made[at] = tokens.get(at + 1).map_or(NONE, |&right| self.make(new, right));
            if at > 0 {
                made[at - 1] = self.make(tokens[at - 1], new);
            }
        }
    }

    /// Merge tokens that stay where they are, each knowing the ones before and after it.
    fn merge_by_heap(&self, memory: &mut Merging) {
        let Merging { tokens, made, before, after, heap } = memory;
        let end = tokens.len() as u32;
        before.clear();
        before.extend((0..end).map(|at| at.wrapping_sub(1)));
        after.clear();
        after.extend(1..=end);
        let some = made.iter().zip(0..).filter(|&(&id, _)| id != NONE);
        *heap = some.map(|(&id, at)| Reverse((id, at))).collect();
        while let Some(Reverse((new, at))) = heap.pop() {
            let left = at as usize;
            if made[left] != new {
                continue; // merged meanwhile, or with another neighbour now
            }
            let right = after[left] as usize;
            tokens[left] = new;
            made[right] = NONE;
            after[left] = after[right];
            let mut remake = |left: usize, right: usize| {
                made[left] = self.make(tokens[left], tokens[right]);
                if made[left] != NONE {
                    heap.push(Reverse((made[left], left as u32)));
                }
            };
            if after[left] < end {
                before[after[left] as usize] = at;
                remake(left, after[left] as usize);
            }
            if at > 0 {
                remake(before[left] as usize, left);
            }
            if after[left] == end {
                made[left] = NONE;
            }
        }
    }
}
