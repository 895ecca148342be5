//! The console in a real browser, over a real server that real devices ask.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::PathBuf;
use std::process::Stdio;

use glimpse_tests::authority::private;
use glimpse_tests::browser::Browser;
use glimpse_tests::demo::ground_truth::Query;
use glimpse_tests::device::Device;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::queries::{self, Answer};
use glimpse_tests::server::Server;
use glimpse_tests::workspace;

const PASSWORD: &str = "a password of the test";

/// A photo of the demo of which nothing is in the small gallery.
fn foreign_photo(fixture: &Fixture) -> PathBuf {
    let known: Vec<_> = fixture.queries.iter().map(|query| query.photo.clone()).collect();
    let all = std::fs::read_dir(workspace::demo().join("photos/queries")).unwrap();
    let mut others: Vec<PathBuf> =
        all.map(|entry| entry.unwrap().path()).filter(|path| !known.contains(path)).collect();
    others.sort();
    others[others.len() / 2].clone()
}

fn ask(fixture: &Fixture, server: &Server, device: &str, photos: &[PathBuf]) -> Vec<Answer> {
    let mut command = fixture.programs.edge();
    command.args(["query", "--json", "--top-k", "5", "--device", device]);
    command.args(["--server", server.address().unwrap(), "--bundle"]).arg(workspace::bundle());
    queries::ask(command, photos, &fixture.path("edge.log"), &mut |_| ()).unwrap()
}

fn set_password(fixture: &Fixture, password: &str) {
    let file = fixture.path("password");
    private(&file, password).unwrap();
    let mut command = fixture.programs.gallery();
    command.arg("console-password").arg("--gallery").arg(fixture.gallery()).arg("--password-file").arg(file);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
}

fn known_photos(fixture: &Fixture, count: usize) -> Vec<PathBuf> {
    fixture.queries.iter().take(count).map(|query| query.photo.clone()).collect()
}

#[test]
fn a_person_logs_in_and_sees_a_query_as_it_happens() {
    let Some(browser) = Browser::find("a_person_logs_in_and_sees_a_query_as_it_happens") else { return };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve_at("127.0.0.1:0").unwrap();
    // While the server runs: a password counts at once.
    set_password(&fixture, PASSWORD);
    let http = server.word("http").unwrap();
    let query = &fixture.queries[0];
    let arguments = [PASSWORD, &query.label, "cam-door"];
    let mut scenario =
        browser.play("log_in_and_follow", http, &arguments, fixture.path("browser.log")).unwrap();
    scenario.reaches("following").unwrap();
    ask(&fixture, &server, "cam-door", std::slice::from_ref(&query.photo));
    scenario.goes_on().unwrap();
    scenario.ends_well().unwrap();
}

#[test]
fn a_wrong_match_and_its_device_are_found_in_under_three_clicks() {
    let Some(browser) = Browser::find("a_wrong_match_and_its_device_are_found_in_under_three_clicks") else {
        return;
    };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve_at("127.0.0.1:0").unwrap();
    // Queries of another device before and after the one that is looked for.
    let (before, after) = fixture.queries.split_at(8);
    let photos = |queries: &[Query]| queries.iter().map(|query| query.photo.clone()).collect::<Vec<_>>();
    ask(&fixture, &server, "cam-door", &photos(before));
    let wrong = ask(&fixture, &server, "cam-yard", &[foreign_photo(&fixture)]);
    ask(&fixture, &server, "cam-door", &photos(after));
    assert!(
        wrong[0].matches[0].similarity < 0.5,
        "what is not in the gallery is not near anything in it: {wrong:?}"
    );
    let http = server.word("http").unwrap();
    let scenario =
        browser.play("find_wrong_match", http, &["cam-yard"], fixture.path("browser.log")).unwrap();
    scenario.ends_well().unwrap();
}

#[test]
fn the_gallery_is_browsed_by_text_and_by_a_dropped_photo() {
    let Some(browser) = Browser::find("the_gallery_is_browsed_by_text_and_by_a_dropped_photo") else {
        return;
    };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve_at("127.0.0.1:0").unwrap();
    let wanted = &fixture.queries[3];
    let photo = workspace::demo().join("photos").join(&wanted.answer);
    let arguments = [wanted.label.as_str(), photo.to_str().unwrap()];
    let http = server.word("http").unwrap();
    let scenario = browser.play("browse_gallery", http, &arguments, fixture.path("browser.log")).unwrap();
    scenario.ends_well().unwrap();
}

/// A device that has asked about so many photos, and is on its way to another network.
fn device_that_is_updated(fixture: &Fixture, server: &Server, name: &str, photos: usize) -> Device {
    let models = |words: &[&str]| {
        let mut command = fixture.programs.gallery();
        let output =
            command.arg("models").args(words).arg("--gallery").arg(fixture.gallery()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let key = models(&["key"]);
    let camera = fixture.path("camera");
    std::fs::create_dir(&camera).unwrap();
    for (number, photo) in known_photos(fixture, photos).iter().enumerate() {
        std::fs::copy(workspace::root().join(photo), camera.join(format!("{number}.jpg"))).unwrap();
    }
    let mut command = fixture.programs.edge();
    command.args(["run", "--json", "--top-k", "5", "--device", name, "--server", server.address().unwrap()]);
    command
        .arg("--camera")
        .arg(format!("folder:{}", camera.display()))
        .arg("--bundle")
        .arg(workspace::bundle());
    command.arg("--state").arg(fixture.path("state")).args(["--model-key", key.trim()]);
    let device = Device::start(command, &fixture.path("edge-run.log")).unwrap();
    (0..photos).for_each(|_| assert!(device.answer().unwrap().error.is_none()));
    let network = fixture.another_network().unwrap();
    models(&["push", network.to_str().unwrap(), "--to-all"]);
    device
}

#[test]
fn every_view_fits_a_phone_and_the_dark_and_has_no_barriers() {
    let Some(browser) = Browser::find("every_view_fits_a_phone_and_the_dark_and_has_no_barriers") else {
        return;
    };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve_at("127.0.0.1:0").unwrap();
    ask(&fixture, &server, "cam-door", &known_photos(&fixture, 7));
    ask(&fixture, &server, "cam-yard", &[foreign_photo(&fixture)]);
    let _device = device_that_is_updated(&fixture, &server, "cam-hall", 2);
    let http = server.word("http").unwrap();
    let mut scenario = browser.play("look_at_every_view", http, &[], fixture.path("browser.log")).unwrap();
    scenario.reaches("seen without a password").unwrap();
    set_password(&fixture, PASSWORD);
    scenario.goes_on().unwrap();
    scenario.ends_well().unwrap();
}

#[test]
fn the_console_is_walked_by_keyboard_alone() {
    let Some(browser) = Browser::find("the_console_is_walked_by_keyboard_alone") else { return };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve_at("127.0.0.1:0").unwrap();
    ask(&fixture, &server, "cam-door", &known_photos(&fixture, 3));
    let http = server.word("http").unwrap();
    browser.play("walk_by_keyboard", http, &[], fixture.path("browser.log")).unwrap().ends_well().unwrap();
}

#[test]
fn a_page_finds_its_server_again() {
    let Some(browser) = Browser::find("a_page_finds_its_server_again") else { return };
    let fixture = Fixture::ingested().unwrap();
    let mut server = fixture.serve_at("127.0.0.1:0").unwrap();
    let http = server.word("http").unwrap().to_owned();
    let mut scenario = browser.play("reconnect", &http, &["cam-door"], fixture.path("browser.log")).unwrap();
    scenario.reaches("live").unwrap();
    assert_eq!(server.stop().unwrap().code(), Some(0));
    scenario.reaches("disconnected").unwrap();
    let server = fixture.serve_at(&http).unwrap();
    scenario.goes_on().unwrap();
    scenario.reaches("live again").unwrap();
    ask(&fixture, &server, "cam-door", &known_photos(&fixture, 1));
    scenario.goes_on().unwrap();
    scenario.ends_well().unwrap();
}
