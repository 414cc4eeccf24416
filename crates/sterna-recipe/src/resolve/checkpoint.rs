//! `checkpoint`: what is written, where and when.

use std::path::PathBuf;

use super::{missing, or};
use crate::{
    diagnostic::{Diagnostic, Kind},
    file::{At, CheckpointFile, Reader},
    recipe::{CheckpointKind, CheckpointOptions},
};

/// The entries that are switched on, checked one by one and against each other.
pub(super) fn resolve(
    entries: Option<&At<Vec<CheckpointFile>>>,
    reader: &mut Reader,
) -> Vec<CheckpointOptions> {
    let Some(entries) = entries else { return Vec::new() };
    // A single entry may stand without a list; its keys then have no index.
    let is_list = reader.is_set(&format!("{}[0]", entries.path));
    let path = |idx: usize| {
        if is_list { format!("{}[{idx}]", entries.path) } else { entries.path.clone() }
    };
    let mut resolved: Vec<CheckpointOptions> = Vec::new();
    for (idx, file) in entries.value.iter().enumerate() {
        let Some(options) = entry(&path(idx), file, reader) else { continue };
        if let Some(at) = file.auto_resume.as_ref().filter(|at| at.value)
            && resolved.iter().any(|earlier| earlier.auto_resume)
        {
            reader.error(Diagnostic {
                kind: Kind::Conflict,
                key_path: at.path.clone(),
                span: Some(at.span),
                found: format!("`{}` is on, and so it is in an earlier entry", at.path),
                required: "one entry to resume from".to_owned(),
                hint: Some("switch it off in all entries but one".to_owned()),
            });
        }
        let is_shared = |earlier: &CheckpointOptions| {
            [earlier.kind, options.kind] == [CheckpointKind::Sterna; 2]
                && earlier.output_dir == options.output_dir
        };
        if let Some(at) = &file.output_dir
            && resolved.iter().any(is_shared)
        {
            reader.error(Diagnostic {
                kind: Kind::Conflict,
                key_path: at.path.clone(),
                span: Some(at.span),
                found: format!("`{}` is the folder of an earlier entry of `type: sterna`", at.path),
                required:
                    "a folder of its own for each, because each deletes what it does not keep"
                        .to_owned(),
                hint: None,
            });
        }
        resolved.push(options);
    }
    resolved
}

/// One entry; `None` when it is switched off or wrong.
fn entry(path: &str, file: &CheckpointFile, reader: &mut Reader) -> Option<CheckpointOptions> {
    if file.output_dir.is_none() {
        missing(reader, &format!("{path}.output_dir"), path, "a folder to write to");
    }
    if !or(file.enabled.as_ref(), true) {
        return None;
    }
    // The reference's default is its resumable kind. A type that could not be read was reported already.
    let kind = match &file.kind {
        Some(at) => at.value,
        None if reader.is_set(&format!("{path}.type")) => return None,
        None => CheckpointKind::Sterna,
    };
    let is_export = kind == CheckpointKind::HuggingFace;
    if let Some(at) = file.auto_resume.as_ref().filter(|at| at.value && is_export) {
        let why =
            "an export has no optimizer state to go on from: set it in an entry of `type: sterna`";
        reader.refuse(&at.path, at.span, "= `true`".to_owned(), why);
    }
    if let Some(at) = file.keep_last_n.as_ref().filter(|at| at.value > 0 && is_export) {
        let why = "exports are results, and none is deleted: set it in an entry of `type: sterna`";
        reader.refuse(&at.path, at.span, format!("= `{}`", at.value), why);
    }
    let options = CheckpointOptions {
        kind,
        output_dir: PathBuf::from(&file.output_dir.as_ref()?.value),
        auto_resume: or(file.auto_resume.as_ref(), false),
        save_every_n_steps: or(file.save_every_n_steps.as_ref(), 0),
        save_every_n_epochs: or(file.save_every_n_epochs.as_ref(), 0),
        save_end_of_training: or(file.save_end_of_training.as_ref(), false),
        keep_last_n: or(file.keep_last_n.as_ref(), 0),
    };
    let is_ever_saved = options.save_every_n_steps > 0
        || options.save_every_n_epochs > 0
        || options.save_end_of_training;
    if !is_ever_saved && is_export {
        reader.note(path, "it never saves: set `save_end_of_training`, `save_every_n_steps` or `save_every_n_epochs`");
    } else if !is_ever_saved {
        reader.note(
            path,
            "it saves only when the run is asked to stop: set `save_every_n_steps`, `save_every_n_epochs` or `save_end_of_training`",
        );
    }
    Some(options)
}
