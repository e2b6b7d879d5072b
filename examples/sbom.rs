//! The bill of materials of the binary, CycloneDX 1.5 in JSON: `cargo run --quiet --example sbom > troupe.cdx.json`.
//!
//! What is linked into it and what builds it, as `Cargo.lock` fixes them, for this machine's target; nothing that only tests use.
//! The same lock gives the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO")).args(["-vV"]).output()?;
    let about = String::from_utf8(output.stdout)?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let target = host.ok_or("cargo does not say what it builds for")?;
    let wanted = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        target,
    ];
    let output = Command::new(env!("CARGO")).args(wanted).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let lock: toml::Table = toml::from_str(&std::fs::read_to_string("Cargo.lock")?)?;
    println!("{:#}", bill(&metadata, &checksums(&lock))?);
    Ok(())
}

/// SHA-256 of each package's archive, by name and version.
fn checksums(lock: &toml::Table) -> BTreeMap<(String, String), String> {
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let packages = packages.into_iter().flatten();
    let text = |package: &toml::Value, key| package.get(key)?.as_str().map(str::to_owned);
    packages
        .filter_map(|p| {
            Some((
                (text(p, "name")?, text(p, "version")?),
                text(p, "checksum")?,
            ))
        })
        .collect()
}

fn bill(metadata: &Value, sums: &BTreeMap<(String, String), String>) -> Result<Value, String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let id = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let root = id(&metadata["resolve"]["root"]);
    let nodes = list(&metadata["resolve"]["nodes"]);
    let needs: BTreeMap<String, Vec<String>> = nodes
        .iter()
        .map(|node| {
            let shipped = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|k| k["kind"] != "dev");
            let deps = list(&node["deps"]);
            let deps = deps.iter().filter(|dep| shipped(dep));
            (id(&node["id"]), deps.map(|dep| id(&dep["pkg"])).collect())
        })
        .collect();
    let mut reached = BTreeSet::new();
    let mut next = vec![root.clone()];
    while let Some(package) = next.pop() {
        if reached.insert(package.clone()) {
            next.extend(needs.get(&package).cloned().unwrap_or_default());
        }
    }
    let packages = list(&metadata["packages"]);
    let packages = packages.iter().filter(|p| reached.contains(&id(&p["id"])));
    let (mut of_root, mut components) = (None, BTreeMap::new());
    let mut references = BTreeMap::new();
    for package in packages {
        let (name, version) = (id(&package["name"]), id(&package["version"]));
        let reference = format!("pkg:cargo/{name}@{version}");
        references.insert(id(&package["id"]), reference.clone());
        let mut component = json!({
            "type": "library", "bom-ref": reference, "purl": reference, "name": name, "version": version,
        });
        if let Some(license) = package["license"].as_str() {
            // Cargo's older way to write "or".
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        if let Some(sum) = sums.get(&(name, version)) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        if id(&package["id"]) == root {
            component["type"] = json!("application");
            of_root = Some(component);
        } else {
            components.insert(reference, component);
        }
    }
    let dependencies: BTreeMap<_, Vec<_>> = references
        .iter()
        .map(|(package, reference)| {
            let needed = needs.get(package).into_iter().flatten();
            let needed: BTreeSet<_> = needed.filter_map(|n| references.get(n)).collect();
            (reference, needed.into_iter().collect())
        })
        .collect();
    let dependencies: Vec<_> = dependencies
        .into_iter()
        .map(|(reference, needed)| json!({ "ref": reference, "dependsOn": needed }))
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": of_root.ok_or("the workspace has no root package")? },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies,
    }))
}
