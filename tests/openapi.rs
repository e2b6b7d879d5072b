//! The description of the API, held against OpenAPI 3.1 by a validator of its own.
//!
//! The validator is Python's openapi-spec-validator, which `tests/all` puts into `target/tools/openapi`; skipped, and said so, where
//! there is none.

use std::path::Path;
use std::process::{Command, Output};

fn python(args: &[&str]) -> Output {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/openapi");
    let mut python = Command::new("python3");
    python.args(args).env("PYTHONPATH", tools);
    python.output().unwrap()
}

fn validate(file: &Path) -> (bool, String) {
    let output = python(&["-m", "openapi_spec_validator", file.to_str().unwrap()]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let words = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), words)
}

#[test]
fn the_description_is_valid_openapi() {
    let has = Command::new("python3").arg("--version").output().is_ok()
        && python(&["-c", "import openapi_spec_validator"])
            .status
            .success();
    if !has {
        eprintln!("skipped: openapi-spec-validator is not installed (tests/all installs it)");
        return;
    }
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/src/admin/dashboard/openapi.json");
    let (valid, words) = validate(&file);
    assert!(valid, "{words}");
    // The validator does find what is wrong.
    let text = std::fs::read_to_string(&file).unwrap();
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        broken.path(),
        text.replace("\"in\": \"path\"", "\"in\": \"nowhere\""),
    )
    .unwrap();
    assert!(!validate(broken.path()).0);
}
