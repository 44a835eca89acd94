//! What is seen of a backup from outside: numbers for Prometheus, `status` on a terminal, the pages and completions
//! that packages take along.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::sim::Node;
use lockstep_tests::workload::Workload;
use serde_json::{Value, json};

/// A file of `contrib/`.
fn contrib(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name);
    fs::read_to_string(path).expect("a file of contrib")
}

/// An address that nobody has.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    listener.local_addr().expect("it is known").to_string()
}

/// The answer to one request. The plugin listens from its first answer to the hook on, in a moment.
fn ask(address: &str, request: &str) -> String {
    let began = Instant::now();
    let mut connection = loop {
        match TcpStream::connect(address) {
            Ok(connection) => break connection,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    write!(connection, "{request} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("a request");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The value of a metric, with its labels as they are written.
#[track_caller]
fn value(text: &str, metric: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {metric} in:\n{text}"));
    line.parse().expect("a number")
}

/// A running node that serves its numbers.
fn measured(workload: &mut Workload) -> (Backed, Node, String) {
    let backed = Backed::without_backup();
    let second = format!("file://{}", backed.dir().path("second").display());
    backed.init().args(["--async", &second]).run().expect_success();
    let address = free_address();
    backed.set_in_lock("metrics", json!({ "listen": address }));
    let mut node = backed.running(workload);
    Backed::write(&mut node, workload, 30);
    (backed, node, address)
}

#[test]
fn prometheus_is_told_what_is_so() {
    let mut workload = Workload::seeded(41);
    let (backed, mut node, address) = measured(&mut workload);
    let scrape = || ask(&address, "GET /metrics");
    // The hook's thread answers this: what it noted of the last call is there.
    let status = node.call("backup-status", &json!({})).unwrap().result().unwrap();
    let answer = scrape();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "OpenMetrics ends so: {answer}");
    let head = status["destinations"][0]["seq"].as_f64().unwrap();
    assert_eq!(value(&answer, "lockstep_head_seq"), head);
    assert_eq!(value(&answer, "lockstep_degraded"), 0.0);
    assert_eq!(value(&answer, "lockstep_key_slots"), 1.0);
    let batches = status["batches"].as_f64().unwrap();
    assert_eq!(value(&answer, "lockstep_append_seconds_count"), batches);
    assert_eq!(value(&answer, r#"lockstep_append_seconds_bucket{le="+Inf"}"#), batches);
    assert!(value(&answer, "lockstep_append_seconds_sum") > 0.0);

    assert!(!answer.contains("lockstep_last_drill"), "there was none: {answer}");
    let key = backed.network_file("backup.key");
    let drill = Cli::new(["drill", "--key-file"]).arg(key).arg("--lightning-dir");
    drill.arg(backed.network_dir()).run().expect_success();
    assert_eq!(value(&scrape(), "lockstep_last_drill_passed"), 1.0);

    // A place that goes away is seen, and that it comes back.
    let current = r#"lockstep_destination_current{destination="second",mode="async"}"#;
    let (second, aside) = (backed.dir().path("second"), backed.dir().path("aside"));
    node.stop().unwrap();
    fs::rename(&second, &aside).unwrap();
    node.start().unwrap();
    let mut wait = |what: &str, wanted: f64| {
        let began = Instant::now();
        loop {
            Backed::write(&mut node, &mut workload, 1);
            let answer = scrape();
            if value(&answer, current) == wanted && value(&answer, "lockstep_degraded") != wanted {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {answer}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("it is away", 0.0);
    fs::rename(&aside, &second).unwrap();
    wait("it is back", 1.0);

    assert!(ask(&address, "GET /").starts_with("HTTP/1.1 404 "));
    assert!(ask(&address, "POST /metrics").starts_with("HTTP/1.1 405 "));
    // Somebody who says nothing keeps nobody from being answered for long, and the node never.
    let _silent = TcpStream::connect(&address).unwrap();
    Backed::write(&mut node, &mut workload, 5);
    assert!(scrape().starts_with("HTTP/1.1 200 OK"));
    node.stop().unwrap();
}

#[test]
fn numbers_are_given_on_this_machine_only_unless_others_are_meant() {
    let backed = Backed::fresh();
    backed.set_in_lock("metrics", json!({ "listen": "0.0.0.0:0" }));
    let mut workload = Workload::seeded(42);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 1);
    let began = Instant::now();
    while !node.logs().iter().any(|line| line.message.contains("not a loopback address")) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", node.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!node.logged("metrics at http"));
    backed.check(&node);
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_part(character))
        .filter(|word| word.starts_with("lockstep_"))
        .collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_exist() {
    let mut workload = Workload::seeded(43);
    let (_backed, mut node, address) = measured(&mut workload);
    // With a snapshot there is everything.
    node.call("backup-compact", &json!({})).unwrap().result().unwrap();
    let began = Instant::now();
    let answer = loop {
        let answer = ask(&address, "GET /metrics");
        if answer.contains("lockstep_proven_age_seconds ") {
            break answer;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let there = named(&answer);
    // Not before the node is started again with a database to compare, and somebody has made a drill.
    let later = BTreeSet::from([
        "lockstep_compared_age_seconds",
        "lockstep_last_drill_age_seconds",
        "lockstep_last_drill_passed",
    ]);
    for file in ["prometheus/lockstep.rules.yml", "grafana/lockstep.json"] {
        let text = contrib(file);
        let asked = named(&text);
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let unknown: Vec<_> =
            asked.iter().filter(|name| !there.contains(*name) && !later.contains(*name)).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}; there are {there:?}");
    }
    let dashboard: Value = serde_json::from_str(&contrib("grafana/lockstep.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 5);
    node.stop().unwrap();
}

#[test]
fn the_alert_rules_are_yaml_of_the_form_that_prometheus_reads() {
    const CHECK: &str = "import sys, yaml
for group in yaml.safe_load(open(sys.argv[1]))['groups']:
    for rule in group['rules']:
        assert {'alert', 'expr', 'labels', 'annotations'} <= rule.keys(), rule
        print(rule['alert'])";
    let rules =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/prometheus/lockstep.rules.yml");
    let found = Cli::program("python3", ["-c", "import yaml"]).run();
    if found.code != Some(0) {
        eprintln!("skipped: python3 has no yaml");
        return;
    }
    let run = Cli::program("python3", ["-c", CHECK]).arg(rules).run().expect_success();
    assert!(run.stdout.lines().count() > 5, "{run}");
}

/// `backup-cli` on a terminal of its own, with what it shows there.
fn on_a_terminal(arguments: &[&str], variable: Option<(&str, &str)>) -> String {
    const PTY: &str = "import os, pty, sys
pty.spawn(sys.argv[1:])";
    let mut run = Cli::program("python3", ["-c", PTY]).arg(binaries::cli()).args(arguments);
    if let Some((name, value)) = variable {
        run = run.env(name, value);
    }
    run.run().expect_success().stdout
}

#[test]
fn status_has_colours_on_a_terminal_only_and_none_where_they_are_not_wanted() {
    let backed = Backed::fresh();
    let mut workload = Workload::seeded(44);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 5);
    let directory = backed.network_dir();
    let arguments = ["status", "--lightning-dir", directory.to_str().unwrap()];
    let green = "\x1b[32mcurrent\x1b[0m";
    assert!(on_a_terminal(&arguments, None).contains(green));
    assert!(!on_a_terminal(&arguments, Some(("NO_COLOR", "1"))).contains('\x1b'));
    assert!(
        on_a_terminal(&arguments, Some(("NO_COLOR", ""))).contains(green),
        "as no-color.org has it"
    );
    let piped = backed.cli("status").expect_success().stdout;
    assert!(piped.contains("current") && !piped.contains('\x1b'), "{piped}");
    node.stop().unwrap();
}

#[test]
fn status_is_shown_again_and_again() {
    let backed = Backed::fresh();
    let mut workload = Workload::seeded(45);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 5);
    let mut watch = std::process::Command::new(binaries::cli())
        .args(["status", "--watch=1", "--json", "--lightning-dir"])
        .arg(backed.network_dir())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("backup-cli runs");
    let lines = std::io::BufReader::new(watch.stdout.take().expect("a pipe"));
    let mut lines = std::io::BufRead::lines(lines);
    let mut seq = || -> u64 {
        let line = lines.next().expect("a line").expect("it is read");
        let status: Value = serde_json::from_str(&line).expect("one object a line");
        status["destinations"][0]["seq"].as_u64().expect("a seq")
    };
    let first = seq();
    Backed::write(&mut node, &mut workload, 5);
    let began = Instant::now();
    while seq() < first + 5 {
        assert!(began.elapsed() < Duration::from_secs(30), "it shows what is new");
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    node.stop().unwrap();
}

#[test]
fn completions_and_man_pages_are_made_for_each_verb() {
    let backed = Backed::without_backup();
    let folder = backed.dir().make_dir("generated");
    Cli::new(["generate"]).arg(&folder).run().expect_success();
    let files = |name: &str| -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(folder.join(name)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    assert!(files("completions").len() >= 5, "{:?}", files("completions"));
    let bash = fs::read_to_string(folder.join("completions/backup-cli.bash")).unwrap();
    assert!(bash.contains("--lightning-dir"));
    for page in ["backup-cli", "backup-cli-restore", "backup-cli-key-add", "backup-cli-files-get"] {
        let text = fs::read_to_string(folder.join("man").join(format!("{page}.1")));
        assert!(text.expect(page).contains(".SH SYNOPSIS"), "{page}");
    }
    let is_useless = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.contains("-help") || name.contains("-generate")
    };
    assert!(!files("man").iter().any(is_useless), "{:?}", files("man"));
    let bash = Cli::program("bash", ["-n"]).arg(folder.join("completions/backup-cli.bash"));
    bash.run().expect_success();
}
