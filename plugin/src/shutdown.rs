//! How long this program stays when lightningd stops.
//!
//! lightningd gives plugins that subscribe to `shutdown` up to 30 s, and until the last of them is gone it
//! serves their open connections (`shutdown_plugins` in `lightningd/plugin.c`): another plugin can still
//! cause writes. So this one must be the last to go, but not make every stop take 30 s.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::parent_id;

/// True while lightningd has other children in our directory than its own daemons, which are named
/// `lightning_…`. It starts every plugin in the network directory; the parent's other children are not.
///
/// Where there is no `/proc` to look in, false: then a quiet moment has to do.
pub fn other_plugins_run() -> bool {
    let (parent, own) = (parent_id(), std::process::id());
    let Ok(here) = fs::metadata(".") else { return false };
    let is_here = |process: u32| {
        fs::metadata(format!("/proc/{process}/cwd"))
            .is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&process| process != own)
        .filter_map(|process| {
            Some((process, fs::read_to_string(format!("/proc/{process}/stat")).ok()?))
        })
        .any(|(process, stat)| is_plugin_of(parent, &stat) && is_here(process))
}

/// Reads `/proc/PID/stat`: `pid (name) state parent …`; the name may hold anything.
fn is_plugin_of(parent: u32, stat: &str) -> bool {
    let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'))
    else {
        return false;
    };
    let mut fields = rest.split_whitespace();
    let running = !matches!(fields.next(), None | Some("Z" | "X"));
    let child = fields.next().and_then(|field| field.parse().ok()) == Some(parent);
    running && child && !name.starts_with("lightning_")
}

#[cfg(test)]
mod tests {
    use super::is_plugin_of;

    #[test]
    fn plugins_are_told_from_daemons_and_the_dead() {
        assert!(is_plugin_of(7, "12 (bcli) S 7 7 7 0"));
        assert!(is_plugin_of(7, "12 (a) b (c)) R 7 7 7 0"));
        assert!(!is_plugin_of(7, "12 (bcli) Z 7 7 7 0"));
        assert!(!is_plugin_of(7, "12 (lightning_hsmd) S 7 7 7 0"));
        assert!(!is_plugin_of(7, "12 (bash) S 8 7 7 0"));
        assert!(!is_plugin_of(7, "12"));
    }
}
