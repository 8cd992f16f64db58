//! Counting and training, as a user of the crate sees them.

use raychat_bpe::{Error, count, train};

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn learned(words: &[(&str, i64)], merges: usize) -> Vec<String> {
    let tokens = train(words, 256 + merges).unwrap();
    tokens[256..]
        .iter()
        .map(|token| String::from_utf8(token.clone()).unwrap())
        .collect()
}

#[test]
fn words_are_counted_over_all_texts() {
    let counts = count(&["it's a cat", "a cat", ""], GPT2).unwrap();
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort();
    assert_eq!(
        counts,
        [(" a", 1), (" cat", 2), ("'s", 1), ("a", 1), ("it", 1)]
    );
}

#[test]
fn bad_pattern_is_an_error() {
    assert!(matches!(count(&["text"], "("), Err(Error::Pattern(_))));
}

#[test]
fn single_bytes_come_first() {
    let tokens = train::<&[u8]>(&[], 1000).unwrap();
    assert_eq!(
        tokens,
        (0..=255u8).map(|byte| vec![byte]).collect::<Vec<_>>()
    );
}

/// Sennrich et al. 2016, figure 1 and the text beside it, with ties broken by the smaller pair.
#[test]
fn most_frequent_pair_is_merged_first() {
    let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
    assert_eq!(learned(&words, 3), ["es", "est", "lo"]);
}

#[test]
fn equal_counts_go_to_the_smaller_pair() {
    assert_eq!(
        learned(&[("xy", 1), ("ab", 1), ("ba", 1)], 3),
        ["ab", "ba", "xy"]
    );
}

#[test]
fn runs_of_one_letter_merge_left_to_right() {
    assert_eq!(learned(&[("aaaaa", 1)], 9), ["aa", "aaa", "aaaaa"]);
}

#[test]
fn words_that_occur_zero_times_teach_nothing() {
    assert_eq!(learned(&[("ab", 0), ("cd", 1)], 2), ["cd"]);
}

#[test]
fn wrong_input_is_an_error() {
    assert_eq!(train::<&[u8]>(&[], 255), Err(Error::VocabSize(255)));
    assert!(matches!(train(&[("ab", -1)], 300), Err(Error::Count(_))));
    assert!(matches!(
        train(&[("ab", i64::MAX)], 300),
        Err(Error::Count(_))
    ));
}
