//! Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte variant).
//!
//! A split pattern cuts text into words, which other libraries call pre-tokens or pieces. [`count`] counts the words of
//! texts, [`train`] learns merges from the counts, and an [`Encoder`] turns text into token ids.
//!
//! Only `python.rs` knows Python: it is the binding, compiled with the feature `python`. Each module imports from lines
//! above its own:
//!
//! ```text
//! error  parallel  classes  table
//! arrow  counts  gpt4  cache  vocab
//! split  cells
//! count  train  encode
//! python
//! ```

pub mod arrow;
mod cache;
mod cells;
mod classes;
mod count;
mod counts;
mod encode;
mod error;
mod gpt4;
mod parallel;
#[cfg(feature = "python")]
mod python;
mod split;
mod table;
mod train;
mod vocab;

pub use count::count;
pub use counts::{Counts, Cut, merge};
pub use encode::{Encoded, Encoder};
pub use error::Error;
pub use split::Splitter;
pub use train::train;
pub use vocab::Id;
