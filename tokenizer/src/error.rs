use std::fmt;

/// What a caller did wrong, in words for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The split pattern does not compile.
    Pattern(String),
    /// The regex engine gave up on a text (a backtracking limit).
    Split(String),
    /// The vocabulary cannot hold the 256 bytes, or its ids do not fit 32 bits.
    VocabSize(usize),
    /// A word has a negative count, or the sum of all pair counts does not fit 64 bits.
    Count(String),
    /// An Arrow column cannot be read.
    Arrow(String),
    /// The vocabulary of an encoder is not one.
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
