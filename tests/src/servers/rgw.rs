//! Ceph's RADOS Gateway: S3 as it is meant. A monitor, an object store daemon in memory and the gateway, a
//! gigabyte in all, up in some seconds; what it holds survives the gateway, not the others.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::daemon::Daemon;
use super::find;
use super::server::{Directory, Server, free_port};
use super::sign::{S3_KEY, S3_SECRET};
use crate::real::wait::wait_for;

const BUCKET: &str = "lockstep-rgw";
const CLUSTER: &str = "11111111-2222-3333-4444-555555555555";

/// The programs of Ceph, with a configuration.
struct Ceph {
    radosgw: PathBuf,
    mon: PathBuf,
    osd: PathBuf,
    ceph: PathBuf,
    monmaptool: PathBuf,
    admin: PathBuf,
    config: PathBuf,
}

/// Starts one; `None`, and a line, where it is not installed.
pub fn start() -> Option<Server> {
    let directory = Directory::new();
    let (monitor, port) = (free_port(), free_port());
    let config = directory.write("ceph.conf", &configuration(&directory.path, monitor, port));
    let ceph = Ceph {
        radosgw: find::system("radosgw")?,
        mon: find::system("ceph-mon")?,
        osd: find::system("ceph-osd")?,
        ceph: find::system("ceph")?,
        monmaptool: find::system("monmaptool")?,
        admin: find::system("radosgw-admin")?,
        config,
    };
    for folder in ["mon", "osd", "rgw", "run"] {
        directory.make(folder);
    }
    let behind = vec![ceph.monitor(&directory, monitor), ceph.object_store(&directory)];
    ceph.run(
        &ceph.admin,
        &["user", "create", "--uid=lockstep", "--display-name=lockstep"],
        &[&format!("--access-key={S3_KEY}"), &format!("--secret-key={S3_SECRET}")],
    );
    let mut gateway = ceph.command(&ceph.radosgw);
    gateway.args(["-n", "client.rgw.a", "-f"]);
    Some(Server::start(gateway, directory, behind, port).with_bucket(BUCKET))
}

/// One for all tests of this process.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    SHARED.get_or_init(start).as_ref()
}

impl Ceph {
    fn monitor(&self, directory: &Directory, port: u16) -> Daemon {
        let map = directory.path.join("monmap");
        let map = map.to_str().expect("a path in UTF-8");
        let address = format!("[v1:127.0.0.1:{port}]");
        let mut make = Command::new(&self.monmaptool);
        make.args(["--create", "--clobber", "--addv", "a", &address, "--fsid", CLUSTER, map]);
        output(&mut make).expect("a map");
        self.run(&self.mon, &["--mkfs", "-i", "a"], &["--monmap", map]);
        let mut command = self.command(&self.mon);
        command.args(["-i", "a", "-f"]);
        Daemon::start(command, &directory.path, "mon")
    }

    fn object_store(&self, directory: &Directory) -> Daemon {
        let id = self.run(&self.ceph, &["osd", "new", CLUSTER], &[]);
        let id = id.trim();
        self.run(&self.osd, &["-i", id, "--mkfs"], &["--osd-uuid", CLUSTER]);
        let mut command = self.command(&self.osd);
        command.args(["-i", id, "-f"]);
        let mut daemon = Daemon::start(command, &directory.path, "osd");
        wait_for("an object store daemon that is up", || {
            // For the reason that `run` tries again.
            if !daemon.is_running() {
                daemon.start_again();
            }
            self.run(&self.ceph, &["osd", "stat"], &[]).contains("1 up").then_some(())
        });
        daemon
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config);
        command
    }

    /// What a program writes. It may fail a few times: with a little ill luck it asks before it has the
    /// monitor's map, and is refused as one of another cluster.
    fn run(&self, program: &Path, arguments: &[&str], more: &[&str]) -> String {
        let mut failed = 0;
        loop {
            // One that finds no monitor waits for ever.
            let mut command = Command::new("timeout");
            command.arg("10").arg(program).arg("-c").arg(&self.config);
            match output(command.args(arguments).args(more)) {
                Ok(text) => return text,
                Err(error) if failed == 5 => panic!("{error}"),
                Err(_) => failed += 1,
            }
        }
    }
}

/// What a program writes, or what it complains about.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {error}")),
    }
}

fn configuration(directory: &Path, monitor: u16, port: u16) -> String {
    let directory = directory.display();
    format!(
        "[global]
fsid = {CLUSTER}
mon host = [v1:127.0.0.1:{monitor}/0]
public addr = 127.0.0.1
ms bind msgr2 = false
mon data = {directory}/mon
osd data = {directory}/osd
run dir = {directory}/run
log file = {directory}/$name.ceph.log
admin socket = {directory}/run/$name.asok
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
mon allow pool size one = true
mon data avail crit = 0
mon data avail warn = 0
mon warn on pool no redundancy = false
mon max pg per osd = 1000
paxos propose interval = 0.05
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {directory}/rgw
"
    )
}
