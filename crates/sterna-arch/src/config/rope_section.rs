//! The rotary settings of a config: `rope_theta` and `rope_scaling`, or the `rope_parameters` of transformers 5.

use serde_json::{Map, Value};

use super::reader::Reader;
use crate::error::Result;
use crate::families::{Family, RopeFacts, SlidingRope};
use crate::rope::{QueryScale, Rope, RopeLayout, RopeScaling};

/// The `rope_type`s that we have, as a phrase for messages.
const ROPE_TYPES: &str =
    "`default`, `linear`, `dynamic`, `yarn`, `llama3`, `longrope` or `proportional`";

/// The sizes of heads in layers without a window and with one.
#[derive(Clone, Copy)]
pub(crate) struct HeadDims {
    pub(crate) full: usize,
    pub(crate) sliding: usize,
    /// What `partial_rotary_factor` is of, where these are the parts that turn already.
    pub(crate) whole: Option<usize>,
}

/// The rotary embeddings of a model.
pub(crate) struct Ropes {
    full: Rope,
    /// Of layers with a window, where it is another one.
    sliding: Option<Rope>,
}

impl Ropes {
    /// Reads the settings of both kinds of layers; `max_position_embeddings` is the model's.
    pub(crate) fn read(
        root: &Reader<'_>,
        family: &Family,
        head_dims: HeadDims,
        max_position_embeddings: usize,
    ) -> Result<Self> {
        let facts = &family.rope;
        let found = said(root);
        let of_map = |key: &str, map: &Map<String, Value>, head_dim: usize| {
            let default_theta = root.or("rope_theta", family.defaults.rope_theta, theta)?;
            let mut root_partial = root.get("partial_rotary_factor").cloned();
            if let (true, None, Some(value)) =
                (facts.has_rotary_dim, &root_partial, root.get("rotary_dim"))
            {
                let rotary_dim = root.size("rotary_dim", value)?;
                root_partial = Some(Value::from(rotary_dim as f64 / head_dim as f64));
            }
            let section = Section {
                root,
                of_rope: root.section(key, map),
                facts,
                head_dim,
                whole_head_dim: head_dims.whole,
                max_position_embeddings,
                default_theta,
                root_partial,
            };
            section.rope()
        };
        // `null` switches the class's own scaling off in the old spelling, and says nothing in the new one.
        let is_off = root.entry("rope_scaling").is_some_and(Value::is_null)
            && facts.sliding != SlidingRope::Section;
        let full = match (found, facts.default_scaling.filter(|_| !is_off)) {
            (Some((key, value)), _) => {
                let map = value
                    .as_object()
                    .ok_or_else(|| root.wrong(key, value, "an object or `null`"))?;
                if let Some(ropes) = by_layer_type(root, facts, key, map, head_dims, of_map)? {
                    return Ok(ropes);
                }
                let is_old = key == "rope_scaling" && facts.sliding != SlidingRope::Section;
                if facts.sliding != SlidingRope::Same && !is_old {
                    let required = "a section for each layer type";
                    return Err(root.refuse(key, "one rotary embedding for all layers", required));
                }
                if facts.sliding != SlidingRope::Same {
                    expect_rope_type(&root.section(key, map))?;
                }
                of_map(key, map, head_dims.full)?
            }
            (None, Some(json)) => {
                let map = serde_json::from_str(json).expect("a fact is valid JSON");
                let key = "rope_parameters";
                if let Some(ropes) = by_layer_type(root, facts, key, &map, head_dims, of_map)? {
                    return Ok(ropes);
                }
                of_map(key, &map, head_dims.full)?
            }
            (None, None) => of_map("rope_scaling", &Map::new(), head_dims.full)?,
        };
        let unscaled = |theta| Rope { theta, scaling: RopeScaling::Default, ..full.clone() };
        let sliding = match facts.sliding {
            SlidingRope::Same | SlidingRope::Section => None,
            SlidingRope::Unscaled => Some(unscaled(full.theta)),
            SlidingRope::Base(key, default) => Some(unscaled(root.or(key, default, theta)?)),
        };
        Ok(Self { full, sliding })
    }

    /// The index of the rotary embedding of a layer.
    pub(crate) fn of(&self, is_sliding: bool) -> usize {
        usize::from(is_sliding && self.sliding.is_some())
    }

    pub(crate) fn into_list(self) -> Vec<Rope> {
        std::iter::once(self.full).chain(self.sliding).collect()
    }
}

/// The settings and their key. An empty one says nothing; the old spelling wins, as in transformers 5.
fn said<'v>(root: &Reader<'v>) -> Option<(&'static str, &'v Value)> {
    let is_said = |value: &&Value| value.as_object().is_none_or(|map| !map.is_empty());
    let of = |key| Some((key, root.get(key).filter(is_said)?));
    ["rope_scaling", "rope_parameters"].into_iter().find_map(of)
}

/// How much larger queries and keys each are taken to be in the scores of a model with a scaled rotary embedding, for `mscale_all_dim`.
pub(crate) fn magnitude(root: &Reader<'_>, family: &Family) -> Result<f64> {
    let is_off = root.entry("rope_scaling").is_some_and(Value::is_null);
    let default = family.rope.default_scaling.filter(|_| !is_off);
    let default = default.map(|json| serde_json::from_str(json).expect("a fact is valid JSON"));
    let found = said(root).or(default.as_ref().map(|default| ("rope_parameters", default)));
    let Some((key, Value::Object(map))) = found else { return Ok(1.0) };
    let section = root.section(key, map);
    let mscale_all_dim = section.or("mscale_all_dim", 0.0, Reader::non_negative)?;
    if mscale_all_dim == 0.0 {
        return Ok(1.0);
    }
    let rope_type = section.get("rope_type").or(section.get("type"));
    if rope_type.is_none_or(|rope_type| rope_type == "default") {
        let required =
            "`0` without scaling: transformers 4 reads it there, and transformers 5 does not";
        return Err(section.refuse("mscale_all_dim", format!("`{mscale_all_dim}`"), required));
    }
    Ok(yarn_mscale(section.required("factor", Reader::at_least_one)?, mscale_all_dim))
}

/// Refuses a scaling that has only its old key, `type`, in a class whose kinds of layers turn by different angles.
fn expect_rope_type(section: &Reader<'_>) -> Result<()> {
    match (section.get("type"), section.get("rope_type")) {
        (Some(value), None) if value != "default" => {
            let required = "given as `rope_type`: in this family transformers 4 rejects `type`, and transformers 5 ignores it";
            Err(section.wrong("type", value, required))
        }
        _ => Ok(()),
    }
}

/// The spelling of transformers 5 for a class whose kinds of layers turn by different angles: a section for each.
fn by_layer_type(
    root: &Reader<'_>,
    facts: &RopeFacts,
    key: &str,
    map: &Map<String, Value>,
    head_dims: HeadDims,
    of_map: impl Fn(&str, &Map<String, Value>, usize) -> Result<Rope>,
) -> Result<Option<Ropes>> {
    if !map.values().any(Value::is_object) {
        return Ok(None);
    }
    if facts.sliding == SlidingRope::Same {
        let required = "one rotary embedding for all layers";
        return Err(root.refuse(key, "given by layer type", required));
    }
    let of_type = |layer_type: &str, head_dim: usize| {
        let path = format!("{key}.{layer_type}");
        match map.get(layer_type) {
            Some(Value::Object(section)) if section.contains_key("rope_theta") => {
                of_map(&path, section, head_dim)
            }
            Some(Value::Object(_)) => {
                Err(root.refuse(&format!("{path}.rope_theta"), "missing", "a number above `1`"))
            }
            Some(other) => Err(root.wrong(&path, other, "an object")),
            None => Err(root.refuse(&path, "missing", "an object")),
        }
    };
    Ok(Some(Ropes {
        full: of_type("full_attention", head_dims.full)?,
        sliding: Some(of_type("sliding_attention", head_dims.sliding)?),
    }))
}

/// One rotary embedding in a config.
struct Section<'a> {
    root: &'a Reader<'a>,
    of_rope: Reader<'a>,
    facts: &'a RopeFacts,
    head_dim: usize,
    whole_head_dim: Option<usize>,
    max_position_embeddings: usize,
    /// Of the config, or of the family.
    default_theta: f64,
    root_partial: Option<Value>,
}

impl Section<'_> {
    fn rope(&self) -> Result<Rope> {
        let section = &self.of_rope;
        // Transformers 5 keeps the base beside the scaling.
        let theta = section.or("rope_theta", self.default_theta, theta)?;
        let dim = self.dim()?;
        let stretched = self.stretched_by_alpha(theta, dim)?;
        let scaling = if stretched.is_some() { RopeScaling::Default } else { self.scaling(dim)? };
        if !self.facts.is_scalable && scaling != RopeScaling::Default {
            let (key, rope_type) = self.rope_type()?;
            let required = "`default`: transformers 4 leaves others out in this family, and transformers 5 does not";
            return Err(section.wrong(key, &Value::from(rope_type), required));
        }
        Ok(Rope {
            layout: self.layout()?,
            dim,
            theta: stretched.unwrap_or(theta),
            scaling,
            rounds_once: self.facts.rounds_once,
            query_scale: self.query_scale()?,
        })
    }

    fn layout(&self) -> Result<RopeLayout> {
        if !self.facts.has_interleave {
            return Ok(self.facts.layout);
        }
        let is_interleaved = self.root.flag("rope_interleave", true)?;
        Ok(if is_interleaved { RopeLayout::Pairs } else { RopeLayout::Halves })
    }

    /// The length of pretraining in tokens: what stands at the top of a config counts, as in transformers 5.
    fn original_len(&self) -> Result<Option<usize>> {
        let key = "original_max_position_embeddings";
        let reader = if self.root.get(key).is_some() { self.root } else { &self.of_rope };
        let original_len = reader.or(key, None, |r, k, v| r.size(k, v).map(Some))?;
        match original_len {
            // Its logarithm divides.
            Some(1) => Err(reader.wrong(key, &Value::from(1), "at least `2` tokens")),
            _ => Ok(original_len),
        }
    }

    /// What queries are multiplied by, by their positions.
    fn query_scale(&self) -> Result<Option<QueryScale>> {
        if !self.facts.scales_queries {
            return Ok(None);
        }
        let section = &self.of_rope;
        let beta = section.required("llama_4_scaling_beta", Reader::non_negative)?;
        let original_len = self.original_len()?.unwrap_or(self.max_position_embeddings);
        Ok(Some(QueryScale { beta, original_max_position_embeddings: original_len }))
    }

    /// Values of a head that turn.
    fn dim(&self) -> Result<usize> {
        let key = "partial_rotary_factor";
        if self.rope_type()?.1 == "proportional" {
            return Ok(self.head_dim);
        }
        let (reader, value) = match (self.of_rope.get(key), &self.root_partial) {
            (Some(value), _) => (&self.of_rope, value),
            (None, Some(value)) => (self.root, value),
            (None, None) => (self.root, &Value::from(self.facts.partial.unwrap_or(1.0))),
        };
        if let Some(whole) = self.whole_head_dim {
            if (self.of_rope.get(key), &self.root_partial) == (None, &None) {
                return Ok(self.head_dim);
            }
            let partial = reader.positive(key, value)?;
            if (whole as f64 * partial) as usize != self.head_dim {
                let required =
                    format!("absent, or what makes `{}` of heads of `{whole}`", self.head_dim);
                return Err(reader.wrong(key, value, required));
            }
            return Ok(self.head_dim);
        }
        let partial = reader.positive(key, value)?;
        let dim = (self.head_dim as f64 * partial) as usize;
        if self.facts.partial.is_none() && dim != self.head_dim {
            let required = "`1.0`: this family rotates the whole head";
            return Err(reader.wrong(key, value, required));
        }
        if dim < 2 || dim > self.head_dim || !dim.is_multiple_of(2) {
            let required =
                format!("a part of head_dim `{}` that is even, and at least `2`", self.head_dim);
            return Err(reader.wrong(key, value, required));
        }
        Ok(dim)
    }

    /// The base, stretched for all lengths alike.
    ///
    /// Transformers 4.57 forgets `alpha` in a sequence longer than `max_position_embeddings`; the models' own code does not.
    fn stretched_by_alpha(&self, theta: f64, dim: usize) -> Result<Option<f64>> {
        let alpha = self.of_rope.or("alpha", 0.0, Reader::non_negative)?;
        let is_dynamic = self.rope_type()?.1 == "dynamic";
        let dim = dim as f64;
        let is_stretched = self.facts.has_alpha && is_dynamic && alpha > 0.0;
        Ok(is_stretched.then(|| theta * alpha.powf(dim / (dim - 2.0))))
    }

    /// The key that says it, and its value by today's name.
    fn rope_type(&self) -> Result<(&'static str, String)> {
        let section = &self.of_rope;
        let said = |key: &str| section.get(key).map(|x| section.string(key, x)).transpose();
        let renamed = |name: String| match name.as_str() {
            "su" | "yarn" if self.facts.is_longrope => "longrope".to_owned(),
            _ => name,
        };
        // The key was `type` before it was `rope_type`.
        match (said("type")?.map(renamed), said("rope_type")?.map(renamed)) {
            (Some(old), Some(new)) if old != new => {
                let found = format!("`{new}`, beside a `type` of `{old}`");
                let required = "one of the two, or both alike: some versions of transformers read the one, some the other";
                Err(section.refuse("rope_type", found, required))
            }
            (_, Some(new)) => Ok(("rope_type", new)),
            (Some(old), None) => Ok(("type", old)),
            // Transformers 4 rejects it, and transformers 5 ignores the factor.
            (None, None) if section.get("factor").is_some() => {
                Err(section.refuse("rope_type", "missing beside a `factor`", self.rope_types()))
            }
            (None, None) => Ok(("rope_type", "default".to_owned())),
        }
    }

    /// The `rope_type`s that the class has, as a phrase for messages.
    fn rope_types(&self) -> &'static str {
        if self.facts.is_longrope {
            "`default` or `longrope`: this family has no other"
        } else {
            ROPE_TYPES
        }
    }

    fn scaling(&self, dim: usize) -> Result<RopeScaling> {
        let section = &self.of_rope;
        let (key, rope_type) = self.rope_type()?;
        let factor = || section.required("factor", Reader::at_least_one);
        let max_position_embeddings = self.max_position_embeddings;
        match rope_type.as_str() {
            "default" => Ok(RopeScaling::Default),
            "longrope" => self.longrope(dim),
            _ if self.facts.is_longrope => {
                Err(section.wrong(key, &Value::from(rope_type), self.rope_types()))
            }
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "dynamic" => Ok(RopeScaling::Dynamic { factor: factor()?, max_position_embeddings }),
            "yarn" => {
                let original_len = self.original_len()?.unwrap_or(max_position_embeddings);
                yarn(section, factor()?, original_len)
            }
            "llama3" => llama3(section, factor()?, self.original_len()?),
            "proportional" => {
                let partial = section.or("partial_rotary_factor", 1.0, Reader::positive)?;
                let num_pairs = ((partial * dim as f64 / 2.0) as usize).min(dim / 2);
                let factor = section.or("factor", 1.0, Reader::positive)?;
                Ok(RopeScaling::Proportional { num_pairs, factor })
            }
            _ => Err(section.wrong(key, &Value::from(rope_type), self.rope_types())),
        }
    }

    fn longrope(&self, dim: usize) -> Result<RopeScaling> {
        let section = &self.of_rope;
        let max_len = self.max_position_embeddings;
        let said = self.original_len()?.or(self.facts.original_len);
        let original_len = said.unwrap_or(max_len);
        let factor = match (section.get("factor"), said) {
            (Some(value), _) => section.at_least_one("factor", value)?,
            (None, Some(original_len)) => max_len as f64 / original_len as f64,
            (None, None) => section.required("factor", Reader::at_least_one)?,
        };
        let attention_factor = match section.get("attention_factor") {
            Some(value) => section.non_negative("attention_factor", value)?,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original_len as f64).ln()).sqrt(),
        };
        let factors = |key: &str| {
            let required = format!("a list of `{}` numbers above `0`", dim / 2);
            let value = section.get(key).unwrap_or(&Value::Null);
            let list = value.as_array().filter(|list| list.len() == dim / 2);
            let each = |x: &Value| x.as_f64().filter(|x| *x > 0.0);
            list.and_then(|list| list.iter().map(each).collect::<Option<Vec<f64>>>())
                .ok_or_else(|| section.wrong(key, value, required))
        };
        Ok(RopeScaling::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            original_max_position_embeddings: original_len,
            attention_factor,
        })
    }
}

/// Refuses overrides that sections for each layer type would hide.
pub(super) fn check_overrides(reader: &Reader<'_>, overrides: &Map<String, Value>) -> Result<()> {
    let by_type = reader.get("rope_parameters").and_then(Value::as_object);
    if by_type.is_none_or(|map| !map.values().any(Value::is_object)) {
        return Ok(());
    }
    let hidden = ["rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"];
    match hidden.into_iter().find(|key| overrides.contains_key(*key)) {
        Some(key) => {
            let required =
                "`rope_parameters` as a whole, which this config has for each layer type";
            Err(reader.refuse(&format!("hf_config_kwargs.{key}"), "given", required))
        }
        None => Ok(()),
    }
}

/// Removes what an override of the other spelling would otherwise lose to, so that the override is what counts.
pub(super) fn make_room(raw: &mut Map<String, Value>, overrides: &Map<String, Value>) {
    if overrides.contains_key("rope_parameters") {
        raw.remove("rope_scaling");
        raw.remove("rope_theta");
        raw.remove("partial_rotary_factor");
        return;
    }
    // What is not said by layer type stands at the top, where an override can take its place, and where it outlasts that of its section.
    let of_rope = ["partial_rotary_factor", "rope_scaling", "rope_theta"];
    if of_rope.into_iter().any(|key| overrides.contains_key(key))
        && let Some(Value::Object(parameters)) = raw.get_mut("rope_parameters")
        && !parameters.values().any(Value::is_object)
        && let Some(partial) = parameters.remove("partial_rotary_factor")
    {
        raw.insert("partial_rotary_factor".to_owned(), partial);
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

fn yarn(section: &Reader<'_>, factor: f64, original_len: usize) -> Result<RopeScaling> {
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
        original_max_position_embeddings: original_len,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate: section.or("truncate", true, Reader::bool)?,
    })
}

fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn llama3(section: &Reader<'_>, factor: f64, original_len: Option<usize>) -> Result<RopeScaling> {
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
        original_max_position_embeddings: match original_len {
            Some(original_len) => original_len,
            None => section.required("original_max_position_embeddings", Reader::size)?,
        },
    })
}
