//! Hash tables of short words. Nearly all words are short, and their keys hold the words themselves.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Words of up to this many bytes fit a [`Key`].
pub const MAX_SHORT: usize = 15;

/// A word of 1 to 15 bytes: its bytes, zeros, and its length in the last byte. The zero key stands for no word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Key(u64, u64);

impl Key {
    /// The key of the word `text[start..end]`, None if the word is too long.
    #[inline]
    pub fn new(text: &[u8], start: usize, end: usize) -> Option<Key> {
        let len = end - start;
        if len > MAX_SHORT {
            return None;
        }
        let sixteen = match text[start..].first_chunk::<16>() {
            Some(sixteen) => u128::from_le_bytes(*sixteen),
            None => {
                let mut padded = [0; 16];
                padded[..len].copy_from_slice(&text[start..end]);
                u128::from_le_bytes(padded)
            }
        };
        let word = sixteen & ((1 << (8 * len)) - 1) | (len as u128) << 120;
        Some(Key(word as u64, (word >> 64) as u64))
    }

    /// The length of the word in bytes.
    #[inline]
    pub fn len(self) -> usize {
        (self.1 >> 56) as usize
    }

    /// The word, padded with zeros.
    #[inline]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.1.to_le_bytes());
        bytes[15] = 0;
        bytes
    }

    /// Tell whether this is not the zero key.
    #[inline]
    pub fn is_word(self) -> bool {
        self.1 != 0
    }

    /// A hash that differs between processes, so that nobody can prepare a text of words with equal hashes.
    #[inline]
    pub fn hash(self, seed: Seed) -> usize {
        seed.mix(self.0, self.1)
    }
}

/// The secret that hashes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Seed(u64, u64);

impl Seed {
    /// The seed of this process.
    pub fn of_process() -> Seed {
        static SEED: LazyLock<Seed> = LazyLock::new(|| {
            let random = RandomState::new();
            Seed(random.hash_one(1), random.hash_one(2))
        });
        *SEED
    }

    /// Hash two integers by folded multiplication, as in wyhash.
    #[inline]
    pub fn mix(self, a: u64, b: u64) -> usize {
        let product = (a ^ self.0) as u128 * (b ^ self.1) as u128;
        (product as u64 ^ (product >> 64) as u64) as usize
    }
}

/// A map from short words to values: open addressing, linear probing, at most half full.
pub struct ShortMap<V> {
    slots: Vec<(Key, V)>,
    len: usize,
    seed: Seed,
}

impl<V: Copy + Default> ShortMap<V> {
    /// An empty map with room for `words` words.
    pub fn with_capacity(words: usize) -> Self {
        let slots = (2 * words).next_power_of_two().max(16);
        ShortMap { slots: vec![Default::default(); slots], len: 0, seed: Seed::of_process() }
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The value of a word.
    #[inline]
    pub fn get(&self, key: Key) -> Option<V> {
        let (found, value) = self.slots[self.slot(key)];
        found.is_word().then_some(value)
    }

    /// The value of a word for changing. A new word gets the default value.
    #[inline]
    pub fn entry(&mut self, key: Key) -> &mut V {
        let mut slot = self.slot(key);
        if !self.slots[slot].0.is_word() {
            if 2 * self.len >= self.slots.len() {
                self.grow();
                slot = self.slot(key);
            }
            self.len += 1;
            self.slots[slot].0 = key;
        }
        &mut self.slots[slot].1
    }

    /// The words and their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, V)> {
        self.slots.iter().copied().filter(|(key, _)| key.is_word())
    }

    /// The slot where the word is, or would go.
    #[inline]
    fn slot(&self, key: Key) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = key.hash(self.seed) & mask;
        while self.slots[slot].0 != key && self.slots[slot].0.is_word() {
            slot = (slot + 1) & mask;
        }
        slot
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![Default::default(); 2 * self.slots.len()];
        let smaller = std::mem::replace(&mut self.slots, larger);
        for (key, value) in smaller.into_iter().filter(|(key, _)| key.is_word()) {
            let slot = self.slot(key);
            self.slots[slot] = (key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hold_their_words() {
        let text = b"the quick brown fox jumps over the lazy dog";
        for start in 0..text.len() {
            for len in 1..=MAX_SHORT.min(text.len() - start) {
                let key = Key::new(text, start, start + len).unwrap();
                assert_eq!((key.len(), &key.bytes()[..len]), (len, &text[start..start + len]));
                assert_eq!(Some(key), Key::new(&text[start..start + len], 0, len));
            }
        }
        assert_eq!(Key::new(text, 0, 16), None);
    }

    #[test]
    fn trailing_zeros_distinguish_words() {
        assert_ne!(Key::new(b"a", 0, 1), Key::new(b"a\0", 0, 2));
        assert!(Key::new(b"\0", 0, 1).unwrap().is_word());
    }

    #[test]
    fn map_counts_while_it_grows() {
        let mut map: ShortMap<u32> = ShortMap::with_capacity(0);
        let words: Vec<String> = (0..5000).map(|i| (i % 1000).to_string()).collect();
        for word in &words {
            *map.entry(Key::new(word.as_bytes(), 0, word.len()).unwrap()) += 1;
        }
        assert_eq!(map.len(), 1000);
        assert!(map.iter().all(|(_, n)| n == 5));
        assert_eq!(map.get(Key::new(b"1000", 0, 4).unwrap()), None);
    }
}
