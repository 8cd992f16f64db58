//! The kinds of characters that GPT-4's split pattern distinguishes, by table.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// The kind of a character, by the regex crate's Unicode tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Anything else: punctuation, symbols, marks, control characters, unassigned code points.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s` except `\r` and `\n`
    Space,
    /// `\r` and `\n`
    Newline,
}

const PAGE: usize = 256;

/// A two-stage table: the page of a code point, then its index within the page. Equal pages are stored once.
pub struct Kinds {
    page: Vec<u16>,
    kinds: Vec<Kind>,
}

impl Kinds {
    /// The table, built from the regex crate's own on first use.
    pub fn table() -> &'static Kinds {
        static TABLE: LazyLock<Kinds> = LazyLock::new(Kinds::new);
        &TABLE
    }

    fn new() -> Kinds {
        let mut flat = vec![Kind::Other; char::MAX as usize + 1];
        for (class, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
            for (first, last) in ranges(class) {
                flat[first as usize..=last as usize].fill(kind);
            }
        }
        flat['\r' as usize] = Kind::Newline;
        flat['\n' as usize] = Kind::Newline;

        let mut kinds: Vec<Kind> = Vec::new();
        let page = flat
            .chunks(PAGE)
            .map(|new| {
                let same = kinds.chunks(PAGE).position(|old| old == new);
                let index = same.unwrap_or(kinds.len() / PAGE);
                if same.is_none() {
                    kinds.extend_from_slice(new);
                }
                index as u16
            })
            .collect();
        Kinds { page, kinds }
    }

    /// The kind of a code point below 0x110000.
    #[inline]
    pub fn of(&self, code_point: u32) -> Kind {
        let page = self.page[code_point as usize / PAGE] as usize;
        self.kinds[page * PAGE + code_point as usize % PAGE]
    }
}

/// The ranges of characters of a class, both ends inclusive.
fn ranges(class: &str) -> Vec<(char, char)> {
    let hir = regex_syntax::parse(class).expect("the classes are constants of this file");
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => class.ranges().iter().map(|r| (r.start(), r.end())).collect(),
        other => unreachable!("{class} is a Unicode class, got {other:?}"),
    }
}
