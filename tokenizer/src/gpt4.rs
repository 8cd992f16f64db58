//! GPT-4's split pattern, scanned by hand: one pass over the bytes without backtracking, eight ASCII letters at a time.
//!
//! Tests hold that it cuts the same words as the regex engine.

use crate::classes::{Kind, Kinds};

/// GPT-4's pattern before and after the number of digits that a word may have.
const BEFORE_DIGITS: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,";
const AFTER_DIGITS: &str = r"}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// The scanner for words of up to `max_digits` digits.
pub struct Gpt4 {
    kinds: &'static Kinds,
    max_digits: usize,
}

impl Gpt4 {
    /// Return the scanner of a pattern, None unless it is GPT-4's with 1 to 9 digits.
    pub fn new(pattern: &str) -> Option<Gpt4> {
        let digits = pattern.strip_prefix(BEFORE_DIGITS)?.strip_suffix(AFTER_DIGITS)?;
        match digits.as_bytes() {
            [d @ b'1'..=b'9'] => Some(Gpt4 { kinds: Kinds::table(), max_digits: (d - b'0') as usize }),
            _ => None,
        }
    }

    /// Return where the word that begins at `start` ends. Words cover the whole text, as every character has a kind.
    #[inline]
    pub fn end_of_word(&self, text: &[u8], start: usize) -> usize {
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

    /// Return the kind of the character at `at` and where the next one begins; None at the end of the text.
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

    /// `\s*[\r\n]|\s+(?!\S)|\s+`: up to the last line break. Without one, all the whitespace, but for its last character
    /// where text follows.
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

/// `'(?i:[sdmt]|ll|ve|re)` after the apostrophe. The regex engine folds the long s (U+017F, bytes C5 BF) to s.
fn end_of_contraction(text: &[u8], at: usize) -> Option<usize> {
    let letter = |i: usize| text.get(i).map(u8::to_ascii_lowercase);
    match (letter(at)?, letter(at + 1)) {
        (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) | (0xC5, Some(0xBF)) => Some(at + 2),
        _ => None,
    }
}

/// Count the ASCII letters that `text` begins with, eight at a time.
#[inline]
fn ascii_letters(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let mut at = 0;
    while let Some(eight) = text[at..].first_chunk::<8>() {
        let eight = u64::from_le_bytes(*eight);
        // In each sum, the high bit of a byte says whether that byte, in lower case, is at least 'a' or is above 'z'.
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

/// Return the code point and the length in bytes of the character at `at`, which has more than one byte.
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

/// The kinds of the ASCII characters. A test compares them with the regex crate's.
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
    use super::*;

    #[test]
    fn table_agrees_with_the_regex_crate() {
        for code_point in 0..128 {
            assert_eq!(ASCII[code_point as usize], Kinds::table().of(code_point));
        }
    }
}
