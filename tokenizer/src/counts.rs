//! Word counts, and sorted counts: their compact form for disk and network.
//!
//! Sorted counts begin with [`MAGIC`]. The words follow in the order of their bytes, each as the number of bytes shared
//! with the word before, the number of other bytes, these bytes, and the word's count; these numbers are varints (LEB128).
//! The number of words ends them, as 8 bytes, little-endian. One pass merges many sorted counts without a table of words.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::Error;

const MAGIC: &[u8] = b"raychat-counts-1\n";

/// Words and how often each occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    counts: Vec<i64>,
}

/// The words that [`merge`] dropped because they were too rare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// The number of distinct words.
    pub words: u64,
    /// The sum of their counts.
    pub occurrences: i64,
}

impl Counts {
    /// Make empty counts with room for `words` words.
    pub fn with_capacity(words: usize) -> Counts {
        Counts {
            bytes: Vec::with_capacity(8 * words),
            ends: Vec::with_capacity(words),
            counts: Vec::with_capacity(words),
        }
    }

    /// Append a word and its count.
    #[inline]
    pub fn push(&mut self, word: &[u8], count: i64) {
        self.bytes.extend_from_slice(word);
        self.ends.push(self.bytes.len());
        self.counts.push(count);
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Tell whether there are no words.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The total length of the words in bytes.
    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The words and their counts, in no particular order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], i64)> {
        (0..self.len()).map(|i| (self.word(i), self.counts[i]))
    }

    fn word(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    /// Return sorted counts in `num_parts` parts. A word's hash chooses its part, on every machine the same one.
    pub fn to_sorted(&self, num_parts: usize) -> Vec<Vec<u8>> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_unstable_by(|&a, &b| self.word(a as usize).cmp(self.word(b as usize)));
        let mut parts: Vec<Writer> = (0..num_parts.max(1)).map(|_| Writer::new()).collect();
        for index in order {
            let word = self.word(index as usize);
            let part = fnv(word) % parts.len() as u64;
            parts[part as usize].push(word, self.counts[index as usize]);
        }
        parts.into_iter().map(Writer::finish).collect()
    }

    /// Read sorted counts. Equal words of different parts stay separate.
    pub fn from_sorted(parts: &[&[u8]]) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        for part in parts {
            let mut reader = Reader::new(part)?;
            while let Some(n) = reader.next()? {
                counts.push(&reader.word, n);
            }
        }
        Ok(counts)
    }
}

/// Add sorted counts up, and drop the words whose sum is below `min_count`.
pub fn merge(sorted: &[&[u8]], min_count: i64) -> Result<(Vec<u8>, Cut), Error> {
    let mut readers = sorted.iter().map(|bytes| Reader::new(bytes)).collect::<Result<Vec<_>, _>>()?;
    let mut heap: BinaryHeap<Reverse<(Vec<u8>, usize, i64)>> = BinaryHeap::new();
    for (index, reader) in readers.iter_mut().enumerate() {
        if let Some(n) = reader.next()? {
            heap.push(Reverse((reader.word.clone(), index, n)));
        }
    }
    let (mut writer, mut cut) = (Writer::new(), Cut::default());
    let (mut word, mut total) = (Vec::new(), 0i64);
    let min_count = min_count.max(1);
    let mut put = |word: &[u8], total: i64| {
        if total >= min_count {
            writer.push(word, total);
        } else if total > 0 {
            cut.words += 1;
            cut.occurrences += total;
        }
    };
    while let Some(mut top) = heap.peek_mut() {
        let Reverse((next, index, n)) = &mut *top;
        if *next != word {
            put(&word, total);
            word.clone_from(next);
            total = 0;
        }
        total = total.checked_add(*n).ok_or_else(|| Error::Count("a word occurs more than 2^63 times".into()))?;
        let reader = &mut readers[*index];
        match reader.next()? {
            Some(count) => {
                next.clone_from(&reader.word);
                *n = count;
            }
            None => {
                PeekMut::pop(top);
            }
        }
    }
    put(&word, total);
    Ok((writer.finish(), cut))
}

/// FNV-1a: slow and simple, but the same on every machine and in every version.
fn fnv(word: &[u8]) -> u64 {
    word.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01B3))
}

struct Writer {
    bytes: Vec<u8>,
    last: Vec<u8>,
    words: u64,
}

impl Writer {
    fn new() -> Writer {
        Writer { bytes: MAGIC.to_vec(), last: Vec::new(), words: 0 }
    }

    fn push(&mut self, word: &[u8], count: i64) {
        let shared = self.last.iter().zip(word).take_while(|(a, b)| a == b).count();
        self.number(shared as u64);
        self.number((word.len() - shared) as u64);
        self.bytes.extend_from_slice(&word[shared..]);
        self.number(count as u64);
        self.last.truncate(shared);
        self.last.extend_from_slice(&word[shared..]);
        self.words += 1;
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&self.words.to_le_bytes());
        self.bytes
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    left: u64,
    word: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Reader<'a>, Error> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| broken("they do not begin as such"))?;
        let (rest, words) = body.split_last_chunk::<8>().ok_or_else(|| broken("their end is missing"))?;
        Ok(Reader { rest, left: u64::from_le_bytes(*words), word: Vec::new() })
    }

    /// Read the next word into `word` and return its count; None after the last word.
    fn next(&mut self) -> Result<Option<i64>, Error> {
        if self.left == 0 {
            return if self.rest.is_empty() { Ok(None) } else { Err(broken("there is more after the last word")) };
        }
        let (shared, others) = (self.number()? as usize, self.number()? as usize);
        let Some((others, rest)) = self.rest.split_at_checked(others) else {
            return Err(broken("a word is cut off"));
        };
        if shared > self.word.len() {
            return Err(broken("a word begins like none before"));
        }
        self.word.truncate(shared);
        self.word.extend_from_slice(others);
        self.rest = rest;
        self.left -= 1;
        let count = i64::try_from(self.number()?).map_err(|_| broken("a count is beyond 2^63"))?;
        Ok(Some(count))
    }

    fn number(&mut self) -> Result<u64, Error> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or_else(|| broken("a number is cut off"))?;
            self.rest = rest;
            number |= ((byte & 0x7F) as u64) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(broken("a number has more than 64 bits"))
    }
}

fn broken(why: &str) -> Error {
    Error::Count(format!("these are no word counts, or broken ones: {why}"))
}
