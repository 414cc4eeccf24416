//! Named sets of recipe keys: what is kept for the backward, where, and how attention runs.

use anyhow::{Context as _, Result, bail};

/// Stands for the folder of a run in the value of a key.
const RUN_FOLDER: &str = "{run}";

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) name: String,
    /// `KEY=VALUE`, as `sterna train --set` takes them.
    settings: Vec<String>,
}

/// Names, and the settings that they stand for.
const NAMED: [(&str, &[&str]); 6] = [
    ("default", &[]),
    ("recompute", &["memory.keep_attention=false"]),
    ("segments", &["memory.keep_inputs_every=4", "memory.keep_attention=false"]),
    ("groups", &["memory.keep_attention=false", "memory.attention_head_groups=3"]),
    ("disk", &["memory.inputs_on=disk", "memory.attention_on=disk", "memory.disk_dir={run}/disk"]),
    (
        "smallest",
        &[
            "memory.keep_inputs_every=4",
            "memory.keep_attention=false",
            "memory.inputs_on=disk",
            "memory.disk_dir={run}/disk",
            "memory.attention_head_groups=3",
            "memory.attention_query_tile=2048",
            "memory.tile_bytes=32Mi",
        ],
    ),
];

impl Policy {
    /// The settings for a run whose files are in `folder`.
    pub(super) fn settings(&self, folder: &str) -> Vec<String> {
        self.settings.iter().map(|setting| setting.replace(RUN_FOLDER, folder)).collect()
    }

    /// The settings in one line, for people.
    pub(super) fn shown(&self) -> String {
        if self.settings.is_empty() {
            return "as a recipe without `memory` has it".to_owned();
        }
        let settings: Vec<String> =
            self.settings.iter().map(|setting| format!("`{setting}`")).collect();
        settings.join(", ").replace(RUN_FOLDER, "...")
    }
}

/// Policies from `NAME,NAME:KEY=VALUE+KEY=VALUE`.
///
/// # Errors
///
/// A name that is none of ours, a setting without `=`, or a name that stands twice.
pub(super) fn parse(list: &str) -> Result<Vec<Policy>> {
    let mut policies: Vec<Policy> = Vec::new();
    for item in list.split(',') {
        let policy = parse_one(item.trim())?;
        if policies.iter().any(|other| other.name == policy.name) {
            bail!("`--policies` has `{}` twice", policy.name);
        }
        policies.push(policy);
    }
    Ok(policies)
}

fn parse_one(item: &str) -> Result<Policy> {
    let Some((name, settings)) = item.split_once(':') else {
        let (name, settings) = NAMED.iter().find(|(name, _)| *name == item).with_context(|| {
            let names = NAMED.map(|(name, _)| name).join(", ");
            format!("`--policies` has `{item}`; known are {names}, and NAME:KEY=VALUE")
        })?;
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        return Ok(Policy { name: (*name).to_owned(), settings });
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || !name.chars().all(is_plain) {
        bail!(
            "`--policies` names one `{name}`; a name is of letters, digits, `-` and `_`, for it names a folder too"
        );
    }
    let settings: Vec<String> = settings.split('+').map(str::to_owned).collect();
    if let Some(wrong) = settings.iter().find(|setting| !setting.contains('=')) {
        bail!("`--policies` has `{wrong}` in `{name}`; required is KEY=VALUE");
    }
    Ok(Policy { name: name.to_owned(), settings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_name_of_ours_or_settings_of_ones_own() {
        let policies = parse("disk, wide:memory.tile_bytes=512Mi+tiled_mlp_compute=true").unwrap();
        assert_eq!(policies[0].settings("runs/x")[2], "memory.disk_dir=runs/x/disk");
        assert_eq!(policies[1].name, "wide");
        assert_eq!(
            policies[1].settings("x"),
            ["memory.tile_bytes=512Mi", "tiled_mlp_compute=true"]
        );
        assert_eq!(policies[1].shown(), "`memory.tile_bytes=512Mi`, `tiled_mlp_compute=true`");
    }

    #[test]
    fn wrong_policies_are_refused_with_what_was_found() {
        let error = |list: &str| format!("{:#}", parse(list).unwrap_err());
        assert!(error("default,fast").contains("`fast`; known are default, recompute"));
        assert!(error("a b:x=1").contains("names a folder too"));
        assert!(error("mine:keep").contains("`keep` in `mine`; required is KEY=VALUE"));
        assert!(error("disk,disk").contains("`disk` twice"));
    }
}
