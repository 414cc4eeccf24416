//! Every key of a recipe, and what another value of it changes.
//!
//! A key's row in `file/sections.rs` says it, so that it is known wherever it matters: whether ranks may differ in the
//! key, and whether a resumed run mentions that it changed.

use std::sync::LazyLock;

use crate::{
    file::{Read, RecipeFile},
    yaml::join,
};

/// What another value of a key changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affects {
    /// What is computed.
    Numbers,
    /// What is computed, by way of the model's config or the samples. Those are compared themselves, by their values or
    /// hashes.
    Inputs,
    /// Where a host finds the weights that the first step starts from.
    Weights,
    /// What all ranks do together, such as what is kept where, in which parts something is computed, or when it is
    /// saved. Numbers change by the order of sums at most.
    Ranks,
    /// Where something else is on a host, or what it prints.
    Host,
}

impl Affects {
    /// Whether all ranks have to have the same value.
    pub fn must_agree(self) -> bool {
        match self {
            Self::Numbers | Self::Inputs | Self::Ranks => true,
            Self::Weights | Self::Host => false,
        }
    }

    /// Whether a run that goes on from a checkpoint says that the value changed.
    pub fn is_told_on_resume(self) -> bool {
        match self {
            Self::Numbers | Self::Weights => true,
            Self::Inputs | Self::Ranks | Self::Host => false,
        }
    }
}

/// A key of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its dotted path, list items written as `[]`: `data.sources[].split`.
    pub path: String,
    /// What another value changes; `None` for a key that has nothing to do here, or is refused.
    pub affects: Option<Affects>,
}

/// Every key of a recipe, in the order of the parser's sections.
pub fn keys() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
        let mut keys = Vec::new();
        // The recipe as a whole is no key.
        RecipeFile::keys("", None, &mut keys);
        keys
    });
    &KEYS
}

/// What another value of `key` changes: a dotted path, list items as numbers, as in the resolved recipe
/// (`checkpoint.0.output_dir`), or as in [`Key::path`].
///
/// A path that is no key, as below a mapping that takes any, is as the nearest key above it; `None` if there is none.
pub fn affects(key: &str) -> Option<Affects> {
    let mut path = String::new();
    let mut found = None;
    for name in key.split('.') {
        path = if name.bytes().all(|c| c.is_ascii_digit()) {
            format!("{path}[]")
        } else {
            join(&path, name)
        };
        if let Some(key) = keys().iter().find(|key| key.path == path) {
            found = key.affects;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Affects, affects};

    #[test]
    fn a_key_is_found_in_a_section_a_list_and_below_a_mapping_that_takes_any() {
        assert_eq!(affects("seed"), Some(Affects::Numbers));
        assert_eq!(affects("data.seed"), Some(Affects::Inputs));
        assert_eq!(affects("deepspeed.zero_optimization.stage"), Some(Affects::Ranks));
        assert_eq!(affects("checkpoint.12.output_dir"), Some(Affects::Host));
        assert_eq!(affects("checkpoint[].auto_resume"), Some(Affects::Ranks));
        assert_eq!(affects("model.hf_config_kwargs.rope_scaling.0"), Some(Affects::Inputs));
    }

    #[test]
    fn what_has_nothing_to_do_or_is_no_key_affects_nothing() {
        assert_eq!(affects("deepspeed.steps_per_print"), None);
        assert_eq!(affects("sede"), None);
        assert_eq!(affects(""), None);
    }
}
