//! A folder and a bucket beside each other.

use std::fs;

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::Cli;
use lockstep_tests::servers::moto;
use lockstep_tests::workload::Workload;

use crate::two::{flip, says};

#[test]
fn a_bucket_is_added_to_a_folder_and_heals_it() {
    let Some(server) = moto::shared() else { return };
    let backed = Backed::on(server, "beside");
    let folder = backed.dir().path("folder");
    let (folder_url, bucket) = (backed.dir().file_url("folder"), backed.url());
    let cli = |words: &str, args: &[&str]| {
        let words = words.split(' ').chain(args.iter().copied());
        Cli::new(words).arg("--lightning-dir").arg(backed.network_dir()).run()
    };
    cli("init", &[&folder_url]).expect_success();
    let mut workload = Workload::seeded(50);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 30);
    node.stop().unwrap();
    cli("compact", &[]).expect_success();

    says(&cli("destination add", &[&bucket]), 0, &["added 'second'", "fencing real"]);
    cli("verify", &[]).expect_success();
    let measured = cli("destination test", &["second", "--appends", "10"]);
    says(&measured, 0, &["10 appends", "fencing real"]);
    cli("verify", &[]).expect_success();

    let segments = lockstep_tests::backed::files_under(&folder);
    let segment = segments.iter().find(|file| file.extension().is_some_and(|end| end == "seg"));
    let segment = folder.join(segment.unwrap());
    let whole = fs::read(&segment).unwrap();
    flip(&segment, 300);
    says(&cli("verify", &[]), 3, &["'second' is intact"]);
    says(&cli("verify", &["--heal"]), 0, &["from 'second'", "'primary' is intact"]);
    let healed = fs::read(&segment).unwrap();
    assert_eq!(healed, whole[..healed.len()]);
    backed.check_same_as(&node.database_path());
}
