//! The pages of the console, which are in the binary: HTML, CSS and JavaScript as they are written, without a build step.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};

use super::access::Admission;
use super::{Admitted, Site, problem};

const CONSOLE: &str = include_str!("console/console.html");
const LOGIN: &str = include_str!("console/login.html");

/// Shown where a photo is missing.
pub(super) const PLACEHOLDER: &str = include_str!("console/placeholder.svg");

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, type and text of each.
const ASSETS: [(&str, &str, &str); 14] = [
    ("console.css", "text/css; charset=utf-8", include_str!("console/console.css")),
    ("icon.svg", "image/svg+xml", include_str!("console/icon.svg")),
    ("placeholder.svg", "image/svg+xml", PLACEHOLDER),
    ("main.js", SCRIPT, include_str!("console/main.js")),
    ("login.js", SCRIPT, include_str!("console/login.js")),
    ("server.js", SCRIPT, include_str!("console/server.js")),
    ("page.js", SCRIPT, include_str!("console/page.js")),
    ("text.js", SCRIPT, include_str!("console/text.js")),
    ("queries.js", SCRIPT, include_str!("console/queries.js")),
    ("details.js", SCRIPT, include_str!("console/details.js")),
    ("devices.js", SCRIPT, include_str!("console/devices.js")),
    ("gallery.js", SCRIPT, include_str!("console/gallery.js")),
    ("measures.js", SCRIPT, include_str!("console/measures.js")),
    ("about.js", SCRIPT, include_str!("console/about.js")),
];

/// It says at once whether a password keeps it, so that the line about that moves nothing later.
pub(super) async fn console(Extension(Admitted(admission)): Extension<Admitted>) -> Response {
    let protected = if admission == Admission::Session { "true" } else { "false" };
    html(CONSOLE.replace("{{protected}}", protected))
}

/// Whoever needs no password, or has a session, is sent on.
pub(super) async fn login(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    match site.access.admit(&Method::GET, &headers) {
        Admission::Open | Admission::Session => Redirect::to("/").into_response(),
        Admission::Refused(_) => html(LOGIN.to_owned()),
    }
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let Some((_, kind, text)) = ASSETS.iter().find(|(known, ..)| *known == name) else {
        return problem(StatusCode::NOT_FOUND, "not_found", "there is no such file");
    };
    // Another version of the program has other files under the same names: the browser asks each time.
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, *text).into_response()
}

fn html(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_load_nothing_from_elsewhere_and_only_what_is_there() {
        for (name, text) in
            [("console.html", CONSOLE), ("login.html", LOGIN)].into_iter().chain(ASSETS.map(|a| (a.0, a.2)))
        {
            let named = text.split('"').filter_map(|part| part.strip_prefix("/assets/"));
            for asset in named {
                assert!(ASSETS.iter().any(|(known, ..)| *known == asset), "{name} names {asset}");
            }
            for import in text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(ASSETS.iter().any(|(known, ..)| *known == import), "{name} imports {import}");
            }
            let foreign =
                text.match_indices("://").map(|(at, _)| &text[..at]).filter(|before| !is_namespace(before));
            assert_eq!(foreign.count(), 0, "{name} names another host");
            assert!(
                !text.contains(" style=\"") && !text.contains("<script>"),
                "{name}: the policy forbids it"
            );
        }
    }

    /// The name of SVG looks like an address, and is none.
    fn is_namespace(before: &str) -> bool {
        before.ends_with("xmlns=\"http") || before.ends_with("const SVG = \"http")
    }
}
