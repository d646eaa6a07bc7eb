//! `cargo xtask check-deps`: which crate may reach which, by way of what is linked (normal dependencies).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::workspace;

/// What one crate of this workspace may and may not reach, directly or through others.
struct Rule {
    name: &'static str,
    /// The crates of this workspace that it may reach.
    first_party: &'static [&'static str],
    /// Foreign crates that it must not reach; a trailing `*` stands for any ending.
    forbidden: &'static [&'static str],
}

/// Everything that touches files, processes, clocks, sockets or an asynchronous runtime.
const RUNTIME: &[&str] = &["aws-*", "libc", "mio", "nix", "rustix", "tokio*", "zbus*"];

/// The directions of docs/architecture.md.
const RULES: &[Rule] = &[
    Rule { name: "secretfs-core", first_party: &[], forbidden: RUNTIME },
    Rule { name: "secretfs-generator", first_party: &["secretfs-core"], forbidden: &["aws-*", "tokio*", "zbus*"] },
    Rule { name: "secretfs-keys", first_party: &["secretfs-core"], forbidden: &["zbus*"] },
    Rule { name: "secretfs-block", first_party: &["secretfs-core"], forbidden: &["aws-*", "zbus*"] },
    Rule { name: "secretfs-systemd", first_party: &["secretfs-core"], forbidden: &["aws-*"] },
    Rule {
        name: "secretfsd",
        first_party: &["secretfs-block", "secretfs-core", "secretfs-systemd"],
        forbidden: &["aws-*"],
    },
    Rule {
        name: "secretfs-cli",
        first_party: &["secretfs-block", "secretfs-core", "secretfs-generator", "secretfs-keys", "secretfs-systemd"],
        forbidden: &[],
    },
    Rule { name: "xtask", first_party: &[], forbidden: &[] },
];

/// Names of the crates that each crate depends on directly.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Checks the workspace and prints each path that offends.
pub(crate) fn check() -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(workspace())
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned))
        .exec()?;
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
    let mut graph = Graph::new();
    for node in &metadata.resolve.as_ref().context("cargo metadata resolved nothing")?.nodes {
        let dependencies = graph.entry(names[&node.id].clone()).or_default();
        for dependency in &node.deps {
            if dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal) {
                dependencies.insert(names[&dependency.pkg].clone());
            }
        }
    }
    let first_party = metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();

    let offences = offences(&graph, &first_party, RULES);
    for offence in &offences {
        println!("check-deps: {offence}");
    }
    if !offences.is_empty() {
        bail!("{} forbidden dependencies", offences.len());
    }
    println!("check-deps: {} crates reach only what they may", first_party.len());
    Ok(())
}

/// Every offence against the rules, one line each.
fn offences(graph: &Graph, first_party: &BTreeSet<String>, rules: &[Rule]) -> Vec<String> {
    let mut found = Vec::new();
    for name in first_party {
        let Some(rule) = rules.iter().find(|rule| rule.name == name) else {
            found.push(format!("{name}: there is no rule for this crate"));
            continue;
        };
        for (reached, path) in reach(graph, name) {
            let allowed = if first_party.contains(&reached) {
                rule.first_party.contains(&reached.as_str())
            } else {
                !rule.forbidden.iter().any(|pattern| matches(pattern, &reached))
            };
            if !allowed {
                found.push(format!("{name} must not reach {reached}: {}", path.join(" -> ")));
            }
        }
    }
    found
}

/// Every crate that can be reached from `start`, with a shortest path to it.
fn reach(graph: &Graph, start: &str) -> BTreeMap<String, Vec<String>> {
    let mut paths: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut queue = VecDeque::from([vec![start.to_owned()]]);
    while let Some(path) = queue.pop_front() {
        let end = path.last().expect("a path has its start");
        for next in graph.get(end).into_iter().flatten() {
            if next != start && !paths.contains_key(next) {
                let longer = [path.as_slice(), std::slice::from_ref(next)].concat();
                paths.insert(next.clone(), longer.clone());
                queue.push_back(longer);
            }
        }
    }
    paths
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_RULES: &[Rule] = &[
        Rule { name: "core", first_party: &[], forbidden: &["tokio*"] },
        Rule { name: "daemon", first_party: &["core"], forbidden: &["aws-*"] },
        Rule { name: "keys", first_party: &["core"], forbidden: &[] },
    ];

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        edges.iter().map(|(name, dependencies)| ((*name).to_owned(), set(dependencies))).collect()
    }

    fn first_party() -> BTreeSet<String> {
        ["core", "daemon", "keys"].map(str::to_owned).into()
    }

    #[test]
    fn permitted_directions_pass() {
        let graph = graph(&[("core", &["serde"]), ("daemon", &["core", "tokio"]), ("keys", &["core", "aws-sdk-kms"])]);
        assert_eq!(offences(&graph, &first_party(), TEST_RULES), Vec::<String>::new());
    }

    #[test]
    fn each_offence_is_named_with_its_path() {
        let graph = graph(&[
            ("core", &["helper"]),
            ("helper", &["tokio-util"]),
            ("daemon", &["core", "keys"]),
            ("keys", &["aws-sdk-kms"]),
        ]);
        assert_eq!(
            offences(&graph, &first_party(), TEST_RULES),
            [
                "core must not reach tokio-util: core -> helper -> tokio-util",
                "daemon must not reach aws-sdk-kms: daemon -> keys -> aws-sdk-kms",
                "daemon must not reach keys: daemon -> keys",
            ]
        );
    }

    #[test]
    fn a_crate_without_a_rule_is_an_offence() {
        let first_party = BTreeSet::from(["newcomer".to_owned()]);
        assert_eq!(offences(&Graph::new(), &first_party, TEST_RULES), ["newcomer: there is no rule for this crate"]);
    }
}
