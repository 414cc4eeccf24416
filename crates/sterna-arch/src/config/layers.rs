//! What a config says of each layer by itself: its window, and whether it turns queries and keys.

use serde_json::Value;

use super::reader::Reader;
use crate::error::Result;
use crate::families::{Family, Last, Rotated, Windows};

/// What differs between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfLayer {
    pub(crate) sliding_window: Option<usize>,
    pub(crate) is_rotated: bool,
    /// Whether its mixer is a gated delta net.
    pub(crate) is_delta_net: bool,
}

pub(crate) fn read(
    reader: &Reader<'_>,
    family: &Family,
    num_layers: usize,
) -> Result<Vec<OfLayer>> {
    let chosen = match family.rotated {
        Rotated::Chosen => Some(chosen_rotation(reader, num_layers)?),
        Rotated::WithTheta => Some(rotation_by_theta(reader, family, num_layers)?),
        Rotated::All | Rotated::Sliding => None,
    };
    let windows = windows(reader, &family.windows, num_layers, chosen.as_deref())?;
    let is_off = matches!(family.windows, Windows::AllBut { may_be_null: true, .. })
        && reader.entry("sliding_window").is_some_and(Value::is_null);
    let is_rotated = |(layer_idx, window): (usize, &Option<usize>)| match &chosen {
        Some(chosen) => chosen[layer_idx],
        None => family.rotated == Rotated::All || is_off || window.is_some(),
    };
    let is_rotated: Vec<bool> = windows.iter().enumerate().map(is_rotated).collect();
    let is_delta_net = delta_nets(reader, family, num_layers)?;
    let of_layer = |((sliding_window, is_rotated), is_delta_net)| OfLayer {
        sliding_window,
        is_rotated,
        is_delta_net,
    };
    Ok(windows.into_iter().zip(is_rotated).zip(is_delta_net).map(of_layer).collect())
}

/// Which layers are gated delta nets: those of `layer_types`, or all but every `full_attention_interval`-th.
fn delta_nets(reader: &Reader<'_>, family: &Family, num_layers: usize) -> Result<Vec<bool>> {
    if family.delta_nets.is_none() {
        return Ok(vec![false; num_layers]);
    }
    let each = "`linear_attention` or `full_attention`";
    let listed =
        list(reader, "layer_types", num_layers, "names", each, |value| match value.as_str() {
            Some("linear_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        })?;
    let (key, is_delta_net) = if let Some(listed) = listed {
        ("layer_types", listed)
    } else {
        let every = reader.or("full_attention_interval", 4, Reader::size)?;
        let is_delta_net = (1..=num_layers).map(|number| !number.is_multiple_of(every)).collect();
        ("full_attention_interval", is_delta_net)
    };
    if !is_delta_net.contains(&false) {
        let required = "a layer with `full_attention`";
        return Err(reader.refuse(key, "none in all layers", required));
    }
    Ok(is_delta_net)
}

fn chosen_rotation(reader: &Reader<'_>, num_layers: usize) -> Result<Vec<bool>> {
    let Some(flags) =
        list(reader, "no_rope_layers", num_layers, "numbers", "`0` or `1`", |value| {
            value.as_u64().filter(|number| *number <= 1).map(|number| number == 1)
        })?
    else {
        let interval = reader.or("no_rope_layer_interval", 4, Reader::size)?;
        return Ok((1..=num_layers).map(|number| number % interval != 0).collect());
    };
    Ok(flags)
}

/// Of the numbers only zero or not is read: the class turns all layers by the same base.
fn rotation_by_theta(reader: &Reader<'_>, family: &Family, num_layers: usize) -> Result<Vec<bool>> {
    let of_section = reader.get("rope_parameters").and_then(|section| section.get("rope_theta"));
    let theta = of_section.or(reader.get("rope_theta")).and_then(Value::as_f64);
    let theta = theta.unwrap_or(family.defaults.rope_theta);
    let each = format!("`0` or the base `{theta}`");
    let parse = |value: &Value| {
        let found = value.as_f64()?;
        let is_base = found.to_bits() == theta.to_bits();
        (found == 0.0 || is_base).then_some(is_base)
    };
    let listed = list(reader, "layer_rope_theta", num_layers, "numbers", &each, parse)?;
    let by_default = |layer_idx: usize| !(num_layers - 1 - layer_idx).is_multiple_of(4);
    Ok(listed.unwrap_or_else(|| (0..num_layers).map(by_default).collect()))
}

fn windows(
    reader: &Reader<'_>,
    windows: &Windows,
    num_layers: usize,
    is_rotated: Option<&[bool]>,
) -> Result<Vec<Option<usize>>> {
    let used = |default: Option<usize>| {
        if reader.or("use_sliding_window", false, Reader::bool)? {
            reader.nullable("sliding_window", default, Reader::size)
        } else {
            Ok(None)
        }
    };
    let from = |default: usize| {
        let first = reader.or("max_window_layers", default, Reader::count)?;
        Ok((0..num_layers).map(|layer_idx| layer_idx >= first).collect())
    };
    let (window, without_types): (_, Box<dyn Fn() -> Result<Vec<bool>>>) = match *windows {
        Windows::None => return Ok(vec![None; num_layers]),
        Windows::All(default) => {
            let window = reader.nullable("sliding_window", default, Reader::size)?;
            return Ok(vec![window; num_layers]);
        }
        Windows::AllIfUsed => return Ok(vec![used(Some(4096))?; num_layers]),
        Windows::Chosen => (used(Some(4096))?, Box::new(move || from(28))),
        Windows::From { default, first } => (
            reader.nullable("sliding_window", Some(default), Reader::size)?,
            Box::new(move || from(first)),
        ),
        Windows::NotRotated => (
            used(None)?,
            Box::new(|| {
                let is_rotated = is_rotated.unwrap_or_default();
                Ok(is_rotated.iter().map(|is_rotated| !is_rotated).collect())
            }),
        ),
        Windows::AllBut { every, has_pattern_key, default, may_be_null, last } => {
            let window = reader.nullable("sliding_window", Some(default), Reader::size)?;
            if window.is_none() && !may_be_null {
                let required = "a number of tokens";
                return Err(reader.wrong("sliding_window", &Value::Null, required));
            }
            let pattern = move || {
                let every = if has_pattern_key {
                    reader.or("sliding_window_pattern", every, Reader::size)?
                } else {
                    every
                };
                let number = |layer_idx: usize| match last {
                    Last::Any | Last::Full => layer_idx + 1,
                    Last::Zero => num_layers - 1 - layer_idx,
                };
                Ok((0..num_layers).map(|layer_idx| number(layer_idx) % every != 0).collect())
            };
            (window, Box::new(pattern))
        }
    };
    let each = "`full_attention` or `sliding_attention`";
    let is_sliding =
        list(reader, "layer_types", num_layers, "names", each, |value| match value.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        })?;
    if let (Windows::NotRotated, None, Some(listed)) = (windows, window, &is_sliding)
        && let Some(layer_idx) = listed.iter().position(|is_sliding| *is_sliding)
    {
        let required = "`full_attention` without use_sliding_window and a sliding_window: transformers has a window there with one attention kernel, and none with another";
        let key = format!("layer_types.{layer_idx}");
        return Err(reader.wrong(&key, &Value::from("sliding_attention"), required));
    }
    let mut is_sliding = is_sliding.map_or_else(without_types, Ok)?;
    if matches!(windows, Windows::AllBut { last: Last::Full, .. }) {
        is_sliding[num_layers - 1] = false;
    }
    Ok(is_sliding.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect())
}

/// A list with an entry for each layer; `None` if the key is missing. Entries are `what`, and each is `each`.
fn list(
    reader: &Reader<'_>,
    key: &str,
    num_layers: usize,
    what: &str,
    each: &str,
    parse: impl Fn(&Value) -> Option<bool>,
) -> Result<Option<Vec<bool>>> {
    let Some(value) = reader.get(key) else { return Ok(None) };
    let required = || format!("a list of `{num_layers}` {what}, each {each}");
    let entries = value.as_array().ok_or_else(|| reader.wrong(key, value, required()))?;
    if entries.len() != num_layers {
        return Err(reader.refuse(key, format!("a list of `{}`", entries.len()), required()));
    }
    let entry = |(layer_idx, value): (usize, &Value)| {
        parse(value).ok_or_else(|| reader.wrong(&format!("{key}.{layer_idx}"), value, each))
    };
    entries.iter().enumerate().map(entry).collect::<Result<_>>().map(Some)
}
