//! `type: dpo`: preferences between two replies.

use super::{conflict, of_another_type, or};
use crate::{
    diagnostic::Diagnostic,
    file::{DataFile, DtypeWord, Reader, RecipeFile, SourceKeys},
    recipe::{
        DpoLoss, DpoOptions, ExcessLength, LabelMask, ModelOptions, Packing, RolePath, RowFormat,
        Trainer,
    },
};

/// The keys beside `data`. Those of another type are errors.
pub(super) fn resolve(
    file: &RecipeFile,
    trainer: Trainer,
    model: Option<&ModelOptions>,
    reader: &mut Reader,
) -> Option<DpoOptions> {
    if trainer != Trainer::Dpo {
        let typed = [
            file.ref_model.as_ref().map(|at| &at.path),
            file.beta.as_ref().map(|at| &at.path),
            file.label_smoothing.as_ref().map(|at| &at.path),
            file.simpo_gamma.as_ref().map(|at| &at.path),
            file.desirable_weight.as_ref().map(|at| &at.path),
            file.undesirable_weight.as_ref().map(|at| &at.path),
            file.loss_type.as_ref().map(|at| &at.path),
            file.loss_weights.as_ref().map(|at| &at.path),
        ];
        of_another_type(reader, typed, trainer, "`type: dpo`");
        return None;
    }
    let beta = or(file.beta.as_ref(), 0.1);
    if let Some(at) = file.beta.as_ref().filter(|at| !(at.value > 0.0 && at.value.is_finite())) {
        let found = format!("`{}`", at.value);
        reader.error(Diagnostic::value(&at.path, at.span, found, "a number above 0"));
    }
    let loss_type = or(file.loss_type.as_ref(), vec![DpoLoss::Sigmoid]);
    let loss_weights = loss_weights(file, &loss_type, reader);
    let label_smoothing = or(file.label_smoothing.as_ref(), 0.0);
    if let Some(at) = &file.label_smoothing {
        let smoothed = [DpoLoss::Sigmoid, DpoLoss::Robust, DpoLoss::ExoPair, DpoLoss::Simpo];
        let uses_it = loss_type.iter().any(|loss| smoothed.contains(loss));
        if !(0.0..0.5).contains(&at.value) {
            let found = format!("`{}`", at.value);
            let required = "a number from 0 to below 0.5";
            reader.error(Diagnostic::value(&at.path, at.span, found, required));
        } else if at.value > 0.0 && !uses_it {
            let found = format!(
                "`label_smoothing` is `{}` and `loss_type` is {}",
                at.value,
                names(&loss_type)
            );
            let required = "a `loss_type` of `sigmoid`, `robust`, `exo_pair` or `simpo`";
            conflict(reader, &at.path, found, required, Some("remove it"));
        }
    }
    if let Some(at) = file.simpo_gamma.as_ref().filter(|_| !loss_type.contains(&DpoLoss::Simpo)) {
        let found = format!("`simpo_gamma` is set and `loss_type` is {}", names(&loss_type));
        conflict(reader, &at.path, found, "a `loss_type` of `simpo`", Some("remove it"));
    }
    unpaired(file, &loss_type, reader);
    let ref_model = if loss_type.iter().any(|loss| loss.has_reference()) {
        Some(ref_model(file, model, reader)?)
    } else {
        if let Some(at) = &file.ref_model {
            let found = format!("`ref_model` is set and `loss_type` is {}", names(&loss_type));
            let required = "a loss that compares with a reference model";
            conflict(reader, &at.path, found, required, Some("remove it"));
        }
        None
    };
    Some(DpoOptions {
        ref_model,
        beta,
        label_smoothing,
        simpo_gamma: or(file.simpo_gamma.as_ref(), 0.5),
        desirable_weight: or(file.desirable_weight.as_ref(), 1.0),
        undesirable_weight: or(file.undesirable_weight.as_ref(), 1.0),
        loss_type,
        loss_weights,
    })
}

/// What the losses of replies without pairs need, and what no other has.
fn unpaired(file: &RecipeFile, loss_type: &[DpoLoss], reader: &mut Reader) {
    let weights = [&file.desirable_weight, &file.undesirable_weight].map(Option::as_ref);
    let loss = loss_type.iter().find(|loss| loss.is_unpaired());
    let Some(loss) = loss else {
        for at in weights.into_iter().flatten() {
            let found = format!("`{}` is set and `loss_type` is {}", at.path, names(loss_type));
            let required = "a `loss_type` of `kto` or `apo_zero_unpaired`";
            conflict(reader, &at.path, found, required, Some("remove it"));
        }
        return;
    };
    if loss_type.len() > 1 {
        let found = format!("`loss_type` is {}", names(loss_type));
        let required = format!("`{}` alone: its rows have no pairs", loss.name());
        conflict(reader, "loss_type", found, &required, None);
    }
    if weights.iter().all(|at| at.is_some_and(|at| at.value == 0.0)) {
        let found = "`desirable_weight` and `undesirable_weight` are 0".to_owned();
        let required = "one above 0: nothing would be minimised";
        conflict(reader, "desirable_weight", found, required, None);
    }
    let is_packed = file.data.as_ref().and_then(|at| at.value.pack_samples.as_ref());
    let is_single = or(file.micro_batch_size.as_ref(), 1) == 1 && !or(is_packed, false);
    if *loss == DpoLoss::Kto && is_single {
        let found = "`loss_type` is `kto` and a micro-batch has one reply".to_owned();
        let required = "several: each prompt is also put before the reply to another";
        let hint = "set `data.pack_samples: true` or raise `micro_batch_size`; `apo_zero_unpaired` needs one";
        conflict(reader, "loss_type", found, required, Some(hint));
    }
}

/// What the rows of sources are.
pub(super) fn rows(file: &RecipeFile) -> RowFormat {
    let losses = file.loss_type.iter().flat_map(|at| &at.value);
    if losses.into_iter().any(|loss| loss.is_unpaired()) {
        RowFormat::UnpairedPreference
    } else {
        RowFormat::Preference
    }
}

/// How much of each loss is minimised: as much of all, unless the recipe says.
fn loss_weights(file: &RecipeFile, loss_type: &[DpoLoss], reader: &mut Reader) -> Vec<f64> {
    // An item that cannot be read has an error of its own, and what is left of its list would get another.
    let is_of_item = |error: &Diagnostic| {
        ["loss_type[", "loss_weights["].iter().any(|list| error.key_path.starts_with(list))
    };
    if reader.errors.iter().any(is_of_item) {
        return Vec::new();
    }
    if let Some(at) = file.loss_type.as_ref().filter(|at| at.value.is_empty()) {
        let required = "a loss, or a list of at least one";
        reader.error(Diagnostic::value(&at.path, at.span, "`[]`".to_owned(), required));
        return Vec::new();
    }
    let Some(at) = &file.loss_weights else { return vec![1.0; loss_type.len()] };
    let num_weights = at.value.len();
    if num_weights != loss_type.len() {
        let found = format!(
            "`loss_weights` is a list of {num_weights} and `loss_type` is {}",
            names(loss_type)
        );
        let hint = "remove it: then each loss counts once";
        conflict(reader, &at.path, found, "a weight for each loss", Some(hint));
    } else if at.value.iter().all(|weight| *weight == 0.0) {
        let required = "a weight above 0: nothing would be minimised";
        reader.error(Diagnostic::value(&at.path, at.span, "zeros".to_owned(), required));
    }
    at.value.clone()
}

/// A loss in words, or several.
fn names(loss_type: &[DpoLoss]) -> String {
    let names: Vec<_> = loss_type.iter().map(|loss| loss.name()).collect();
    match &names[..] {
        [name] => format!("`{name}`"),
        names => format!("`[{}]`", names.join(", ")),
    }
}

/// The model that replies are compared with: the one that is trained, unless the recipe names another.
fn ref_model(
    file: &RecipeFile,
    model: Option<&ModelOptions>,
    reader: &mut Reader,
) -> Option<String> {
    let model = model?;
    let Some(at) = &file.ref_model else { return Some(model.name_or_path.clone()) };
    let keys = &at.value;
    let other = [
        keys.disable_activation_checkpoint.as_ref().map(|at| &at.path),
        keys.hf_config_kwargs.as_ref().map(|at| &at.path),
        keys.random_weights.as_ref().map(|at| &at.path),
        keys.save_name.as_ref().map(|at| &at.path),
    ];
    for path in other.into_iter().flatten() {
        let found = format!("`{path}` is set");
        let required = "`name_or_path`: all else is as of the trained model";
        conflict(reader, path, found, required, Some("remove it"));
    }
    let dtype =
        keys.dtype.as_ref().map(|at| (&at.path, at.value == DtypeWord::Supported(model.dtype)));
    let attention = keys.attn_implementation.as_ref();
    let attention = attention.map(|at| (&at.path, at.value == model.attn_implementation));
    for (path, _) in [dtype, attention].into_iter().flatten().filter(|(_, is_same)| !is_same) {
        let found = format!("`{path}` is not that of `model`");
        conflict(reader, path, found, "the same", Some("remove it"));
    }
    let name = keys.name_or_path.as_ref().map(|name| name.value.clone());
    Some(name.unwrap_or_else(|| model.name_or_path.clone()))
}

/// Keys of `data` that pairs leave without a meaning.
pub(super) fn check(data: &DataFile, reader: &mut Reader) {
    let of_others = [
        data.mask_inputs.as_ref().map(|at| &at.path),
        data.filter_samples.as_ref().map(|at| &at.path),
        data.always_max_length.as_ref().map(|at| &at.path),
        data.fuse_positions_prob.as_ref().map(|at| &at.path),
        data.repeat_to_pack_max_length.as_ref().map(|at| &at.path),
    ];
    of_another_type(reader, of_others, Trainer::Dpo, "`type: sft`");
    if let Some(at) = data.label_mask.as_ref().filter(|at| at.value == LabelMask::Reference) {
        let found = "`data.label_mask` is `reference` and `type` is `dpo`".to_owned();
        let hint = Some("remove it: what the assistant wrote is compared, and the end of its turn");
        conflict(reader, &at.path, found, "`exact`", hint);
    }
    if let Some(at) = data.packing.as_ref().filter(|at| at.value == Packing::Reference) {
        let found = "`data.packing` is `reference` and `type` is `dpo`".to_owned();
        conflict(reader, &at.path, found, "`global`: the reference packs no pairs", None);
    }
    let cuts = |length| matches!(length, ExcessLength::Truncate | ExcessLength::Split);
    if let Some(at) = data.excess_length.as_ref().filter(|at| cuts(at.value)) {
        let found = format!("`{}`", at.value.name());
        let required = "`drop` or `raise`: replies that are cut cannot be compared";
        reader.error(Diagnostic::value(&at.path, at.span, found, required));
    }
}

/// Nothing, after an error for each key of a source that is about other rows.
pub(super) fn no_role_mapping(
    keys: &SourceKeys,
    rows: RowFormat,
    reader: &mut Reader,
) -> Option<Vec<(String, RolePath)>> {
    let of_sft = [
        keys.role_mapping.as_ref().map(|at| &at.path),
        keys.unmapped_roles.as_ref().map(|at| &at.path),
        keys.messages_key.as_ref().map(|at| &at.path),
        keys.text_key.as_ref().map(|at| &at.path),
        keys.content_key.as_ref().map(|at| &at.path),
    ];
    of_another_type(reader, of_sft, Trainer::Dpo, "`type: sft`");
    let format = keys.format.as_ref().and_then(|at| Some((at, at.value?)));
    if let Some((at, format)) = format.filter(|(_, format)| *format != rows) {
        let (found, required) = (format!("`{}`", format.name()), format!("`{}`", rows.name()));
        reader.error(Diagnostic::value(&at.path, at.span, found, required));
        return None;
    }
    Some(Vec::new())
}
