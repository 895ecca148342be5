//! Kills at random moments, and damaged files: see [`glimpse_tests::durability`]. `make bench-server` plays more rounds.

use glimpse_tests::durability::Victim;
use glimpse_tests::programs::Programs;

/// Of kills; each takes a tenth of a second or two.
const ROUNDS: usize = 40;

#[test]
fn what_was_acknowledged_survives_every_kill_and_damage_is_found() {
    let place = tempfile::tempdir().unwrap();
    let programs = Programs::find().unwrap();
    let mut victim = Victim::new(&programs, place.path(), 1).unwrap();
    let report = victim.rounds(ROUNDS, &mut || ()).unwrap();
    assert!(report.killed >= ROUNDS / 5, "most commands ended before they were killed: {report:?}");
    assert!(
        report.servers >= ROUNDS / 5 && report.swapped > 0,
        "no server saw its index replaced: {report:?}"
    );
    let damage = victim.damage(24, &mut || ()).unwrap();
    assert!(damage.found >= 8, "{damage:?}");
}
