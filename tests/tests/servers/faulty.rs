//! The proxy: each fault, and what a client of S3 makes of it.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_tests::servers::http::{self, Answer};
use lockstep_tests::servers::{Fault, Proxy, Server, azurite, moto, nginx, rgw};
use object_store::{Error, PutMode};

use crate::store::Store;

/// A file on nginx, and a proxy before it.
fn nginx_with_a_file() -> Option<(Server, Proxy)> {
    let server = nginx::start()?;
    let proxy = Proxy::before(&server);
    assert_eq!(put(&proxy, "file", "0123456789").unwrap().status, 201);
    Some((server, proxy))
}

fn put(proxy: &Proxy, name: &str, body: &str) -> std::io::Result<Answer> {
    http::request(proxy.port, "PUT", &format!("/dav/{name}"), &[], body.as_bytes())
}

fn get(port: u16, name: &str) -> std::io::Result<Answer> {
    http::request(port, "GET", &format!("/dav/{name}"), &[], b"")
}

/// Signatures and bodies of all sizes pass, and requests are counted.
#[track_caller]
fn expect_it_passes(server: &Server) {
    let proxy = Proxy::before(server);
    let store = Store::at(&proxy.prefix("pass"), &proxy.env);
    let long = "0123456789".repeat(300_000);
    for body in ["", "short", long.as_str()] {
        store.put("object", body, PutMode::Overwrite).unwrap();
        assert_eq!(store.get("object").unwrap(), body);
    }
    assert_eq!((proxy.count("PUT"), proxy.count("GET")), (3, 3));
    assert!(proxy.requests()[0].target.contains("pass"));
    store.expect_one_winner(2);
}

#[test]
fn it_passes_everything_to_moto() {
    let Some(server) = moto::shared() else { return };
    expect_it_passes(server);
}

#[test]
fn it_passes_everything_to_ceph() {
    let Some(server) = rgw::shared() else { return };
    expect_it_passes(server);
}

#[test]
fn it_passes_everything_to_azurite() {
    let Some(server) = azurite::shared() else { return };
    expect_it_passes(server);
}

/// The client asks again by itself, and is told that its own object is another's.
#[track_caller]
fn expect_ours_to_exist_already(server: &Server, fault: Fault) {
    let proxy = Proxy::before(server);
    let store = Store::at(&proxy.prefix("create"), &proxy.env);
    proxy.next(1, "PUT", fault);
    let created = store.put("object", "ours", PutMode::Create);
    assert!(matches!(created, Err(Error::AlreadyExists { .. })), "{created:?}");
    assert_eq!(proxy.count("PUT"), 2);
    assert_eq!(store.get("object").unwrap(), "ours");
}

#[test]
fn an_object_whose_answer_is_lost_exists() {
    let Some(server) = moto::shared() else { return };
    expect_ours_to_exist_already(server, Fault::LoseAnswer);
}

#[test]
fn an_object_whose_answer_is_503_exists() {
    let Some(server) = moto::shared() else { return };
    expect_ours_to_exist_already(server, Fault::FailAfterwards);
}

#[test]
fn slow_down_and_lost_requests_never_reach_the_server() {
    let Some(server) = moto::shared() else { return };
    for fault in [Fault::SlowDown, Fault::LoseRequest] {
        let proxy = Proxy::before(server);
        let store = Store::at(&proxy.prefix("slow"), &proxy.env);
        proxy.next(2, "PUT", fault);
        store.put("object", "ours", PutMode::Create).unwrap();
        assert_eq!(proxy.count("PUT"), 3);
    }
}

#[test]
fn what_it_says_on_the_wire() {
    let Some((server, proxy)) = nginx_with_a_file() else { return };
    proxy.next(1, "GET", Fault::SlowDown);
    let answer = get(proxy.port, "file").unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("<Code>SlowDown</Code>"));

    proxy.next(1, "PUT", Fault::FailAfterwards);
    assert_eq!(put(&proxy, "late", "there").unwrap().status, 503);
    assert_eq!(get(server.port, "late").unwrap().text(), "there");

    proxy.next(1, "PUT", Fault::LoseAnswer);
    assert_eq!(put(&proxy, "lost", "there").unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(get(server.port, "lost").unwrap().text(), "there");

    proxy.next(1, "PUT", Fault::LoseRequest);
    assert_eq!(put(&proxy, "never", "there").unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(get(server.port, "never").unwrap().status, 404);
}

#[test]
fn a_body_is_cut_in_its_middle() {
    let Some((_server, proxy)) = nginx_with_a_file() else { return };
    proxy.next(1, "GET", Fault::CutBody);
    let answer = get(proxy.port, "file").unwrap();
    assert!(answer.head.contains("Content-Length: 10"), "{}", answer.head);
    assert_eq!(answer.text(), "01234");
    assert_eq!(get(proxy.port, "file").unwrap().text(), "0123456789");
}

#[test]
fn an_answer_comes_late() {
    let Some((_server, proxy)) = nginx_with_a_file() else { return };
    proxy.next(1, "GET", Fault::Delay(Duration::from_millis(400)));
    let began = Instant::now();
    assert_eq!(get(proxy.port, "file").unwrap().text(), "0123456789");
    assert!(began.elapsed() >= Duration::from_millis(400));
}

#[test]
fn connections_are_refused_for_a_while() {
    let Some((_server, proxy)) = nginx_with_a_file() else { return };
    proxy.plan(|_| Fault::Delay(Duration::from_secs(2)));
    let port = proxy.port;
    let open = thread::spawn(move || get(port, "file"));
    while proxy.count("GET") == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    proxy.refuse();
    assert!(open.join().unwrap().is_err());
    assert_eq!(get(port, "file").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    proxy.accept();
    proxy.pass();
    assert_eq!(get(port, "file").unwrap().text(), "0123456789");
}

#[test]
fn a_plan_sees_what_is_asked() {
    let Some((_server, proxy)) = nginx_with_a_file() else { return };
    // Every second one of a file.
    proxy.plan(|request| match request.target.ends_with("file") && request.earlier % 2 == 1 {
        true => Fault::SlowDown,
        false => Fault::Pass,
    });
    let statuses: Vec<_> = (0..4).map(|_| get(proxy.port, "file").unwrap().status).collect();
    assert_eq!(statuses, [200, 503, 200, 503]);
    assert_eq!((proxy.count("GET"), proxy.count("PUT")), (4, 1));
}
