//! SOCKS.

use std::io::{Read, Write};

use lockstep_tests::servers::{http, nginx, socks};

#[test]
fn dante_connects_to_a_name_that_it_resolves() {
    let (Some(proxy), Some(server)) = (socks::start(), nginx::start()) else { return };
    assert_eq!(proxy.url, format!("socks5h://127.0.0.1:{}", proxy.port));
    let mut stream = http::connect(proxy.port).unwrap();
    let read = |stream: &mut dyn Read, length: usize| {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    // Version 5, one method: no authentication.
    stream.write_all(&[5, 1, 0]).unwrap();
    assert_eq!(read(&mut stream, 2), [5, 0]);
    // Connect, by name.
    let name = b"localhost";
    let port = server.port.to_be_bytes();
    stream.write_all(&[&[5, 1, 0, 3, 9][..], name, &port].concat()).unwrap();
    let reply = read(&mut stream, 10);
    assert_eq!(reply[..4], [5, 0, 0, 1], "{}", proxy.log());
    stream.write_all(b"GET /dav/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(http::answer(&mut stream).unwrap().status, 200);
}
