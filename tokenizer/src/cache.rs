//! A bounded cache of recent words and their token ids, for one thread.

use crate::table::{Key, Seed};

/// Number of slot pairs for short words. Those of frequent words stay within a core's own cache.
const SHORT_PAIRS: usize = 1 << 14;
/// Number of slots for long words.
const LONG_SLOTS: usize = 1 << 12;
/// Longer words, in bytes, are not cached.
const MAX_LONG: usize = 128;
/// Short words of more ids are not cached.
const MAX_IDS: usize = 7;

/// The ids of recent words. A short word may be in either of two slots, a long word in one; new words replace old ones.
pub struct Cache<I> {
    short: Vec<[Short<I>; 2]>,
    long: Vec<Long<I>>,
    seed: Seed,
}

#[derive(Clone, Copy, Default)]
struct Short<I> {
    key: Key,
    len: u8,
    ids: [I; MAX_IDS],
}

#[derive(Clone, Default)]
struct Long<I> {
    word: Box<[u8]>,
    ids: Box<[I]>,
}

impl<I: Copy + Default> Default for Cache<I> {
    fn default() -> Self {
        Cache {
            short: vec![Default::default(); SHORT_PAIRS],
            long: vec![Long::default(); LONG_SLOTS],
            seed: Seed::of_process(),
        }
    }
}

impl<I: Copy> Cache<I> {
    /// Append the ids of a short word to `ids`; return false if the cache does not have it.
    #[inline]
    pub fn copy(&self, key: Key, ids: &mut Vec<I>) -> bool {
        let [newer, older] = &self.short[key.hash(self.seed) % SHORT_PAIRS];
        let slot = if newer.key == key { newer } else { older };
        if slot.key != key {
            return false;
        }
        if slot.len == 1 {
            ids.push(slot.ids[0]);
        } else {
            ids.extend_from_slice(&slot.ids[..slot.len as usize]);
        }
        true
    }

    /// Cache the ids of a short word that `copy` did not find.
    pub fn keep(&mut self, key: Key, ids: &[I]) {
        if ids.len() <= MAX_IDS {
            let [newer, older] = &mut self.short[key.hash(self.seed) % SHORT_PAIRS];
            *older = *newer;
            newer.key = key;
            newer.len = ids.len() as u8;
            newer.ids[..ids.len()].copy_from_slice(ids);
        }
    }

    /// Append the ids of a long word to `ids`; return false if the cache does not have it.
    pub fn copy_long(&self, word: &[u8], ids: &mut Vec<I>) -> bool {
        if word.len() > MAX_LONG {
            return false;
        }
        let slot = &self.long[self.long_slot(word)];
        let found = *slot.word == *word;
        if found {
            ids.extend_from_slice(&slot.ids);
        }
        found
    }

    /// Cache the ids of a long word.
    pub fn keep_long(&mut self, word: &[u8], ids: &[I]) {
        if word.len() <= MAX_LONG {
            let slot = self.long_slot(word);
            self.long[slot] = Long { word: word.into(), ids: ids.into() };
        }
    }

    /// Hash the first, middle and last bytes and the length: long words are rare, and a collision only costs a merge.
    fn long_slot(&self, word: &[u8]) -> usize {
        let len = word.len();
        let first = u64::from_le_bytes(*word.first_chunk().expect("a long word has more than 15 bytes"));
        let last = u64::from_le_bytes(*word.last_chunk().expect("a long word has more than 15 bytes"));
        let middle = u64::from_le_bytes(*word[len / 2 - 4..].first_chunk().expect("as above"));
        self.seed.mix(first ^ middle.rotate_left(29), last ^ len as u64) % LONG_SLOTS
    }
}
