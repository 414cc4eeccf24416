//! `type: causal`: text without turns.

use super::{Reported, conflict, of_another_type, or};
use crate::{
    diagnostic::Diagnostic,
    file::{At, DataFile, Reader, SourceKeys},
    recipe::{Packing, RowFormat, Trainer},
};

/// Whether the reference's packing cuts texts at `max_length`, wherever that is.
pub(super) fn is_sliced(data: &DataFile) -> bool {
    or(data.pack_samples.as_ref(), true)
        && or(data.packing.as_ref(), Packing::Reference) == Packing::Reference
}

/// Keys of `data` that are about chats, and those that the reference's packing leaves without a meaning.
pub(super) fn check(data: &DataFile, reader: &mut Reader) {
    let of_sft = [
        data.mask_inputs.as_ref().map(|at| &at.path),
        data.ignore_empty_think.as_ref().map(|at| &at.path),
        data.train_on.as_ref().map(|at| &at.path),
        data.chat_template_kwargs.as_ref().map(|at| &at.path),
        data.control_tokens.as_ref().map(|at| &at.path),
        data.filter_samples.as_ref().map(|at| &at.path),
        data.always_max_length.as_ref().map(|at| &at.path),
        data.drop_last.as_ref().map(|at| &at.path),
        data.fuse_positions_prob.as_ref().map(|at| &at.path),
        data.repeat_to_pack_max_length.as_ref().map(|at| &at.path),
    ];
    of_another_type(reader, of_sft, Trainer::Causal, "`type: sft`");
    if let Some(at) = data.excess_length.as_ref().filter(|_| is_sliced(data)) {
        let found = format!(
            "`{}` is set, and `data.packing: reference` cuts texts wherever `max_length` is reached",
            at.path
        );
        let hint = Some("set `packing: global`, which packs whole texts, or remove it");
        conflict(reader, &at.path, found, "one of them", hint);
    }
}

/// The column of text; keys about chats are errors.
pub(super) fn column(keys: &SourceKeys, reader: &mut Reader) -> Result<Option<String>, Reported> {
    let of_sft = [
        keys.role_mapping.as_ref().map(|at| &at.path),
        keys.unmapped_roles.as_ref().map(|at| &at.path),
        keys.messages_key.as_ref().map(|at| &at.path),
        keys.tools_key.as_ref().map(|at| &at.path),
        keys.content_key.as_ref().map(|at| &at.path),
    ];
    of_another_type(reader, of_sft, Trainer::Causal, "`type: sft`");
    if let Some(At { value: Some(format), path, span }) = &keys.format
        && !matches!(format, RowFormat::Text | RowFormat::Tokens)
    {
        let found = format!("`{}`", format.name());
        reader.error(Diagnostic::value(path, *span, found, "`text` or `tokens`"));
        return Err(Reported);
    }
    match (&keys.column, keys.text_key.as_ref().and_then(|at| at.value.as_ref())) {
        (Some(at), Some(_)) => {
            let found = format!("`{}` is set, and `text_key` of the source too", at.path);
            conflict(reader, &at.path, found, "one of them", Some("remove one of them"));
            Err(Reported)
        }
        (Some(at), None) => Ok(Some(at.value.clone())),
        (None, text_key) => Ok(text_key.cloned()),
    }
}
