//! A destination that hangs in the operating system holds nobody up who asks about the others.

use std::thread;
use std::time::{Duration, Instant};

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::real::mount::{Fuse, possible_or_skip};
use lockstep_tests::workload::Workload;

use crate::two::says;

/// Twenty seconds, and what the rest takes on a machine that does other things as well.
const BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_hung_mount_is_named_and_the_others_are_shown() {
    let test = "a_hung_mount_is_named_and_the_others_are_shown";
    if !possible_or_skip(test) {
        return;
    }
    let backed = Backed::without_backup();
    let mounted = backed.dir().path("mounted");
    let Some(fuse) = Fuse::mount(&backed.dir().path("behind"), &mounted, test) else { return };
    backed.init().arg(backed.dir().file_url("mounted")).run().expect_success();
    let mut workload = Workload::seeded(70);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    node.stop().unwrap();

    fuse.hang();
    let verb =
        |words: &str| Cli::new(words.split(' ')).arg("--lightning-dir").arg(backed.network_dir());
    let key = backed.network_file("backup.key");
    let by_url = Cli::new(["status", &backed.dir().file_url("mounted"), "--key-file"]).arg(&key);
    // From the other: it does not know whether this one is newer.
    let restore =
        Cli::new(["restore", &backed.url()]).arg(backed.new_dest()).arg("--key-file").arg(&key);
    // All at once: each waits as long.
    let within = |cli: Cli| -> Output {
        let began = Instant::now();
        let output = cli.run();
        assert!(began.elapsed() < BOUND, "{:?}: {output}", began.elapsed());
        output
    };
    let asked = [verb("status"), verb("verify"), verb("destination list"), by_url, restore];
    let [status, verify, list, by_url, restore] = thread::scope(|scope| {
        asked.map(|cli| scope.spawn(|| within(cli))).map(|asked| asked.join().expect("in time"))
    });
    let unanswered = "has not answered for 20 s";
    says(&status, 3, &["primary", "unreachable", unanswered, "can be relied on: second"]);
    says(&verify, 3, &["'primary' is intact", unanswered, "away: second"]);
    says(&list, 0, &["second", "mounted"]);
    says(&by_url, 1, &[unanswered, "check the disk or network"]);
    says(&restore, 1, &["do not answer", unanswered, "--accept-stale"]);

    fuse.go_on();
    // Another machine's claim may be seen late behind FUSE.
    says(&verb("status").run(), 0, &["second", "advisory"]);
    says(&verb("verify").run(), 0, &["'second' is intact"]);
}
