//! Spread work on many texts over threads.

use std::ops::Range;

use rayon::ThreadPoolBuilder;

/// Run `work` inside a rayon pool of `num_threads` threads and pass it that number. None means rayon's default pool.
///
/// One thread means the calling thread, without a pool.
pub fn with_threads<R: Send>(num_threads: Option<usize>, work: impl FnOnce(usize) -> R + Send) -> R {
    match num_threads {
        None => rayon::scope(|_| work(rayon::current_num_threads())),
        Some(0 | 1) => work(1),
        Some(n) => match ThreadPoolBuilder::new().num_threads(n).build() {
            Ok(pool) => pool.install(|| work(n)),
            Err(_) => work(1), // the system refuses more threads
        },
    }
}

/// Cut the texts into about `num` ranges of consecutive texts with about the same number of bytes.
pub fn ranges(texts: &[&str], num: usize) -> Vec<Range<usize>> {
    let target = texts.iter().map(|text| text.len()).sum::<usize>() / num.max(1) + 1;
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, text) in texts.iter().enumerate() {
        bytes += text.len();
        if bytes >= target {
            ranges.push(start..i + 1);
            (start, bytes) = (i + 1, 0);
        }
    }
    if start < texts.len() {
        ranges.push(start..texts.len());
    }
    ranges
}
