//! Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte variant).
//!
//! [`count`] cuts texts into words with a split pattern and counts them; [`train`] learns merges from the counts.
//! Nothing in here knows Python; the binding is `python.rs`, compiled with the feature `python`.

mod count;
mod error;
#[cfg(feature = "python")]
mod python;
mod train;

pub use count::{Counts, count};
pub use error::Error;
pub use train::train;
