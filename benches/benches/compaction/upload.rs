//! What a compaction publishes and how long it takes.

use std::fs;
use std::time::Instant;

use lockstep_benches::filled::PAGE;
use lockstep_proto::config::read_key_file;
use lockstep_proto::destination::Destination;
use lockstep_proto::shadow::Shadow;

use crate::node::Large;

/// By the share of the pages that changed.
pub fn upload(mib: u64) {
    let mut node = Large::new(mib);
    let keys = read_key_file(&node.dir.network_dir().join("backup.key")).expect("a key file");
    let url: Destination = node.dir.file_url("store").parse().expect("a URL");
    let store = url.open().expect("the store opens");
    let folder = node.shadow();
    // Nobody looks at it again, and a large one may be more than there is room for.
    fs::remove_file(node.dir.network_dir().join("lightningd.sqlite3")).expect("it is there");
    node.any_call();
    drop(Shadow::open(&*store, &keys, &folder).expect("a shadow"));
    println!(
        "\n| database | pages changed | published | of the database | pages written | open s | replay s | prove s | publish s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    // The largest first: a delta takes in those before it that are not much larger.
    for share in [0.1, 0.01, 0.001] {
        node.change((node.rows as f64 * share) as u64);
        // The newest two may not be committed, and are left for the next.
        node.call(&[1]);
        node.call(&[1]);
        let mut began = Instant::now();
        let mut lap = || std::mem::replace(&mut began, Instant::now()).elapsed().as_secs_f64();
        let mut shadow = Shadow::open(&*store, &keys, &folder).expect("a shadow");
        let open = lap();
        shadow.catch_up(&mut |_| {}).expect("it catches up");
        let replay = lap();
        shadow.prove().expect("it is in order");
        let prove = lap();
        let done = shadow.publish(&mut |_, _| {}).expect("it publishes").expect("a snapshot");
        let publish = lap();
        println!(
            "| {:.2} GiB | {:.1} % | {:.1} MiB | {:.2} % | {} | {open:.2} | {replay:.2} | {prove:.2} | {publish:.2} |",
            mib as f64 / 1024.0,
            share * 100.0,
            done.stored_bytes as f64 / (1 << 20) as f64,
            100.0 * done.stored_bytes as f64 / (done.page_count * PAGE) as f64,
            done.pages,
        );
    }
    node.plugin.stop();
}
