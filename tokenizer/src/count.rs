//! Cut texts into words and count them.

use std::collections::HashMap;
use std::sync::Mutex;

use foldhash::fast::RandomState;
use rayon::prelude::*;

use crate::table::{Key, ShortMap};
use crate::{Counts, Error, Splitter, parallel};

/// Longer texts, in bytes, are cut into chunks for several threads.
const CHUNK_BYTES: usize = 1 << 20;

/// Count the words that `pattern` cuts `texts` into, in parallel.
///
/// `num_threads`: None means rayon's default. It changes the order of the words in the result, but no count.
pub fn count(texts: &[&str], pattern: &str, num_threads: Option<usize>) -> Result<Counts, Error> {
    let splitter = Splitter::new(pattern)?;
    parallel::with_threads(num_threads, |n| {
        let words = if n == 1 { count_texts(texts, &splitter) } else { count_parallel(texts, &splitter, n) };
        Ok(words?.into_counts())
    })
}

fn count_texts<'a>(texts: &[&'a str], splitter: &Splitter) -> Result<Words<'a>, Error> {
    let mut words = Words::default();
    texts.iter().try_for_each(|text| words.add_text(text, splitter))?;
    Ok(words)
}

/// Count into one table per thread and add the tables up.
fn count_parallel<'a>(texts: &[&'a str], splitter: &Splitter, num_threads: usize) -> Result<Words<'a>, Error> {
    let chunks: Vec<&str> = texts.iter().flat_map(|text| splitter.chunks(text, CHUNK_BYTES)).collect();
    let tables: Vec<Mutex<Words>> = (0..num_threads).map(|_| Default::default()).collect();
    parallel::ranges(&chunks, 16 * num_threads).into_par_iter().try_for_each(|range| {
        let table = &tables[rayon::current_thread_index().expect("this is one of the pool's threads")];
        let mut words = table.lock().expect("nobody else locks this thread's table");
        chunks[range].iter().try_for_each(|text| words.add_text(text, splitter))
    })?;
    let tables = tables.into_par_iter().map(|table| table.into_inner().expect("no thread panicked"));
    Ok(tables.reduce(Words::default, Words::add))
}

/// A table of words and their counts. The long words borrow from the texts.
struct Words<'a> {
    short: ShortMap<i64>,
    long: HashMap<&'a [u8], i64, RandomState>,
}

impl Default for Words<'_> {
    fn default() -> Self {
        Words { short: ShortMap::with_capacity(0), long: HashMap::default() }
    }
}

impl<'a> Words<'a> {
    fn add_text(&mut self, text: &'a str, splitter: &Splitter) -> Result<(), Error> {
        let bytes = text.as_bytes();
        splitter.split(text, |start, end| match Key::new(bytes, start, end) {
            Some(key) => *self.short.entry(key) += 1,
            None => *self.long.entry(&bytes[start..end]).or_insert(0) += 1,
        })
    }

    fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    fn add(self, other: Self) -> Self {
        let (mut into, from) = if self.len() < other.len() { (other, self) } else { (self, other) };
        for (key, n) in from.short.iter() {
            *into.short.entry(key) += n;
        }
        for (word, n) in from.long {
            *into.long.entry(word).or_insert(0) += n;
        }
        into
    }

    fn into_counts(self) -> Counts {
        let mut counts = Counts::with_capacity(self.len());
        for (key, n) in self.short.iter() {
            counts.push(&key.bytes()[..key.len()], n);
        }
        for (word, n) in self.long {
            counts.push(word, n);
        }
        counts
    }
}
