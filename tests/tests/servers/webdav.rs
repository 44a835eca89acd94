//! WebDAV. No header makes creating a file one step on every server; making a folder is one.

use std::sync::Barrier;
use std::thread;

use lockstep_tests::servers::http::{self, Answer};
use lockstep_tests::servers::{Server, nginx, wsgidav};
use object_store::{Error, PutMode};

use crate::store::{RACERS, Store};

/// What the client of all stores does there: it replaces and reads, and cannot create.
#[track_caller]
fn expect_put_and_get(server: &Server) {
    let store = Store::on(server, "objects");
    store.put("object", "first", PutMode::Overwrite).unwrap();
    store.put("object", "second", PutMode::Overwrite).unwrap();
    assert_eq!(store.get("object").unwrap(), "second");
    let create = store.put("another", "content", PutMode::Create);
    assert!(matches!(create, Err(Error::NotImplemented { .. })), "{create:?}");
}

/// Sends requests, all at once; their statuses, in order.
fn race(send: impl Fn(usize) -> Answer + Sync) -> Vec<u16> {
    let barrier = Barrier::new(RACERS);
    let (barrier, send) = (&barrier, &send);
    thread::scope(|scope| {
        let racer = |number| {
            move || {
                barrier.wait();
                send(number).status
            }
        };
        let racers: Vec<_> = (0..RACERS).map(|number| scope.spawn(racer(number))).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    })
}

fn send(server: &Server, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let body = if method == "PUT" { target.as_bytes() } else { b"" };
    http::request(server.port, method, &format!("/dav/{target}"), headers, body).unwrap()
}

fn winners(statuses: &[u16]) -> usize {
    statuses.iter().filter(|status| **status < 300).count()
}

/// One makes a folder. The others are told that it is there; WsgiDAV fails with 500 for some.
#[track_caller]
fn expect_one_folder(server: &Server) {
    for round in 0..5 {
        let statuses = race(|_| send(server, "MKCOL", &format!("folder-{round}/"), &[]));
        assert_eq!(winners(&statuses), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [201, 405, 500].contains(status)), "{statuses:?}");
    }
}

/// A file does not move to where there is one.
#[track_caller]
fn expect_no_move_onto_a_file(server: &Server) {
    for name in ["one", "other"] {
        assert_eq!(send(server, "PUT", name, &[]).status, 201);
    }
    let url = format!("{}/target", server.url);
    let headers = [("Destination", url.as_str()), ("Overwrite", "F")];
    let moved = send(server, "MOVE", "one", &headers).status;
    assert!([201, 204].contains(&moved), "{moved}");
    assert_eq!(send(server, "MOVE", "other", &headers).status, 412);
    assert_eq!(send(server, "GET", "target", &[]).text(), "one");
}

#[test]
fn nginx_ignores_if_none_match() {
    let Some(server) = nginx::start() else { return };
    expect_put_and_get(&server);
    let create = |_| send(&server, "PUT", "file", &[("If-None-Match", "*")]);
    assert_eq!(winners(&race(create)), RACERS);
    expect_one_folder(&server);
    expect_no_move_onto_a_file(&server);
    // It lists no more than one level.
    assert_eq!(send(&server, "PROPFIND", "", &[("Depth", "1")]).status, 207);
    assert_eq!(send(&server, "PROPFIND", "", &[("Depth", "infinity")]).status, 403);
}

#[test]
fn wsgidav_heeds_if_none_match_but_not_in_one_step() {
    let Some(server) = wsgidav::start() else { return };
    expect_put_and_get(&server);
    let create = |_| send(&server, "PUT", "file", &[("If-None-Match", "*")]);
    // Mostly one, at times more.
    assert_ne!(winners(&race(create)), 0);
    assert_eq!(create(0).status, 412);
    expect_one_folder(&server);
    expect_no_move_onto_a_file(&server);
}

#[test]
fn nginx_goes_on_with_its_files_after_a_pause_and_a_restart() {
    let Some(mut server) = nginx::start() else { return };
    assert_eq!(send(&server, "PUT", "file", &[]).status, 201);
    server.pause();
    let port = server.port;
    let waiting = thread::spawn(move || http::request(port, "GET", "/dav/file", &[], b""));
    thread::sleep(std::time::Duration::from_millis(300));
    assert!(!waiting.is_finished());
    server.resume();
    assert_eq!(waiting.join().unwrap().unwrap().text(), "file");
    server.stop();
    assert!(http::request(port, "GET", "/dav/file", &[], b"").is_err());
    server.restart();
    assert_eq!(send(&server, "GET", "file", &[]).text(), "file");
}
