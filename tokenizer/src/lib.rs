//! Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte variant).
//!
//! [`count`] cuts texts into words with a split pattern and counts them, [`train`] learns merges from the counts, and an
//! [`Encoder`] turns text into the ids of the tokens learned.
//! Nothing in here knows Python; the binding is `python.rs`, compiled with the feature `python`.

pub mod arrow;
mod cache;
mod classes;
mod count;
mod counts;
mod encode;
mod error;
mod parallel;
#[cfg(feature = "python")]
mod python;
mod split;
mod table;
mod train;

pub use count::count;
pub use counts::{Counts, Cut, merge};
pub use encode::{Encoded, Encoder, Id};
pub use error::Error;
pub use split::Splitter;
pub use train::train;
