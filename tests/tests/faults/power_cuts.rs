//! Power cuts: on a file system of its own, which forgets what was not synced, at any call or any moment. The node's own
//! disk stays; what it committed was acknowledged, and must be in the backup.

use std::thread;
use std::time::{Duration, Instant};

use lockstep_tests::backed::{ci_or_long, long_seconds};
use lockstep_tests::disk::{Disk, Kind};
use lockstep_tests::strace::{Fault, Injection, possible_or_skip};

use crate::scene::{Scene, calls, places, seeded};

/// A batch is appended in a few milliseconds, a session opened in tens.
const MOMENT: Duration = Duration::from_millis(120);

/// The process dies at a call, and the power with it.
fn cut_at_every_call(kind: Kind) {
    let test = format!("power cuts on {kind}");
    if !possible_or_skip(&test) {
        return;
    }
    let Some(disk) = Disk::roomy(kind, &test) else { return };
    let (mut rng, mut scene) = (seeded(), Scene::in_folder(disk.path()));
    disk.cut();
    scene.judge();
    let mut cuts = 0;
    // Reading leaves nothing on a disk that a cut could take.
    for call in calls().filter(|call| !call.contains("read")) {
        for at in places(&mut rng) {
            let injection = Injection { call, fault: Fault::Death, at, from_then_on: false };
            let happened = scene.session(&injection);
            disk.cut();
            cuts += 1;
            scene.judge();
            if !happened {
                break;
            }
            scene.recover_now_and_then();
        }
    }
    let tally = scene.finish();
    println!("{cuts} power cuts on {kind}");
    assert!(tally.died > 0 && tally.failed.contains_key("fdatasync"), "{tally:?}");
}

#[test]
fn a_power_cut_at_every_call_loses_nothing_on_ext4() {
    cut_at_every_call(Kind::Ext4);
}

#[test]
fn a_power_cut_at_every_call_loses_nothing_on_xfs() {
    cut_at_every_call(Kind::Xfs);
}

/// The disk goes under a plugin that runs: it refuses in time, and the node stops uncommitted.
#[test]
fn a_power_cut_of_the_disk_at_any_moment_loses_nothing() {
    let mut rng = seeded();
    let length = ci_or_long(4, long_seconds(120));
    let mut cuts = 0;
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some(disk) = Disk::roomy(kind, "power cuts at any moment") else { return };
        let mut scene = Scene::in_folder(disk.path());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(length / 2) {
            scene.node.run_with(scene.backed.config());
            let moment = MOMENT.mul_f64(rng.f64());
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(moment);
                    disk.shut_down();
                });
                // Where the disk went before, the plugin says so at its first call.
                scene.node.start().unwrap();
                while scene.write() {}
            });
            scene.node.stop().unwrap();
            assert!(!scene.node.stderr().contains("panicked"), "{}", scene.node.stderr());
            disk.mount_again();
            cuts += 1;
            scene.judge();
        }
        scene.finish();
    }
    println!("{cuts} power cuts");
    assert!(cuts > 0);
}
