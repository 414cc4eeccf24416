//! The rotary settings of a config: `rope_theta` and `rope_scaling`, or the `rope_parameters` of transformers 5.

use serde_json::{Map, Value};

use super::reader::Reader;
use crate::error::Result;
use crate::rope::{Rope, RopeScaling};

/// The `rope_type`s that we have, as a phrase for messages.
const ROPE_TYPES: &str = "`default`, `linear`, `dynamic`, `yarn` or `llama3`";

/// `default_theta` is that of the family.
pub(super) fn parse(
    root: &Reader<'_>,
    default_theta: f64,
    max_position_embeddings: usize,
) -> Result<Rope> {
    let partial = root.or("partial_rotary_factor", 1.0, Reader::positive)?;
    refuse_partial(root, partial)?;
    let theta = root.or("rope_theta", default_theta, theta)?;
    let Some((key, value)) =
        ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| Some((key, root.get(key)?)))
    else {
        return Ok(Rope { theta, scaling: RopeScaling::Default });
    };
    let map = value.as_object().ok_or_else(|| root.wrong(key, value, "an object or `null`"))?;
    let section = root.section(key, map);
    let partial = section.or("partial_rotary_factor", 1.0, Reader::positive)?;
    refuse_partial(&section, partial)?;
    // Transformers 5 keeps the base beside the scaling.
    let theta = section.or("rope_theta", theta, self::theta)?;
    Ok(Rope { theta, scaling: scaling(&section, max_position_embeddings)? })
}

/// Removes what an override of the other spelling would otherwise lose to, so that the override is what counts.
pub(super) fn make_room(raw: &mut Map<String, Value>, overrides: &Map<String, Value>) {
    if overrides.contains_key("rope_parameters") {
        raw.remove("rope_scaling");
        raw.remove("rope_theta");
        return;
    }
    if overrides.contains_key("rope_scaling")
        && let Some(Value::Object(mut parameters)) = raw.remove("rope_parameters")
        && let Some(theta) = parameters.remove("rope_theta")
    {
        raw.insert("rope_theta".to_owned(), theta);
    }
    if overrides.contains_key("rope_theta") {
        for key in ["rope_parameters", "rope_scaling"] {
            if let Some(Value::Object(parameters)) = raw.get_mut(key) {
                parameters.remove("rope_theta");
            }
        }
    }
}

/// A base above one: its logarithm divides.
fn theta(reader: &Reader<'_>, key: &str, value: &Value) -> Result<f64> {
    value
        .as_f64()
        .filter(|x| *x > 1.0)
        .ok_or_else(|| reader.wrong(key, value, "a number above `1`"))
}

#[expect(
    clippy::float_cmp,
    reason = "anything but the exact default would rotate another number of dimensions"
)]
fn refuse_partial(reader: &Reader<'_>, partial: f64) -> Result<()> {
    if partial == 1.0 {
        return Ok(());
    }
    Err(reader.wrong(
        "partial_rotary_factor",
        &Value::from(partial),
        "`1.0`: these families rotate the whole head",
    ))
}

fn scaling(section: &Reader<'_>, max_position_embeddings: usize) -> Result<RopeScaling> {
    // The key was `type` before it was `rope_type`; transformers lets the old one win when a file has both.
    let key = if section.get("type").is_some() { "type" } else { "rope_type" };
    let rope_type = section.or(key, "default".to_owned(), Reader::string)?;
    let factor = || section.required("factor", Reader::at_least_one);
    match rope_type.as_str() {
        "default" => {
            if section.map().values().any(Value::is_object) {
                return Err(section.refuse(
                    key,
                    "given by layer type",
                    "one rotary embedding for all layers",
                ));
            }
            Ok(RopeScaling::Default)
        }
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "dynamic" => Ok(RopeScaling::Dynamic { factor: factor()?, max_position_embeddings }),
        "yarn" => yarn(section, factor()?, max_position_embeddings),
        "llama3" => llama3(section, factor()?),
        _ => Err(section.wrong(key, &Value::from(rope_type), ROPE_TYPES)),
    }
}

fn yarn(section: &Reader<'_>, factor: f64, max_position_embeddings: usize) -> Result<RopeScaling> {
    // Zero and missing mean the same to transformers here.
    let non_zero = |key: &str| {
        section.or(key, 0.0, Reader::non_negative).map(|x| Some(x).filter(|x| *x != 0.0))
    };
    let beta_fast = non_zero("beta_fast")?.unwrap_or(32.0);
    let beta_slow = non_zero("beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        let required = format!("at least beta_slow `{beta_slow}`");
        return Err(section.wrong("beta_fast", &Value::from(beta_fast), required));
    }
    let attention_factor = match section.get("attention_factor") {
        Some(value) => section.non_negative("attention_factor", value)?,
        None => match (non_zero("mscale")?, non_zero("mscale_all_dim")?) {
            (Some(mscale), Some(mscale_all_dim)) => {
                yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
            }
            _ => yarn_mscale(factor, 1.0),
        },
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: section.or(
            "original_max_position_embeddings",
            max_position_embeddings,
            Reader::size,
        )?,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate: section.or("truncate", true, Reader::bool)?,
    })
}

fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn llama3(section: &Reader<'_>, factor: f64) -> Result<RopeScaling> {
    let low_freq_factor = section.required("low_freq_factor", Reader::positive)?;
    let high_freq_factor = section.required("high_freq_factor", Reader::positive)?;
    if high_freq_factor <= low_freq_factor {
        let required = format!("above low_freq_factor `{low_freq_factor}`");
        return Err(section.wrong("high_freq_factor", &Value::from(high_freq_factor), required));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: section
            .required("original_max_position_embeddings", Reader::size)?,
    })
}
