//! Encoding word by word, for byte-level tokenizers.
//!
//! The tokenizers crate carries an alignment of every byte through each of its steps, which takes most of its time. Nearly all
//! tokenizers of language models are of one kind: added tokens are cut out, what is left is split into words by patterns, and
//! byte-pair encoding turns each word into tokens by itself, from its bytes written as letters. Then the tokens of a word depend on
//! nothing around it, so they are asked of the crate's model once and kept. Patterns, engine and model are the crate's own, except for
//! the pattern of most ([`ByteLevel`]); a tokenizer with a step that is not known here is not of this kind, and the crate encodes for it.

mod byte_level;

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use ahash::RandomState;
use aho_corasick::{AhoCorasick, MatchKind};
use icu_normalizer::ComposingNormalizerBorrowed;
use tokenizers::{
    AddedToken, Model as _, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, SplitDelimiterBehavior, pre_tokenizers::split::SplitPattern,
    utils::SysRegex,
};

use self::byte_level::ByteLevel;
use super::Encoded;

/// Words that are kept.
const MAX_WORDS: usize = 1 << 16;
/// Longest word that is kept, in bytes.
const MAX_WORD_LEN: usize = 64;
/// What every tokenizer of this kind has to encode as the crate does before it is used.
const PROBE: &str = "I'll  say: na\u{ef}ve \u{442}\u{435}\u{441}\u{442},\n\n 2024x5\t\u{1f600}\u{4e2d}\u{6587}\u{a0}it's <b>\r\n  ";

/// A byte-level tokenizer as its steps, with the tokens of words it has seen.
#[derive(Debug)]
pub(super) struct Words {
    /// Added tokens that are looked for first, and those looked for in what is left.
    added: [Added; 2],
    splits: Vec<Split>,
    /// Whether text is brought into normal form C.
    is_composed: bool,
    /// What each byte is written as.
    letters: [char; 256],
    /// Found by a faster hash than the standard library's: a short chat looks fifty words up.
    known: RwLock<HashMap<Box<str>, Box<[Piece]>, RandomState>>,
}

/// Added tokens.
#[derive(Debug)]
struct Added {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

/// A step that splits text into words.
#[derive(Debug)]
enum Split {
    /// At each match, which is a word too.
    Pattern(SysRegex),
    /// As the pattern of a `ByteLevel`.
    ByteLevel(ByteLevel),
    /// Digits from other text, and from each other if `each`.
    Digits { each: bool },
}

/// A token of a word: its id and the characters of the word it stands for.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    start: u32,
    end: u32,
}

impl Words {
    /// The steps of `tokenizer`; `None` if it has others than are known here.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Words> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        if model.dropout.is_some() || !tokenizer.get_post_processor().is_none_or(keeps_offsets) {
            return None;
        }
        let is_composed = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let words = Words {
            added: added_tokens(tokenizer)?,
            splits: splits(tokenizer.get_pre_tokenizer()?)?,
            is_composed,
            letters: letters(),
            known: RwLock::default(),
        };
        let expected = tokenizer.encode_char_offsets(PROBE, false).ok()?;
        let found = words.encode(tokenizer, PROBE);
        let is_equal = found.is_some_and(|found| {
            found.ids == expected.get_ids() && found.offsets == expected.get_offsets()
        });
        is_equal.then_some(words)
    }

    /// The tokens of `text`; `None` if the crate has to say, because the text is not in the tokenizer's normal form or a word has no
    /// tokens.
    pub(super) fn encode(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Option<Encoded> {
        if self.is_composed && !is_composed(text) {
            return None;
        }
        // Usually more than enough.
        let capacity = text.len() / 3;
        let (ids, offsets) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        let mut encoded = Encoded { ids, offsets };
        let mut at = 0;
        let mut new = Vec::new();
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            self.for_each_word(text, &mut |word, added| {
                let num_chars = word.chars().count();
                let mut push = |pieces: &[Piece]| {
                    encoded.ids.extend(pieces.iter().map(|piece| piece.id));
                    let offsets =
                        |piece: &Piece| (at + piece.start as usize, at + piece.end as usize);
                    encoded.offsets.extend(pieces.iter().map(offsets));
                };
                if let Some(id) = added {
                    push(&[Piece { id, start: 0, end: num_chars as u32 }]);
                } else if let Some(pieces) = known.get(word) {
                    push(pieces);
                } else {
                    let pieces = self.pieces(tokenizer, word)?;
                    push(&pieces);
                    if word.len() <= MAX_WORD_LEN {
                        new.push((Box::from(word), pieces));
                    }
                }
                at += num_chars;
                Some(())
            })?;
        }
        if !new.is_empty() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let room = MAX_WORDS.saturating_sub(known.len());
            known.extend(new.into_iter().take(room));
        }
        Some(encoded)
    }

    /// Calls `each` for the words of `text` in their order, with the id of those that are added tokens.
    fn for_each_word(
        &self,
        text: &str,
        each: &mut impl FnMut(&str, Option<u32>) -> Option<()>,
    ) -> Option<()> {
        let [first, second] = &self.added;
        first.cut(text, &mut |text, id| match id {
            Some(_) => each(text, id),
            None => second.cut(text, &mut |text, id| match id {
                Some(_) => each(text, id),
                None => split(&self.splits, text, &mut |word| each(word, None)),
            }),
        })
    }

    /// What the model makes of a word that is no added token.
    fn pieces(&self, tokenizer: &tokenizers::Tokenizer, word: &str) -> Option<Box<[Piece]>> {
        let written: String = word.bytes().map(|byte| self.letters[byte as usize]).collect();
        let tokens = tokenizer.get_model().tokenize(&written).ok()?;
        // Letters of `written` are bytes of `word`.
        let byte_at: Vec<usize> = written
            .char_indices()
            .enumerate()
            .flat_map(|(byte, (_, letter))| std::iter::repeat_n(byte, letter.len_utf8()))
            .collect();
        let char_at: Vec<u32> = word
            .chars()
            .enumerate()
            .flat_map(|(index, c)| std::iter::repeat_n(index as u32, c.len_utf8()))
            .collect();
        let char_of = |place: usize| char_at.get(*byte_at.get(place)?).copied();
        let piece = |token: tokenizers::Token| {
            let (start, end) = token.offsets;
            Some(Piece {
                id: token.id,
                start: char_of(start)?,
                end: char_of(end.checked_sub(1)?)? + 1,
            })
        };
        tokens.into_iter().map(piece).collect()
    }
}

impl Added {
    fn new(tokenizer: &tokenizers::Tokenizer, tokens: &[AddedToken]) -> Option<Added> {
        let id = |token: &AddedToken| tokenizer.token_to_id(&token.content);
        let ids = tokens.iter().map(id).collect::<Option<_>>()?;
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .ok()?;
        Some(Added { finder, ids })
    }

    /// Calls `each` for the added tokens in `text` and for what is between them.
    fn cut(
        &self,
        text: &str,
        each: &mut impl FnMut(&str, Option<u32>) -> Option<()>,
    ) -> Option<()> {
        let mut at = 0;
        for found in self.finder.find_iter(text) {
            each(&text[at..found.start()], None)?;
            each(&text[found.range()], Some(self.ids[found.pattern()]))?;
            at = found.end();
        }
        each(&text[at..], None)
    }
}

/// The added tokens that are looked for in text as it is, and those in normalized text; `None` if one does more than match.
fn added_tokens(tokenizer: &tokenizers::Tokenizer) -> Option<[Added; 2]> {
    let tokens: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
    let is_plain = |token: &AddedToken| {
        let matches_only = !token.single_word && !token.lstrip && !token.rstrip;
        let is_same = !token.normalized
            || tokenizer.get_normalizer().is_none()
            || is_composed(&token.content);
        !token.content.is_empty() && matches_only && is_same
    };
    if !tokens.iter().all(is_plain) {
        return None;
    }
    let (second, first): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|token| token.normalized);
    Some([Added::new(tokenizer, &first)?, Added::new(tokenizer, &second)?])
}

/// Whether normal form C leaves `text` as it is.
fn is_composed(text: &str) -> bool {
    ComposingNormalizerBorrowed::new_nfc().is_normalized(text)
}

/// The steps that split text, of a pre-tokenizer that ends by writing bytes as letters.
fn splits(pre_tokenizer: &PreTokenizerWrapper) -> Option<Vec<Split>> {
    let alone = std::slice::from_ref(pre_tokenizer);
    let steps = match pre_tokenizer {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref(),
        _ => alone,
    };
    let (last, before) = steps.split_last()?;
    let PreTokenizerWrapper::ByteLevel(byte_level) = last else { return None };
    if byte_level.add_prefix_space {
        return None;
    }
    let mut splits: Vec<Split> = before
        .iter()
        .map(|step| match step {
            PreTokenizerWrapper::Digits(digits) => {
                Some(Split::Digits { each: digits.individual_digits })
            }
            PreTokenizerWrapper::Split(split) => match (&split.pattern, split.behavior) {
                (SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated) => {
                    SysRegex::new(pattern).ok().map(Split::Pattern)
                }
                _ => None,
            },
            _ => None,
        })
        .collect::<Option<_>>()?;
    if byte_level.use_regex {
        splits.push(Split::ByteLevel(ByteLevel::new()?));
    }
    Some(splits)
}

/// Calls `each` for the words that `steps` split `text` into.
fn split(steps: &[Split], text: &str, each: &mut dyn FnMut(&str) -> Option<()>) -> Option<()> {
    if text.is_empty() {
        return Some(());
    }
    let Some((step, rest)) = steps.split_first() else { return each(text) };
    let mut at = 0;
    match step {
        Split::Pattern(pattern) => {
            for (start, end) in pattern.find_iter(text) {
                split(rest, &text[at..start], each)?;
                split(rest, &text[start..end], each)?;
                at = end;
            }
        }
        Split::ByteLevel(byte_level) => {
            while at < text.len() {
                let end = at + byte_level.word_len(&text[at..]);
                split(rest, &text[at..end], each)?;
                at = end;
            }
        }
        Split::Digits { each: each_digit } => {
            let mut was_digit = false;
            for (start, c) in text.char_indices() {
                let is_digit = c.is_numeric();
                if is_digit != was_digit || (is_digit && *each_digit) {
                    split(rest, &text[at..start], each)?;
                    at = start;
                }
                was_digit = is_digit;
            }
        }
    }
    split(rest, &text[at..], each)
}

/// Whether `processor` adds only special tokens and leaves offsets as they are.
fn keeps_offsets(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::ByteLevel(byte_level) => !byte_level.trim_offsets,
        PostProcessorWrapper::Template(_) => true,
        PostProcessorWrapper::Sequence(sequence) => sequence.as_ref().iter().all(keeps_offsets),
        _ => false,
    }
}

/// GPT-2's letters for bytes: those that can be printed as they are, the others in their order from U+0100 on.
fn letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("no surrogate is near")
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::{digits::Digits, sequence::Sequence};

    use super::*;

    fn file(folder: &str) -> PathBuf {
        Path::new("tests/fixtures/tokenizers").join(folder).join("tokenizer.json")
    }

    fn read(folder: &str) -> tokenizers::Tokenizer {
        tokenizers::Tokenizer::from_file(file(folder)).unwrap()
    }

    /// The same with digits split off first.
    fn with_digits(folder: &str, each: bool) -> tokenizers::Tokenizer {
        let mut tokenizer = read(folder);
        let last = tokenizer.get_pre_tokenizer().unwrap().clone();
        let steps = vec![PreTokenizerWrapper::Digits(Digits::new(each)), last];
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer
    }

    /// Texts of what splits, joins and composes, and of added tokens.
    fn text() -> impl Strategy<Value = String> {
        let pieces = [
            "'s",
            "'LL",
            "a",
            "the",
            "X",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "1",
            "23",
            "\u{bd}",
            ".",
            "?!",
            "<|im_start|>",
            "<|im_",
            "<|endoftext|>",
            "\u{e9}",
            "e",
            "\u{301}",
            "\u{a0}",
            "\u{4e2d}",
            "\u{1f600}",
            "\u{200d}",
            "\u{3000}",
            "\u{0}",
            "\u{ac00}",
            "\u{85}",
        ];
        let piece = prop_oneof![
            4 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn words_are_encoded_as_the_crate_encodes_the_text(texts in prop::collection::vec(text(), 1..6)) {
            let tokenizers = [
                (read("gpt2"), false),
                (read("qwen2"), true),
                (with_digits("gpt2", true), false),
                (with_digits("gpt2", false), false),
            ];
            for (tokenizer, may_decline) in tokenizers {
                let words = Words::of(&tokenizer).expect("it is of this kind");
                for text in &texts {
                    let expected = tokenizer.encode_char_offsets(text.as_str(), false).unwrap();
                    let Some(found) = words.encode(&tokenizer, text) else {
                        prop_assert!(may_decline);
                        continue;
                    };
                    prop_assert_eq!(&found.ids, expected.get_ids(), "{:?}", text);
                    prop_assert_eq!(&found.offsets, expected.get_offsets(), "{:?}", text);
                }
            }
        }
    }

    #[test]
    fn tokenizers_of_another_kind_are_left_to_the_crate() {
        for folder in ["llama", "gpt2-defaults"] {
            assert!(Words::of(&read(folder)).is_none(), "{folder}");
        }
        // A token that takes the spaces around it.
        let mut tokenizer = read("gpt2");
        tokenizer.add_tokens(&[AddedToken::from("<mask>", true).lstrip(true)]);
        assert!(Words::of(&tokenizer).is_none());
    }
}
