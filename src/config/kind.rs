//! How values are read from TOML or text, and shown.

use super::{BTreeMap, BalancerKind, Duration, LevelFilter, MasterWorks, SocketAddr, Value};

macro_rules! kind {
    ($name:ident -> $type:ty, |$value:ident $(, $arg:ident: $argtype:ty)*| $read:expr, |$shown:ident| $show:expr) => {
        pub(super) mod $name {
            #[allow(unused_imports)]
            use super::*;
            pub(in super::super) fn read($value: &Value $(, $arg: $argtype)*) -> Result<$type, String> { $read }
            #[allow(clippy::ptr_arg, reason = "one shape for all kinds")]
            pub(in super::super) fn show($shown: &$type) -> String { $show }
        }
    };
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

fn integer(value: &Value) -> Option<i64> {
    value
        .as_integer()
        .or_else(|| text(value)?.replace('_', "").parse().ok())
}

/// As TOML, on one line whatever is in it, so that it can be a key, too.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 63 && text.chars().all(plain)
}

const NAME_RULE: &str = "1 to 63 letters, digits, `-`, `_` or `.`";

fn in_words(d: Duration) -> String {
    humantime::format_duration(d).to_string()
}

kind!(name -> String,
    |v| text(v).filter(|t| is_name(t)).map(str::to_owned).ok_or_else(|| NAME_RULE.to_owned()),
    |s| quoted(s));
kind!(optional_name -> Option<String>,
    |v| super::name::read(v).map(Some),
    |s| s.as_deref().map_or_else(|| "\"\"".to_owned(), quoted));
kind!(optional_text -> Option<String>,
    |v| text(v).filter(|t| !t.is_empty()).map(|t| Some(t.to_owned())).ok_or_else(|| "a text".to_owned()),
    |s| s.as_deref().map_or_else(|| "\"\"".to_owned(), quoted));
kind!(address -> SocketAddr,
    |v| text(v).and_then(|t| t.parse().ok()).ok_or_else(|| "an address with a port, such as \"0.0.0.0:22222\"".to_owned()),
    |a| quoted(&a.to_string()));
kind!(optional_address -> Option<SocketAddr>,
    |v| super::address::read(v).map(Some),
    |a| a.map_or_else(|| "\"\"".to_owned(), |a| quoted(&a.to_string())));
kind!(table -> BTreeMap<String, String>,
|v| {
    let rule = || "a table of texts, such as { disk = \"ssd\" }".to_owned();
    let table = v.as_table().ok_or_else(rule)?;
    table.iter().map(|(k, v)| Ok((k.clone(), v.as_str().ok_or_else(rule)?.to_owned()))).collect()
},
|t| {
    let pairs: Vec<String> = t.iter().map(|(k, v)| format!("{} = {}", quoted(k), quoted(v))).collect();
    format!("{{ {} }}", pairs.join(", "))
});
kind!(urls -> Vec<String>,
    |v| {
        let rule = || "a list of http(s) URLs, such as [\"http://10.0.0.5:2379\"]; registry.user and registry.password_file say who asks".to_owned();
        let list: Vec<String> = match v {
            Value::Array(items) => items.iter().map(|i| i.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(rule)?,
            Value::String(s) => s.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect(),
            _ => return Err(rule()),
        };
        let fits = |u: &String| (u.starts_with("http://") || u.starts_with("https://")) && u.len() > 8 && !u.contains('@');
        if list.iter().all(fits) { Ok(list) } else { Err(rule()) }
    },
    |list| format!("[{}]", list.iter().map(|u| quoted(u)).collect::<Vec<_>>().join(", ")));
kind!(hosts -> Vec<String>,
    |v| {
        let rule = || "a list of host names, such as [\"node-a.example.org\"]".to_owned();
        let list: Vec<String> = match v {
            Value::Array(items) => items.iter().map(|i| i.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(rule)?,
            Value::String(s) => s.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect(),
            _ => return Err(rule()),
        };
        if list.iter().all(|host| host.len() <= 253 && host.split('.').all(is_name)) { Ok(list) } else { Err(rule()) }
    },
    |list| format!("[{}]", list.iter().map(|h| quoted(h)).collect::<Vec<_>>().join(", ")));
kind!(duration -> Duration,
    |v, min: u64, max: u64| {
        let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
        let rule = || format!("a duration with a unit, from {} to {}, such as \"250ms\", \"10s\" or \"2m\"", in_words(min), in_words(max));
        let d = text(v).and_then(|t| humantime::parse_duration(t).ok()).ok_or_else(rule)?;
        if d >= min && d <= max { Ok(d) } else { Err(rule()) }
    },
    |d| quoted(&in_words(*d).replace(' ', "")));
kind!(count -> usize,
    |v, min: i64, max: i64| integer(v).filter(|n| (min..=max).contains(n)).and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| format!("a whole number from {min} to {max}")),
    |n| n.to_string());
kind!(small -> u32,
    |v, min: i64, max: i64| integer(v).filter(|n| (min..=max).contains(n)).and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| format!("a whole number from {min} to {max}")),
    |n| n.to_string());
kind!(number -> u64,
    |v| integer(v).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| "a whole number, 0 or more".to_owned()),
    |n| n.to_string());
kind!(weight -> i32,
    |v| integer(v).and_then(|n| i32::try_from(n).ok()).filter(|n| (-1000..=1000).contains(n))
        .ok_or_else(|| "a whole number from -1000 to 1000".to_owned()),
    |n| n.to_string());
kind!(switch -> bool,
    |v| v.as_bool().or_else(|| text(v)?.parse().ok()).ok_or_else(|| "true or false".to_owned()),
    |b| b.to_string());
kind!(balancer -> BalancerKind,
    |v| text(v).and_then(|t| serde_json::from_value(t.into()).ok())
        .ok_or_else(|| "one of \"random\", \"round-robin\", \"least-loaded\", \"two-choices\"".to_owned()),
    |b| serde_json::to_string(b).unwrap_or_default());
kind!(master_works -> MasterWorks,
    |v| text(v).and_then(|t| serde_json::from_value(t.into()).ok())
        .ok_or_else(|| "one of \"when-alone\", \"always\", \"never\"".to_owned()),
    |m| serde_json::to_string(m).unwrap_or_default());
kind!(level -> LevelFilter,
    |v| text(v).and_then(|t| t.parse().ok())
        .ok_or_else(|| "one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\"".to_owned()),
    |l| quoted(&l.as_str().to_lowercase()));
