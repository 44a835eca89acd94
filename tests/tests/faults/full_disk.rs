//! A disk of a few MiB that fills up under a node.

use lockstep_tests::backed::ci_or_long;
use lockstep_tests::disk::{Disk, Kind};

use crate::scene::Scene;

/// A batch of about this many bytes, that does not compress.
fn noise(bytes: usize) -> String {
    (0..bytes / 2).map(|_| format!("{:02x}", fastrand::u8(..))).collect()
}

#[test]
fn a_disk_that_fills_up_stops_the_node_uncommitted_and_loses_nothing() {
    for kind in [Kind::Tmpfs, Kind::Ext4, Kind::Xfs] {
        let Some(disk) = Disk::make(kind, "a disk that fills up") else { return };
        let mut scene = Scene::in_folder(disk.path());
        for round in 0..ci_or_long(2, 20) {
            disk.fill_up_to(96 << 10);
            scene.node.run_with(scene.backed.config());
            scene.node.start().unwrap();
            // The last ones are small, so that it is the last bytes that are missing.
            let mut size = 16 << 10;
            while scene.write_with(&noise(size)) {
                size = (size / 2).max(256);
                assert!(scene.tally.acknowledged < 20_000, "{kind} does not fill up");
            }
            scene.node.stop().unwrap();
            assert!(scene.node.logged("No space left"), "{kind}: {:?}", scene.node.logs().last());
            assert_eq!(scene.tally.refused, round + 1, "{kind}");
            scene.judge();
            // Full as it is, the next start refuses, too, and destroys nothing.
            scene.node.start().unwrap();
            if !scene.write() {
                scene.tally.refused -= 1;
            }
            scene.node.stop().unwrap();
            scene.judge();
            disk.make_room();
            scene.recover();
        }
        scene.finish();
    }
}
