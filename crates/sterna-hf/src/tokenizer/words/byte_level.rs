//! The pattern of a `ByteLevel` that splits, without the engine for patterns.
//!
//! Whatever stands at a place, one of the pattern's alternatives matches there, and which one is plain from a character or two: the
//! words are runs of one kind of character. The engine sets up a search for every word, and that took a fifth of the time of a short
//! chat. What is a letter, a number or a space it still says itself, since other tables are of other versions of Unicode.

use std::sync::OnceLock;

use tokenizers::utils::SysRegex;

/// The pattern, which the crate keeps to itself.
#[cfg(test)]
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// What it looks for first.
const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
/// Characters whose kinds are asked of the engine in one go.
const BLOCK_LEN: usize = 256;

/// Splits text as the pattern does.
#[derive(Debug)]
pub(super) struct ByteLevel {
    letters: SysRegex,
    numbers: SysRegex,
    spaces: SysRegex,
    ascii: [Kind; 128],
    /// The kinds of the characters of each block, once one of them was met.
    blocks: Box<[OnceLock<Box<[Kind; BLOCK_LEN]>>]>,
}

/// What the pattern tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Other,
}

impl ByteLevel {
    /// `None` if the engine does not know the classes.
    pub(super) fn new() -> Option<ByteLevel> {
        let class = |pattern| SysRegex::new(pattern).ok();
        let mut byte_level = ByteLevel {
            letters: class(r"\p{L}+")?,
            numbers: class(r"\p{N}+")?,
            spaces: class(r"\s+")?,
            ascii: [Kind::Other; 128],
            blocks: (0..=char::MAX as usize / BLOCK_LEN).map(|_| OnceLock::new()).collect(),
        };
        let first_block = byte_level.kinds_of_block(0);
        byte_level.ascii.copy_from_slice(&first_block[..128]);
        Some(byte_level)
    }

    /// Bytes of the word that `text` starts with, which is not empty.
    pub(super) fn word_len(&self, text: &str) -> usize {
        // The first byte tells; to compare it as a pattern is a call of `memcmp`, which took most of the time here.
        let first = text.as_bytes()[0];
        if first == b'\''
            && let Some(found) = CONTRACTIONS.iter().find(|found| text.starts_with(**found))
        {
            return found.len();
        }
        // A space belongs to the word behind it.
        let num_spaces = usize::from(first == b' ');
        let behind_space = &text[num_spaces..];
        match behind_space.chars().next().map(|c| self.kind(c)) {
            Some(kind) if kind != Kind::Space => num_spaces + self.run_len(behind_space, kind),
            _ => {
                let len = self.run_len(text, Kind::Space);
                // The last one is left to the word behind, unless it is the only one.
                match text[..len].char_indices().next_back() {
                    Some((last, _)) if last > 0 && len < text.len() => last,
                    _ => len,
                }
            }
        }
    }

    /// Bytes of the characters of one kind that `text` starts with.
    fn run_len(&self, text: &str, kind: Kind) -> usize {
        let is_other = |&(_, c): &(usize, char)| self.kind(c) != kind;
        text.char_indices().find(is_other).map_or(text.len(), |(at, _)| at)
    }

    fn kind(&self, c: char) -> Kind {
        if let Some(&kind) = self.ascii.get(c as usize) {
            return kind;
        }
        let block = c as usize / BLOCK_LEN;
        self.blocks[block].get_or_init(|| self.kinds_of_block(block))[c as usize % BLOCK_LEN]
    }

    fn kinds_of_block(&self, block: usize) -> Box<[Kind; BLOCK_LEN]> {
        let start = (block * BLOCK_LEN) as u32;
        // A block of surrogates, which are no characters, is empty.
        let text: String = (start..).take(BLOCK_LEN).filter_map(char::from_u32).collect();
        let mut kinds = Box::new([Kind::Other; BLOCK_LEN]);
        let classes = [
            (&self.letters, Kind::Letter),
            (&self.numbers, Kind::Number),
            (&self.spaces, Kind::Space),
        ];
        for (class, kind) in classes {
            for (from, to) in class.find_iter(&text) {
                text[from..to].chars().for_each(|c| kinds[c as usize % BLOCK_LEN] = kind);
            }
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(byte_level: &ByteLevel, mut text: &'a str) -> Vec<&'a str> {
        let mut words = Vec::new();
        while !text.is_empty() {
            let (word, rest) = text.split_at(byte_level.word_len(text));
            words.push(word);
            text = rest;
        }
        words
    }

    #[test]
    fn every_character_between_others_splits_as_by_the_pattern() {
        let (byte_level, pattern) = (ByteLevel::new().unwrap(), SysRegex::new(PATTERN).unwrap());
        // Beyond are no characters yet, but for private ones.
        for c in ('\0'..='\u{3ffff}').chain('\u{e0000}'..='\u{e0fff}') {
            let text = format!("a{c}1{c} {c} ");
            let expected: Vec<&str> =
                pattern.find_iter(&text).map(|(from, to)| &text[from..to]).collect();
            assert_eq!(words(&byte_level, &text), expected, "{c:?}");
        }
    }

    #[test]
    fn short_texts_split_as_by_the_pattern() {
        let (byte_level, pattern) = (ByteLevel::new().unwrap(), SysRegex::new(PATTERN).unwrap());
        // All texts of up to five of these.
        let pieces = ["a", "1", " ", "\n", "\u{a0}", ".", "'", "s", "ll"];
        let mut texts = vec![String::new()];
        let mut longest = texts.clone();
        for _ in 0..5 {
            longest = longest
                .iter()
                .flat_map(|text| pieces.iter().map(move |piece| format!("{text}{piece}")))
                .collect();
            texts.extend_from_slice(&longest);
        }
        for text in texts {
            let expected: Vec<&str> =
                pattern.find_iter(&text).map(|(from, to)| &text[from..to]).collect();
            assert_eq!(words(&byte_level, &text), expected, "{text:?}");
        }
    }
}
