//! Operating a node: taking it out, changing its settings.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::sleep;
use troupe_actors::admin::{
    ChangedView, ConfigView, DrainReceipt, DrainView, MembersView, StatusView,
};

use super::api::{Api, Failure, query, segment};
use super::read;
use super::say::{Screen, Table, Text};
use super::tasks::{MARGIN, ROUND};
use crate::cli::pair;

/// Pause between two looks at the view while the end of a drain is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `troupe drain`: with `--wait` until the node is gone, and 1 when its receipt is not clean.
pub(super) async fn drain(
    api: &Api,
    screen: &Screen,
    node: Option<String>,
    wait: bool,
) -> Result<(), Failure> {
    let asked: StatusView = read(api.get("/v1/status").await?)?;
    let name = node.unwrap_or_else(|| asked.node.clone());
    let path = format!("/v1/members/{}/drain", segment(&name));
    if !wait {
        let begun = api.post(&path, String::new()).await?;
        return screen.answer(begun, |d: &DrainView| format!("{} drains", d.node));
    }
    let before: MembersView = read(api.get("/v1/members").await?)?;
    let member = before.members.iter().find(|m| m.name == name);
    let receipt = receipt(api, &path).await?;
    let id = member.map_or(receipt.id, |m| m.id);
    until_gone(api, id, id == asked.id).await?;
    let value = serde_json::to_value(&receipt).unwrap_or_default();
    screen.value(&value, || receipt_table(&receipt))?;
    match receipt.is_clean() {
        true => Ok(()),
        false => Err(Failure::Failed),
    }
}

/// Asks until the receipt is known; a node waits only so long in one request, and asking again begins nothing anew.
async fn receipt(api: &Api, path: &str) -> Result<DrainReceipt, Failure> {
    let path = format!("{path}?wait={}ms", ROUND.as_millis());
    loop {
        let answer = api
            .post_within(&path, String::new(), ROUND + MARGIN)
            .await?;
        // Until then it is only said that it drains.
        if answer.0.get("draining").is_none() {
            return read(answer);
        }
    }
}

async fn until_gone(api: &Api, id: troupe_actors::id::NodeId, itself: bool) -> Result<(), Failure> {
    loop {
        match api.get("/v1/members").await.and_then(read::<MembersView>) {
            Ok(view) if view.members.iter().all(|m| m.id != id) => return Ok(()),
            // The asked node itself leaves: that it no longer answers is what was waited for.
            Err(Failure::Nobody { .. }) if itself => return Ok(()),
            Err(failure @ Failure::Nobody { .. }) => return Err(failure),
            // A refusal while it changes hands.
            Ok(_) | Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

fn receipt_table(receipt: &DrainReceipt) -> Text {
    let mut lines = vec![
        format!("{} is gone, after {} ms", receipt.node, receipt.duration_ms),
        format!("finished     {}", receipt.finished),
        format!("handed back  {}", receipt.handed_back),
        format!("handed over  {}", receipt.handed_over),
        format!("lost         {}", receipt.lost),
    ];
    if receipt.untold > 0 {
        lines.push(format!(
            "untold       {} (durable ones run again)",
            receipt.untold
        ));
    }
    if let (Some(heir), Some(ms)) = (&receipt.heir, receipt.masterless_ms) {
        let epoch = receipt.epoch.as_deref().unwrap_or("?");
        lines.push(format!(
            "masterless   {ms:.1} ms; {heir} leads under {epoch}"
        ));
    }
    lines.extend(
        receipt
            .wrong
            .iter()
            .map(|why| format!("wrong        {why}")),
    );
    lines.join("\n").into()
}

/// `troupe set`.
pub(super) async fn set(
    api: &Api,
    screen: &Screen,
    node: &str,
    settings: &[String],
) -> Result<(), Failure> {
    let pairs = settings.iter().map(|text| pair(text));
    let values: Result<Map<_, _>, String> = pairs
        .map(|p| p.map(|(key, value)| (whole(&key), value_of(&value))))
        .collect();
    let body = Value::Object(values.map_err(Failure::Usage)?).to_string();
    let path = query("/v1/config", &[("node", Some(node))]);
    let changed = api.post(&path, body).await?;
    screen.answer(changed, words)
}

/// Short names for what is changed most.
fn whole(key: &str) -> String {
    match key {
        "weight" | "eligible" => format!("discovery.{key}"),
        "tags" | "drain" => format!("node.{key}"),
        key => key.to_owned(),
    }
}

/// As it was typed: JSON where it is JSON (numbers, switches, tables), else a text.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// `troupe reload`.
pub(super) async fn reload(api: &Api, screen: &Screen, node: Option<&str>) -> Result<(), Failure> {
    let path = query("/v1/config/reload", &[("node", node)]);
    let changed = api.post(&path, String::new()).await?;
    screen.answer(changed, words)
}

fn words(view: &ChangedView) -> String {
    let mut lines: Vec<String> = Vec::new();
    let changed = view.changed.iter();
    lines.extend(changed.map(|what| format!("{}: {what}", view.node)));
    let waits = view.needs_restart.iter();
    lines.extend(waits.map(|what| format!("{}: {what} needs a restart", view.node)));
    if lines.is_empty() {
        lines.push(format!("{}: nothing differs", view.node));
    }
    lines.join("\n")
}

/// `troupe config running`.
pub(super) async fn running(api: &Api, screen: &Screen, node: Option<&str>) -> Result<(), Failure> {
    let view = api.get(&query("/v1/config", &[("node", node)])).await?;
    screen.answer(view, |view: &ConfigView| {
        let mut table = Table::new(["KEY", "VALUE", "LIVE", "ORIGIN"]);
        for (key, setting) in &view.settings {
            let live = if setting.live { "yes" } else { "restart" };
            let value = match &setting.value {
                Value::Null => "-".to_owned(),
                value => value.to_string(),
            };
            table.row([key.clone(), value, live.to_owned(), setting.origin.clone()]);
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_typed_keeps_its_kind_and_short_names_are_whole_ones() {
        assert_eq!(value_of("5"), json!(5));
        assert_eq!(value_of("false"), json!(false));
        assert_eq!(value_of("10s"), json!("10s"));
        assert_eq!(value_of("{\"disk\":\"ssd\"}"), json!({"disk": "ssd"}));
        assert_eq!(whole("weight"), "discovery.weight");
        assert_eq!(whole("generator.every"), "generator.every");
    }
}
