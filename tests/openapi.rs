//! The description of the API, held against OpenAPI 3.1 by a validator of its own.
//!
//! The validator is Python's openapi-spec-validator, by which `tests/all` makes `target/tools`; skipped, and said so, where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that has it.
fn python() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
    let all = [tools.join("bin/python3"), PathBuf::from("python3")];
    let has = |python: &PathBuf| {
        let import = Command::new(python)
            .args(["-c", "import openapi_spec_validator"])
            .output();
        import.is_ok_and(|o| o.status.success())
    };
    all.into_iter().find(has)
}

fn validate(python: &Path, file: &Path) -> (bool, String) {
    let output = Command::new(python)
        .args(["-m", "openapi_spec_validator"])
        .arg(file)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let words = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), words)
}

#[test]
fn the_description_is_valid_openapi() {
    let Some(python) = python() else {
        eprintln!("SKIPPED: openapi-spec-validator is not installed (tests/all installs it)");
        return;
    };
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/src/admin/dashboard/openapi.json");
    let (valid, words) = validate(&python, &file);
    assert!(valid, "{words}");
    // The validator does find what is wrong.
    let text = std::fs::read_to_string(&file).unwrap();
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        broken.path(),
        text.replace("\"in\": \"path\"", "\"in\": \"nowhere\""),
    )
    .unwrap();
    assert!(!validate(&python, broken.path()).0);
}
