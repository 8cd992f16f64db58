//! Cut text into the pieces that byte pairs are merged in.
//!
//! A [`Splitter`] stands for a pattern. For the pattern of [`is_known`] it is written out by hand: one pass over the bytes,
//! no backtracking, several letters at a time while they are ASCII. Any other pattern goes through a regex engine. Both
//! give the same pieces, which tests hold.

use fancy_regex::Regex;

use crate::Error;
use crate::classes::{Kind, Kinds};

/// GPT-4's pattern up to and after the number of digits that a piece may have.
const BEFORE_DIGITS: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,";
const AFTER_DIGITS: &str = r"}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// Cuts text into pieces by a pattern.
pub enum Splitter {
    /// The pattern `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,D}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`
    Known(Known),
    /// Any other pattern.
    Regex(Box<Regex>),
}

impl Splitter {
    /// Compile a pattern.
    pub fn new(pattern: &str) -> Result<Splitter, Error> {
        match Known::new(pattern) {
            Some(known) => Ok(Splitter::Known(known)),
            None => Splitter::regex(pattern),
        }
    }

    /// Compile a pattern for the regex engine, also one that could do without.
    pub fn regex(pattern: &str) -> Result<Splitter, Error> {
        Regex::new(pattern).map(|regex| Splitter::Regex(Box::new(regex))).map_err(|e| Error::Pattern(e.to_string()))
    }

    /// Tell `take` where the pieces of `text` begin and end, in bytes, from left to right.
    #[inline]
    pub fn split(&self, text: &str, mut take: impl FnMut(usize, usize)) -> Result<(), Error> {
        match self {
            Splitter::Known(known) => {
                let bytes = text.as_bytes();
                let mut start = 0;
                while start < bytes.len() {
                    let end = known.end_of_piece(bytes, start);
                    take(start, end);
                    start = end;
                }
            }
            Splitter::Regex(regex) => {
                for piece in regex.find_iter(text) {
                    let piece = piece.map_err(|e| Error::Split(e.to_string()))?;
                    if piece.start() < piece.end() {
                        take(piece.start(), piece.end());
                    }
                }
            }
        }
        Ok(())
    }
}

impl Splitter {
    /// Cut a text into parts of at least `size` bytes, the last one excepted, that have the same pieces alone as together.
    ///
    /// With the known pattern no piece goes on from a line break into a following character that is not whitespace, and
    /// none looks at what is before it. Of other patterns nothing is known, so that the text is one part.
    pub fn parts<'a>(&self, text: &'a str, size: usize) -> Vec<&'a str> {
        let mut parts = Vec::new();
        let mut start = 0;
        if matches!(self, Splitter::Known(_)) {
            let bytes = text.as_bytes();
            while let Some(from) = bytes.get(start + size..) {
                let Some(line) = from.windows(2).position(|two| two[0] == b'\n' && two[1].is_ascii_graphic()) else {
                    break;
                };
                let end = start + size + line + 1;
                parts.push(&text[start..end]);
                start = end;
            }
        }
        parts.push(&text[start..]);
        parts
    }
}

/// The pattern written out.
pub struct Known {
    kinds: &'static Kinds,
    max_digits: usize,
}

impl Known {
    fn new(pattern: &str) -> Option<Known> {
        let digits = pattern.strip_prefix(BEFORE_DIGITS)?.strip_suffix(AFTER_DIGITS)?;
        match digits.as_bytes() {
            [d @ b'1'..=b'9'] => Some(Known { kinds: Kinds::table(), max_digits: (d - b'0') as usize }),
            _ => None,
        }
    }

    /// Where the piece that begins at `start` ends. Every text is covered by pieces, as every character has a kind.
    #[inline]
    fn end_of_piece(&self, text: &[u8], start: usize) -> usize {
        let Some((kind, second)) = self.kind_at(text, start) else {
            return start;
        };
        match kind {
            Kind::Letter => self.end_of_letters(text, second),
            Kind::Number => self.end_of_numbers(text, second),
            Kind::Newline => self.end_of_whitespace(text, start),
            Kind::Space => match self.kind_at(text, second) {
                Some((Kind::Letter, third)) => self.end_of_letters(text, third),
                Some((Kind::Other, third)) if text[start] == b' ' => self.end_of_others(text, third),
                _ => self.end_of_whitespace(text, start),
            },
            Kind::Other => {
                if text[start] == b'\''
                    && let Some(end) = end_of_contraction(text, second)
                {
                    return end;
                }
                match self.kind_at(text, second) {
                    Some((Kind::Letter, third)) => self.end_of_letters(text, third),
                    _ => self.end_of_others(text, second),
                }
            }
        }
    }

    /// The kind of the character at `at`, and where the next one begins; None at the end of the text.
    #[inline]
    fn kind_at(&self, text: &[u8], at: usize) -> Option<(Kind, usize)> {
        let &byte = text.get(at)?;
        if byte < 128 {
            return Some((ASCII[byte as usize], at + 1));
        }
        let (code_point, len) = decode(text, at);
        Some((self.kinds.of(code_point), at + len))
    }

    /// `\p{L}*`
    #[inline]
    fn end_of_letters(&self, text: &[u8], mut at: usize) -> usize {
        loop {
            at += ascii_letters(&text[at..]);
            if at == text.len() || text[at] < 128 {
                return at;
            }
            let (code_point, len) = decode(text, at);
            if self.kinds.of(code_point) != Kind::Letter {
                return at;
            }
            at += len;
        }
    }

    /// `\p{N}{0,D-1}`
    #[inline]
    fn end_of_numbers(&self, text: &[u8], mut at: usize) -> usize {
        for _ in 1..self.max_digits {
            match self.kind_at(text, at) {
                Some((Kind::Number, next)) => at = next,
                _ => break,
            }
        }
        at
    }

    /// `[^\s\p{L}\p{N}]*[\r\n]*`
    #[inline]
    fn end_of_others(&self, text: &[u8], mut at: usize) -> usize {
        while let Some((Kind::Other, next)) = self.kind_at(text, at) {
            at = next;
        }
        while let Some(b'\r' | b'\n') = text.get(at) {
            at += 1;
        }
        at
    }

    /// `\s*[\r\n]|\s+(?!\S)|\s+`: up to the last line break; without one, all but a last character that a word follows.
    fn end_of_whitespace(&self, text: &[u8], start: usize) -> usize {
        let (mut end, mut last, mut after_newline) = (start, start, start);
        while let Some((kind @ (Kind::Space | Kind::Newline), next)) = self.kind_at(text, end) {
            (last, end) = (end, next);
            if kind == Kind::Newline {
                after_newline = end;
            }
        }
        if after_newline > start {
            after_newline
        } else if end == text.len() || last == start {
            end
        } else {
            last
        }
    }
}

/// `'(?i:[sdmt]|ll|ve|re)` after the apostrophe. The long s (U+017F) is an s of another case.
fn end_of_contraction(text: &[u8], at: usize) -> Option<usize> {
    let letter = |i: usize| text.get(i).map(u8::to_ascii_lowercase);
    match (letter(at)?, letter(at + 1)) {
        (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) | (0xC5, Some(0xBF)) => Some(at + 2),
        _ => None,
    }
}

/// How many ASCII letters `text` begins with, eight at a time.
#[inline]
fn ascii_letters(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let mut at = 0;
    while let Some(eight) = text[at..].first_chunk::<8>() {
        let eight = u64::from_le_bytes(*eight);
        // The high bit of each byte of a sum says whether the byte, in lower case, reaches 'a' or passes 'z'.
        let lower = (eight | (0x20 * ONES)) & !HIGH;
        let from_a = lower + (0x80 - b'a' as u64) * ONES;
        let past_z = lower + (0x80 - b'z' as u64 - 1) * ONES;
        let others = !(from_a & !past_z & !eight) & HIGH;
        if others != 0 {
            return at + others.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + text[at..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count()
}

/// The code point at `at`, where a character of more than one byte begins, and its length in bytes.
#[inline]
fn decode(text: &[u8], at: usize) -> (u32, usize) {
    let low = |i: usize| (text[at + i] & 0x3F) as u32;
    let first = text[at] as u32;
    if first < 0xE0 {
        ((first & 0x1F) << 6 | low(1), 2)
    } else if first < 0xF0 {
        ((first & 0x0F) << 12 | low(1) << 6 | low(2), 3)
    } else {
        ((first & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4)
    }
}

/// The kinds of ASCII characters; the regex crate agrees, which a test holds.
const ASCII: [Kind; 128] = {
    let mut kinds = [Kind::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Kind::Letter,
            b'0'..=b'9' => Kind::Number,
            b'\r' | b'\n' => Kind::Newline,
            b' ' | b'\t' | 0x0B | 0x0C => Kind::Space,
            _ => Kind::Other,
        };
        byte += 1;
    }
    kinds
};

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    pub fn pattern(max_digits: usize) -> String {
        format!("{BEFORE_DIGITS}{max_digits}{AFTER_DIGITS}")
    }

    /// The pattern by hand and by regex, for pieces of up to 1, 2 and 3 digits.
    static SPLITTERS: LazyLock<[(Splitter, Splitter); 3]> = LazyLock::new(|| {
        [1, 2, 3].map(|digits| {
            let known = Splitter::new(&pattern(digits)).unwrap();
            assert!(matches!(known, Splitter::Known(_)));
            (known, Splitter::regex(&pattern(digits)).unwrap())
        })
    });

    fn pieces<'a>(splitter: &Splitter, text: &'a str) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        splitter.split(text, |start, end| pieces.push(&text[start..end])).unwrap();
        pieces
    }

    fn assert_same(text: &str) {
        for (known, regex) in SPLITTERS.iter() {
            assert_eq!(pieces(known, text), pieces(regex, text), "{text:?}");
        }
    }

    #[test]
    fn other_patterns_go_through_the_regex_engine() {
        for pattern in [r"\w+", &pattern(2)[1..], &format!("{BEFORE_DIGITS}0{AFTER_DIGITS}")] {
            assert!(matches!(Splitter::new(pattern), Ok(Splitter::Regex(_))));
        }
    }

    #[test]
    fn table_agrees_with_the_regex_crate() {
        for code_point in 0..128 {
            assert_eq!(ASCII[code_point as usize], Kinds::table().of(code_point));
        }
    }

    /// Every character of Unicode among letters, numbers, punctuation, spaces, and after an apostrophe.
    #[test]
    fn every_character_is_split_like_the_regex() {
        let (known, regex) = &SPLITTERS[1];
        let mut text = String::new();
        for c in '\0'..=char::MAX {
            text.push_str(&format!("a{c}b1{c}2.{c} {c} \n{c}{c}x'{c}l {c}1"));
            if text.len() > 1 << 16 || c == char::MAX {
                assert_eq!(pieces(known, &text), pieces(regex, &text));
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
        fn parts_have_the_pieces_of_the_whole(text in r"[ \r\n'sa.1é\t]{0,60}", size in 0usize..10) {
            for (known, _) in SPLITTERS.iter() {
                let parts = known.parts(&text, size);
                prop_assert_eq!(parts.concat(), text.as_str());
                let of_parts: Vec<&str> = parts.iter().flat_map(|part| pieces(known, part)).collect();
                prop_assert_eq!(of_parts, pieces(known, &text));
            }
        }

        #[test]
        fn texts_of_few_characters_are_split_like_the_regex(
            text in r"[ \t\r\n\x0B\u{85}\u{a0}\u{2028}\u{3000}'sSlLvVeErRdmtſ.é猫\u{301}1٣½\u{200b}\u{200d}🎉\u{0}]{0,40}"
        ) {
            assert_same(&text);
        }
    }
}
