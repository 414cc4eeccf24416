//! Training data that fills sequences of any length: the real chats, repeated and joined.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Tokens of the system message that SmolLM2's template puts before a chat.
const SYSTEM_TOKENS: usize = 21;

/// Tokens of one of the English chats without it, on average; measured with `sterna data`.
const CHAT_TOKENS: usize = 37;

/// A pack of the reference is made of at most so many samples.
const SAMPLES_PER_PACK: usize = 1000;

/// The messages of one chat, which alternate between user and assistant.
type Chat = Vec<Value>;

/// Reads the chats of a `train.jsonl`.
///
/// # Errors
///
/// A missing file, or a row without messages.
pub(super) fn read(path: &Path) -> Result<Vec<Chat>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut chats = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let row: Value = serde_json::from_str(line)
            .with_context(|| format!("{}:{}: not JSON", path.display(), i + 1))?;
        match row["messages"].as_array() {
            Some(messages) => chats.push(messages.clone()),
            None => bail!("{}:{}: no list `messages`", path.display(), i + 1),
        }
    }
    if chats.is_empty() {
        bail!("`{}` has no chats", path.display());
    }
    Ok(chats)
}

/// Writes rows to `folder/train.jsonl`.
///
/// # Errors
///
/// When the folder cannot be written to.
pub(super) fn write(folder: &Path, rows: &[Chat]) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    let path = folder.join("train.jsonl");
    let lines: Vec<String> =
        rows.iter().map(|messages| json!({ "messages": messages }).to_string()).collect();
    std::fs::write(&path, lines.join("\n") + "\n")
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Rows that the reference's packing makes at least `packs` full packs of `length` tokens from.
///
/// Chats are taken in their order, again from the first when they run out. Above about 29,000 tokens, so many are joined to one
/// that half a thousand of them fill a pack.
pub(super) fn packed(chats: &[Chat], length: usize, packs: usize) -> Vec<Chat> {
    let (joined, rows) = packed_shape(length, packs);
    (0..rows).map(|row| join(chats, row * joined, joined)).collect()
}

/// How many chats a row joins, and the number of rows.
fn packed_shape(length: usize, packs: usize) -> (usize, usize) {
    let wanted = (2 * length).div_ceil(SAMPLES_PER_PACK);
    let joined = wanted.saturating_sub(SYSTEM_TOKENS).div_ceil(CHAT_TOKENS).max(1);
    let tokens = SAMPLES_PER_PACK * (SYSTEM_TOKENS + CHAT_TOKENS * joined);
    // Samples do not fit a pack exactly; a tenth is more than is lost.
    let packs_per_batch = (tokens * 9 / 10 / length).max(1);
    (joined, packs.div_ceil(packs_per_batch) * SAMPLES_PER_PACK)
}

/// `rows` chats of nearly `length` tokens, each of the same chats joined from another one on, so that all have the same length.
///
/// `count` says how many tokens a chat has. A chat is never longer than `length`, and at least 95% of it.
///
/// # Errors
///
/// What `count` returns, or when no number of chats comes close enough.
pub(super) fn single(
    chats: &[Chat],
    length: usize,
    rows: usize,
    mut count: impl FnMut(&Chat) -> Result<usize>,
) -> Result<Vec<Chat>> {
    let mut number = length.saturating_sub(SYSTEM_TOKENS).div_ceil(CHAT_TOKENS).max(1);
    for _ in 0..8 {
        let tokens = count(&join(chats, 0, number))?;
        if tokens <= length && tokens * 100 >= length * 95 {
            let window: Vec<Chat> = (0..number).map(|i| chats[i % chats.len()].clone()).collect();
            return Ok((0..rows).map(|row| join(&window, row * number / rows, number)).collect());
        }
        let fitting = number * length * 98 / 100 / tokens.max(1);
        number = if fitting == number { fitting.saturating_sub(1) } else { fitting }.max(1);
    }
    bail!(
        "no number of chats makes one of 95% to 100% of {length} tokens; try a longer `--lengths`"
    )
}

/// `number` chats from the one at `first` on as one conversation; after the last comes the first.
fn join(chats: &[Chat], first: usize, number: usize) -> Chat {
    (first..first + number).flat_map(|i| chats[i % chats.len()].iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chats(lengths: &[usize]) -> Vec<Chat> {
        let chat = |(i, length): (usize, &usize)| vec![json!({ "id": i, "length": length })];
        lengths.iter().enumerate().map(chat).collect()
    }

    fn tokens(chat: &Chat) -> usize {
        chat.iter().map(|message| message["length"].as_u64().unwrap() as usize).sum()
    }

    #[test]
    fn chats_are_joined_once_a_thousand_of_them_no_longer_fill_two_packs() {
        // 1,000 chats of 58 tokens are 58,000.
        assert_eq!(packed_shape(4096, 2), (1, 1000));
        assert_eq!(packed_shape(16384, 4), (1, 2000));
        assert_eq!(packed_shape(29000, 2), (1, 2000));
        // 2 * 131,072 / 1,000 = 263 = 21 + 37 * 6.5 tokens a row.
        assert_eq!(packed_shape(131_072, 2), (7, 2000));
        let rows = packed(&chats(&[1, 2, 3]), 29000, 1);
        assert_eq!(rows.len(), 1000);
        assert_eq!(rows[3], rows[0]);
    }

    #[test]
    fn single_chats_have_one_length_that_nearly_fills_the_sequence() {
        let chats = chats(&[30, 50, 20, 80, 40]);
        let rows = single(&chats, 1000, 3, |chat| Ok(tokens(chat))).unwrap();
        let lengths: Vec<usize> = rows.iter().map(tokens).collect();
        assert_eq!(lengths, [lengths[0]; 3]);
        assert!((950..=1000).contains(&lengths[0]), "{lengths:?}");
        assert_ne!(rows[0][0], rows[1][0]);
    }

    #[test]
    fn a_length_that_no_chats_fill_is_an_error() {
        let err = single(&chats(&[700]), 1000, 1, |chat| Ok(tokens(chat))).unwrap_err();
        assert!(err.to_string().contains("95% to 100% of 1000 tokens"));
    }
}
