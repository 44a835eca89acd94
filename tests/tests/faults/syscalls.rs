//! Each system call that touches a file fails once, or from there on, or is the process's last, at each place of a short
//! run.

use std::fs;

use lockstep_tests::oracle;
use lockstep_tests::strace::{Fault, Injection, possible_or_skip};

use crate::points::{Point, Points};
use crate::scene::{ERRORS, Scene, Tally, calls, places, seeded};

/// Every call in turn, at these places of a run.
fn sweep(faults: &[Fault], from_then_on: bool) -> Tally {
    let (mut rng, mut scene) = (seeded(), Scene::new());
    let mut points = Points::new(&mut rng, faults, places);
    while let Some(point) = points.next() {
        let Point { call, at, fault, .. } = point;
        let happened = scene.session(&Injection { call, fault, at, from_then_on });
        scene.judge();
        match happened {
            true => scene.recover_now_and_then(),
            false => points.not_reached(point),
        }
    }
    scene.finish()
}

#[test]
fn every_call_may_fail_once_and_nothing_is_lost() {
    if !possible_or_skip("system calls that fail once") {
        return;
    }
    let tally = sweep(&ERRORS, false);
    for call in ["pwrite64", "pwritev2", "fdatasync", "fsync", "openat", "linkat", "rename"] {
        assert!(tally.failed.contains_key(call), "no {call} failed: {tally:?}");
    }
    assert!(tally.acknowledged > tally.refused, "{tally:?}");
}

#[test]
fn every_call_may_fail_for_good_and_nothing_is_lost() {
    if !possible_or_skip("system calls that fail for good") {
        return;
    }
    let tally = sweep(&ERRORS, true);
    assert!(tally.refused > 0, "{tally:?}");
}

#[test]
fn a_death_at_every_call_loses_nothing() {
    if !possible_or_skip("deaths at system calls") {
        return;
    }
    let tally = sweep(&[Fault::Death], false);
    assert!(tally.died > 0 && tally.failed.contains_key("fdatasync"), "{tally:?}");
}

/// A restore of which any call fails gives the whole database or none, and says why.
#[test]
fn a_restore_of_which_any_call_fails_gives_all_or_nothing() {
    if !possible_or_skip("restores of which a call fails") {
        return;
    }
    let (mut rng, mut scene) = (seeded(), Scene::new());
    scene.recover();
    let expected = scene.backed.restored();
    let key = scene.backed.network_file("backup.key");
    let (mut failed, mut went_on) = (0, 0);
    for call in calls() {
        for (number, at) in places(&mut rng).into_iter().enumerate() {
            let fault = ERRORS[number % ERRORS.len()];
            let injection = Injection { call, fault, at, from_then_on: false };
            let dest = scene.backed.new_dest();
            let cli = injection.cli(&scene.trace).arg("restore").arg("--no-claim");
            let output = cli.arg(scene.backed.url()).arg(&dest).arg("--key-file").arg(&key).run();
            assert!(!output.stderr.contains("panicked"), "{injection}: {output}");
            match output.code {
                Some(0) => {
                    oracle::assert_same(&expected, &dest);
                    fs::remove_file(&dest).unwrap();
                    went_on += 1;
                }
                // By the loader, before the program began.
                Some(127) => assert!(!dest.exists(), "{injection}: {output}"),
                _ => {
                    assert!(output.stderr.contains("error: "), "{injection}: {output}");
                    // After its name came the sync of its folder: then it is whole.
                    if dest.exists() {
                        oracle::assert_same(&expected, &dest);
                    }
                }
            }
            if !injection.happened(&scene.trace) {
                break;
            }
            failed += 1;
        }
    }
    println!("{failed} calls failed, {went_on} restores went on");
    assert!(failed > 10 && went_on > 0);
}

#[test]
fn the_plugin_needs_write_for_pipes_and_for_notes_of_its_shadow_alone() {
    if !possible_or_skip("what write is for") {
        return;
    }
    let mut scene = Scene::new();
    let fault = Fault::Error("EIO");
    let never = Injection { call: "write", fault, at: 60_000, from_then_on: false };
    assert!(!scene.session(&never));
    let trace = fs::read_to_string(&scene.trace).unwrap();
    let mut pipes = 0;
    for line in trace.lines().filter(|line| line.contains(" write(")) {
        // Eight bytes wake a thread; another's call may be in the midst of it.
        let known = line.contains(" write(1, ")
            || line.contains(r#"{\"format\":\"lockstep-"#)
            || line.contains(", 8) ")
            || line.contains(", 8 <unfinished");
        assert!(known, "{line}");
        pipes += 1;
    }
    assert!(pipes > 0, "{trace}");
}
