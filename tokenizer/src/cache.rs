//! A bounded memory of pieces and their tokens, for one thread.

use crate::encode::{Id, Merging};
use crate::table::{Key, Seed};

/// Pairs of slots for short pieces: those of frequent words stay within a core's own cache.
const SHORT_PAIRS: usize = 1 << 14;
/// Slots for long pieces, and the most bytes that one may have.
const LONG_SLOTS: usize = 1 << 12;
const MAX_LONG: usize = 128;
/// Pieces of more tokens are not kept.
const MAX_IDS: usize = 7;

/// The tokens of pieces seen lately. A short piece may be in two slots, a long one in one; new ones put old ones out.
pub struct Cache<I> {
    short: Vec<[Short<I>; 2]>,
    long: Vec<Long<I>>,
    seed: Seed,
    merging: Merging,
}

#[derive(Clone, Copy, Default)]
struct Short<I> {
    key: Key,
    len: u8,
    ids: [I; MAX_IDS],
}

#[derive(Clone, Default)]
struct Long<I> {
    piece: Box<[u8]>,
    ids: Box<[I]>,
}

impl<I: Id> Default for Cache<I> {
    fn default() -> Self {
        Cache {
            short: vec![Default::default(); SHORT_PAIRS],
            long: vec![Long::default(); LONG_SLOTS],
            seed: Seed::of_process(),
            merging: Merging::default(),
        }
    }
}

impl<I: Id> Cache<I> {
    /// Memory to merge a piece in.
    pub fn merging(&mut self) -> &mut Merging {
        &mut self.merging
    }

    /// Append the ids of a short piece if they are here.
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

    /// Keep the ids of a short piece that is not here.
    pub fn keep(&mut self, key: Key, ids: &[I]) {
        if ids.len() <= MAX_IDS {
            let [newer, older] = &mut self.short[key.hash(self.seed) % SHORT_PAIRS];
            *older = *newer;
            newer.key = key;
            newer.len = ids.len() as u8;
            newer.ids[..ids.len()].copy_from_slice(ids);
        }
    }

    /// Append the ids of a long piece if they are here.
    pub fn copy_long(&self, piece: &[u8], ids: &mut Vec<I>) -> bool {
        if piece.len() > MAX_LONG {
            return false;
        }
        let slot = &self.long[self.long_slot(piece)];
        let here = *slot.piece == *piece;
        if here {
            ids.extend_from_slice(&slot.ids);
        }
        here
    }

    /// Keep the ids of a long piece.
    pub fn keep_long(&mut self, piece: &[u8], ids: &[I]) {
        if piece.len() <= MAX_LONG {
            let slot = self.long_slot(piece);
            self.long[slot] = Long { piece: piece.into(), ids: ids.into() };
        }
    }

    /// By the first bytes, the last ones and the length: long pieces are few, and a wrong guess costs a merge.
    fn long_slot(&self, piece: &[u8]) -> usize {
        let len = piece.len();
        let first = u64::from_le_bytes(*piece.first_chunk().expect("a long piece has more than 15 bytes"));
        let last = u64::from_le_bytes(*piece.last_chunk().expect("a long piece has more than 15 bytes"));
        let middle = u64::from_le_bytes(*piece[len / 2 - 4..].first_chunk().expect("as above"));
        self.seed.mix(first ^ middle.rotate_left(29), last ^ len as u64) % LONG_SLOTS
    }
}
