//! A few plugs pulled; `make bench-edge` pulls five hundred.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use glimpse_tests::fixture::Fixture;
use glimpse_tests::plugs;

#[test]
fn plugs_that_are_pulled_damage_no_outbox_and_repeat_no_action() {
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let report = plugs::pull(&fixture, server.address().unwrap(), (2, 24), 7, &|| ()).unwrap();
    assert_eq!((report.failures(), report.pulls), (0, 24), "{report:?}");
    assert!(report.kept > 0 && report.acted > 0, "{report:?}");
}
