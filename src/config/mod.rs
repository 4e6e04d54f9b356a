//! Parses the `NIX_STORED_*` variables into a [`Config`], and reports all errors at once.
//!
//! [`SETTINGS`] is the table of all variables: what they mean, how they are parsed, and how `check-config`
//! prints them. The README's table and the man page are generated from it.
//!
//! The environment is the only source. `envy` reads it into plain strings; each string is then parsed
//! separately, so that one error does not hide another.

mod access;
#[cfg(any(feature = "s3", feature = "tls", feature = "upstream"))]
mod authorities;
#[cfg(feature = "s3")]
mod bucket;
mod environment;
mod listen;
mod location;
#[cfg(feature = "upstream")]
mod netrc;
mod parse;
mod problem;
mod setting;
mod table;
#[cfg(feature = "tls")]
mod tls;
mod typed;
#[cfg(feature = "upstream")]
mod upstream;
mod values;

pub use access::{Access, Credentials, Requirement, Writers};
#[cfg(any(feature = "s3", feature = "tls", feature = "upstream"))]
pub use authorities::{AuthoritiesError, authorities};
#[cfg(feature = "s3")]
pub use bucket::Bucket;
pub use environment::PREFIX;
pub use listen::Listen;
pub use location::Location;
#[cfg(feature = "upstream")]
pub use netrc::{Login, Netrc, NetrcMatch};
pub use parse::{parse_duration, parse_size, show_duration};
pub use problem::{Problem, Problems};
pub use setting::{Feature, Setting};
pub use table::SETTINGS;
#[cfg(feature = "tls")]
pub use tls::Tls;
pub use typed::{Admission, Config, Retention, Verify};
#[cfg(feature = "upstream")]
pub use upstream::{Upstream, Upstreams};
