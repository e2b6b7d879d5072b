//! `[jobs.NAME]`: commands as jobs. From the file alone: no flag, no variable and nothing from the network makes a command.

use std::collections::BTreeMap;

use toml::Value;
use troupe_actors::job::exec::ExecSettings;

use super::kind;

/// The kinds of work that every node has.
const BUILT_IN: [&str; 2] = ["multiply", "noop"];
/// Keys of one job, for whoever mistypes one.
const KEYS: &str =
    "one of command, cwd, env, timeout, max_output, concurrency, retry_on (a list of exit codes)";

/// What is wrong: the dotted key, its value, and the rule.
pub(super) type Wrong = (String, String, String);

/// Reads the table `jobs`.
pub(super) fn read(jobs: &Value) -> Result<BTreeMap<String, ExecSettings>, Wrong> {
    let wrong = |key: String, value: &Value, rule: &str| (key, value.to_string(), rule.to_owned());
    let rule = "tables, each [jobs.NAME] with a command";
    let tables = jobs
        .as_table()
        .ok_or_else(|| wrong("jobs".to_owned(), jobs, rule))?;
    let mut read = BTreeMap::new();
    for (name, job) in tables {
        let key = format!("jobs.{name}");
        let value = Value::String(name.clone());
        kind::name::read(&value).map_err(|rule| wrong(key.clone(), &value, &rule))?;
        if BUILT_IN.contains(&name.as_str()) {
            return Err(wrong(key, &value, "another name: this job is built in"));
        }
        let table = job
            .as_table()
            .ok_or_else(|| wrong(key.clone(), job, "a table with a command"))?;
        read.insert(name.clone(), one(&key, table)?);
    }
    Ok(read)
}

fn one(job: &str, table: &toml::Table) -> Result<ExecSettings, Wrong> {
    let mut settings = ExecSettings::default();
    for (key, value) in table {
        let set = set(&mut settings, key, value);
        set.map_err(|rule| (format!("{job}.{key}"), value.to_string(), rule))?;
    }
    if settings.command.is_empty() {
        let rule = "a table with a command, such as command = [\"/usr/bin/convert\", \"-\"]";
        return Err((job.to_owned(), table.to_string(), rule.to_owned()));
    }
    Ok(settings)
}

fn set(settings: &mut ExecSettings, key: &str, value: &Value) -> Result<(), String> {
    match key {
        "command" => settings.command = command(value)?,
        "cwd" => settings.cwd = kind::optional_text::read(value)?.map(Into::into),
        "env" => settings.env = kind::table::read(value)?,
        "timeout" => settings.timeout = Some(kind::duration::read(value, 1, 86_400_000)?),
        "max_output" => settings.max_output = kind::count::read(value, 1, 262_144)?,
        "concurrency" => settings.concurrency = kind::count::read(value, 1, 65_536)?,
        "retry_on" => settings.retry_on = codes(value)?,
        _ => return Err(KEYS.to_owned()),
    }
    Ok(())
}

fn command(value: &Value) -> Result<Vec<String>, String> {
    let words = value.as_array().map(|words| {
        let text = |word: &Value| word.as_str().map(str::to_owned);
        words.iter().map(text).collect::<Option<Vec<_>>>()
    });
    let words = words.flatten().filter(|words| !words.is_empty());
    let words = words.filter(|w| !w[0].is_empty() && w.iter().all(|word| !word.contains('\0')));
    words.ok_or_else(|| {
        "a program and its arguments as a list of texts; no shell reads them".to_owned()
    })
}

fn codes(value: &Value) -> Result<Vec<i32>, String> {
    let code = |code: &Value| {
        let code = code.as_integer().filter(|code| (1..=255).contains(code))?;
        i32::try_from(code).ok()
    };
    let codes = value
        .as_array()
        .map(|codes| codes.iter().map(code).collect());
    codes
        .flatten()
        .ok_or_else(|| "a list of exit codes from 1 to 255".to_owned())
}

/// Every key of these jobs with its value in TOML.
pub(super) fn shown(jobs: &BTreeMap<String, ExecSettings>) -> Vec<(String, String)> {
    let mut shown = Vec::new();
    for (name, job) in jobs {
        // A dot in a name is no way into a table.
        let name = if name.contains('.') {
            format!("\"{name}\"")
        } else {
            name.clone()
        };
        let mut say = |key: &str, value: String| shown.push((format!("jobs.{name}.{key}"), value));
        let words = |words: &[String]| Value::from(words.to_vec()).to_string();
        say("command", words(&job.command));
        if let Some(cwd) = &job.cwd {
            say(
                "cwd",
                Value::from(cwd.to_string_lossy().as_ref()).to_string(),
            );
        }
        say("env", kind::table::show(&job.env));
        if let Some(timeout) = &job.timeout {
            say("timeout", kind::duration::show(timeout));
        }
        say("max_output", job.max_output.to_string());
        say("concurrency", job.concurrency.to_string());
        say("retry_on", format!("{:?}", job.retry_on));
    }
    shown
}
