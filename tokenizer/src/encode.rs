//! Encode text with the tokens of a vocabulary.
//!
//! A word that is a token becomes that token; any other is merged. The same words occur again and again, so each thread
//! caches recent ones with their ids.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::cache::Cache;
use crate::table::Key;
use crate::vocab::{Id, MergeBuffers, Vocab};
use crate::{Error, Splitter, parallel};

/// Token ids of texts, one text after the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded<I> {
    pub ids: Vec<I>,
    /// Text i has the ids from `offsets[i]` to `offsets[i + 1]`.
    pub offsets: Vec<i64>,
}

/// Encodes text to ids of type `I`.
pub struct Encoder<I> {
    splitter: Splitter,
    vocab: Vocab,
    /// Scratch that no thread uses at the moment.
    unused: Mutex<Vec<Scratch<I>>>,
}

/// What one thread needs to encode, besides the encoder.
struct Scratch<I> {
    cache: Cache<I>,
    buffers: MergeBuffers,
}

impl<I: Id> Encoder<I> {
    /// Make an encoder of tokens with their ids and a split pattern.
    ///
    /// Fails when a byte is no token, a token is empty, a token or id occurs twice, or an id does not fit `I`.
    pub fn new(tokens: &[(&[u8], u32)], pattern: &str) -> Result<Encoder<I>, Error> {
        if let Some((_, id)) = tokens.iter().find(|(_, id)| *id as u64 >= I::NUM) {
            return Err(Error::Tokens(format!("the id {id} does not fit {} bytes", size_of::<I>())));
        }
        let splitter = Splitter::new(pattern)?;
        Ok(Encoder { splitter, vocab: Vocab::new(tokens)?, unused: Mutex::default() })
    }

    /// Append the ids of a text.
    pub fn encode(&self, text: &str, ids: &mut Vec<I>) -> Result<(), Error> {
        self.with_scratch(|scratch| self.append(text, scratch, ids))
    }

    /// Encode many texts in parallel, each after the id `first` if there is one.
    ///
    /// `num_threads`: None means rayon's default.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        first: Option<I>,
        num_threads: Option<usize>,
    ) -> Result<Encoded<I>, Error> {
        parallel::with_threads(num_threads, |threads| {
            if threads == 1 {
                return self.encode_texts(texts, first);
            }
            let parts: Vec<Encoded<I>> = parallel::ranges(texts, 8 * threads)
                .into_par_iter()
                .map(|range| self.encode_texts(&texts[range], first))
                .collect::<Result<_, _>>()?;
            Ok(join(parts))
        })
    }

    fn encode_texts(&self, texts: &[&str], first: Option<I>) -> Result<Encoded<I>, Error> {
        let mut ids = Vec::with_capacity(texts.iter().map(|text| text.len()).sum::<usize>() / 4);
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        self.with_scratch(|scratch| {
            for text in texts {
                ids.extend(first);
                self.append(text, scratch, &mut ids)?;
                offsets.push(ids.len() as i64);
            }
            Ok(())
        })?;
        Ok(Encoded { ids, offsets })
    }

    fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch<I>) -> R) -> R {
        let unused = || self.unused.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let scratch = unused().pop();
        let mut scratch =
            scratch.unwrap_or_else(|| Scratch { cache: Cache::default(), buffers: MergeBuffers::default() });
        let result = work(&mut scratch);
        unused().push(scratch);
        result
    }

    fn append(&self, text: &str, scratch: &mut Scratch<I>, ids: &mut Vec<I>) -> Result<(), Error> {
        let Scratch { cache, buffers } = scratch;
        let bytes = text.as_bytes();
        self.splitter.split(text, |start, end| match Key::new(bytes, start, end) {
            Some(key) => {
                if !cache.copy(key, ids) {
                    let from = ids.len();
                    match self.vocab.short(key) {
                        Some(id) => ids.push(I::new(id)),
                        None => self.vocab.merge(&bytes[start..end], buffers, ids),
                    }
                    cache.keep(key, &ids[from..]);
                }
            }
            None => {
                let word = &bytes[start..end];
                if !cache.copy_long(word, ids) {
                    let from = ids.len();
                    match self.vocab.long(word) {
                        Some(id) => ids.push(I::new(id)),
                        None => self.vocab.merge(word, buffers, ids),
                    }
                    cache.keep_long(word, &ids[from..]);
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
