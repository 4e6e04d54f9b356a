//! Table of all variables. Tests compare the README and the NixOS module with it.

use super::PREFIX;
use super::parse::Parser;

/// An environment variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Complete name.
    pub name: &'static str,
    /// A valid value, for error messages.
    pub example: &'static str,
    /// Whether this build supports the variable. An unsupported one is an error, because running without
    /// TLS, for example, must not go unnoticed.
    pub supported: bool,
}

impl Variable {
    /// The name without [`PREFIX`].
    pub fn suffix(&self) -> &'static str {
        self.name.strip_prefix(PREFIX).unwrap_or(self.name)
    }
}

const fn now(name: &'static str, example: &'static str) -> Variable {
    Variable { name, example, supported: true }
}

const fn tls(name: &'static str, example: &'static str) -> Variable {
    Variable { name, example, supported: cfg!(feature = "tls") }
}

const fn upstream(name: &'static str, example: &'static str) -> Variable {
    Variable { name, example, supported: cfg!(feature = "upstream") }
}

const fn s3(name: &'static str, example: &'static str) -> Variable {
    Variable { name, example, supported: cfg!(feature = "s3") }
}

/// All variables, in the order of the README.
pub const VARIABLES: &[Variable] = &[
    now("NIX_STORED_PATH", "/var/lib/nixStored"),
    now("NIX_STORED_LISTEN_INTERFACE", "127.0.0.1:8100"),
    now("NIX_STORED_USER_READ", "reader"),
    now("NIX_STORED_USER_READ_PASS", "a long password"),
    now("NIX_STORED_USER_READ_PASSFILE", "/run/keys/read-pass"),
    now("NIX_STORED_USER_WRITE", "builder"),
    now("NIX_STORED_USER_WRITE_PASS", "a long password"),
    now("NIX_STORED_USER_WRITE_PASSFILE", "/run/keys/write-pass"),
    now("NIX_STORED_ANONYMOUS_WRITE", "1"),
    now("NIX_STORED_LOG_LEVEL", "info"),
    now("NIX_STORED_LOG_FORMAT", "json"),
    now("NIX_STORED_STORE_DIR", "/nix/store"),
    now("NIX_STORED_PRIORITY", "30"),
    now("NIX_STORED_WANT_MASS_QUERY", "1"),
    now(
        "NIX_STORED_TRUSTED_PUBLIC_KEYS",
        "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
    ),
    now("NIX_STORED_VERIFY", "nar"),
    now("NIX_STORED_REQUIRE_REFERENCES", "1"),
    now("NIX_STORED_MAX_UPLOAD_SIZE", "20G"),
    now("NIX_STORED_MIN_FREE_SPACE", "2G"),
    now("NIX_STORED_MAX_SIZE", "200G"),
    now("NIX_STORED_MAX_AGE", "90d"),
    now("NIX_STORED_GC_INTERVAL", "1h"),
    upstream("NIX_STORED_UPSTREAMS", "https://cache.nixos.org"),
    upstream("NIX_STORED_UPSTREAM_NETRC", "/run/keys/netrc"),
    upstream("NIX_STORED_UPSTREAM_ABSENT_TTL", "60s"),
    upstream("NIX_STORED_UPSTREAM_PRESENT_TTL", "1h"),
    s3("NIX_STORED_S3_REDIRECT", "1"),
    tls("NIX_STORED_TLS_CERT", "/run/keys/cert.pem"),
    tls("NIX_STORED_TLS_KEY", "/run/keys/key.pem"),
    tls("NIX_STORED_TLS_CLIENT_CA", "/run/keys/builders-ca.pem"),
];

/// Adds an error if `name` is not a variable of this build.
pub(super) fn check_known(name: &str, parser: &mut Parser) {
    let suffix = name.strip_prefix(PREFIX).unwrap_or(name);
    match VARIABLES.iter().find(|variable| variable.name == name) {
        Some(variable) if variable.supported => {}
        Some(_) => parser.problem(suffix, "this build does not support the variable; unset it"),
        None => {
            let nearest = VARIABLES
                .iter()
                .filter(|variable| variable.supported)
                .max_by(|a, b| {
                    let likeness = |v: &Variable| strsim::jaro_winkler(v.suffix(), suffix);
                    likeness(a).total_cmp(&likeness(b))
                })
                .map_or("", |variable| variable.name);
            parser.problem(suffix, format!("unknown variable; did you mean {nearest}?"));
        }
    }
}
