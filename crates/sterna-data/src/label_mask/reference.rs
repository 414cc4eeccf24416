//! What the reference labels: the first occurrence of each reply in the rendered chat, and one token after it.

use sterna_hf::Message;

use super::{ASSISTANT, empty_think_len};

/// Marks the tokens of `text` that the reference labels; `offsets` are in characters.
///
/// Each reply is searched from the start of the chat, so text of the user that equals it is labelled in its place, two equal
/// replies are labelled once, and a reply that the template changed (trimmed) gives the range from -1 to its length minus 1.
/// The one token after a labelled run is labelled too: usually the end of turn.
///
/// # Source
///
/// ArcticTraining `sft_factory.py` (`get_assistant_start_end_indices`, `get_masked_labels`).
pub(super) fn labels(
    text: &str,
    offsets: &[(usize, usize)],
    messages: &[Message],
    ignore_empty_think: bool,
) -> Vec<bool> {
    let ranges: Vec<(isize, isize)> = messages
        .iter()
        .filter(|message| message.role() == ASSISTANT)
        .map(|message| {
            let content = message.content();
            let content =
                if ignore_empty_think { &content[empty_think_len(content)..] } else { content };
            // Python's find() gives -1 for what is not there, and counts characters.
            let start = text.find(content).map_or(-1, |byte| text[..byte].chars().count() as isize);
            (start, start + content.chars().count() as isize)
        })
        .collect();
    let mut after_label = false;
    offsets
        .iter()
        .map(|&(start, end)| {
            let (start, end) = (start as isize, end as isize);
            let is_inside = ranges.iter().any(|&(from, to)| start >= from && end <= to);
            let is_label = is_inside || after_label;
            after_label = is_inside;
            is_label
        })
        .collect()
}
