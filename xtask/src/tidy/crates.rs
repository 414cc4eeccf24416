//! Which crate may use which, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Each crate of ours with those it may depend on; a new edge is a reviewed change of this table (ARCHITECTURE.md).
const ALLOWED: [(&str, &[&str]); 20] = [
    (
        "sterna",
        &[
            "sterna-train",
            "sterna-checkpoint",
            "sterna-data",
            "sterna-launch",
            "sterna-plan",
            "sterna-recipe",
            "sterna-hf",
            "sterna-arch",
            "sterna-comm",
            "sterna-mesh",
        ],
    ),
    (
        "sterna-train",
        &[
            "sterna-model",
            "sterna-checkpoint",
            "sterna-data",
            "sterna-plan",
            "sterna-recipe",
            "sterna-hf",
            "sterna-arch",
            "sterna-comm",
            "sterna-mesh",
            "sterna-ops",
            "sterna-torch-sys",
        ],
    ),
    ("sterna-model", &["sterna-ops", "sterna-comm", "sterna-arch", "sterna-torch-sys"]),
    ("sterna-comm", &["sterna-mesh", "sterna-torch-sys"]),
    ("sterna-ops", &["sterna-arch", "sterna-torch-sys"]),
    ("sterna-torch-sys", &[]),
    ("sterna-data", &["sterna-hf", "sterna-mesh", "sterna-recipe"]),
    ("sterna-checkpoint", &["sterna-arch", "sterna-hf"]),
    ("sterna-plan", &["sterna-arch", "sterna-mesh", "sterna-recipe"]),
    ("sterna-recipe", &["sterna-arch"]),
    ("sterna-hf", &["sterna-arch"]),
    ("sterna-arch", &[]),
    ("sterna-mesh", &[]),
    ("sterna-launch", &[]),
    (
        "sterna-fuzz",
        &[
            "sterna-arch",
            "sterna-checkpoint",
            "sterna-data",
            "sterna-hf",
            "sterna-launch",
            "sterna-plan",
            "sterna-recipe",
        ],
    ),
    // Its tests hold kernels against the ops that define them.
    ("sterna-fake-cuda", &["sterna-arch", "sterna-ops", "sterna-torch-sys"]),
    ("sterna-testkit", &[]),
    ("sterna-bench", &[]),
    (
        "sterna-suite",
        &["sterna-arch", "sterna-bench", "sterna-ops", "sterna-torch-sys", "sterna-train"],
    ),
    ("xtask", &["sterna-bench"]),
];

/// Any crate of ours may use them in its tests, none in its code.
const FOR_TESTS: [&str; 2] = ["sterna-testkit", "sterna-fake-cuda"];

/// Compile and test in seconds, because they never link libtorch.
const WITHOUT_TORCH: [&str; 10] = [
    "sterna-arch",
    "sterna-mesh",
    "sterna-recipe",
    "sterna-plan",
    "sterna-hf",
    "sterna-data",
    "sterna-checkpoint",
    "sterna-launch",
    "sterna-fuzz",
    "sterna-bench",
];

const TORCH: [&str; 2] = ["tch", "torch-sys"];

/// The resolved packages and their edges.
pub(super) struct Graph {
    /// Package id to name.
    names: BTreeMap<String, String>,
    members: BTreeSet<String>,
    edges: Vec<Edge>,
}

/// `from` depends on `to`, both package ids.
struct Edge {
    from: String,
    to: String,
    /// Only tests, benches and examples of `from` see `to`.
    is_dev: bool,
}

impl Graph {
    /// Reads the output of `cargo metadata --format-version=1`; `None` when a field is missing.
    pub(super) fn from_metadata(metadata: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut names = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            names.insert(text(&package["id"])?, text(&package["name"])?);
        }
        let members =
            metadata["workspace_members"].as_array()?.iter().map(text).collect::<Option<_>>()?;
        let mut edges = Vec::new();
        for node in metadata["resolve"]["nodes"].as_array()? {
            for dependency in node["deps"].as_array()? {
                let kinds = dependency["dep_kinds"].as_array()?;
                edges.push(Edge {
                    from: text(&node["id"])?,
                    to: text(&dependency["pkg"])?,
                    is_dev: kinds.iter().all(|kind| kind["kind"] == "dev"),
                });
            }
        }
        Some(Self { names, members, edges })
    }

    /// Names of the workspace's own crates.
    pub(super) fn members(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|id| self.name(id))
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.names.get(id).map_or(id, String::as_str)
    }

    /// A shortest chain of names from the member `from` to a package named in `targets`, through other than dev edges.
    fn chain(&self, from: &str, targets: &[&str]) -> Option<Vec<&str>> {
        let start = self.members.iter().find(|id| self.name(id) == from)?;
        let mut chains = vec![vec![start.as_str()]];
        let mut seen = BTreeSet::from([start.as_str()]);
        while !chains.is_empty() {
            let mut longer = Vec::new();
            for chain in chains {
                let last = chain.last().copied()?;
                if targets.contains(&self.name(last)) {
                    return Some(chain.into_iter().map(|id| self.name(id)).collect());
                }
                for edge in self.edges.iter().filter(|edge| edge.from == last && !edge.is_dev) {
                    if seen.insert(&edge.to) {
                        longer.push([chain.as_slice(), &[edge.to.as_str()]].concat());
                    }
                }
            }
            chains = longer;
        }
        None
    }
}

/// Edges between our crates that [`ALLOWED`] does not list, and crates that it does not know.
pub(super) fn forbidden_edges(graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    for member in graph.members() {
        if !ALLOWED.iter().any(|(name, _)| *name == member) {
            problems.push(format!("crate `{member}` is not in the table of allowed edges"));
        }
    }
    for edge in graph.edges.iter().filter(|edge| graph.members.contains(&edge.from)) {
        let (from, to) = (graph.name(&edge.from), graph.name(&edge.to));
        let is_ours = graph.members.contains(&edge.to);
        let is_allowed = ALLOWED.iter().any(|(name, uses)| *name == from && uses.contains(&to));
        let is_for_tests = edge.is_dev && FOR_TESTS.contains(&to);
        if is_ours && !is_allowed && !is_for_tests {
            let kind = if edge.is_dev { "dev-dependency" } else { "dependency" };
            problems.push(format!(
                "`{from}` has the {kind} `{to}`, which the table of allowed edges does not list"
            ));
        }
    }
    problems
}

/// Crates of [`WITHOUT_TORCH`] from which libtorch is reached, with the way there.
pub(super) fn torch_reached(graph: &Graph) -> Vec<String> {
    WITHOUT_TORCH
        .iter()
        .filter_map(|name| graph.chain(name, &TORCH))
        .map(|chain| {
            format!("`{}` must not link libtorch, but does: {}", chain[0], chain.join(" -> "))
        })
        .collect()
}

/// Crates that ARCHITECTURE.md does not name, and names in it that are no crates.
pub(super) fn unnamed_or_unknown(graph: &Graph, architecture: &str) -> Vec<String> {
    let words: BTreeSet<&str> = architecture
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
        .map(|word| word.trim_matches('-'))
        .collect();
    let members: BTreeSet<&str> = graph.members().collect();
    let unnamed = members
        .difference(&words)
        .map(|name| format!("ARCHITECTURE.md does not name the crate `{name}`"));
    let unknown = words
        .difference(&members)
        .filter(|word| word.starts_with("sterna-"))
        .map(|word| format!("ARCHITECTURE.md names `{word}`, which is no crate of this workspace"));
    unnamed.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A graph of `(from, to, kind)`; names that start with `sterna` are members.
    fn graph(edges: &[(&str, &str, Option<&str>)]) -> Graph {
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        let members: Vec<&&str> = names.iter().filter(|name| name.starts_with("sterna")).collect();
        let deps = |name: &str| -> Vec<Value> {
            edges
                .iter()
                .filter(|(from, ..)| *from == name)
                .map(|(_, to, kind)| json!({"pkg": to, "dep_kinds": [{"kind": kind}]}))
                .collect()
        };
        Graph::from_metadata(&json!({
            "packages": names.iter().map(|name| json!({"id": name, "name": name})).collect::<Vec<_>>(),
            "workspace_members": members,
            "resolve": {"nodes": names.iter().map(|name| json!({"id": name, "deps": deps(name)})).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    #[test]
    fn an_op_that_communicates_is_named() {
        assert_eq!(forbidden_edges(&graph(&[("sterna-model", "sterna-ops", None)])), [""; 0]);
        assert_eq!(
            forbidden_edges(&graph(&[("sterna-ops", "sterna-comm", None)])),
            [
                "`sterna-ops` has the dependency `sterna-comm`, which the table of allowed edges does not list"
            ]
        );
    }

    #[test]
    fn testkit_is_for_tests_only() {
        assert_eq!(
            forbidden_edges(&graph(&[("sterna-ops", "sterna-testkit", Some("dev"))])),
            [""; 0]
        );
        assert_eq!(
            forbidden_edges(&graph(&[("sterna-ops", "sterna-testkit", None)])),
            [
                "`sterna-ops` has the dependency `sterna-testkit`, which the table of allowed edges does not list"
            ]
        );
    }

    #[test]
    fn a_crate_without_a_row_is_named() {
        assert_eq!(
            forbidden_edges(&graph(&[("sterna-utils", "serde", None)])),
            ["crate `sterna-utils` is not in the table of allowed edges"]
        );
    }

    #[test]
    fn torch_is_found_behind_other_crates_but_not_behind_tests() {
        let hidden = [("sterna-data", "helper", None), ("helper", "torch-sys", None)];
        assert_eq!(
            torch_reached(&graph(&hidden)),
            ["`sterna-data` must not link libtorch, but does: sterna-data -> helper -> torch-sys"]
        );
        let in_build_script = [("sterna-hf", "tch", Some("build"))];
        assert_eq!(torch_reached(&graph(&in_build_script)).len(), 1);
        let in_tests = [("sterna-data", "helper", Some("dev")), ("helper", "torch-sys", None)];
        assert_eq!(torch_reached(&graph(&in_tests)), [""; 0]);
    }

    #[test]
    fn the_written_architecture_and_the_crates_name_each_other() {
        let graph = graph(&[("sterna-model", "sterna-ops", None)]);
        assert_eq!(
            unnamed_or_unknown(&graph, "`sterna-model`, over crates/sterna-ops/src."),
            [""; 0]
        );
        assert_eq!(
            unnamed_or_unknown(&graph, "`sterna-model`, `sterna-kernels`"),
            [
                "ARCHITECTURE.md does not name the crate `sterna-ops`",
                "ARCHITECTURE.md names `sterna-kernels`, which is no crate of this workspace"
            ]
        );
    }
}
