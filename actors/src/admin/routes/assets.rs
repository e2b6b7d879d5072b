//! The dashboard and the API's description, served from the binary.
//!
//! The browser is told to take nothing from elsewhere and to run nothing that stands in a page.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// What a page of ours may load: files of this node, nothing inline, and no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! asset {
    ($name:ident, $file:literal, $kind:literal) => {
        pub(super) async fn $name() -> Response {
            reply($kind, include_str!(concat!("../dashboard/", $file)))
        }
    };
}

asset!(index, "index.html", "text/html; charset=utf-8");
asset!(style, "app.css", "text/css; charset=utf-8");
asset!(app, "app.js", "text/javascript; charset=utf-8");
asset!(live, "live.js", "text/javascript; charset=utf-8");
asset!(parts, "parts.js", "text/javascript; charset=utf-8");
asset!(cluster, "cluster.js", "text/javascript; charset=utf-8");
asset!(tasks, "tasks.js", "text/javascript; charset=utf-8");
asset!(pages, "pages.js", "text/javascript; charset=utf-8");
asset!(openapi, "openapi.json", "application/json");

fn reply(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        // A node of another version may answer next time.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use crate::admin::access::{Access, Asked, Token};

    const SCRIPTS: [(&str, &str); 6] = [
        ("app.js", include_str!("../dashboard/app.js")),
        ("live.js", include_str!("../dashboard/live.js")),
        ("parts.js", include_str!("../dashboard/parts.js")),
        ("cluster.js", include_str!("../dashboard/cluster.js")),
        ("tasks.js", include_str!("../dashboard/tasks.js")),
        ("pages.js", include_str!("../dashboard/pages.js")),
    ];
    const PAGE: &str = include_str!("../dashboard/index.html");
    const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

    fn described() -> BTreeMap<String, BTreeSet<String>> {
        let text = include_str!("../dashboard/openapi.json");
        let doc: Value = serde_json::from_str(text).unwrap();
        let paths = doc["paths"].as_object().unwrap().iter();
        let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect();
        paths
            .map(|(path, item)| (path.clone(), methods(item)))
            .collect()
    }

    /// Read from the router's own lines.
    fn routed() -> BTreeMap<String, BTreeSet<String>> {
        let source = include_str!("mod.rs").split(".route(").skip(1);
        let routes = source.map(|rest| {
            let rest = rest.trim_start().strip_prefix('"').unwrap();
            let (path, rest) = rest.split_once('"').unwrap();
            let line = rest.split("\n        .").next().unwrap();
            let takes = |method: &&&str| line.contains(&format!("{method}("));
            let methods = METHODS.iter().filter(takes).map(|m| (*m).to_owned());
            (path.to_owned(), methods.collect())
        });
        routes.collect()
    }

    #[test]
    fn the_description_has_every_route_with_its_methods_and_no_other() {
        assert_eq!(described(), routed());
    }

    #[test]
    fn the_description_says_what_needs_a_token() {
        let text = include_str!("../dashboard/openapi.json");
        let doc: Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            doc["components"]["securitySchemes"]["token"]["scheme"],
            "bearer"
        );
        let access = Access {
            operator: Token::parse(&"5f".repeat(32)).ok(),
            ..Access::default()
        };
        for (path, item) in doc["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let asked = Asked {
                    path,
                    safe: method == "get",
                    ..Asked::default()
                };
                let open = access.judge(&asked).is_ok();
                let said = operation["security"].as_array().is_some_and(Vec::is_empty);
                assert_eq!(said, open, "{method} {path}");
            }
        }
    }

    /// `/v1/tasks/${…}/retry` and `/v1/tasks/{id}/retry` alike as `/v1/tasks/*/retry`.
    fn shape(path: &str) -> String {
        let path = path.split('?').next().unwrap_or(path);
        let segments = path.split('/').map(|s| match s.contains('{') {
            true => "*",
            false => s,
        });
        segments.collect::<Vec<_>>().join("/")
    }

    #[test]
    fn whatever_the_dashboard_asks_for_is_there() {
        let known: BTreeSet<_> = described().keys().map(|path| shape(path)).collect();
        let mut asked = 0;
        for (name, script) in SCRIPTS {
            for quote in ['\'', '`'] {
                let texts = script.split(quote).skip(1).step_by(1);
                for path in texts.filter(|t| t.starts_with("/v1/") || t.ends_with(".js")) {
                    let shape = shape(path);
                    assert!(known.contains(&shape), "{name} asks for {path} ({shape})");
                    asked += 1;
                }
            }
        }
        assert!(asked > 20, "only {asked} paths were found in the scripts");
    }

    #[test]
    fn nothing_comes_from_elsewhere_or_runs_inline() {
        for (name, text) in SCRIPTS.into_iter().chain([("index.html", PAGE)]) {
            for bad in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "https://",
                " style=\"",
                " onclick=\"",
            ] {
                assert!(!text.contains(bad), "{name} has {bad}");
            }
        }
        let inline = PAGE.split("<script").skip(1);
        assert!(inline.into_iter().all(|s| s.contains("src=\"/")));
        assert!(!PAGE.contains("<style"));
    }
}
