//! From a valid input to a broken one.
//!
//! Flipping bits of JSON tests the JSON parser and nothing behind it. So a text is cut into tokens, which are replaced by
//! words of the format, numbers by numbers at borders, and ranges of them repeated, nested, removed and taken from other
//! inputs; what stands between them mostly stays. Binary formats are changed where they keep lengths.

use crate::rng::Rng;

/// Longest input that is tried, in bytes.
pub(crate) const MAX_LEN: usize = 1 << 20;

/// How the bytes of an input are to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Text,
    Binary,
    /// An eight-byte length, a JSON text of that length, then bytes: safetensors.
    Headed,
}

const NUMBERS: [&str; 27] = [
    "0",
    "1",
    "-1",
    "2",
    "7",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "1e3",
    "0.1",
    "-0.0",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "-9223372036854775808",
    "1e308",
    "1e999",
    "1000000007",
    "100000000000000000000000000000000000000000",
    "NaN",
];

/// Words of no format in particular.
const WORDS: [&str; 20] = [
    "",
    "null",
    "true",
    "false",
    "\"\"",
    "[]",
    "{}",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "\n",
    "\u{0}",
    "\u{feff}",
    "\u{e9}",
    "\u{1f600}",
    "../..",
];

/// Openers and closers that may stand inside themselves.
const PAIRS: [(&str, &str); 10] = [
    ("[", "]"),
    ("{\"a\":", "}"),
    ("(", ")"),
    ("\"", "\""),
    ("- ", ""),
    ("{% if a %}", "{% endif %}"),
    ("{% for a in [1, 2] %}", "{% endfor %}"),
    ("{{ ", " }}"),
    ("not ", ""),
    ("&a [", "]"),
];

/// `input` with a few changes; `other` is an input to take parts from.
pub(crate) fn mutate(
    rng: &mut Rng,
    shape: Shape,
    dictionary: &[&str],
    input: &[u8],
    other: &[u8],
) -> Vec<u8> {
    let mut out = match shape {
        Shape::Text => text(rng, dictionary, input, other),
        Shape::Binary => binary(rng, dictionary, input, other),
        Shape::Headed if rng.one_in(4) => binary(rng, dictionary, input, other),
        Shape::Headed => match (split_head(input), split_head(other)) {
            (Some((head, body)), Some((other, _))) => {
                let head = text(rng, dictionary, head, other);
                let mut out = (head.len() as u64).to_le_bytes().to_vec();
                out.extend(head);
                out.extend_from_slice(body);
                out
            }
            _ => binary(rng, dictionary, input, other),
        },
    };
    out.truncate(MAX_LEN);
    out
}

fn split_head(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

fn text(rng: &mut Rng, dictionary: &[&str], input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut tokens = tokens(input);
    let most = if rng.one_in(8) { 32 } else { 4 };
    for _ in 0..=rng.below(most) {
        change_tokens(rng, dictionary, &mut tokens, other);
        if tokens.iter().map(Vec::len).sum::<usize>() > MAX_LEN {
            break;
        }
    }
    let mut out = tokens.concat();
    if rng.one_in(16) {
        out = flip(rng, out);
    }
    out
}

fn change_tokens(rng: &mut Rng, dictionary: &[&str], tokens: &mut Vec<Vec<u8>>, other: &[u8]) {
    let word = |rng: &mut Rng| -> Vec<u8> {
        let from_dictionary = !dictionary.is_empty() && !rng.one_in(4);
        rng.pick(if from_dictionary { dictionary } else { &WORDS }).into()
    };
    let at = rng.below(tokens.len());
    match rng.below(12) {
        0 | 1 => {
            let numbers: Vec<usize> = (0..tokens.len())
                .filter(|&i| tokens[i].first().is_some_and(u8::is_ascii_digit))
                .collect();
            if let Some(&at) = numbers.get(rng.below(numbers.len())) {
                tokens[at] = rng.pick(&NUMBERS).into();
            }
        }
        2 | 3 if !tokens.is_empty() => tokens[at] = word(rng),
        4 | 5 => tokens.insert(at, word(rng)),
        6 => {
            tokens.drain(rng.range(tokens.len()));
        }
        7 => {
            let range = rng.range(tokens.len());
            let part = tokens[range.clone()].to_vec();
            let times = [1, 1, 2, 10, 1000][rng.below(5)];
            let longest = MAX_LEN / part.concat().len().max(1);
            let copies =
                std::iter::repeat_n(part, times.min(longest)).flatten().collect::<Vec<_>>();
            tokens.splice(range.end..range.end, copies);
        }
        8 => {
            let theirs = self::tokens(other);
            let part = theirs[rng.range(theirs.len())].to_vec();
            let gap = rng.range(tokens.len());
            tokens.splice(gap, part);
        }
        9 => {
            let (open, close) = PAIRS[rng.below(PAIRS.len())];
            let depth = [1, 3, 60, 130, 2000, 50_000][rng.below(6)].min(MAX_LEN / 64);
            let end = (at + rng.below(4)).min(tokens.len());
            tokens.insert(end, close.repeat(depth).into());
            tokens.insert(at, open.repeat(depth).into());
        }
        10 => {
            let long = [100, 5_000, 100_000][rng.below(3)];
            let unit = rng.pick(&["a", " ", "\n", "9", "\u{e9}", "<|", "../"]);
            tokens.insert(at, unit.repeat(long).into());
        }
        _ if tokens.len() > 1 => {
            let to = rng.below(tokens.len());
            tokens.swap(at, to);
        }
        _ => tokens.push(word(rng)),
    }
}

/// Words, numbers, runs of blanks, and every other character by itself.
fn tokens(input: &[u8]) -> Vec<Vec<u8>> {
    let class = |byte: u8| match byte {
        b'0'..=b'9' => 1,
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => 2,
        b' ' | b'\t' => 3,
        _ => 0,
    };
    input.chunk_by(|&a, &b| class(a) == class(b) && class(a) != 0).map(<[u8]>::to_vec).collect()
}

fn binary(rng: &mut Rng, dictionary: &[&str], input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    let most = if rng.one_in(8) { 32 } else { 4 };
    for _ in 0..=rng.below(most) {
        // Lengths and offsets stand near the start and the end.
        let at = match rng.below(4) {
            0 => rng.below(out.len().min(64)),
            1 => out.len().saturating_sub(1 + rng.below(out.len().min(256))),
            _ => rng.below(out.len()),
        };
        match rng.below(8) {
            0 | 1 => out = flip(rng, out),
            2 | 3 => {
                let values =
                    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
                let width = [1, 2, 4, 8][rng.below(4)];
                let small = out.get(at).copied().unwrap_or_default();
                let value = if rng.one_in(3) {
                    u64::from(small).wrapping_add(rng.below(5) as u64).wrapping_sub(2)
                } else {
                    values[rng.below(values.len())]
                };
                let end = (at + width).min(out.len());
                let bytes = value.to_le_bytes();
                let len = end - at.min(end);
                out[end - len..end].copy_from_slice(&bytes[..len]);
            }
            4 => {
                out.drain(rng.range(out.len()));
            }
            5 => {
                let range = rng.range(out.len());
                let part = out[range.clone()].to_vec();
                out.splice(range.end..range.end, part);
            }
            6 => {
                let part = other[rng.range(other.len())].to_vec();
                let gap = rng.range(out.len());
                out.splice(gap, part);
            }
            _ if !dictionary.is_empty() => {
                let word = rng.pick(dictionary).as_bytes();
                let end = (at + word.len()).min(out.len());
                out.splice(at.min(end)..end, word.iter().copied());
            }
            _ => out.truncate(at),
        }
    }
    out
}

fn flip(rng: &mut Rng, mut out: Vec<u8>) -> Vec<u8> {
    let at = rng.below(out.len());
    if let Some(byte) = out.get_mut(at) {
        *byte ^= 1 << rng.below(8);
    }
    out
}
