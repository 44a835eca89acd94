//! Real NFS and CIFS, served and mounted in a machine that is made for it.
//!
//! `scenes` runs there: the one test that is not ignored boots the machine, in which this program runs the others.

mod scenes;
mod share;

use std::time::Duration;

use lockstep_tests::backed::ci_or_long;
use lockstep_tests::machine::Machine;
use lockstep_tests::real::daemons::say;

/// An emulator is slow.
const LIMIT: Duration = Duration::from_secs(2400);
/// Which scenes to run; unset, all of them, in the long form only.
const SCENE_VARIABLE: &str = "LOCKSTEP_SCENE";
const DAEMONS: [&str; 6] = ["rpcbind", "rpc.statd", "rpc.nfsd", "smbd", "mount.nfs", "mount.cifs"];

/// What the scenes find done: servers' folders, and a file system to serve.
const PREPARE: &str = "
for module in loop ext4 nfsd nfs nfsv3 nfsv4 cifs; do modprobe $module || echo no module $module; done
truncate -s 800M /run/served.img && mkfs.ext4 -q /run/served.img
mkdir -p /srv/served && mount -o loop /run/served.img /srv/served && chmod 777 /srv/served
mount -t tmpfs nfs /var/lib/nfs
mkdir -p /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcltrack
touch /var/lib/nfs/etab /var/lib/nfs/rmtab /var/lib/nfs/state
mkdir -p /run/rpcbind /run/sendsigs.omit.d
mount -t nfsd nfsd /proc/fs/nfsd
mount -t rpc_pipefs pipefs /var/lib/nfs/rpc_pipefs
";

#[test]
fn nodes_back_up_to_nfs_and_cifs() {
    let only = std::env::var(SCENE_VARIABLE).ok().or(ci_or_long(None, Some("scenes::".into())));
    let Some(only) = only else {
        say("SKIPPED: NFS and CIFS take a quarter of an hour: LOCKSTEP_LONG=1 runs them");
        return;
    };
    let Some(machine) = Machine::or_skip(&DAEMONS) else { return };
    let program = std::env::current_exe().unwrap();
    let run = format!(
        "{PREPARE}\ncd /tmp\nLOCKSTEP_NO_BUILD=1 '{}' '{only}' --ignored --test-threads=1 --color never",
        program.display()
    );
    let lines = machine.run(&run, LIMIT);
    let passed =
        lines.iter().any(|line| line.contains("test result: ok.") && !line.contains(" 0 passed"));
    assert!(passed, "see what the machine wrote");
}
