//! A machine with a kernel of its own, for what this one's cannot do: NFS and CIFS. An emulator runs Debian's kernel with
//! this file system below a layer in memory; in it, as the first process, a script.
//!
//! `.ci/servers machine` installs what it takes. Where that is missing, the tests say so in one line and pass.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::real::daemons::say;
use crate::servers::find;
use crate::servers::server::Directory;

/// What is needed to see the file system at all.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "busybox", "modprobe"];

/// The first process: it makes this machine's files the root, below a layer that takes what is written.
const INIT: &str = r#"#!/busybox sh
B=/busybox
$B mkdir -p /proc /dev /low /layer /root
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
for module in $($B cat /modules/order); do $B insmod "/modules/$module"; done
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /low
$B mount -t tmpfs -o size=80% layer /layer
$B mkdir /layer/upper /layer/work
$B mount -t overlay -o lowerdir=/low,upperdir=/layer/upper,workdir=/layer/work root /root
$B mount --move /dev /root/dev
$B umount /proc
exec $B switch_root /root /bin/sh "$SCRIPT"
"#;

/// What the script begins with.
const PRELUDE: &str = r#"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec </dev/null >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs run /run
ip link set lo up
ip addr add 10.9.9.9/32 dev lo
hostname machine
mkdir -p /lib/modules
ln -sfn "$MODULES" "/lib/modules/$(uname -r)"
"#;

/// The machine, switched off.
pub struct Machine {
    /// Where the kernel's package lies.
    directory: PathBuf,
    /// The kernel's own number.
    release: String,
    programs: [PathBuf; 3],
}

impl Machine {
    /// `None`, and a line, where something is missing: one of `daemons`, too.
    pub fn or_skip(daemons: &[&str]) -> Option<Self> {
        let skip = |missing: &str| {
            say(&format!("SKIPPED: no {missing} (.ci/servers machine installs it)"));
        };
        let needed = PROGRAMS.iter().chain(daemons);
        if let Some(missing) = needed.copied().find(|name| find::optional(name).is_none()) {
            skip(missing);
            return None;
        }
        let directory = find::directory()?.join("machine");
        let Ok(release) = fs::read_to_string(directory.join("release")) else {
            skip("kernel");
            return None;
        };
        let [Some(qemu), Some(busybox), Some(modprobe)] = PROGRAMS.map(find::optional) else {
            return None;
        };
        let (release, programs) = (release.trim().to_owned(), [qemu, busybox, modprobe]);
        Some(Self { directory, release, programs })
    }

    /// Runs a shell script in it, for no longer than `limit`, then switches it off. Gives what it wrote, line by line,
    /// and passes it on meanwhile.
    pub fn run(&self, script: &str, limit: Duration) -> Vec<String> {
        let directory = Directory::new();
        let modules = self.directory.join("lib/modules").join(&self.release);
        let modules = format!("MODULES='{}'\n", modules.display());
        let over = "\necho o > /proc/sysrq-trigger\nsleep 60\n";
        let script = directory.write("script", &[&modules, PRELUDE, script, over].concat());
        let first = self.first_files(&directory, &script);
        let mut command = Command::new("timeout");
        command.arg(limit.as_secs().to_string()).arg(&self.programs[0]);
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args([
                "-serial",
                "stdio",
                "-append",
                "console=ttyS0 quiet loglevel=0 panic=-1 mitigations=off",
            ])
            .args(["-device", "virtio-rng-pci"])
            .args([
                "-fsdev",
                "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-kernel"])
            .arg(self.directory.join(format!("boot/vmlinuz-{}", self.release)))
            .arg("-initrd")
            .arg(first)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut running = command.spawn().expect("the emulator starts");
        let output = BufReader::new(running.stdout.take().expect("it is piped"));
        let mut lines = Vec::new();
        for line in output.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("machine: {line}");
            lines.push(line);
        }
        running.wait().expect("it ends");
        lines
    }

    /// The files that the kernel begins with.
    fn first_files(&self, directory: &Directory, script: &Path) -> PathBuf {
        let [_, busybox, modprobe] = &self.programs;
        let files = directory.make("first");
        let modules = directory.make("first/modules");
        fs::copy(busybox, files.join("busybox")).expect("busybox");
        let mut order = Vec::new();
        for module in MODULES {
            for path in self.needed_for(modprobe, module) {
                let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
                if !order.contains(&name.to_owned()) {
                    fs::copy(&path, modules.join(name)).expect("a module");
                    order.push(name.to_owned());
                }
            }
        }
        fs::write(modules.join("order"), order.join("\n")).expect("a file");
        let init = INIT.replace("$SCRIPT", script.to_str().expect("a path"));
        let init = directory.write("first/init", &init);
        let pack = "chmod 755 \"$1\" && find . | \"$2\" cpio -o -H newc > ../first.cpio";
        let mut command = Command::new("sh");
        command.args(["-c", pack, "pack"]).arg(init).arg(busybox).current_dir(&files);
        let output = command.output().expect("sh runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        directory.path.join("first.cpio")
    }

    /// The files of a module and of those that it needs, in the order in which they are loaded.
    fn needed_for(&self, modprobe: &Path, module: &str) -> Vec<PathBuf> {
        let mut command = Command::new(modprobe);
        command.arg("-d").arg(&self.directory).args(["-S", &self.release, "-D", module]);
        let output = command.output().expect("modprobe runs");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let files = shown.lines().filter_map(|line| line.strip_prefix("insmod "));
        files.map(|file| PathBuf::from(file.trim())).collect()
    }
}
