//! Random texts for a bounded time: words against the regex engine, ids against merging by the definition.
//!
//! It runs for one second, or longer with `FUZZ_SECONDS=600 cargo test --release --test fuzz`. Failures print their seed.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use raychat_bpe::{Counts, Encoder, Splitter, count, train};

const PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// Characters at which splitting is easy to get wrong.
static TRICKY: LazyLock<Vec<char>> = LazyLock::new(|| {
    "   \t\n\r\u{b}\u{85}\u{a0}\u{2028}\u{3000}\u{200b}''sSſlLverdmtabéß猫न\u{301}12٣½._-🎉\u{200d}\0\u{7f}\u{378}\u{d7ff}\u{e000}\u{10ffff}"
        .chars()
        .collect()
});

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn char(&mut self) -> char {
        match self.below(4) {
            0 => char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\u{fffd}'),
            1 => (self.below(128) as u8) as char,
            _ => TRICKY[self.below(TRICKY.len())],
        }
    }

    /// Characters, some of them many times in a row.
    fn text(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.below(40) {
            let times = if self.below(10) == 0 { self.below(200) } else { 1 };
            text.extend(std::iter::repeat_n(self.char(), times));
        }
        text
    }
}

fn words<'a>(splitter: &Splitter, text: &'a str) -> Vec<&'a str> {
    let mut words = Vec::new();
    splitter.split(text, |start, end| words.push(&text[start..end])).unwrap();
    words
}

/// Merge the first of the pairs that make the smallest token, until no pair makes one.
fn slow_encode(word: &[u8], tokens: &[Vec<u8>]) -> Vec<u32> {
    let id = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
    let mut parts: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
    while let Some((_, at)) = (1..parts.len()).filter_map(|at| Some((id(&parts[at - 1..=at].concat())?, at))).min() {
        let right = parts.remove(at);
        parts[at - 1].extend(right);
    }
    parts.iter().map(|part| id(part).unwrap() as u32).collect()
}

#[test]
fn random_texts() {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (by_hand, regex) = (Splitter::new(PATTERN).unwrap(), Splitter::regex(PATTERN).unwrap());
    assert!(matches!(by_hand, Splitter::Gpt4(_)));
    let mut seed = std::process::id() as u64;
    while Instant::now() < until {
        seed += 1;
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let texts: Vec<String> = (0..20).map(|_| random.text()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for text in &texts {
            assert_eq!(words(&by_hand, text), words(&regex, text), "seed {seed}, {text:?}");
        }
        let counts = count(&texts, PATTERN, Some(2)).unwrap();
        assert_eq!(
            counts.iter().map(|(_, n)| n).sum::<i64>(),
            texts.iter().map(|t| words(&by_hand, t).len() as i64).sum::<i64>()
        );
        let tokens = train(&counts, 256 + random.below(60)).unwrap();
        let mut reversed = Counts::default();
        counts.iter().rev().for_each(|(word, n)| reversed.push(word, n));
        assert_eq!(tokens, train(&reversed, tokens.len()).unwrap(), "seed {seed}");
        let ranks: Vec<(&[u8], u32)> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
        let encoded = Encoder::<u16>::new(&ranks, PATTERN).unwrap().encode_batch(&texts, None, Some(2)).unwrap();
        for (text, ends) in texts.iter().zip(encoded.offsets.windows(2)) {
            let ids: Vec<u32> = encoded.ids[ends[0] as usize..ends[1] as usize].iter().map(|&id| id as u32).collect();
            let expected: Vec<u32> =
                words(&regex, text).iter().flat_map(|word| slow_encode(word.as_bytes(), &tokens)).collect();
            assert_eq!(ids, expected, "seed {seed}, {text:?}");
        }
    }
}
