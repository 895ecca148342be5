use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn set_password(dir: &Path, password: &str) {
    // Another length of the file, so that no clock's precision matters.
    let padding = " ".repeat(password.len());
    std::fs::write(dir.join(PASSWORD_FILE), password::hash(password).unwrap() + &padding).unwrap();
}

fn cookie_of(login: Login) -> String {
    let Login::In(cookie) = login else { panic!("not logged in: {login:?}") };
    cookie.split(';').next().unwrap().to_owned()
}

#[test]
fn without_a_password_only_this_machine_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(dir.path(), true, None);
    for host in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:80", "[::1]", "127.0.0.1"] {
        assert_eq!(access.admit(&Method::GET, &headers(&[("host", host)])), Admission::Open, "{host}");
    }
    for host in [
        "evil.example:8080",
        "localhost.evil.example",
        "10.0.0.1:8080",
        "127.0.0.1.evil.example",
        "[::1]x",
        "[::2]",
        "",
    ] {
        let admission = access.admit(&Method::GET, &headers(&[("host", host)]));
        assert_eq!(admission, Admission::Refused(Refusal::ForeignHost), "{host}");
    }
    assert_eq!(access.admit(&Method::GET, &HeaderMap::new()), Admission::Refused(Refusal::ForeignHost));
}

#[test]
fn what_changes_something_must_come_from_our_own_page() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(dir.path(), true, None);
    let host = ("host", "localhost:8080");
    for (pairs, allowed) in [
        (vec![host], true),
        (vec![host, ("origin", "http://localhost:8080")], true),
        (vec![host, ("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")], true),
        (vec![host, ("origin", "http://localhost:9090")], false),
        (vec![host, ("origin", "null")], false),
        (vec![host, ("origin", "http://evil.example")], false),
        (vec![host, ("sec-fetch-site", "cross-site")], false),
        (vec![host, ("sec-fetch-site", "same-site")], false),
    ] {
        let admission = access.admit(&Method::POST, &headers(&pairs));
        assert_eq!(admission == Admission::Open, allowed, "{pairs:?}");
    }
}

#[test]
fn once_a_password_is_set_a_session_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(dir.path(), true, None);
    let host = ("host", "localhost:8080");
    let page = headers(&[host, ("origin", "https://localhost:8080")]);
    assert_eq!(access.admit(&Method::GET, &headers(&[host])), Admission::Open);
    set_password(dir.path(), "correct horse");
    let refused = Admission::Refused(Refusal::LogIn);
    assert_eq!(access.admit(&Method::GET, &headers(&[host])), refused);
    assert_eq!(access.log_in(HERE, b"correct hors", &page), Login::Wrong);
    let Login::In(cookie) = access.log_in(HERE, b"correct horse", &page) else { panic!("not logged in") };
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=604800; Secure"), "{cookie}");
    let sent = cookie.split(';').next().unwrap().to_owned();
    let with = |cookie: &str| access.admit(&Method::GET, &headers(&[host, ("cookie", cookie)]));
    assert_eq!(with(&format!("other=1; {sent}; more=2")), Admission::Session);
    assert_eq!(with(&sent[..sent.len() - 1]), refused);
    assert_eq!(access.sessions(), 1);

    // Another password ends the sessions of the first.
    set_password(dir.path(), "another one");
    assert_eq!(with(&sent), refused);
    let again = cookie_of(access.log_in(HERE, b"another one", &HeaderMap::new()));
    assert_eq!(with(&again), Admission::Session);
    access.log_out(&headers(&[("cookie", &again)]));
    assert_eq!(with(&again), refused);
}

#[test]
fn a_password_file_that_is_no_hash_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(dir.path(), true, None);
    for text in ["", "plain text", "$argon2id$"] {
        std::fs::write(dir.path().join(PASSWORD_FILE), text).unwrap();
        let admission = access.admit(&Method::GET, &headers(&[("host", "localhost")]));
        assert_eq!(admission, Admission::Refused(Refusal::LogIn), "{text}");
        assert_eq!(access.log_in(HERE, text.as_bytes(), &HeaderMap::new()), Login::Wrong, "{text}");
    }
}

#[test]
fn sessions_are_bounded_and_the_idle_one_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    set_password(dir.path(), "correct horse");
    let access = Access::new(dir.path(), true, None);
    let first = cookie_of(access.log_in(HERE, b"correct horse", &HeaderMap::new()));
    (0..=u8::try_from(SESSIONS_MAX).unwrap()).for_each(|n| access.open([n; 32], &access.password().unwrap()));
    assert_eq!(access.sessions(), SESSIONS_MAX);
    let admission = access.admit(&Method::GET, &headers(&[("host", "localhost"), ("cookie", &first)]));
    assert_eq!(admission, Admission::Refused(Refusal::LogIn));
    let session = Session { began: Instant::now(), used: Instant::now(), password: [0; 32] };
    assert!(session.lives(Instant::now() + IDLE_MAX / 2) && !session.lives(Instant::now() + IDLE_MAX));
}

#[test]
fn guessing_gets_slower_and_slower() {
    let now = Instant::now();
    let mut attempts = Attempts { of: HashMap::new(), minute: (now, 0), failures: 0 };
    for _ in 0..FREE_FAILURES {
        assert_eq!(attempts.begin(HERE, now), None);
    }
    assert_eq!(attempts.begin(HERE, now), Some(Duration::from_secs(1)));
    let later = now + Duration::from_secs(1);
    assert_eq!(attempts.begin(HERE, later), None);
    assert_eq!(attempts.begin(HERE, later), Some(Duration::from_secs(2)));
    assert_eq!((penalty(30), attempts.failures), (PENALTY_MAX, 6));

    // Nor can many addresses together do more than the bound.
    let mut tried = 0_u32;
    for n in 0..2 * ATTEMPTS_A_MINUTE_MAX {
        let from = IpAddr::from(n.to_be_bytes());
        tried += u32::from(attempts.begin(from, later).is_none());
    }
    assert_eq!(tried + FREE_FAILURES + 1, ATTEMPTS_A_MINUTE_MAX - ATTEMPTS_KEPT);
    let this_machine = IpAddr::from([127, 0, 0, 2]);
    assert_eq!(attempts.begin(this_machine, later), None, "some are kept");
    // An attempt that was right leaves nothing behind.
    attempts.succeeded(this_machine);
    assert!(!attempts.of.contains_key(&this_machine));
    // One customer of a provider has many addresses of IPv6, and one count.
    let next = later + Duration::from_mins(2);
    for n in 1..=6 {
        attempts.begin(format!("2001:db8::{n}").parse().unwrap(), next);
    }
    assert!(attempts.begin("2001:db8::99".parse().unwrap(), next).is_some());
    assert_eq!(attempts.begin(IpAddr::from([9; 4]), next), None);
}

#[test]
fn metrics_are_told_to_who_has_the_token() {
    let access = Access::new(Path::new("nowhere"), true, Some("secret"));
    for (value, expected) in
        [("Bearer secret", true), ("Bearer secre", false), ("secret", false), ("Bearer ", false)]
    {
        let headers = headers(&[("host", "localhost"), ("authorization", value)]);
        assert_eq!(access.may_measure(&headers), expected, "{value}");
    }
    let without = Access::new(Path::new("nowhere"), true, None);
    assert!(without.may_measure(&headers(&[("host", "localhost:8080")])));
    assert!(!without.may_measure(&headers(&[("host", "evil.example")])));
    assert!(!without.may_measure(&headers(&[("host", "localhost"), ("forwarded", "for=192.0.2.1")])));
    let beyond = Access::new(Path::new("nowhere"), false, None);
    assert!(!beyond.may_measure(&headers(&[("host", "localhost"), ("authorization", "Bearer ")])));
}

#[test]
fn a_console_that_others_reach_is_closed_when_its_password_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    set_password(dir.path(), "correct horse");
    let access = Access::new(dir.path(), false, None);
    let cookie = cookie_of(access.log_in(HERE, b"correct horse", &HeaderMap::new()));
    let sent = headers(&[("host", "localhost"), ("cookie", &cookie)]);
    assert_eq!(access.admit(&Method::GET, &sent), Admission::Session);
    std::fs::remove_file(dir.path().join(PASSWORD_FILE)).unwrap();
    assert_eq!(access.admit(&Method::GET, &sent), Admission::Refused(Refusal::LogIn));
    assert_eq!(access.log_in(HERE, b"correct horse", &HeaderMap::new()), Login::Wrong);
}

#[test]
fn what_a_proxy_passes_on_needs_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(dir.path(), true, None);
    for name in ["forwarded", "x-forwarded-for"] {
        let passed_on = headers(&[("host", "127.0.0.1:8080"), (name, "192.0.2.1")]);
        assert_eq!(access.admit(&Method::GET, &passed_on), Admission::Refused(Refusal::Forwarded), "{name}");
    }
}

#[test]
fn a_feed_keeps_no_session_alive() {
    let dir = tempfile::tempdir().unwrap();
    set_password(dir.path(), "correct horse");
    let access = Access::new(dir.path(), true, None);
    let cookie = cookie_of(access.log_in(HERE, b"correct horse", &HeaderMap::new()));
    let sent = headers(&[("host", "localhost"), ("cookie", &cookie)]);
    let used = || lock(&access.sessions).values().next().unwrap().used;
    let before = used();
    assert_eq!((access.admits(&Method::GET, &sent), used()), (Admission::Session, before));
    assert_eq!(access.admit(&Method::GET, &sent), Admission::Session);
    assert!(used() > before);
}
