//! The first page: what to paste, and what is in the cache.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::chart;
use super::layout::{Layout, as_of, not_yet, paste, rows};
use super::words::{Foreign, about as lasting, count, nix_string, per_cent, size};
use super::{BROWSE, Visit};
use crate::cache::browse::{About, Behind, Index, Overview, Served};
use crate::config::{Credentials, Requirement};

/// How many paths are shown of those that came last.
const LATEST: usize = 8;

/// Where the netrc is kept.
const NETRC: &str = "/etc/nix/netrc";

pub(super) fn page(visit: &Visit, overview: &Overview) -> Markup {
    let about = visit.cache.about();
    let behind = visit.cache.behind();
    let main = html! {
        h1 { (visit.address.host) }
        p.soft { "A binary cache for Nix. Store paths are in " code { (about.info.store_dir) } ", its priority is " (about.info.priority) "." }
        @match &overview.index {
            Some(index) => { (figures(visit, index, about)) }
            None => { (not_yet(overview)) }
        }
        h2 #setup { "Use it" }
        (setup(visit, about, &behind))
        @if let Some(index) = &overview.index {
            h2 #days { "By day" }
            (chart::use_by_day(index.days()))
            h2 #latest { "What came last" }
            @if index.newest().is_empty() {
                p.soft { "There is nothing here yet." }
            } @else {
                (rows(index, &index.newest()[..index.newest().len().min(LATEST)], visit.now))
                @if index.newest().len() > LATEST { p.pages { a href=(BROWSE) { "All " (count(index.newest().len(), "path")) } } }
            }
        }
        @if !behind.is_empty() {
            h2 #upstreams { "Caches behind it" }
            (upstreams(&behind))
        }
        h2 #rules { "What it keeps to" }
        (rules(visit, about))
    };
    let as_of = as_of(overview, visit.now);
    let reload = overview.index.is_none() && overview.found.is_some();
    Layout { title: &visit.address.host, query: "", reload, as_of }.page(&main)
}

fn figures(visit: &Visit, index: &Index, about: About<'_>) -> Markup {
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
            @if let Some(free) = visit.cache.free_space() {
                div {
                    dt { "free for more" }
                    dd { (size(free)) }
                }
            }
            @let Served { hits, misses } = visit.cache.served();
            @if hits + misses > 0 {
                div {
                    dt { "of narinfos asked for were here" }
                    dd { (per_cent(hits, hits + misses)) }
                    dd.note { (count((hits + misses) as usize, "question")) " since the start" }
                }
            }
        }
    }
}

/// What to paste where.
fn setup(visit: &Visit, about: About<'_>, behind: &[Behind]) -> Markup {
    let url = &visit.address.url;
    // What was mirrored is signed by those who built it.
    let own = about.admission.trusted_public_keys.iter().map(ToString::to_string);
    let keys: BTreeSet<String> =
        own.chain(behind.iter().flat_map(|behind| behind.keys.iter().cloned())).collect();
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
        "# extra-trusted-public-keys = the keys that its builders sign with".to_owned()
    } else {
        format!("extra-trusted-public-keys = {}", keys.join(" "))
    };
    let keys_nix = |name: &str| {
        if quoted.is_empty() {
            format!("# {name} = [ the keys that its builders sign with ];")
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
            p.soft.small { "In the configuration of the system:" }
            (paste(&nixos))
        }
        details {
            summary { "A flake" }
            p.soft.small { "At the top of " code { "flake.nix" } "; who builds it is asked whether to trust it:" }
            (paste(&flake))
        }
        @if let Some(reader) = reader {
            details {
                summary { "The password" }
                p.soft.small { "Reading needs one. In " code { (NETRC) } ", readable by root only:" }
                (paste(&format!("machine {} login {} password …", netrc_host(&visit.address.host), Foreign(reader))))
            }
        }
        details {
            summary { "Upload" }
            (upload(visit, url))
        }
    }
}

/// A netrc names an IPv6 address without brackets.
fn netrc_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn upload(visit: &Visit, url: &str) -> Markup {
    let command = paste(&format!("nix copy --to {url} ./result"));
    html! {
        @match &visit.access.write {
            Requirement::Anyone => { (command) p.soft.small { "Anyone who can reach it may." } }
            Requirement::Local => {
                (command)
                p.soft.small { "Anyone on the cache's machine may, but not through a proxy." }
            }
            Requirement::User(_) => {
                (command)
                p.soft.small { "This needs the user and the password for uploads, in the netrc file." }
            }
            Requirement::Certificate => {
                (command)
                p.soft.small { "This needs a client certificate." }
            }
            Requirement::Nobody => { p.soft { "Uploads are switched off here." } }
        }
    }
}

fn upstreams(behind: &[Behind]) -> Markup {
    html! {
        p.soft { "What is not here is asked of them, in this order, and kept." }
        ul.plain {
            @for behind in behind {
                li {
                    bdi { code { (Foreign(&behind.url)) } } " "
                    @match behind.left_alone {
                        Some(left) => { span.warn { "in trouble, and left alone for " (lasting(left)) } }
                        None => { span.badge.good { "asked" } }
                    }
                }
            }
        }
    }
}

fn rules(visit: &Visit, about: About<'_>) -> Markup {
    let admission = about.admission;
    let keys = &admission.trusted_public_keys;
    html! {
        dl.facts {
            dt { "Reading" }
            dd { (who(&visit.access.read)) }
            dt { "Uploading" }
            dd {
                (who(&visit.access.write))
                @if let Some(most) = admission.max_upload_size { ", at most " (size(most)) " at a time" }
            }
            dt { "Signatures" }
            dd {
                @if keys.is_empty() { "not asked for" } @else {
                    "every path needs one by "
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
                        Some(most) => { "at most " (size(most)) "; what has been unused the longest goes first" }
                        None => { "as large as the disk lets it" }
                    }
                }
                dt { "Age" }
                dd {
                    @match limits.max_age {
                        Some(most) => { "what nobody has used for " (lasting(most)) " goes" }
                        None => { "nothing goes because of it" }
                    }
                }
            }
        }
    }
}

fn who(requirement: &Requirement) -> &'static str {
    match requirement {
        Requirement::Anyone => "anyone who can reach it",
        Requirement::Local => "anyone on the cache's machine",
        Requirement::User(_) => "with a password",
        Requirement::Certificate => "with a client certificate",
        Requirement::Nobody => "nobody",
    }
}
