//! What can go wrong.

use std::fmt;

/// Why an input is refused, in words for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The split pattern does not compile.
    Pattern(String),
    /// The regex engine reached its backtracking limit on a text.
    Split(String),
    /// The vocabulary has no room for the 256 single bytes, or its ids do not fit 32 bits.
    VocabSize(usize),
    /// A count is negative or too large, or sorted counts are broken.
    Count(String),
    /// An Arrow column cannot be read.
    Arrow(String),
    /// The tokens do not make a vocabulary.
    Tokens(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Pattern(why) => write!(f, "the split pattern does not compile: {why}"),
            Error::Split(why) => write!(f, "the split pattern gave up on a text: {why}"),
            Error::VocabSize(got) => write!(f, "vocab_size must be at least 256 and below 2^32, got {got}"),
            Error::Count(why) | Error::Arrow(why) | Error::Tokens(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}
