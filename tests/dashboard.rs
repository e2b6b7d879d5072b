//! The dashboard in a real headless browser: its pages, live update after a kill, every button, keyboard, dark mode, lost contact,
//! no error in the console.
//!
//! Skipped, and said so, where no Chromium is installed. `TROUPE_SHOTS=DIR` also takes a picture of each page.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use support::browser::Browser;
use support::{Cluster, FAST, LONG, Node, turn};

/// A change must be seen this soon.
const LIVE: Duration = Duration::from_secs(1);

#[test]
fn the_dashboard_asks_for_the_token_and_shows_nothing_before() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let token = token.to_str().unwrap();
    let made = Command::new(support::TROUPE)
        .args(["keygen", token])
        .status();
    assert!(made.unwrap().success());
    let port = support::free_port();
    let _registry = support::on_disk(&dir.path().join("registry"), port);
    let set = format!("admin.token_file={token}");
    let more = [&support::FAST[..], &["--set", &set]].concat();
    let node = support::Node::start_with("n1", &format!("http://127.0.0.1:{port}"), &more);
    let Some(mut browser) = Browser::start(&format!("http://{}/", node.admin())) else {
        return;
    };
    let asked = "document.getElementById('login').open";
    browser.wait(LONG, "the question for the token", asked);
    assert!(!browser.text().contains("n1"));
    let show = |text: &str| {
        format!(
            "document.getElementById('token').value = '{text}'; document.querySelector('#login form').requestSubmit()"
        )
    };
    browser.eval(&show("not-the-token"));
    let wrong = format!(
        "{asked} && document.getElementById('why').textContent.includes('no token of this node')"
    );
    browser.wait(LONG, "the question again", &wrong);
    let text = std::fs::read_to_string(token).unwrap();
    browser.eval(&show(text.trim()));
    let live = "document.getElementById('link')?.textContent === 'live'";
    browser.wait(LONG, "contact", live);
    browser.open("cluster", "n1");
    browser.open("logs", "actor started");
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}

/// As README says it: one command, and the address that it prints.
#[test]
fn the_command_of_readme_leads_to_a_dashboard() {
    let _turn = turn();
    let port = support::free_ports(30);
    let mut command = Command::new(support::TROUPE);
    command
        .args(["dev", "--fast", "--port", &port.to_string()])
        .args(["--registry-port", &support::free_port().to_string()]);
    support::clean_env(&mut command);
    let dev = support::Process::start(&mut command);
    let started = |l: &serde_json::Value| support::event(l, "dev.started");
    let (_, line) = dev.lines.wait_from(0, "dev.started", LONG, started);
    let first = line["api"][0].as_str();
    let first = first.unwrap_or_else(|| panic!("no address in {line}"));
    let Some(mut browser) = browser_at(&format!("{first}/")) else {
        return;
    };
    browser.open("cluster", "Who hears whom");
    let whole = "document.querySelectorAll('table.matrix td.ok').length === 6";
    browser.wait(LONG, "three nodes that hear each other", whole);
    browser.open("tasks", "Submit");
    let bars = "document.querySelectorAll('rect.bar').length > 10";
    browser.wait(LONG, "tasks in the lanes", bars);
    browser.keep("tasks");
    for (page, words) in [
        ("cluster", "Members"),
        ("actors", "discovery"),
        ("events", "master.promoted"),
        ("logs", "task finished"),
        ("registry", "services/"),
    ] {
        browser.open(page, words);
        browser.keep(page);
    }
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}

fn browser(node: &Node) -> Option<Browser> {
    browser_at(&format!("http://{}/", node.admin()))
}

fn browser_at(url: &str) -> Option<Browser> {
    let mut browser = Browser::start(url)?;
    browser.wait(
        LONG,
        "contact",
        "document.getElementById('link')?.textContent === 'live'",
    );
    Some(browser)
}

/// The text of the first card.
const LEAD: &str = "document.querySelector('.cards .card b').textContent";

#[test]
fn the_dashboard_shows_the_cluster_live_and_says_when_it_lost_touch() {
    let _turn = turn();
    let mut cluster = Cluster::start(3);
    let Some(mut browser) = browser(cluster.node("n2")) else {
        return;
    };
    browser.open("cluster", "Who hears whom");
    browser.wait(
        LONG,
        "a full matrix",
        "document.querySelectorAll('table.matrix td.ok').length === 6",
    );
    browser.open("actors", "discovery");
    browser.open("registry", "services/");
    browser.open("events", "master.promoted");
    browser.open("logs", "actor started");
    browser.open("tasks", "Submit");
    browser.wait(
        LONG,
        "a bar in the lanes",
        "document.querySelectorAll('rect.bar').length > 0",
    );
    browser.eval("document.querySelector('#page form').requestSubmit()");
    browser.wait(
        LONG,
        "the receipt of a task",
        "document.body.innerText.includes('the same id is the same task')",
    );

    browser.open("cluster", "n1");
    assert_eq!(browser.eval(LEAD), "n1");
    let epoch = browser.eval("document.querySelectorAll('.cards .card b')[1].textContent");
    cluster.node_mut("n1").process.kill();
    let killed = Instant::now();
    // Map, epoch and members on one page, then the event and the actors, all within the second.
    let changed = [
        (
            "another master",
            format!("!['n1', 'nobody leads'].includes({LEAD})"),
        ),
        (
            "another epoch",
            format!("document.querySelectorAll('.cards .card b')[1].textContent !== {epoch}"),
        ),
        (
            "two members on the map",
            "document.querySelectorAll('svg .node').length === 2".to_owned(),
        ),
    ];
    let mut seen = Vec::new();
    for (what, script) in changed {
        browser.wait(LONG, what, &script);
        seen.push((what, killed.elapsed()));
    }
    let listed = "[...document.querySelectorAll('#lines > div')].some((l) => l.textContent.includes('peer.removed') && l.textContent.includes('n1'))";
    let two = "document.querySelectorAll('#page h2').length === 2";
    for (page, what, script) in [
        ("events", "the removal among the events", listed),
        ("actors", "the actors of two nodes", two),
    ] {
        browser.eval(&format!("location.hash = '{page}'"));
        browser.wait(LONG, what, script);
        seen.push((what, killed.elapsed()));
    }
    for (what, after) in &seen {
        eprintln!("{} ms after the kill: {what}", after.as_millis());
    }
    assert!(seen.iter().all(|(_, after)| *after < LIVE), "{seen:?}");

    // Back in time: the dead node is on the map again.
    browser.open("cluster", "n2");
    browser.eval("(() => { const s = document.getElementById('scrub'); s.value = '0'; s.dispatchEvent(new Event('input')); })()");
    browser.wait(
        LONG,
        "the past",
        "document.getElementById('when').textContent.startsWith('as it was at') && document.body.innerText.includes('n1')",
    );
    browser.keep("scrubber");
    browser.press("Back to now");
    browser.wait(
        LONG,
        "now",
        "document.getElementById('when').textContent === 'now'",
    );

    cluster.node_mut("n2").process.kill();
    browser.wait(
        LONG,
        "lost contact",
        "!document.getElementById('lost').hidden && document.body.classList.contains('stale')",
    );
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}

#[test]
fn every_button_does_what_it_says() {
    let _turn = turn();
    let mut more = FAST.to_vec();
    more.extend(["--set", "admin.edit_registry=true"]);
    let cluster = Cluster::start_with(4, &more);
    let Some(mut browser) = browser(cluster.node("n2")) else {
        return;
    };
    browser.open("cluster", "Members");
    browser.press("Why this master?");
    browser.wait(
        LONG,
        "an explanation",
        "document.getElementById('why')?.innerText.includes('n1')",
    );
    browser.press("Why?");
    browser.wait(
        LONG,
        "another explanation",
        "document.getElementById('why')?.querySelector('h2').textContent.includes('n')",
    );
    // A No changes nothing.
    browser.press("Step down");
    browser.answer(false);
    assert_eq!(browser.eval(LEAD), "n1");
    browser.press("Step down");
    browser.answer(true);
    browser.told("done");
    browser.wait(
        LONG,
        "another master",
        &format!("!['n1', 'nobody leads'].includes({LEAD})"),
    );
    let before = browser.eval(LEAD);
    browser.press("Promote");
    browser.answer(true);
    browser.told("done");
    browser.wait(
        LONG,
        "the promoted",
        &format!("![{before}, 'nobody leads'].includes({LEAD})"),
    );

    actors(&mut browser);
    tasks(&mut browser);
    records(&mut browser);
    registry(&mut browser);

    browser.open("cluster", "Members");
    let drain = "(() => { const rows = [...document.querySelectorAll('main tr')].filter((r) => r.firstChild.textContent.startsWith('n4'));
        const button = rows.flatMap((r) => [...r.querySelectorAll('button')]).find((b) => b.textContent === 'Drain'); button?.click(); return !!button; })()";
    browser.wait(LONG, "the button that drains n4", drain);
    browser.answer(true);
    browser.told("done");
    browser.wait(
        LONG,
        "n4 is gone",
        "document.querySelectorAll('svg .node').length === 3",
    );
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}

fn actors(browser: &mut Browser) {
    browser.open("actors", "discovery");
    for (how, shows) in [("panic", "killed by an operator"), ("stop", "")] {
        browser.press(&format!("{how} worker of n3"));
        browser.answer(true);
        browser.told("done");
        let restarts = if how == "panic" { "1" } else { "2" };
        let row = "[...document.querySelectorAll('main h2')].find((h) => h.textContent.startsWith('n3'))?.nextSibling";
        let cells = format!(
            "[...({row}?.querySelectorAll('tr') ?? [])].find((r) => r.firstChild.textContent === 'worker')?.innerText ?? ''"
        );
        let script = format!(
            "((text) => text.includes({}) && /\\t{restarts}\\t/.test(text))({cells})",
            json!(shows)
        );
        browser.wait(
            LONG,
            &format!("a worker that was restarted after {how}"),
            &script,
        );
    }
    let unfold = "(() => { const b = [...document.querySelectorAll('main button.inline')].find((b) => b.textContent.includes('killed by')); b?.click(); return !!b; })()";
    browser.wait(LONG, "the failure", unfold);
    browser.wait(
        LONG,
        "the calls that led there",
        "[...document.querySelectorAll('pre.trace')].some((p) => p.textContent.includes('troupe_actors'))",
    );
    browser.press("hang admin of n3");
    browser.answer(true);
    browser.told("done");
}

fn tasks(browser: &mut Browser) {
    browser.open("tasks", "Submit");
    let submit = |browser: &mut Browser, job: &str, input: &str| {
        browser.eval(&format!(
            "(() => {{ const f = document.querySelector('#page form'); f.querySelector('[name=job]').value = {}; f.querySelector('[name=input]').value = {};
               f.requestSubmit(); document.activeElement.blur(); }})()",
            json!(job),
            json!(input)
        ));
    };
    submit(browser, "multiply", "not JSON");
    browser.told("not JSON");
    // Nobody knows the job: it waits until it is cancelled.
    submit(browser, "paint", "{}");
    browser.told("accepted");
    // Of the task that was submitted, not of one in the list.
    let cancel = "(() => { const b = [...document.querySelectorAll('section.card button')].find((b) => b.textContent === 'Cancel'); b?.click(); return !!b; })()";
    browser.wait(LONG, "the button that cancels it", cancel);
    browser.answer(true);
    browser.told("done");
    browser.wait(
        LONG,
        "a cancelled task",
        "document.querySelector('section.card')?.innerText.includes('cancelled')",
    );
    browser.press("Close");
    browser.wait(LONG, "no task", "!document.querySelector('section.card')");
    browser.press("Look again");
    browser.press("Dead letters");
    browser.wait(
        LONG,
        "dead letters",
        "document.querySelector('main select').value === 'dead'",
    );
}

fn records(browser: &mut Browser) {
    for page in ["events", "logs"] {
        browser.open(page, "master.promoted");
        browser.press("Pause");
        browser.wait(LONG, "paused", "document.body.innerText.includes('paused')");
        browser.press("Go on");
        browser.wait(
            LONG,
            "going on",
            "!document.body.innerText.includes('newer records are not shown')",
        );
        browser.press("n1");
        browser.wait(
            LONG,
            "a filter by a click",
            "document.querySelector('main input').value === 'n1' && [...document.querySelectorAll('#lines > div')].every((l) => l.textContent.includes('n1'))",
        );
        browser.eval("location.hash = 'cluster'");
    }
}

fn registry(browser: &mut Browser) {
    browser.open("registry", "services/");
    let generation = "edit /troupe/generation";
    browser.press(generation);
    browser.press("Leave it");
    // Of all keys the one whose loss nobody feels: a stray one that is made here.
    browser.eval("fetch('/v1/registry?prefix=').then((r) => r.json()).then((v) => { window.keys = v.keys.length; })");
    let remove = "(() => { const b = [...document.querySelectorAll('main button')].find((b) => (b.getAttribute('aria-label') ?? '').startsWith('delete /troupe/names/n3')); b?.click(); return !!b; })()";
    browser.wait(LONG, "a button that deletes", remove);
    browser.answer(true);
    browser.told("done");
    let edit = "(() => { const b = [...document.querySelectorAll('main button')].find((b) => (b.getAttribute('aria-label') ?? '').startsWith('edit /troupe/names/n4')); b?.click(); return !!b; })()";
    browser.wait(LONG, "a button that edits", edit);
    browser.press("Save");
    browser.answer(true);
    browser.told("done");
    browser.wait(
        LONG,
        "the change, marked as it came",
        "document.body.innerText.includes('n4 changed')",
    );
}

#[test]
fn the_dashboard_is_worked_by_keys_and_is_dark_in_the_dark() {
    let _turn = turn();
    let cluster = Cluster::start(1);
    let Some(mut browser) = browser(cluster.node("n1")) else {
        return;
    };
    browser.open("cluster", "Members");
    // The first stop leads past the navigation, the second is a page.
    let focused = "document.activeElement.textContent";
    browser.eval("document.body.tabIndex = -1; document.body.focus()");
    let mut stops = Vec::new();
    for _ in 0..9 {
        browser.key("Tab");
        stops.push(
            browser
                .eval(focused)
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
        if stops.last().is_some_and(|s| s == "Registry") {
            break;
        }
    }
    assert!(
        stops.starts_with(&[
            "To the page".to_owned(),
            "Cluster".to_owned(),
            "Actors".to_owned()
        ]),
        "{stops:?}"
    );
    assert_eq!(
        stops.last().map(String::as_str),
        Some("Registry"),
        "{stops:?}"
    );
    browser.key("Enter");
    browser.wait(
        LONG,
        "the page that was chosen",
        "document.body.innerText.includes('services/')",
    );

    let colour = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(colour);
    let features = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
    browser.call(
        "Emulation.setEmulatedMedia",
        json!({ "features": features }),
    );
    let dark = browser.eval(colour);
    assert_ne!(light, dark);
    // WCAG AA asks for 4.5 : 1 for text; both designs keep it for all colours that carry words.
    let contrast = "(() => {
      const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const probe = document.body.appendChild(document.createElement('i'));
      const of = (name) => { probe.style.setProperty('color', `var(${name})`); return lum(getComputedStyle(probe).color); };
      const grounds = [of('--bg'), of('--card')];
      const ratios = ['--fg', '--soft', '--accent', '--ok', '--warn', '--bad'].flatMap((n) => { const l = of(n); return grounds.map((g) => (Math.max(l, g) + 0.05) / (Math.min(l, g) + 0.05)); });
      probe.remove();
      return Math.min(...ratios);
    })()";
    let in_the_dark = browser.eval(contrast).as_f64().unwrap();
    browser.open("cluster", "Members");
    browser.keep("dark");
    let features = json!([{ "name": "prefers-color-scheme", "value": "light" }]);
    browser.call(
        "Emulation.setEmulatedMedia",
        json!({ "features": features }),
    );
    let in_the_light = browser.eval(contrast).as_f64().unwrap();
    eprintln!("least contrast: {in_the_light:.1} in the light, {in_the_dark:.1} in the dark");
    assert!(in_the_light >= 4.5 && in_the_dark >= 4.5);
    assert_eq!(browser.errors, Vec::<String>::new(), "the page complains");
}
