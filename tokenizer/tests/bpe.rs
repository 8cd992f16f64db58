//! Counting and training through the crate's public API.

use raychat_bpe::{Counts, Error, count, merge, train};

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn counts<W: AsRef<str>>(words: &[(W, i64)]) -> Counts {
    let mut counts = Counts::default();
    words.iter().for_each(|(word, n)| counts.push(word.as_ref().as_bytes(), *n));
    counts
}

fn learned(words: &[(&str, i64)], merges: usize) -> Vec<String> {
    let tokens = train(&counts(words), 256 + merges).unwrap();
    tokens[256..].iter().map(|token| String::from_utf8(token.clone()).unwrap()).collect()
}

#[test]
fn words_are_counted_over_all_texts() {
    for threads in [None, Some(1), Some(3)] {
        let counts = count(&["it's a cat", "a cat", ""], GPT2, threads).unwrap();
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort();
        let expected: [(&[u8], i64); 5] = [(b" a", 1), (b" cat", 2), (b"'s", 1), (b"a", 1), (b"it", 1)];
        assert_eq!(counts, expected);
        assert_eq!(count(&["one"], GPT2, threads).unwrap().len(), 1);
        assert!(count(&[], GPT2, threads).unwrap().is_empty());
    }
}

#[test]
fn bad_pattern_is_an_error() {
    assert!(matches!(count(&["text"], "(", None), Err(Error::Pattern(_))));
}

#[test]
fn single_bytes_come_first() {
    let tokens = train(&Counts::default(), 1000).unwrap();
    assert_eq!(tokens, (0..=255u8).map(|byte| vec![byte]).collect::<Vec<_>>());
}

/// Sennrich et al. 2016, figure 1 and the text beside it, with ties broken by the smaller pair.
#[test]
fn most_frequent_pair_is_merged_first() {
    let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
    assert_eq!(learned(&words, 3), ["es", "est", "lo"]);
}

#[test]
fn equal_counts_go_to_the_smaller_pair() {
    assert_eq!(learned(&[("xy", 1), ("ab", 1), ("ba", 1)], 3), ["ab", "ba", "xy"]);
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
    assert_eq!(train(&Counts::default(), 255), Err(Error::VocabSize(255)));
    assert!(matches!(train(&counts(&[("ab", -1)]), 300), Err(Error::Count(_))));
    assert!(matches!(train(&counts(&[("ab", i64::MAX)]), 300), Err(Error::Count(_))));
}

#[test]
fn sorted_counts_come_back_and_add_up() {
    let long = "long".repeat(100);
    let a = counts(&[("ab", 1), ("abc", 300), ("", 2), (&long, 1)]);
    let b = counts(&[("abc", 1 << 40), ("b", 2), ("\u{ff}", 1)]);
    let (one, two) = (a.to_sorted(1).remove(0), b.to_sorted(1).remove(0));
    let (both, cut) = merge(&[&one, &two], 1).unwrap();
    let expected = [("", 2), ("ab", 1), ("abc", (1 << 40) + 300), ("b", 2), (&long, 1), ("\u{ff}", 1)];
    assert_eq!(Counts::from_sorted(&[&both]).unwrap(), counts(&expected));
    assert_eq!((cut.words, cut.occurrences), (0, 0));

    let (frequent, cut) = merge(&[&one, &two], 2).unwrap();
    let expected = [("", 2), ("abc", (1 << 40) + 300), ("b", 2)];
    assert_eq!(Counts::from_sorted(&[&frequent]).unwrap(), counts(&expected));
    assert_eq!((cut.words, cut.occurrences), (3, 3));
}

#[test]
fn parts_hold_every_word_once_and_merge_part_by_part() {
    let counts = counts(&(0..1000).map(|i| (i.to_string(), i + 1)).collect::<Vec<_>>());
    let parts = counts.to_sorted(7);
    assert_eq!(parts.len(), 7);
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    assert!(parts.iter().all(|part| !Counts::from_sorted(&[part]).unwrap().is_empty()));
    assert!(merge(&parts, 1).unwrap().0 == counts.to_sorted(1)[0]);
}

#[test]
fn broken_counts_are_an_error() {
    let sorted = counts(&[("ab", 1), ("abc", 300)]).to_sorted(1).remove(0);
    for len in 0..sorted.len() {
        assert!(Counts::from_sorted(&[&sorted[..len]]).is_err(), "{len} bytes");
    }
    assert!(merge(&[&sorted, b"other"], 1).is_err());
    assert!(Counts::from_sorted(&[&[sorted.as_slice(), &[0; 8]].concat()]).is_err());
}
