//! What people get wrong about buckets: each says what is wrong and what to do, with its exit code, and never a secret.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lockstep_tests::backed::{Backed, reason_not_to_go_on};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::servers::{Server, azurite, moto, nginx, rgw, tls};
use lockstep_tests::sim::Node;
use lockstep_tests::workload::Workload;
use serde_json::Value;

const FAILED: i32 = 1;
const NOTHING: i32 = 10;
const WRONG_KEY: i32 = 12;

/// The secret part of what the tests give as credentials.
const SECRET: &str = "hunter2hunter2";

type Env = Vec<(String, String)>;

fn with(env: &Env, name: &str, value: &str) -> Env {
    let others = env.iter().filter(|(other, _)| other != name).cloned();
    others.chain([(name.to_owned(), value.to_owned())]).collect()
}

fn without(env: &Env, name: &str) -> Env {
    env.iter().filter(|(other, _)| other != name).cloned().collect()
}

/// It fails with this code, and says these words and this hint, as text and as JSON; and no secret.
#[track_caller]
fn expect_failure(run: impl Fn(&[&str]) -> Output, env: &Env, code: i32, what: &str, hint: &str) {
    let text = run(&[]).expect_code(code);
    assert!(text.stderr.contains(what), "{what}: {text}");
    assert!(text.stderr.contains(&format!("hint: {hint}")), "{hint}: {text}");
    expect_no_secret(&text, env);
    let json = run(&["--json"]).expect_code(code);
    expect_no_secret(&json, env);
    let error: Value = serde_json::from_str(&json.stderr).expect("one object");
    assert_eq!(error["code"], code, "{json}");
    assert!(error["message"].as_str().unwrap().contains(what), "{json}");
    assert!(error["hint"].as_str().unwrap().starts_with(hint), "{json}");
}

#[track_caller]
fn expect_no_secret(output: &Output, env: &Env) {
    let names = ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "WEBDAV_PASSWORD"];
    let secrets = env.iter().filter(|(name, _)| names.contains(&name.as_str()));
    for secret in secrets.map(|(_, value)| value.as_str()).chain([SECRET]) {
        assert!(!format!("{output}").contains(secret), "a secret is shown: {output}");
    }
}

/// `init` fails so, and leaves nothing in the node's directory.
#[track_caller]
fn init_fails(url: &str, env: &Env, what: &str, hint: &str) {
    let backed = Backed::at(url.into(), env.clone());
    let run = |more: &[&str]| more.iter().fold(backed.init(), Cli::arg).run();
    expect_failure(run, env, FAILED, what, hint);
    for file in ["backup.lock", "backup.key"] {
        assert!(!backed.network_file(file).exists(), "{file} is left");
    }
}

/// `restore` fails so, and leaves nothing at its destination.
#[track_caller]
fn restore_fails(backed: &Backed, url: &str, env: &Env, code: i32, what: &str, hint: &str) {
    let dest = backed.new_dest();
    let run = |more: &[&str]| {
        let cli = Cli::new(["restore", "--no-claim", url]).arg(&dest).arg("--key-file");
        let cli = cli.arg(backed.network_file("backup.key"));
        let cli = env.iter().fold(cli, |cli, (name, value)| cli.env(name, value));
        more.iter().fold(cli, Cli::arg).run()
    };
    expect_failure(run, env, code, what, hint);
    assert!(!dest.exists(), "something is left at {}", dest.display());
}

fn init_and_restore_fail(good: &Server, url: &str, env: &Env, what: &str, hint: &str) {
    init_fails(url, env, what, hint);
    let backed = Backed::on(good, "good");
    backed.init().run().expect_success();
    restore_fails(&backed, url, env, FAILED, what, hint);
}

fn store_id(backed: &Backed) -> String {
    let lock = fs::read(backed.network_file("backup.lock")).unwrap();
    let lock: Value = serde_json::from_slice(&lock).unwrap();
    lock["store_id"].as_str().unwrap().to_owned()
}

const UNKNOWN: &str = "the server does not know these credentials";
const CORRECT: &str = "correct them in the environment or in backup-credentials";

#[test]
fn wrong_credentials_on_ceph() {
    let Some(server) = rgw::shared() else { return };
    for name in ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"] {
        let env = with(&server.env, name, SECRET);
        init_and_restore_fail(server, &server.prefix("wrong"), &env, UNKNOWN, CORRECT);
    }
}

#[test]
fn wrong_credentials_on_azurite() {
    let Some(server) = azurite::shared() else { return };
    let key = "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMmh1bnQ=";
    let env = with(&server.env, "AZURE_STORAGE_ACCOUNT_KEY", key);
    let (refused, need) = ("the server refuses access", "these credentials need to read, write");
    init_and_restore_fail(server, &server.prefix("wrong"), &env, refused, need);
}

#[test]
fn wrong_credentials_stop_the_node_before_its_first_commit() {
    let Some(server) = rgw::shared() else { return };
    let backed = Backed::on(server, "node");
    backed.init().run().expect_success();
    let mut node = backed.running(&mut Workload::seeded(1));
    node.stop().unwrap();
    let path = backed.network_file("backup-credentials");
    let good = fs::read_to_string(&path).unwrap();
    let bad = good.replace("AWS_SECRET_ACCESS_KEY=", &format!("AWS_SECRET_ACCESS_KEY={SECRET}"));
    fs::write(&path, bad).unwrap();
    let mut node = Node::new(backed.config());
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains(UNKNOWN) && reason.contains(CORRECT), "{reason}");
    assert!(!reason.contains(SECRET), "{reason}");
    fs::write(&path, good).unwrap();
    node.start().unwrap();
    node.stop().unwrap();
}

#[test]
fn a_bucket_that_is_not_there() {
    let servers = [moto::shared(), rgw::shared(), azurite::shared()];
    for server in servers.into_iter().flatten() {
        let scheme = server.url.split("://").next().unwrap();
        let url = format!("{scheme}://no-such-bucket-here/node");
        let (what, hint) = ("there is no such bucket", "create the bucket, or correct the URL");
        init_and_restore_fail(server, &url, &server.env, what, hint);
    }
}

#[test]
fn no_backup_below_that_prefix() {
    for server in [moto::shared(), azurite::shared()].into_iter().flatten() {
        let backed = Backed::on(server, "somewhere");
        backed.init().run().expect_success();
        let url = server.prefix("elsewhere");
        let what = format!("no backup in '{url}': there is no lockstep.json");
        restore_fails(&backed, &url, &server.env, NOTHING, &what, "check the URL");
    }
}

#[test]
fn another_nodes_backup() {
    let Some(server) = moto::shared() else { return };
    let theirs = Backed::on(server, "theirs");
    theirs.init().run().expect_success();
    let what = format!("'{}' is not empty", theirs.url());
    init_fails(&theirs.url(), &server.env, &what, "choose a prefix that nothing lies below");
    let ours = Backed::on(server, "ours");
    ours.init().run().expect_success();
    let what = format!("backup.key' is the key of store {}", store_id(&ours));
    let hint = "use the backup.key of the node that made this backup";
    restore_fails(&ours, &theirs.url(), &server.env, WRONG_KEY, &what, hint);
    let lock = ours.network_file("backup.lock");
    let text = fs::read_to_string(&lock).unwrap();
    fs::write(&lock, text.replace(&ours.url(), &theirs.url())).unwrap();
    let reason = reason_not_to_go_on(&mut Node::new(ours.config()));
    let mixed = format!("belongs to store {}, not to {}", store_id(&theirs), store_id(&ours));
    assert!(reason.contains(&mixed), "{reason}");
    fs::write(&lock, text).unwrap();
    // Neither was harmed.
    for backed in [theirs, ours] {
        backed.cli("verify").expect_success();
    }
}

#[test]
fn plain_http_is_asked_for() {
    let (what, hint) = ("plain HTTP was not asked for", "use https; or add '?allow_http=true'");
    for server in [moto::shared(), azurite::shared()].into_iter().flatten() {
        let name = match server.url.starts_with("s3") {
            true => "AWS_ALLOW_HTTP",
            false => "AZURE_ALLOW_HTTP",
        };
        let env = without(&server.env, name);
        init_and_restore_fail(server, &server.prefix("plain"), &env, what, hint);
    }
    let Some(server) = nginx::start() else { return };
    init_fails(&server.prefix("plain"), &server.env, what, hint);
    let url = server.prefix("plain") + "?allow_http=true";
    Backed::at(url, server.env.clone()).init().run().expect_success();
}

#[test]
fn a_certificate_that_is_not_trusted_and_the_file_that_makes_it_so() {
    let Some(server) = moto::shared() else { return };
    let Some((tls, certificate)) = tls::before(server) else { return };
    let url = tls.prefix("tls");
    let what = "the server's certificate is not trusted";
    init_and_restore_fail(server, &url, &tls.env, what, "if it is your own server, name its");
    let there = format!("{url}?ca_file={}", certificate.display());
    let backed = Backed::at(there.clone(), tls.env.clone());
    backed.init().run().expect_success();
    let mut workload = Workload::seeded(1);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 5);
    backed.check(&node);
    node.stop().unwrap();
    // Named elsewhere, and gone.
    let gone = there.replace("cert.pem", "gone.pem");
    init_fails(&gone, &tls.env, "ca_file '", "name a file with the certificate");
}

#[test]
fn a_secret_in_a_url_is_refused() {
    let Some(server) = moto::shared() else { return };
    let (url, env) = (server.prefix("secret"), &server.env);
    for name in ["secret_access_key", "aws_secret_access_key", "sas", "sig", "token"] {
        let what = format!("'{name}' does not belong into a URL");
        init_fails(&format!("{url}?{name}={SECRET}"), env, &what, "what may stand behind the '?'");
    }
    for url in
        [format!("https://me:{SECRET}@127.0.0.1:1/dav"), format!("s3://key:{SECRET}@bucket/node")]
    {
        init_fails(&url, env, "a password in a URL", "give WEBDAV_USERNAME and WEBDAV_PASSWORD");
    }
    let url = format!("{url}?proxy_url=socks5h://me:{SECRET}@127.0.0.1:1");
    init_fails(&url, env, "a password in 'proxy_url'", "give LOCKSTEP_DESTINATION_PROXY_URL");
}

#[test]
fn credentials_that_others_can_read() {
    let Some(server) = moto::shared() else { return };
    let backed = Backed::on(server, "open");
    let path = backed.network_file("backup-credentials");
    let open = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let what = format!("'{}' can be read by others (mode 644)", path.display());
    let hint = format!("chmod 0600 {}", path.display());
    let env = backed.env().to_vec();
    open(0o644);
    let init = |more: &[&str]| more.iter().fold(backed.init(), Cli::arg).run();
    expect_failure(init, &env, FAILED, &what, &hint);
    open(0o600);
    init(&[]).expect_success();
    let mut node = backed.running(&mut Workload::seeded(1));
    node.stop().unwrap();
    open(0o644);
    let status = |more: &[&str]| {
        let cli = Cli::new(["status", "--lightning-dir"]).arg(backed.network_dir());
        more.iter().fold(cli, Cli::arg).run()
    };
    expect_failure(status, &env, FAILED, &what, &hint);
    let mut node = Node::new(backed.config());
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains(&what) && reason.contains(&hint), "{reason}");
    open(0o600);
    fs::write(&path, format!("AWS_SECRET_ACCESS_KEY {SECRET}\n")).unwrap();
    let what = format!("'{}' line 1 is not NAME=VALUE", path.display());
    expect_failure(status, &env, FAILED, &what, "write one such pair a line");
}

#[test]
fn nothing_answers() {
    let Some(server) = moto::shared() else { return };
    let env = with(&server.env, "AWS_ENDPOINT", "http://127.0.0.1:1");
    let hint = "check the network, and the server behind this URL";
    init_fails(&server.prefix("nobody"), &env, "s3://", hint);
}
