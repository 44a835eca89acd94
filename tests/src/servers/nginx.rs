//! nginx with its WebDAV modules. It ignores `If-None-Match`, and lists one level at a time.

use std::process::Command;

use super::find;
use super::server::{Directory, Server, free_port};
use crate::real::process::is_root;

/// Debian's place for them.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so";

/// Starts one; `None`, and a line, where it is not installed.
pub fn start() -> Option<Server> {
    let nginx = find::system("nginx")?;
    find::file("nginx's WebDAV module", MODULE)?;
    let (directory, port) = (Directory::new(), free_port());
    directory.make("files/dav");
    let config = directory.write("nginx.conf", &configuration(&directory, port));
    let mut command = Command::new(nginx);
    command.arg("-p").arg(&directory.path).arg("-c").arg(config).args(["-e", "stderr"]);
    let mut server = Server::start(command, directory, Vec::new(), port);
    server.url = format!("http://127.0.0.1:{port}/dav");
    Some(server)
}

fn configuration(directory: &Directory, port: u16) -> String {
    let path = directory.path.display();
    // Workers of root would be nobody, who may not enter the directory.
    let user = if is_root() { "user root;" } else { "" };
    format!(
        "load_module {MODULE};
{user}
daemon off;
worker_processes 2;
pid {path}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log {path}/access.log;
    client_max_body_size 0;
    client_body_temp_path {path}/body;
    proxy_temp_path {path}/proxy;
    fastcgi_temp_path {path}/fastcgi;
    uwsgi_temp_path {path}/uwsgi;
    scgi_temp_path {path}/scgi;
    dav_ext_lock_zone zone=dav:10m;
    server {{
        listen 127.0.0.1:{port};
        root {path}/files;
        location / {{
            dav_methods PUT DELETE MKCOL COPY MOVE;
            dav_ext_methods PROPFIND OPTIONS LOCK UNLOCK;
            dav_ext_lock zone=dav;
            create_full_put_path on;
            min_delete_depth 0;
            dav_access user:rw group:r;
            autoindex on;
        }}
    }}
}}
"
    )
}
