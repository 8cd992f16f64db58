//! Cut text into words.

use fancy_regex::Regex;

use crate::Error;
use crate::gpt4::Gpt4;

/// Cuts text into words by a split pattern.
pub enum Splitter {
    /// The pattern `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,D}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`
    /// for any D from 1 to 9.
    Gpt4(Gpt4),
    /// Any other pattern.
    Regex(Box<Regex>),
}

impl Splitter {
    /// Compile a pattern.
    pub fn new(pattern: &str) -> Result<Splitter, Error> {
        match Gpt4::new(pattern) {
            Some(gpt4) => Ok(Splitter::Gpt4(gpt4)),
            None => Splitter::regex(pattern),
        }
    }

    /// Compile a pattern for the regex engine, even GPT-4's.
    pub fn regex(pattern: &str) -> Result<Splitter, Error> {
        Regex::new(pattern).map(|regex| Splitter::Regex(Box::new(regex))).map_err(|e| Error::Pattern(e.to_string()))
    }

    /// Call `take` with the start and end of each word of `text`, in bytes, from left to right.
    #[inline]
    pub fn split(&self, text: &str, mut take: impl FnMut(usize, usize)) -> Result<(), Error> {
        match self {
            Splitter::Gpt4(gpt4) => {
                let bytes = text.as_bytes();
                let mut start = 0;
                while start < bytes.len() {
                    let end = gpt4.end_of_word(bytes, start);
                    take(start, end);
                    start = end;
                }
            }
            Splitter::Regex(regex) => {
                for word in regex.find_iter(text) {
                    let word = word.map_err(|e| Error::Split(e.to_string()))?;
                    if word.start() < word.end() {
                        take(word.start(), word.end());
                    }
                }
            }
        }
        Ok(())
    }

    /// Cut a text into chunks of at least `size` bytes, except the last one, that have the words of the whole text.
    ///
    /// A word of GPT-4's pattern never contains a line break followed by anything but whitespace, and never depends on
    /// the text before it, so a chunk may end at such a line break. Other patterns promise nothing: one chunk.
    pub fn chunks<'a>(&self, text: &'a str, size: usize) -> Vec<&'a str> {
        let mut chunks = Vec::new();
        let mut start = 0;
        if matches!(self, Splitter::Gpt4(_)) {
            let bytes = text.as_bytes();
            while let Some(from) = bytes.get(start + size..) {
                let Some(line) = from.windows(2).position(|two| two[0] == b'\n' && two[1].is_ascii_graphic()) else {
                    break;
                };
                let end = start + size + line + 1;
                chunks.push(&text[start..end]);
                start = end;
            }
        }
        chunks.push(&text[start..]);
        chunks
    }
}
