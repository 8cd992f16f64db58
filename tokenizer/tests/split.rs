//! The scanner for GPT-4's pattern against the regex engine.

use std::sync::LazyLock;

use proptest::prelude::*;
use raychat_bpe::Splitter;

/// GPT-4's pattern for words of up to `max_digits` digits.
fn pattern(max_digits: usize) -> String {
    let (before, after) = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,",
        r"}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    );
    format!("{before}{max_digits}{after}")
}

/// The pattern by hand and by regex, for words of up to 1, 2 and 3 digits.
static SPLITTERS: LazyLock<[(Splitter, Splitter); 3]> = LazyLock::new(|| {
    [1, 2, 3].map(|digits| {
        let by_hand = Splitter::new(&pattern(digits)).unwrap();
        assert!(matches!(by_hand, Splitter::Gpt4(_)));
        (by_hand, Splitter::regex(&pattern(digits)).unwrap())
    })
});

fn words<'a>(splitter: &Splitter, text: &'a str) -> Vec<&'a str> {
    let mut words = Vec::new();
    splitter.split(text, |start, end| words.push(&text[start..end])).unwrap();
    words
}

fn assert_same(text: &str) {
    for (by_hand, regex) in SPLITTERS.iter() {
        assert_eq!(words(by_hand, text), words(regex, text), "{text:?}");
    }
}

#[test]
fn other_patterns_go_through_the_regex_engine() {
    for pattern in [r"\w+", &pattern(2)[1..], &pattern(0)] {
        assert!(matches!(Splitter::new(pattern), Ok(Splitter::Regex(_))));
    }
}

/// Every character of Unicode among letters, numbers, punctuation, spaces, and after an apostrophe.
#[test]
fn every_character_is_split_like_the_regex() {
    let (by_hand, regex) = &SPLITTERS[1];
    let mut text = String::new();
    for c in '\0'..=char::MAX {
        text.push_str(&format!("a{c}b1{c}2.{c} {c} \n{c}{c}x'{c}l {c}1"));
        if text.len() > 1 << 16 || c == char::MAX {
            assert_eq!(words(by_hand, &text), words(regex, &text));
            text.clear();
        }
    }
}

#[test]
fn tricky_texts_are_split_like_the_regex() {
    let texts = [
        "",
        " ",
        "  ",
        "\n",
        "a  \n \n  b",
        "  x",
        "\t\tx",
        "\u{a0}\u{a0}x",
        "\u{3000}\n\u{3000}x  ",
        "it's it'S 's'll'LL'Ve'rE'd'm't'x'",
        "'ſ 'ſs x'ſ",
        "''s '''s  's\n's",
        "1234567 ١٢٣ ½²Ⅷ",
        "...\n\n...\r\n\r x",
        " .x ..x  .x",
        "e\u{301}e\u{301} नमस्ते",
        "\0\0a\0",
        "\u{d7ff}\u{e000}\u{10ffff}x",
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`{|}~@",
    ];
    texts.into_iter().for_each(assert_same);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_split_like_the_regex(text in any::<String>()) {
        assert_same(&text);
    }

    #[test]
    fn chunks_have_the_words_of_the_whole(text in r"[ \r\n'sa.1é\t]{0,60}", size in 0usize..10) {
        for (by_hand, _) in SPLITTERS.iter() {
            let chunks = by_hand.chunks(&text, size);
            prop_assert_eq!(chunks.concat(), text.as_str());
            let of_chunks: Vec<&str> = chunks.iter().flat_map(|chunk| words(by_hand, chunk)).collect();
            prop_assert_eq!(of_chunks, words(by_hand, &text));
        }
    }

    #[test]
    fn texts_of_few_characters_are_split_like_the_regex(
        text in r"[ \t\r\n\x0B\u{85}\u{a0}\u{2028}\u{3000}'sSlLvVeErRdmtſ.é猫\u{301}1٣½\u{200b}\u{200d}🎉\u{0}]{0,40}"
    ) {
        assert_same(&text);
    }
}
