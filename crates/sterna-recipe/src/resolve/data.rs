//! `data`: sources in their long form, and which options go together.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::{
    diagnostic::Diagnostic,
    file::{At, DataFile, Reader, RecipeFile, SourceFile, SourceKeys, SourceKind},
    recipe::{
        ControlTokens, DataOptions, ExcessLength, LabelMask, Packing, PadTo, RolePath, RowFormat,
        Sampling, Source, SourceType, StoppingStrategy, TrainOn, Trainer, UnmappedRoles,
    },
};

use super::{Reported, causal, conflict, dpo, missing, or};

/// Where known data sets keep their messages, as in the reference; used when a source gives no `role_mapping`.
const KNOWN_ROLES: [(&str, &[(&str, &str)]); 8] = [
    ("HuggingFaceH4/ultrachat_200k", MESSAGES),
    (
        "Open-Orca/OpenOrca",
        &[("system", "system_prompt"), ("user", "question"), ("assistant", "response")],
    ),
    ("THUDM/LongAlign-10k", MESSAGES),
    ("Yukang/LongAlpaca-12k", &[("user", "instruction"), ("assistant", "output")]),
    (
        "Open-Orca/SlimOrca",
        &[
            ("system", "conversations.from.system"),
            ("user", "conversations.from.human"),
            ("assistant", "conversations.from.gpt"),
        ],
    ),
    ("meta-math/MetaMathQA", &[("user", "query"), ("assistant", "response")]),
    ("ise-uiuc/Magicoder-OSS-Instruct-75K", &[("user", "problem"), ("assistant", "solution")]),
    (
        "lmsys/lmsys-chat-1m",
        &[("user", "conversation.role.user"), ("assistant", "conversation.role.assistant")],
    ),
];

const MESSAGES: &[(&str, &str)] =
    &[("user", "messages.role.user"), ("assistant", "messages.role.assistant")];

/// What `train` and `eval` are called in known data sets, as in the reference; used when a source gives no `split_mapping`.
const KNOWN_SPLITS: [(&str, &[(&str, &str)]); 2] = [
    ("HuggingFaceH4/ultrachat_200k", &[("train", "train_sft"), ("eval", "test_sft")]),
    ("HuggingFaceH4/ultrafeedback_binarized", &[("train", "train_prefs"), ("eval", "test_prefs")]),
];

/// Arguments of `datasets.load_dataset` that choose files.
const KWARGS: [&str; 4] = ["name", "data_dir", "data_files", "revision"];

/// Arguments of `datasets.load_dataset` that change nothing about the rows.
const INERT_KWARGS: [&str; 7] = [
    "verification_mode",
    "num_proc",
    "keep_in_memory",
    "cache_dir",
    "download_mode",
    "trust_remote_code",
    "token",
];

pub(super) fn resolve(
    file: &RecipeFile,
    trainer: Trainer,
    reader: &mut Reader,
) -> Option<DataOptions> {
    let Some(section) = &file.data else {
        missing(reader, "data", "", "a mapping with `sources`");
        return None;
    };
    let data: &DataFile = &section.value;
    if let Some(at) = data.kind.as_ref().filter(|at| at.value != trainer) {
        let found = format!("`data.type` is `{}`", at.value.name());
        let required = "the `type` of the recipe";
        conflict(reader, &at.path, found, required, Some("remove `data.type`"));
        return None;
    }
    let defaults = Defaults::of(trainer, data);
    match trainer {
        Trainer::Sft => {}
        Trainer::Causal => causal::check(data, reader),
        Trainer::Dpo => dpo::check(data, reader),
    }
    if let Some(at) = &data.max_length
        && or(data.always_max_length.as_ref(), false)
    {
        let text =
            format!("packs run past {} tokens by part of a sample, as in the reference", at.value);
        reader.note("data.always_max_length", text);
    }
    let Some(typed) = &data.sources else {
        missing(reader, "data.sources", "data", "a list of data sets");
        return None;
    };
    if typed.value.is_empty() && reader.errors.is_empty() {
        reader.error(Diagnostic::value(
            &typed.path,
            typed.span,
            "an empty list".to_owned(),
            "at least one data set",
        ));
    }
    let preferences = dpo::rows(file);
    let sources = typed
        .value
        .iter()
        .filter_map(|entry| source(entry, "train", trainer, preferences, reader))
        .collect();
    let eval_sources = data.eval_sources.iter().flat_map(|at| &at.value);
    let options = DataOptions {
        trainer,
        sources,
        eval_sources: eval_sources
            .filter_map(|entry| source(entry, "eval", trainer, preferences, reader))
            .collect(),
        train_eval_split: or(data.train_eval_split.as_ref(), (1.0, 0.0)),
        max_length: data.max_length.as_ref().map(|at| at.value),
        packing: or(data.packing.as_ref(), defaults.packing),
        label_mask: or(data.label_mask.as_ref(), LabelMask::Exact),
        num_proc: or(data.num_proc.as_ref(), 16),
        seed: or(data.seed.as_ref(), 42) as u64,
        cache_dir: PathBuf::from(or(data.cache_dir.as_ref(), "/tmp/".to_owned())),
        fail_on_missing_cache: or(data.fail_on_missing_cache.as_ref(), false),
        div_length: or(data.div_length.as_ref(), defaults.div_length),
        mask_inputs: or(data.mask_inputs.as_ref(), defaults.mask_inputs),
        always_max_length: or(data.always_max_length.as_ref(), false),
        pad_to: or(data.pad_to.as_ref(), PadTo::DivLength),
        filter_samples: or(data.filter_samples.as_ref(), defaults.filter_samples),
        pack_samples: or(data.pack_samples.as_ref(), defaults.pack_samples),
        drop_last: or(data.drop_last.as_ref(), false),
        fuse_positions_prob: or(data.fuse_positions_prob.as_ref(), 0.0),
        repeat_to_pack_max_length: or(data.repeat_to_pack_max_length.as_ref(), false),
        ignore_empty_think: or(data.ignore_empty_think.as_ref(), false),
        excess_length: or(data.excess_length.as_ref(), defaults.excess_length),
        stopping_strategy: or(data.stopping_strategy.as_ref(), StoppingStrategy::FirstExhausted),
        train_on: or(data.train_on.as_ref(), TrainOn::All),
        chat_template_kwargs: or(data.chat_template_kwargs.as_ref(), Map::new()),
        control_tokens: or(data.control_tokens.as_ref(), ControlTokens::Warn),
    };
    check_split(&options, reader);
    check_packing(file, data, &options, reader);
    check_padding(data, &options, reader);
    check_lengths(data, &options, reader);
    check_weights(data, &options, reader);
    check_labels(data, &options, reader);
    check_reference(data, &options, reader);
    Some(options)
}

fn check_split(data: &DataOptions, reader: &mut Reader) {
    let (train, eval) = data.train_eval_split;
    let path = "data.train_eval_split";
    let found = format!("`data.train_eval_split` is `[{train}, {eval}]`");
    // The reference compares the floating-point sum with 1.0 and nothing else, and so `[0.9, 0.1]` is fine.
    #[expect(clippy::float_cmp, reason = "the rule is the exact comparison")]
    let is_whole = train + eval == 1.0;
    if !is_whole || train < 0.0 || eval < 0.0 {
        conflict(reader, path, found, "two fractions whose sum is 1", None);
    } else if eval > 0.0 && !data.eval_sources.is_empty() {
        let hint = Some("remove one of `train_eval_split` and `eval_sources`");
        conflict(
            reader,
            path,
            format!("{found} and there are `eval_sources`"),
            "one way to get evaluation data",
            hint,
        );
    } else if eval > 0.0
        && let Some(source) = data.sources.iter().find(|source| source.epochs > 1.0)
    {
        // The same sample would be trained on and held out.
        let found = format!("{found} and `epochs` of a source is `{}`", source.epochs);
        let hint = Some("give `eval_sources`, or repeat the source with `epochs` of the recipe");
        conflict(reader, path, found, "each sample once", hint);
    }
}

/// Options of packing need packing, and a pack is a micro-batch of its own.
fn check_packing(file: &RecipeFile, data: &DataFile, options: &DataOptions, reader: &mut Reader) {
    if options.pack_samples {
        let is_sft = options.trainer == Trainer::Sft;
        if let Some(at) = file.micro_batch_size.as_ref().filter(|at| is_sft && at.value > 1) {
            let found =
                format!("`micro_batch_size` is `{}` and `data.pack_samples` is on", at.value);
            let hint = "a pack is as long as a batch already: use `gradient_accumulation_steps` for larger batches";
            conflict(reader, &at.path, found, "a `micro_batch_size` of 1", Some(hint));
        }
        if options.packing == Packing::Global && options.always_max_length {
            let found = "`data.packing` is `global` and `data.always_max_length` is on".to_owned();
            let hint = "global packing fills packs as far as whole samples go";
            conflict(reader, "data.always_max_length", found, "one of them", Some(hint));
        }
        return;
    }
    let flags = [
        ("always_max_length", options.always_max_length),
        ("drop_last", options.drop_last),
        ("repeat_to_pack_max_length", options.repeat_to_pack_max_length),
        ("fuse_positions_prob", options.fuse_positions_prob > 0.0),
        ("packing", data.packing.is_some()),
    ];
    for (key, _) in flags.into_iter().filter(|(_, is_on)| *is_on) {
        reader.note(&format!("data.{key}"), "it is about packs, and `data.pack_samples` is off");
    }
}

/// What keys that are not typed are.
struct Defaults {
    packing: Packing,
    div_length: usize,
    mask_inputs: bool,
    filter_samples: bool,
    pack_samples: bool,
    excess_length: ExcessLength,
}

impl Defaults {
    fn of(trainer: Trainer, data: &DataFile) -> Self {
        match trainer {
            Trainer::Sft | Trainer::Dpo => Self {
                // The reference has no packs of pairs.
                packing: match trainer {
                    Trainer::Dpo => Packing::Global,
                    Trainer::Sft | Trainer::Causal => Packing::Reference,
                },
                div_length: 256,
                mask_inputs: true,
                filter_samples: true,
                pack_samples: false,
                excess_length: ExcessLength::Drop,
            },
            Trainer::Causal => Self {
                packing: Packing::Reference,
                // All rows have `max_length` tokens.
                div_length: 1,
                mask_inputs: false,
                filter_samples: !causal::is_sliced(data),
                pack_samples: true,
                excess_length: if causal::is_sliced(data) {
                    ExcessLength::Drop
                } else {
                    ExcessLength::Split
                },
            },
        }
    }
}

/// `pad_to: max_length` with a `div_length` of the recipe's own needs one to divide the other.
fn check_padding(data: &DataFile, options: &DataOptions, reader: &mut Reader) {
    let (Some(max_length), Some(div_length)) = (&data.max_length, &data.div_length) else { return };
    let (max, div) = (max_length.value, div_length.value);
    if options.pad_to != PadTo::MaxLength || max.is_multiple_of(div) {
        return;
    }
    let below = max / div * div;
    let found = format!(
        "`data.pad_to` is `max_length`, and `data.max_length` `{max}` is no multiple of `data.div_length` `{div}`"
    );
    let hint = format!(
        "remove `div_length`, or use a `max_length` of {} or {}",
        below.max(div),
        below + div
    );
    conflict(reader, &max_length.path, found, "a multiple", Some(&hint));
}

/// `excess_length` says what happens to samples that `filter_samples: false` leaves alone.
fn check_lengths(data: &DataFile, options: &DataOptions, reader: &mut Reader) {
    if let Some(at) = &data.excess_length
        && data.filter_samples.is_some()
        && !options.filter_samples
    {
        let found = format!(
            "`data.filter_samples` is off and `data.excess_length` is `{}`",
            at.value.name()
        );
        let hint = "remove `filter_samples`";
        conflict(reader, &at.path, found, "one of them", Some(hint));
    }
}

/// Weights are relative to each other, and repeated samples cannot be held out.
fn check_weights(data: &DataFile, options: &DataOptions, reader: &mut Reader) {
    let has_weight = |source: &Source| source.weight.is_some();
    let files = [&data.sources, &data.eval_sources];
    for (sources, files) in [&options.sources, &options.eval_sources].into_iter().zip(files) {
        let files: Vec<_> = files.iter().flat_map(|at| &at.value).collect();
        // Sources with errors are missing.
        if sources.len() != files.len() || !sources.iter().any(has_weight) {
            continue;
        }
        for (source, file) in sources.iter().zip(files).filter(|(source, _)| !has_weight(source)) {
            let name = &source.name_or_path;
            let found = format!("source `{name}` has no `weight` and others have one");
            conflict(reader, &file.path, found, "a `weight` of each source, or of none", None);
        }
    }
    let Some(at) = &data.stopping_strategy else { return };
    let found = format!("`data.stopping_strategy` is `{}`", at.value.name());
    if !options.sources.iter().chain(&options.eval_sources).any(has_weight) {
        let found = format!("{found} and no source has a `weight`");
        conflict(reader, &at.path, found, "a `weight` of each source", None);
    } else if at.value == StoppingStrategy::AllExhausted && options.train_eval_split.1 > 0.0 {
        let found = format!("{found} and `data.train_eval_split` holds samples out");
        let hint = Some("give `eval_sources`, or use `first_exhausted`");
        conflict(reader, &at.path, found, "each sample once", hint);
    }
}

/// `train_on` chooses among replies, and `mask_inputs: false` labels everything.
fn check_labels(data: &DataFile, options: &DataOptions, reader: &mut Reader) {
    if let Some(at) = &data.train_on
        && !options.mask_inputs
        && at.value != TrainOn::All
    {
        let found =
            format!("`data.train_on` is `{}` and `data.mask_inputs` is off", at.value.name());
        let hint = "remove `mask_inputs`";
        conflict(reader, &at.path, found, "one of them", Some(hint));
    }
}

/// The reference has roles and texts only, and labels all replies.
fn check_reference(data: &DataFile, options: &DataOptions, reader: &mut Reader) {
    if options.label_mask != LabelMask::Reference {
        return;
    }
    let other_keys = [
        data.train_on.as_ref().map(|at| &at.path),
        data.chat_template_kwargs.as_ref().map(|at| &at.path),
        data.control_tokens.as_ref().map(|at| &at.path),
        data.excess_length.as_ref().map(|at| &at.path),
        data.stopping_strategy.as_ref().map(|at| &at.path),
    ];
    let keys_of_sources =
        [&data.sources, &data.eval_sources].into_iter().flatten().flat_map(|at| {
            at.value.iter().flat_map(|file| {
                let keys = &file.keys;
                [
                    keys.format.as_ref().map(|at| &at.path),
                    keys.messages_key.as_ref().map(|at| &at.path),
                    keys.tools_key.as_ref().map(|at| &at.path),
                    keys.text_key.as_ref().map(|at| &at.path),
                    keys.unmapped_roles.as_ref().map(|at| &at.path),
                    keys.weight.as_ref().map(|at| &at.path),
                ]
            })
        });
    for path in other_keys.into_iter().chain(keys_of_sources).flatten() {
        let found = format!("`{path}` is set and `data.label_mask` is `reference`");
        let hint = "remove one of them";
        conflict(reader, path, found, "a key that the reference has", Some(hint));
    }
}

fn source(
    file: &SourceFile,
    default_split: &str,
    trainer: Trainer,
    preferences: RowFormat,
    reader: &mut Reader,
) -> Option<Source> {
    let keys: &SourceKeys = &file.keys;
    let kind = source_type(keys.kind.as_ref(), trainer, reader)?;
    let Some(name) = &keys.name_or_path else {
        missing(
            reader,
            &format!("{}.name_or_path", file.path),
            &file.path,
            "a folder, a file or a name on the hub",
        );
        return None;
    };
    let (name_or_path, split) = match name.value.split_once(':') {
        Some((name, split)) => (name.to_owned(), split.to_owned()),
        None => (name.value.clone(), or(keys.split.as_ref(), default_split.to_owned())),
    };
    if name_or_path.is_empty() || split.is_empty() {
        let found = format!("`{}`", name.value);
        reader.error(Diagnostic::value(&name.path, name.span, found, "a name, or `name:split`"));
        return None;
    }
    let split = map_split(&split, &split_mapping(keys, &name_or_path));
    let role_mapping = match trainer {
        Trainer::Sft => role_mapping(keys, &name_or_path, reader),
        Trainer::Causal => Some(Vec::new()),
        Trainer::Dpo => dpo::no_role_mapping(keys, preferences, reader),
    };
    if name_or_path == "nvidia/AceMath-Instruct-Training-Data" {
        let why =
            "its replies are in a column of their own, which the reference puts together by hand";
        reader.refuse(&name.path, name.span, format!("= `{name_or_path}`"), why);
    }
    check_format(keys, reader)?;
    let column = match kind {
        SourceType::HuggingFaceCausal => causal::column(keys, reader).ok()?,
        SourceType::HuggingFaceInstruct | SourceType::HuggingFace => {
            if let Some(at) = &keys.column {
                let found = format!("`{}` is set and `type` is `{}`", at.path, trainer.name());
                let hint = Some("`text_key` names a column of text");
                conflict(reader, &at.path, found, "`type: causal`", hint);
            }
            or(keys.text_key.as_ref(), None)
        }
    };
    let format = match or(keys.format.as_ref(), None) {
        None if kind == SourceType::HuggingFaceCausal => Some(RowFormat::Text),
        None if kind == SourceType::HuggingFace => Some(preferences),
        format => format,
    };
    Some(Source {
        kind,
        split,
        kwargs: kwargs(keys.kwargs.as_ref(), reader),
        format,
        role_mapping: role_mapping?,
        unmapped_roles: or(keys.unmapped_roles.as_ref(), UnmappedRoles::Refuse),
        messages_key: or(keys.messages_key.as_ref(), None),
        tools_key: or(keys.tools_key.as_ref(), None),
        text_key: column,
        content_key: or(keys.content_key.as_ref(), None),
        sample: sampling(file, reader)?,
        sample_seed: or(keys.sample_seed.as_ref(), 42) as u64,
        epochs: above_zero(keys.epochs.as_ref(), reader).ok()?.unwrap_or(1.0),
        weight: weight(keys, reader).ok()?,
        name_or_path,
    })
}

/// Each key that says where something is in a row has to be one that its format reads.
fn check_format(keys: &SourceKeys, reader: &mut Reader) -> Option<()> {
    use RowFormat::{Alpaca, Messages, PromptCompletion, Text};
    let mapping = keys.role_mapping.as_ref().map(|at| &at.path);
    let format = keys.format.as_ref().and_then(|at| Some((&at.path, at.value?)));
    let typed = |key: &Option<At<Option<String>>>| {
        key.as_ref().filter(|at| at.value.is_some()).map(|at| at.path.clone())
    };
    let messages_key = typed(&keys.messages_key);
    let text_key = typed(&keys.text_key);
    let chats: &[RowFormat] = &[Messages, PromptCompletion];
    // The key, the formats that read it, and whether a role mapping does.
    let readers: [(Option<String>, &[RowFormat], bool); 5] = [
        (messages_key.clone(), &[Messages], false),
        (text_key.clone(), &[Text], false),
        (typed(&keys.tools_key), &[Messages, PromptCompletion, Alpaca], true),
        (typed(&keys.content_key), chats, true),
        (keys.unmapped_roles.as_ref().map(|at| at.path.clone()), chats, true),
    ];
    let mut conflicts = Vec::new();
    if let (Some((format, _)), Some(_)) = (format, mapping) {
        conflicts.push((format.clone(), "`role_mapping` is given too".to_owned()));
    }
    if let (Some(key), Some(_)) = (&text_key, &messages_key) {
        conflicts.push((key.clone(), "`messages_key` is given too".to_owned()));
    }
    for (key, formats, by_mapping) in readers {
        let Some(key) = key else { continue };
        match format {
            Some((_, format)) if !formats.contains(&format) => {
                conflicts.push((key, format!("`format` is `{}`", format.name())));
            }
            None if mapping.is_some() && !by_mapping => {
                conflicts.push((key, "`role_mapping` is given too".to_owned()));
            }
            _ => {}
        }
    }
    let is_sound = conflicts.is_empty();
    for (key, other) in conflicts {
        let found = format!("`{key}` is set and {other}");
        conflict(reader, &key, found, "one of them", None);
    }
    is_sound.then_some(())
}

/// What the rows of a source are for: what the trainer reads.
fn source_type(
    kind: Option<&At<SourceKind>>,
    trainer: Trainer,
    reader: &mut Reader,
) -> Option<SourceType> {
    let own = match trainer {
        Trainer::Sft => SourceType::HuggingFaceInstruct,
        Trainer::Causal => SourceType::HuggingFaceCausal,
        Trainer::Dpo => SourceType::HuggingFace,
    };
    let Some(kind) = kind else { return Some(own) };
    let (name, why) = match (kind.value, trainer) {
        (SourceKind::HuggingFaceInstruct, Trainer::Sft)
        | (SourceKind::HuggingFaceCausal, Trainer::Causal)
        | (SourceKind::HuggingFace | SourceKind::Ultrafeedback, Trainer::Dpo) => return Some(own),
        (SourceKind::HuggingFaceInstruct, Trainer::Dpo) => (
            "huggingface_instruct",
            "`type: dpo` reads `huggingface`, rows with `chosen` and `rejected`",
        ),
        (SourceKind::HuggingFaceInstruct, Trainer::Causal) => {
            ("huggingface_instruct", "`type: causal` reads `huggingface_causal`, a column of text")
        }
        (SourceKind::HuggingFaceCausal, Trainer::Sft | Trainer::Dpo) => {
            ("huggingface_causal", "it belongs to `type: causal`")
        }
        (SourceKind::HuggingFace, Trainer::Sft) => (
            "huggingface",
            "use `type: huggingface_instruct`, with a `role_mapping` such as `{user: messages.role.user, assistant: messages.role.assistant}`",
        ),
        (SourceKind::HuggingFace, Trainer::Causal) => {
            ("huggingface", "use `type: huggingface_causal`")
        }
        (SourceKind::Snowflake, _) => {
            ("snowflake", "export the table to Parquet and name the file")
        }
        (SourceKind::ProjectGutenberg, _) => {
            ("ProjectGutenbergSFT", "use `type: huggingface_instruct`")
        }
        (SourceKind::Ultrafeedback, Trainer::Sft | Trainer::Causal) => {
            ("HuggingFaceH4/ultrafeedback_binarized", "it belongs to `type: dpo`")
        }
    };
    reader.refuse(&kind.path, kind.span, format!("= `{name}`"), why);
    None
}

fn split_mapping(keys: &SourceKeys, name: &str) -> Vec<(String, String)> {
    let typed = or(keys.split_mapping.as_ref(), Vec::new());
    let known = KNOWN_SPLITS.iter().find(|(known, _)| *known == name);
    match known {
        Some((_, mapping)) if typed.is_empty() => owned(mapping),
        _ => typed,
    }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

/// Maps the name in front of a slice, unless it is a mapped name already.
fn map_split(split: &str, mapping: &[(String, String)]) -> String {
    let (base, slice) = split.split_at(split.find('[').unwrap_or(split.len()));
    if mapping.iter().any(|(_, target)| target == base) {
        return split.to_owned();
    }
    match mapping.iter().find(|(from, _)| from == base) {
        Some((_, target)) => format!("{target}{slice}"),
        None => split.to_owned(),
    }
}

fn role_mapping(
    keys: &SourceKeys,
    name: &str,
    reader: &mut Reader,
) -> Option<Vec<(String, RolePath)>> {
    let Some(typed) = &keys.role_mapping else {
        let known = KNOWN_ROLES.iter().find(|(known, _)| *known == name).map(|(_, roles)| *roles);
        let has_format = keys.format.as_ref().is_some_and(|at| at.value.is_some())
            || keys.messages_key.as_ref().is_some_and(|at| at.value.is_some())
            || keys.text_key.as_ref().is_some_and(|at| at.value.is_some());
        let roles = known.filter(|_| !has_format).unwrap_or_default();
        return Some(
            roles
                .iter()
                .filter_map(|(role, path)| Some(((*role).to_owned(), role_path(path)?)))
                .collect(),
        );
    };
    if typed.value.is_empty() {
        let required = "at least one role, such as `{user: question, assistant: response}`";
        reader.error(Diagnostic::value(
            &typed.path,
            typed.span,
            "an empty mapping".to_owned(),
            required,
        ));
        return None;
    }
    let mut roles = Vec::new();
    for (role, path) in &typed.value {
        let Some(mapped) = role_path(path) else {
            let key_path = format!("{}.{role}", typed.path);
            let span = reader.places.get(&key_path).copied().unwrap_or(typed.span);
            let required = "a column, or `column.field.value` such as `messages.role.user`";
            reader.error(Diagnostic::value(&key_path, span, format!("`{path}`"), required));
            continue;
        };
        roles.push((role.clone(), mapped));
    }
    (roles.len() == typed.value.len()).then_some(roles)
}

/// A column, or `array.field.value`.
fn role_path(text: &str) -> Option<RolePath> {
    match text.split('.').collect::<Vec<_>>()[..] {
        [column] if !column.is_empty() => Some(RolePath::Column(column.to_owned())),
        [array, field, value] => Some(RolePath::Items {
            array: array.to_owned(),
            field: field.to_owned(),
            value: value.to_owned(),
        }),
        _ => None,
    }
}

/// Keeps the arguments that choose files, notes those that change nothing, refuses the rest.
fn kwargs(typed: Option<&At<Map<String, Value>>>, reader: &mut Reader) -> Map<String, Value> {
    let Some(at) = typed else { return Map::new() };
    let mut kept = Map::new();
    for (key, value) in &at.value {
        let path = format!("{}.{key}", at.path);
        if KWARGS.contains(&key.as_str()) {
            kept.insert(key.clone(), value.clone());
        } else if INERT_KWARGS.contains(&key.as_str()) {
            reader.note(&path, "it does not change which rows are read");
        } else {
            reader.refuse(
                &path,
                at.span,
                "is set, which".to_owned(),
                &format!("the arguments are {}", KWARGS.join(", ")),
            );
        }
    }
    kept
}

/// A source's weight, which says what its epochs are.
fn weight(keys: &SourceKeys, reader: &mut Reader) -> Result<Option<f64>, Reported> {
    let typed = |at: &Option<At<Option<f64>>>| at.as_ref().is_some_and(|at| at.value.is_some());
    if let Some(at) = keys.weight.as_ref().filter(|_| typed(&keys.weight) && typed(&keys.epochs)) {
        let found = format!("`{}` is set, and `epochs` of the source too", at.path);
        conflict(reader, &at.path, found, "one of them", Some("remove one of them"));
        return Err(Reported);
    }
    above_zero(keys.weight.as_ref(), reader)
}

/// A number above 0, if there is one.
fn above_zero(
    typed: Option<&At<Option<f64>>>,
    reader: &mut Reader,
) -> Result<Option<f64>, Reported> {
    let Some((at, number)) = typed.and_then(|at| Some((at, at.value?))) else { return Ok(None) };
    if number > 0.0 && number.is_finite() {
        return Ok(Some(number));
    }
    let required = "a number above 0; remove the source to leave it out";
    reader.error(Diagnostic::value(&at.path, at.span, format!("`{number}`"), required));
    Err(Reported)
}

fn sampling(file: &SourceFile, reader: &mut Reader) -> Option<Sampling> {
    let ratio = file.keys.sample_ratio.as_ref().and_then(|at| Some((at, at.value?)));
    let count = file.keys.sample_count.as_ref().and_then(|at| at.value);
    match (ratio, count) {
        (Some((at, _)), Some(_)) => {
            let found = format!("`{}` and `sample_count` are both given", at.path);
            conflict(reader, &at.path, found, "one of them", None);
            None
        }
        (Some((at, ratio)), None) if !(0.0..=1.0).contains(&ratio) => {
            reader.error(Diagnostic::value(
                &at.path,
                at.span,
                format!("`{ratio}`"),
                "a fraction from 0 to 1",
            ));
            None
        }
        (Some((_, ratio)), None) => Some(Sampling::Ratio(ratio)),
        (None, Some(count)) => Some(Sampling::Count(count)),
        (None, None) => Some(Sampling::All),
    }
}
