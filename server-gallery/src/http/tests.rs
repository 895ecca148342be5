use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use glimpse_protocol::{DeviceId, QueryId, Reply, SpaceId, VERSION};

use super::source::{Description, Page, Picture, SearchError};
use super::*;
use crate::matcher::{Encoding, Outcome, Response as Answer};
use crate::monitor::{Exact, Nearest, QueryRecord, SeenMatch};
use crate::password;

/// A gallery of two images; one has a photo.
struct Two {
    photo: PathBuf,
}

impl Exact for Two {
    fn exact(&self, _: Option<&str>, _: &[u8], _: usize) -> Option<Nearest> {
        None
    }
}

impl Source for Two {
    fn describe(&self) -> Description {
        Description {
            name: "test".to_owned(),
            space: SpaceId::from_bytes([9; 16]),
            dimension: 16,
            size: 2,
            generation: 5,
            changes: 0,
            indexing: false,
            trouble: None,
            index: "exact, f16".to_owned(),
        }
    }

    fn page(&self, _: Option<&str>, _: &str, _: usize) -> Page {
        Page::default()
    }

    fn image(&self, id: &str) -> Option<Picture> {
        let path = match id {
            "a" => self.photo.clone(),
            "b" => PathBuf::from("gone.jpg"),
            _ => return None,
        };
        Some(Picture { label: "apple".to_owned(), path, photo_hash: [1; 32] })
    }

    fn search_photo(&self, photo: &[u8], _: usize) -> Result<Vec<SeenMatch>, SearchError> {
        Err(SearchError::Photo(format!("{} bytes of nothing", photo.len())))
    }
}

struct Running {
    http: Http,
    monitor: Arc<Monitor>,
    gallery: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        let gallery = tempfile::tempdir().unwrap();
        let monitor = Arc::new(Monitor::new());
        let config = HttpConfig { listen: "127.0.0.1:0".parse().unwrap(), metrics_token: None };
        let http = Http::start(&config, &gallery.path().join("access"), monitor.clone()).await.unwrap();
        Self { http, monitor, gallery }
    }

    fn open(&self) {
        let photo = self.gallery.path().join("a.png");
        let pixels = image::RgbImage::from_pixel(640, 480, image::Rgb([200, 30, 10]));
        pixels.save(&photo).unwrap();
        self.http.open(Arc::new(Two { photo }));
        self.monitor.set_subscribed(true);
    }

    /// Status, header and body of the response to one request, by hand: no client of ours is in between.
    async fn ask(&self, request: &str) -> (u16, String, Vec<u8>) {
        let address = self.http.address();
        let request = request.replace("HOST", &address.to_string());
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            (status, head.to_lowercase(), bytes[end + 4..].to_vec())
        })
        .await
        .unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")).await
    }

    async fn log_in(&self, password: &str) -> (u16, String, Vec<u8>) {
        let body = json!({ "password": password }).to_string();
        let length = body.len();
        self.ask(&format!(
            "POST /api/session HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }
}

#[tokio::test]
async fn health_is_told_from_the_start_and_readiness_when_queries_arrive() {
    let running = Running::start().await;
    assert_eq!(running.get("/healthz").await.0, 200);
    let (status, _, body) = running.get("/readyz").await;
    assert_eq!((status, body.as_slice()), (503, b"gallery loaded: no\nqueries arrive: no\n".as_slice()));
    assert_eq!(running.get("/api/images").await.0, 503);
    running.open();
    assert_eq!(running.get("/readyz").await.0, 200);
    running.monitor.set_subscribed(false);
    assert_eq!(running.get("/readyz").await.0, 503);
}

#[tokio::test]
async fn every_response_forbids_what_is_foreign() {
    let running = Running::start().await;
    for path in ["/", "/login", "/healthz", "/nowhere", "/assets/console.css", "/api/state"] {
        let (_, head, _) = running.get(path).await;
        for header in [
            "content-security-policy: default-src 'self'",
            "x-content-type-options: nosniff",
            "cache-control: ",
        ] {
            assert!(head.contains(header), "{path}: {head}");
        }
    }
}

#[tokio::test]
async fn a_password_closes_the_console_until_somebody_logs_in() {
    let running = Running::start().await;
    running.open();
    assert_eq!(running.get("/").await.0, 200);
    std::fs::create_dir(running.gallery.path().join("access")).unwrap();
    std::fs::write(
        running.gallery.path().join("access").join(PASSWORD_FILE),
        password::hash("correct horse").unwrap(),
    )
    .unwrap();
    let (status, head, _) = running.get("/").await;
    assert!(status == 303 && head.contains("location: /login"), "{head}");
    for path in ["/api/state", "/api/queries", "/api/devices", "/api/events", "/photo?image=a"] {
        assert_eq!(running.get(path).await.0, 401, "{path}");
    }
    for path in ["/login", "/assets/login.js", "/healthz", "/metrics"] {
        assert_eq!(running.get(path).await.0, 200, "{path}");
    }
    assert_eq!(running.log_in("wrong horse").await.0, 401);
    let audit = || std::fs::read_to_string(running.http.site.audit.path()).unwrap();
    assert!(audit().contains(r#""event":"console_login""#) && audit().contains(r#""accepted":false"#));
    let (status, head, _) = running.log_in("correct horse").await;
    assert!(status == 204 && audit().contains(r#""accepted":true"#), "{}", audit());
    let cookie = head.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let with_cookie = format!("Host: HOST\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n");
    let (status, _, body) = running.ask(&format!("GET /api/state HTTP/1.1\r\n{with_cookie}")).await;
    let state: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &state["protected"], &state["gallery"]["size"]), (200, &json!(true), &json!(2)));
    assert_eq!(running.ask(&format!("DELETE /api/session HTTP/1.1\r\n{with_cookie}")).await.0, 204);
    assert_eq!(running.ask(&format!("GET /api/state HTTP/1.1\r\n{with_cookie}")).await.0, 401);
}

#[tokio::test]
async fn photos_are_served_by_id_and_a_missing_one_has_a_placeholder() {
    let running = Running::start().await;
    running.open();
    let (status, head, body) = running.get("/photo?image=a").await;
    assert!(status == 200 && head.contains("image/jpeg"), "{head}");
    let pixels = image::load_from_memory(&body).unwrap();
    assert_eq!((pixels.width(), pixels.height()), (320, 240));
    for id in ["b", "c", "..%2F..%2Fetc%2Fpasswd", "/etc/passwd", ""] {
        let (status, head, _) = running.get(&format!("/photo?image={id}")).await;
        assert!(status == 404 && head.contains("image/svg+xml"), "{id}: {head}");
    }
    assert_eq!(running.get("/photo?image=a&side=4000").await.0, 400);
    assert_eq!(running.get("/photo").await.0, 400);
}

#[tokio::test]
async fn what_is_too_large_or_foreign_is_refused() {
    let running = Running::start().await;
    running.open();
    let post = |headers: &str, body: &str| {
        format!("POST /api/search HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n{headers}\r\n{body}")
    };
    let (status, _, body) = running.ask(&post("Content-Length: 4\r\n", "nope")).await;
    assert_eq!(status, 422, "{}", String::from_utf8_lossy(&body));
    let foreign = post("Content-Length: 4\r\nOrigin: http://evil.example\r\n", "nope");
    assert_eq!(running.ask(&foreign).await.0, 403);
    let rebound = "GET /api/state HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(running.ask(rebound).await.0, 403);
    let large = running.log_in(&"x".repeat(8192)).await;
    assert_eq!(large.0, 413);
    let header = format!("GET / HTTP/1.1\r\nHost: HOST\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(running.ask(&header).await.0, 431);
}

#[tokio::test]
async fn the_feed_tells_of_a_query_as_it_happens_and_ends_with_the_server() {
    let running = Running::start().await;
    running.open();
    let address = running.http.address();
    let reader = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET /api/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let mut text = Vec::new();
        let mut part = [0; 4096];
        while !String::from_utf8_lossy(&text).contains("event: query") {
            let read = stream.read(&mut part).unwrap();
            assert!(read > 0, "the feed ended early");
            text.extend_from_slice(&part[..read]);
        }
        // Until the server closes it.
        while stream.read(&mut part).unwrap() > 0 {}
        String::from_utf8_lossy(&text).into_owned()
    });
    let started = Instant::now();
    while running.http.site.followers.available_permits() == FOLLOWERS_MAX {
        assert!(started.elapsed() < Duration::from_secs(20), "nobody follows");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let id = QueryId::from_bytes([1; 16]);
    let reply: Reply = Reply { v: VERSION, id, matches: heapless_none(), took_us: 5, generation: 5 };
    let encoding = Encoding::Cbor;
    let answer = Answer { payload: encoding.write(&reply), encoding, id, outcome: Outcome::Answered };
    let device = DeviceId::new("cam-1").unwrap();
    running.monitor.record(QueryRecord {
        device: &device,
        content_type: None,
        query: &[],
        response: Some(&answer),
        waited: Duration::from_millis(1),
        took: Duration::from_millis(2),
    });
    while running.monitor.queries().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    running.http.stop().await;
    let text = reader.await.unwrap();
    assert!(text.contains("event: pulse") && text.contains("\"device\":\"cam-1\""), "{text}");
}

fn heapless_none<T: Default>() -> T {
    T::default()
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_a_password_first() {
    let gallery = tempfile::tempdir().unwrap();
    let listen = "0.0.0.0:0".parse().unwrap();
    let mut config = HttpConfig { listen, metrics_token: None };
    let monitor = Arc::new(Monitor::new());
    let refused = Http::start(&config, &gallery.path().join("access"), monitor.clone()).await.err().unwrap();
    assert!(refused.to_string().contains("glimpse-gallery console-password"), "{refused}");
    std::fs::create_dir(gallery.path().join("access")).unwrap();
    std::fs::write(
        gallery.path().join("access").join(PASSWORD_FILE),
        password::hash("correct horse").unwrap(),
    )
    .unwrap();
    let token = gallery.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    config.metrics_token = Some(token.clone());
    let refused = config.check(&gallery.path().join("access")).unwrap_err().to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for text in ["", "short", &"x".repeat(2000)] {
        std::fs::write(&token, text).unwrap();
        assert!(
            matches!(config.check(&gallery.path().join("access")), Err(HttpError::Token { .. })),
            "{text}"
        );
    }
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    config.check(&gallery.path().join("access")).unwrap();
    let http = Http::start(&config, &gallery.path().join("access"), monitor.clone()).await.unwrap();
    let running = Running { http, monitor, gallery };
    let (status, head, _) = running.get("/metrics").await;
    assert!(status == 401 && head.contains("www-authenticate: bearer"), "{head}");
    let with = "GET /metrics HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer 0123456789abcdef\r\nConnection: close\r\n\r\n";
    assert_eq!(running.ask(with).await.0, 200);
}

#[tokio::test]
async fn metrics_are_all_there_and_all_described() {
    let running = Running::start().await;
    running.open();
    let (_, head, body) = running.get("/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"));
    let text = String::from_utf8(body).unwrap();
    let of = |mark: &str| -> BTreeSet<&str> {
        text.lines().filter_map(|line| line.strip_prefix(mark)?.split(' ').next()).collect()
    };
    let listed: BTreeSet<&str> = metrics::METRICS.iter().map(|metric| metric.0).collect();
    // Before the first sample there is no recall to tell.
    let missing: Vec<_> = listed.difference(&of("# TYPE ")).copied().collect();
    assert_eq!(missing, ["glimpse_recall_at_10_ratio"]);
    assert_eq!(of("# HELP "), of("# TYPE "));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let base = name.split('{').next().unwrap();
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| base.strip_suffix(end)).unwrap_or(base);
        assert!(listed.contains(base) && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(text.contains("glimpse_ready 1\n") && text.contains("glimpse_gallery_images 2\n"), "{text}");
}

/// The files for Prometheus and Grafana name only what there is.
#[test]
fn the_dashboard_shows_only_metrics_that_exist() {
    let text = include_str!("../../deploy/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries.len() > 8, "{queries:?}");
    let rules = include_str!("../../deploy/alerts.yml");
    let known: BTreeSet<&str> = metrics::METRICS.iter().map(|metric| metric.0).collect();
    for text in queries.into_iter().chain([rules]) {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| ["glimpse_", "process_"].iter().any(|start| word.starts_with(start)))
        {
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(known.contains(base), "{name} is no metric, in {text}");
        }
    }
}
