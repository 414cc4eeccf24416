//! A resolved recipe as JSON: the keys of the recipe with every default filled in.
//!
//! It is derived from the fields of [`crate::recipe`], which are called as the keys are. Here is what is not: values that
//! are one of several types, and what the reference groups otherwise.

use std::fmt::Display;

use serde::{Serialize, Serializer, ser::Error};
use serde_json::{Value, json};

use crate::recipe::{
    DeepSpeedOptions, KeepAttention, Place, Ranks, Recipe, RolePath, Sampling, SchedulerOptions,
};

impl Recipe {
    /// The recipe with every default filled in, under its own keys. `null` is what depends on the model or the environment.
    ///
    /// # Panics
    ///
    /// If a path is not UTF-8; one that was read from a recipe is.
    pub fn to_json(&self) -> Value {
        let mut recipe = serde_json::to_value(self).expect("paths are UTF-8");
        // `memory.optimizer_on` in the reference's words.
        let device = match self.memory.optimizer_on {
            Place::Device => "none",
            Place::Host => "cpu",
            Place::Disk => "nvme",
        };
        recipe["deepspeed"]["zero_optimization"]["offload_optimizer"] = json!({ "device": device });
        recipe
    }
}

impl Serialize for DeepSpeedOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let deepspeed = json!({
            "zero_optimization": {
                "stage": self.zero_stage.number(),
                // The recipe fills it in, from `memory`.
                "offload_optimizer": null,
                "offload_param": { "device": if self.offload_param { "cpu" } else { "none" } },
            },
            "gradient_clipping": self.gradient_clipping,
            "seq_parallel_communication_data_type": self.reduce_dtype.torch_name(),
            "data_types": { "grad_accum_dtype": self.grad_accum_dtype.torch_name() },
        });
        deepspeed.serialize(serializer)
    }
}

/// A curve is its name and a mapping of its arguments, which is there for those without any too.
impl Serialize for SchedulerOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, kwargs) = match serde_json::to_value(&self.schedule).map_err(S::Error::custom)? {
            Value::Object(curve) => curve.into_iter().next().unwrap_or_default(),
            name => (name.as_str().unwrap_or_default().to_owned(), json!({})),
        };
        let scheduler = json!({
            "name": name,
            "warmup_ratio": self.warmup_ratio,
            "scheduler_specific_kwargs": kwargs,
        });
        scheduler.serialize(serializer)
    }
}

impl Serialize for Sampling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (ratio, count) = match *self {
            Self::All => (None, None),
            Self::Ratio(ratio) => (Some(ratio), None),
            Self::Count(count) => (None, Some(count)),
        };
        json!({ "sample_ratio": ratio, "sample_count": count }).serialize(serializer)
    }
}

/// A word, a flag or a number.
impl Serialize for KeepAttention {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Auto => "auto".serialize(serializer),
            Self::All => true.serialize(serializer),
            Self::Blocks(0) => false.serialize(serializer),
            Self::Blocks(number) => number.serialize(serializer),
        }
    }
}

impl Serialize for Ranks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => "*".serialize(serializer),
            Self::List(ranks) => ranks.serialize(serializer),
        }
    }
}

/// Roles and where their messages are, as a mapping in the order of a turn.
pub(crate) fn roles<S: Serializer>(
    roles: &[(String, RolePath)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(roles.iter().map(|(role, path)| (role, path.to_string())))
}

/// As it is displayed.
pub(crate) fn displayed<T: Display, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// 1 for on, 0 for off.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
pub(crate) fn as_number<S: Serializer>(flag: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(u8::from(*flag))
}
