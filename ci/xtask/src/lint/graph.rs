//! Rules about which crate may depend on which.
//!
//! Pure: reads what `cargo metadata` says. The rules are those a reader of
//! `docs/architecture.md` relies on.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Finding;

/// Direct dependencies by package; build and development ones apart.
#[derive(Debug, Default)]
struct Graph {
    normal: BTreeMap<String, BTreeSet<String>>,
    all: BTreeMap<String, BTreeSet<String>>,
}

/// Packages whose direct dependencies are a closed list.
const CLOSED: &[(&str, &[&str])] = &[
    ("enclave-abi", &["zerocopy"]),
    ("enclave-arena", &["enclave-abi"]),
    ("enclave-core", &["enclave-abi", "enclave-arena", "elf"]),
    (
        "xasm",
        &["enclave-abi", "enclave-arena", "linux-raw-sys", "zerocopy"],
    ),
    ("xtask", &["anyhow", "clap", "serde", "serde_json"]),
];

/// All broken rules of the crate graph.
pub(crate) fn check(metadata: &Value) -> Vec<Finding> {
    let graph = Graph::read(metadata);
    let mut findings = Vec::new();
    for (package, allowed) in CLOSED {
        for dependency in graph.direct(package) {
            if !allowed.contains(&dependency.as_str()) {
                let message = format!("depends on {dependency}, allowed: {}", allowed.join(", "));
                findings.push(Finding::new(package, 0, message));
            }
        }
    }
    if graph.reaches("xemem-host", "enclave-vmm") {
        let message = "depends on enclave-vmm: the broker knows no VMM";
        findings.push(Finding::new("xemem-host", 0, message));
    }
    for (package, dependencies) in &graph.all {
        if dependencies.contains("enclave-kernel") {
            let message = "depends on enclave-kernel, which is only ever a file";
            findings.push(Finding::new(package, 0, message));
        }
    }
    for dependency in graph.direct("enclavectl") {
        if dependency.starts_with("kvm-") {
            let message = format!("depends on {dependency}: the command line names no KVM type");
            findings.push(Finding::new("enclavectl", 0, message));
        }
    }
    findings.extend(features(metadata));
    findings
}

/// The contract crate has no features: a host crate that enabled one would
/// change the kernel's copy.
fn features(metadata: &Value) -> Vec<Finding> {
    packages(metadata)
        .filter(|package| package["name"] == "enclave-abi")
        .filter(|package| {
            package["features"]
                .as_object()
                .is_some_and(|f| !f.is_empty())
        })
        .map(|_| Finding::new("enclave-abi", 0, "has cargo features"))
        .collect()
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(move |package| {
            package["id"]
                .as_str()
                .is_some_and(|id| members.contains(id))
        })
}

impl Graph {
    fn read(metadata: &Value) -> Self {
        let mut graph = Self::default();
        for package in packages(metadata) {
            let name = package["name"].as_str().unwrap_or_default();
            for dependency in package["dependencies"].as_array().into_iter().flatten() {
                let target = dependency["name"].as_str().unwrap_or_default().to_owned();
                if dependency["kind"].is_null() {
                    let normal = graph.normal.entry(name.to_owned()).or_default();
                    normal.insert(target.clone());
                }
                graph.all.entry(name.to_owned()).or_default().insert(target);
            }
        }
        graph
    }

    fn direct(&self, package: &str) -> impl Iterator<Item = &String> {
        self.normal.get(package).into_iter().flatten()
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut waiting = vec![from];
        while let Some(package) = waiting.pop() {
            for dependency in self.direct(package) {
                if dependency == to {
                    return true;
                }
                if seen.insert(dependency.as_str()) {
                    waiting.push(dependency);
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(packages: &[(&str, &[&str])]) -> Value {
        let packages: Vec<Value> = packages
            .iter()
            .map(|(name, dependencies)| {
                let dependencies: Vec<Value> = dependencies
                    .iter()
                    .map(|name| json!({"name": name, "kind": null}))
                    .collect();
                json!({"id": name, "name": name, "dependencies": dependencies, "features": {}})
            })
            .collect();
        let members: Vec<&Value> = packages.iter().map(|package| &package["id"]).collect();
        json!({"workspace_members": members, "packages": packages})
    }

    fn places(packages: &[(&str, &[&str])]) -> Vec<String> {
        let findings = check(&workspace(packages));
        findings.into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn the_intended_graph_passes() {
        let found = places(&[
            ("enclave-abi", &["zerocopy"]),
            ("enclave-core", &["enclave-abi", "elf"]),
            ("xemem-host", &["enclave-abi", "rustix"]),
            ("enclave-vmm", &["xemem-host", "kvm-ioctls"]),
            ("enclavectl", &["enclave-vmm", "xemem-host"]),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_wrong_edge_is_named() {
        assert_eq!(places(&[("enclave-core", &["x86_64"])]), ["enclave-core"]);
        assert_eq!(places(&[("enclavectl", &["kvm-ioctls"])]), ["enclavectl"]);
        assert_eq!(places(&[("cli", &["enclave-kernel"])]), ["cli"]);
        assert_eq!(places(&[("xtask", &["enclave-abi"])]), ["xtask"]);
    }

    #[test]
    fn a_detour_to_the_vmm_is_found() {
        let found = places(&[("xemem-host", &["middle"]), ("middle", &["enclave-vmm"])]);
        assert_eq!(found, ["xemem-host"]);
    }

    #[test]
    fn features_of_the_contract_crate_are_refused() {
        let mut metadata = workspace(&[("enclave-abi", &["zerocopy"])]);
        metadata["packages"][0]["features"] = json!({"std": []});
        assert_eq!(check(&metadata).len(), 1);
    }
}
