//! nginx in a configuration for a fast Nix cache.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

/// The differences between the configurations.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The directory for downloads and uploads.
    pub root: &'a Path,
    /// A private directory on the same file system, because uploads are renamed from it.
    pub own: &'a Path,
    pub port: u16,
    /// With `open_file_cache` and a body buffer that saves system calls.
    pub tuned: bool,
    /// The upstream of a mirror.
    pub upstream: Option<SocketAddr>,
    /// The number of connections. nginx allocates memory for them at the start.
    pub connections: usize,
}

/// The text of `nginx.conf`.
pub fn config(setup: Setup<'_>) -> String {
    let Setup { root, own, port, tuned, connections, upstream } = setup;
    let (root, own) = (root.display(), own.display());
    let mut text = String::new();
    // The workers of root's nginx would otherwise run as `nobody`, who may not write here.
    if rustix::process::geteuid().is_root() {
        text += "user root;\n";
    }
    let tuning = if tuned {
        "open_file_cache max=200000 inactive=300s;\n    open_file_cache_valid 60s;\n    \
         client_body_buffer_size 64k;"
    } else {
        ""
    };
    let (cache, location) = match upstream {
        None => (
            String::new(),
            "dav_methods PUT;
            create_full_put_path on;
            client_max_body_size 0;"
                .to_owned(),
        ),
        Some(upstream) => (
            format!(
                "proxy_cache_path {root}/cache levels=1:2 keys_zone=cache:50m max_size=50g
        inactive=1d use_temp_path=off;
    upstream cache {{ server {upstream}; keepalive 64; }}"
            ),
            "proxy_pass http://cache;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_cache cache;
            proxy_cache_lock on;
            proxy_cache_valid 200 1h;
            proxy_cache_valid 404 1m;"
                .to_owned(),
        ),
    };
    write!(
        text,
        "\
daemon off;
worker_processes 1;
pid {own}/nginx.pid;
error_log {own}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    log_not_found off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    types {{ text/x-nix-narinfo narinfo; text/x-nix-cache-info nix-cache-info; }}
    default_type application/x-nix-nar;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    {tuning}
    {cache}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {root};
        location / {{
            {location}
        }}
    }}
}}
"
    )
    .expect("writing to a string succeeds");
    text
}
