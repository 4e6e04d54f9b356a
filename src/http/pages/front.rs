//! The first page: configuration to copy, and statistics.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::chart;
use super::layout::{Layout, as_of, not_yet, paste, rows};
use super::page::BROWSE;
use super::visit::Visit;
use super::words::{Foreign, about as lasting, count, nix_string, per_cent, size};
use crate::browse::{CacheProperties, Index, NarInfoRequests, Overview};
use crate::config::{Credentials, Requirement};
use crate::http::backend::UpstreamRow;

/// Number of recent uploads to show.
const RECENT_UPLOADS_LIMIT: usize = 8;

/// Path of the netrc file in the configuration to copy.
const NETRC: &str = "/etc/nix/netrc";

pub(super) fn page(visit: &Visit, overview: &Overview) -> Markup {
    let about = visit.browser.about();
    let upstreams = &visit.upstreams;
    let main = html! {
        h1 { (visit.address.host) }
        p.soft { "A binary cache for Nix with store directory " code { (about.info.store_dir) } " and priority " (about.info.priority) "." }
        @match &overview.index {
            Some(index) => { (figures(visit, index, about)) }
            None => { (not_yet(overview)) }
        }
        h2 #setup { "Configuration" }
        (setup(visit, about))
        @if let Some(index) = &overview.index {
            h2 #days { "Uploads and uses by day" }
            (chart::use_by_day(index.days()))
            h2 #latest { "Recent uploads" }
            @if index.newest().is_empty() {
                p.soft { "The cache is empty." }
            } @else {
                (rows(index, &index.newest()[..index.newest().len().min(RECENT_UPLOADS_LIMIT)], visit.now))
                @if index.newest().len() > RECENT_UPLOADS_LIMIT { p.pages { a href=(BROWSE) { "All " (count(index.newest().len(), "path")) } } }
            }
        }
        @if !upstreams.is_empty() {
            h2 #upstreams { "Upstream caches" }
            (list_of(upstreams))
        }
        h2 #rules { "Policy" }
        (rules(visit, about))
    };
    let as_of = as_of(overview, visit.now);
    let reload = overview.index.is_none() && overview.found.is_some();
    Layout { title: &visit.address.host, query: "", reload, as_of }.page(&main)
}

fn figures(visit: &Visit, index: &Index, about: CacheProperties<'_>) -> Markup {
    let stats = index.stats();
    let limit = about.limits.and_then(|limits| limits.max_size);
    html! {
        dl.figures {
            div {
                dt { @if stats.paths == 1 { "store path" } @else { "store paths" } }
                dd { (indicatif::HumanCount(stats.paths as u64)) }
                @if stats.mirrored > 0 { dd.note { (count(stats.mirrored, "path")) " mirrored" } }
            }
            div {
                dt { "stored" }
                dd { (size(stats.bytes)) }
                dd.note {
                    @if let Some(limit) = limit { "of at most " (size(limit)) }
                    @else { (size(stats.unpacked)) " unpacked" }
                }
                @if let Some(limit) = limit { (chart::fill(stats.bytes, limit)) }
            }
            @if let Some(free) = visit.browser.free_space() {
                div {
                    dt { "free space" }
                    dd { (size(free)) }
                }
            }
            @let NarInfoRequests { hits, misses } = visit.browser.narinfo_requests();
            @if hits + misses > 0 {
                div {
                    dt { "narinfo hit rate" }
                    dd { (per_cent(hits, hits + misses)) }
                    dd.note { (count((hits + misses) as usize, "request")) " since start" }
                }
            }
        }
    }
}

/// Configuration to copy, for Nix, NixOS, flakes, netrc and uploads.
fn setup(visit: &Visit, about: CacheProperties<'_>) -> Markup {
    let url = &visit.address.url;
    // Mirrored paths are signed with the keys of their upstream.
    let own = about.admission.trusted_public_keys.iter().map(ToString::to_string);
    let keys: BTreeSet<String> = own
        .chain(visit.upstreams.iter().flat_map(|upstream| upstream.keys.iter().cloned()))
        .collect();
    let reader = match &visit.access.read {
        Requirement::User(users) => users.first().map(Credentials::user),
        Requirement::Anyone
        | Requirement::Local
        | Requirement::Certificate
        | Requirement::Nobody => None,
    };
    let quoted: Vec<String> = keys.iter().map(|key| nix_string(key)).collect();
    let keys: Vec<String> = keys.into_iter().collect();
    let keys_conf = if keys.is_empty() {
        "# extra-trusted-public-keys = the public keys of the builders".to_owned()
    } else {
        format!("extra-trusted-public-keys = {}", keys.join(" "))
    };
    let keys_nix = |name: &str| {
        if quoted.is_empty() {
            format!("# {name} = [ the public keys of the builders ];")
        } else {
            format!("{name} = [ {} ];", quoted.join(" "))
        }
    };
    let netrc = reader.is_some();
    let conf = format!(
        "extra-substituters = {url}\n{keys_conf}{}",
        if netrc { format!("\nnetrc-file = {NETRC}") } else { String::new() }
    );
    let nixos = format!(
        "nix.settings = {{\n  substituters = [ {} ];\n  {}{}\n}};",
        nix_string(url),
        keys_nix("trusted-public-keys"),
        if netrc { format!("\n  netrc-file = \"{NETRC}\";") } else { String::new() }
    );
    let flake = format!(
        "nixConfig = {{\n  extra-substituters = [ {} ];\n  {}\n}};",
        nix_string(url),
        keys_nix("extra-trusted-public-keys"),
    );
    html! {
        details open {
            summary { "nix.conf" }
            p.soft.small { "In " code { "/etc/nix/nix.conf" } ", or in " code { "~/.config/nix/nix.conf" } " of a trusted user:" }
            (paste(&conf))
        }
        details {
            summary { "NixOS" }
            p.soft.small { "In the system configuration:" }
            (paste(&nixos))
        }
        details {
            summary { "Flake" }
            p.soft.small { "At the top level of " code { "flake.nix" } "; Nix asks users of the flake whether to accept it:" }
            (paste(&flake))
        }
        @if let Some(reader) = reader {
            details {
                summary { "Password" }
                p.soft.small { "Reading needs a password. In " code { (NETRC) } ", readable only by root:" }
                (paste(&format!("machine {} login {} password …", netrc_host(&visit.address.host), Foreign(reader))))
            }
        }
        details {
            summary { "Upload" }
            (upload(visit, url))
        }
    }
}

/// The host as in a netrc file, which has IPv6 addresses without brackets.
fn netrc_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn upload(visit: &Visit, url: &str) -> Markup {
    let command = paste(&format!("nix copy --to {url} ./result"));
    html! {
        @match &visit.access.write {
            Requirement::Anyone => { (command) p.soft.small { "Anyone may upload." } }
            Requirement::Local => {
                (command)
                p.soft.small { "Anyone on the machine of the cache may upload, but not through a proxy." }
            }
            Requirement::User(_) => {
                (command)
                p.soft.small { "Uploads need the write user and its password in the netrc file." }
            }
            Requirement::Certificate => {
                (command)
                p.soft.small { "Uploads need a client certificate." }
            }
            Requirement::Nobody => { p.soft { "Uploads are disabled." } }
        }
    }
}

fn list_of(upstreams: &[UpstreamRow]) -> Markup {
    html! {
        p.soft { "Missing objects are requested from these caches in this order." }
        ul.plain {
            @for upstream in upstreams {
                li {
                    bdi { code { (Foreign(&upstream.url)) } } " "
                    @match upstream.circuit_open {
                        Some(left) => { span.warn { "failing, next request in " (lasting(left)) } }
                        None => { span.badge.good { "in use" } }
                    }
                }
            }
        }
    }
}

fn rules(visit: &Visit, about: CacheProperties<'_>) -> Markup {
    let admission = about.admission;
    let keys = &admission.trusted_public_keys;
    html! {
        dl.facts {
            dt { "Reading" }
            dd { (who(&visit.access.read)) }
            dt { "Uploading" }
            dd {
                (who(&visit.access.write))
                @if let Some(most) = admission.max_upload_size { ", at most " (size(most)) " per upload" }
            }
            dt { "Signatures" }
            dd {
                @if keys.is_empty() { "not required" } @else {
                    "required, by "
                    @for (at, key) in keys.iter().enumerate() {
                        @if at > 0 { " or " }
                        bdi { code { (Foreign(key.name())) } }
                    }
                }
            }
            @if let Some(limits) = about.limits {
                dt { "Size" }
                dd {
                    @match limits.max_size {
                        Some(most) => { "at most " (size(most)) "; least recently used paths are removed first" }
                        None => { "no limit" }
                    }
                }
                dt { "Age" }
                dd {
                    @match limits.max_age {
                        Some(most) => { "paths unused for " (lasting(most)) " are removed" }
                        None => { "no limit" }
                    }
                }
            }
        }
    }
}

fn who(requirement: &Requirement) -> &'static str {
    match requirement {
        Requirement::Anyone => "anyone",
        Requirement::Local => "anyone on the machine of the cache",
        Requirement::User(_) => "with a password",
        Requirement::Certificate => "with a client certificate",
        Requirement::Nobody => "nobody",
    }
}
