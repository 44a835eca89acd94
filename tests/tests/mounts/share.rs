//! A folder that the machine serves to itself, as often mounted as wanted.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use lockstep_tests::real::wait::within;

/// Two addresses of one machine: each mount has a connection and a cache of its own.
const ADDRESSES: [&str; 2] = ["127.0.0.1", "10.9.9.9"];
const SERVED: &str = "/srv/served";
const PATIENCE: Duration = Duration::from_secs(60);

const NFS_UP: &str = "
pidof rpcbind >/dev/null || { rpcbind -w; rpc.statd --no-notify; rpc.mountd; }
exportfs -o rw,no_root_squash,insecure,fsid=0,sync,no_subtree_check '*:/srv/served'
rpc.nfsd -G 10 -L 10 8";
const NFS_DOWN: &str = "rpc.nfsd 0";

const CIFS_UP: &str = "
mkdir -p /run/smb
cat > /run/smb/smb.conf <<X
[global]
private dir=/run/smb
lock directory=/run/smb
state directory=/run/smb
cache directory=/run/smb
pid directory=/run/smb
ncalrpc dir=/run/smb/nc
log file=/run/smb/log
map to guest=never
disable spoolss=yes
load printers=no
server min protocol=SMB2
strict sync=yes
[served]
path=/srv/served
read only=no
force user=root
X
[ -e /run/smb/known ] || printf 'pw\\npw\\n' | smbpasswd -c /run/smb/smb.conf -s -a root
touch /run/smb/known
smbd -s /run/smb/smb.conf -D";
const CIFS_DOWN: &str = "for id in $(pidof smbd); do kill -9 $id; done";

/// What serves, and how it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nfs4,
    Nfs3,
    Cifs,
}

/// What a mount does when its server does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// After seconds, what is asked fails.
    Soft,
    /// It waits.
    Hard,
}

/// A folder that is served. Its mounts end with it.
pub struct Share {
    kind: Kind,
    mounts: Cell<Vec<PathBuf>>,
}

impl Share {
    pub fn serve(kind: Kind) -> Self {
        let share = Self { kind, mounts: Cell::default() };
        share.up();
        share
    }

    /// The server starts.
    pub fn up(&self) {
        sh(if self.kind == Kind::Cifs { CIFS_UP } else { NFS_UP });
    }

    /// It is gone, with whatever it was doing.
    pub fn down(&self) {
        sh(if self.kind == Kind::Cifs { CIFS_DOWN } else { NFS_DOWN });
    }

    /// Mounts it once more, at one of two addresses.
    pub fn mount(&self, address: usize, patience: Patience) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let at = PathBuf::from(format!("/mnt/share-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&at).unwrap();
        let address = ADDRESSES[address];
        let patience = match patience {
            Patience::Soft => "soft",
            Patience::Hard => "hard",
        };
        let nfs = format!("{patience},nosharecache,proto=tcp,timeo=10,retrans=2");
        let (what, kind, options) = match self.kind {
            Kind::Nfs4 => (format!("{address}:/"), "nfs", format!("vers=4.2,{nfs}")),
            Kind::Nfs3 => (format!("{address}:{SERVED}"), "nfs", format!("vers=3,{nfs}")),
            Kind::Cifs => {
                let login = "username=root,password=pw,vers=3.1.1,nosharesock,echo_interval=5";
                (format!("//{address}/served"), "cifs", format!("{login},{patience}"))
            }
        };
        let mount = || {
            let mut command = Command::new("mount");
            command.args(["-t", kind, "-o", &options, &what]).arg(&at);
            run(&mut command).then_some(())
        };
        assert!(within(PATIENCE, mount).is_some(), "{what} cannot be mounted");
        let mut mounts = self.mounts.take();
        mounts.push(at.clone());
        self.mounts.set(mounts);
        at
    }

    /// A folder of it that nobody used before.
    pub fn new_folder(&self, mount: &Path) -> PathBuf {
        let names = (0..).map(|number| mount.join(format!("node-{number}")));
        names.into_iter().find(|path| !path.exists()).unwrap()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for at in self.mounts.take() {
            run(Command::new("umount").arg("-l").arg(at));
        }
        self.down();
        thread::sleep(Duration::from_secs(1));
    }
}

fn sh(script: &str) {
    assert!(run(Command::new("sh").args(["-c", script])), "{script}");
}

fn run(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    status.expect("it runs").success()
}
