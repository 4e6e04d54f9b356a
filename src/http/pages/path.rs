//! The page of a store path.

use maud::{Markup, html};

use super::layout::{Layout, as_of, link, paste};
use super::page::url_of_path;
use super::visit::Visit;
use super::words::{Foreign, ago, count, size};
use crate::browse::{FileKind, FileList, Index, ListFilesError, ListedFile, Overview, PathDetails};
use crate::nix::{StorePath, StorePathHash};

/// Maximum number of references, and of referrers, to show.
const LINKS_LIMIT: usize = 300;

pub(super) fn page(
    visit: &Visit,
    details: &PathDetails,
    files: Result<FileList, ListFilesError>,
    overview: &Overview,
) -> Markup {
    let info = &details.info;
    let path = &info.store_path;
    let index = overview.index.as_deref();
    let whole = info.store_dir.join(path);
    let main = html! {
        h1 { (path.name()) }
        div.paste { pre { code { span.hash { (info.store_dir) "/" (path.hash()) "-" } (path.name()) } } }
        (facts(visit, details))
        h2 { "Fetch" }
        (commands(visit, &whole, &files))
        h2 #references { "References " span.soft { (count(info.references.len(), "path")) } }
        (references(&info.references, path, index))
        @match index {
            Some(index) => { (referrers(index, path.hash())) }
            None => {
                h2 #referrers { "Referrers" }
                p.soft { "Not available yet: the index is being built." }
            }
        }
        h2 #files {
            "Files"
            @if let Ok(files) = &files { " " span.soft { @if files.is_truncated { "the first " } (count(files.list.len(), "file")) } }
        }
        (list_of(files, details))
    };
    let as_of = as_of(overview, visit.now);
    Layout { title: path.name(), query: "", reload: false, as_of }.page(&main)
}

fn facts(visit: &Visit, details: &PathDetails) -> Markup {
    let info = &details.info;
    html! {
        dl.facts {
            dt { "Size" }
            dd {
                (size(info.nar_size)) " unpacked"
                @match details.file_size.or(info.file_size) {
                    Some(packed) if info.compression != "none" => {
                        span.soft { ", " (size(packed)) " as " (Foreign(&info.compression)) }
                    }
                    _ => { span.soft { ", not compressed" } }
                }
                @if details.file_size.is_none() {
                    " " span.warn { "The NAR is missing: the path cannot be fetched." }
                }
            }
            dt { "NAR hash" }
            dd { code { (info.nar_hash) } }
            dt { "Uploaded" }
            dd { (ago(details.uploaded, visit.now)) }
            dt { "Last used" }
            dd { (ago(details.used, visit.now)) }
            @if let Some(upstream) = info.upstream() {
                dt { "Mirrored from" }
                dd { bdi { (Foreign(upstream)) } }
            }
            dt { "Signatures" }
            dd {
                @if info.signatures.is_empty() { "none" } @else { ul {
                    @for (signature, trusted) in info.signatures.iter().zip(&details.trusted) {
                        li {
                            bdi { code { (Foreign(signature.key_name())) } }
                            @if *trusted { " " span.badge.good { "valid" } }
                        }
                    }
                    @if info.signatures.len() > details.trusted.len() {
                        li.soft { "And " (info.signatures.len() - details.trusted.len()) " more." }
                    }
                } }
            }
            @if let Some(deriver) = &info.deriver {
                dt { "Deriver" }
                dd {
                    code { (deriver) }
                    @if let Some(log) = &details.log { ", " a href={ "/" (log.key().replace('?', "%3F")) } { "build log" } }
                }
            }
            @if let Some(ca) = &info.ca {
                dt { "Content address" }
                dd { bdi { code { (Foreign(ca)) } } }
            }
            @for (key, value) in info.unknown.iter().filter(|(key, _)| key == "System") {
                dt { (key) }
                dd { bdi { (Foreign(value)) } }
            }
            dt { "Metadata" }
            dd { a href={ "/" (info.store_path.hash()) ".narinfo" } { "narinfo" } }
        }
    }
}

/// Commands to copy. The command to run the path is shown only if its files are known and one of them is
/// a program.
fn commands(visit: &Visit, whole: &str, files: &Result<FileList, ListFilesError>) -> Markup {
    let url = &visit.address.url;
    let program = files.as_ref().ok().and_then(|files| program(&files.list));
    html! {
        (paste(&format!("nix copy --from {url} {whole}")))
        @if let Some(program) = program {
            p.soft.small { "Run without installing, if the key of the cache is trusted:" }
            (paste(&format!("nix shell --extra-substituters {url} {whole} --command {program}")))
        }
    }
}

/// The first program in `bin/` whose name needs no quotes in a shell.
fn program(files: &[ListedFile]) -> Option<&str> {
    let plain = |name: &&str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._+".contains(&byte))
            && !name.is_empty()
            && !name.starts_with(['-', '.'])
    };
    let runs = |kind: &FileKind| {
        matches!(kind, FileKind::Regular { executable: true, .. } | FileKind::Symlink(_))
    };
    let programs = files.iter().filter(|file| runs(&file.kind));
    programs.filter_map(|file| file.name.strip_prefix("bin/")).find(plain)
}

fn references(references: &[StorePath], own: &StorePath, index: Option<&Index>) -> Markup {
    let is_here = |hash| index.is_none_or(|index| index.find(hash).is_some());
    html! {
        @if references.is_empty() { p.soft { "None." } }
        ul.paths {
            @for path in references.iter().take(LINKS_LIMIT) {
                li {
                    @if path == own {
                        (path.name()) " " span.badge { "itself" }
                    } @else {
                        (link(path.hash(), path.name()))
                        @if !is_here(path.hash()) { " " span.badge { "missing" } }
                    }
                }
            }
        }
        (and_more(references.len()))
    }
}

fn referrers(index: &Index, hash: StorePathHash) -> Markup {
    let places = index.find(hash).map(|place| index.referrers(place)).unwrap_or_default();
    html! {
        h2 #referrers { "Referrers " span.soft { (count(places.len(), "path")) } }
        @if places.is_empty() { p.soft { "None in the cache." } }
        ul.paths {
            @for row in places.iter().take(LINKS_LIMIT).map(|&place| index.row(place)) {
                li { (link(row.hash, row.name)) }
            }
        }
        (and_more(places.len()))
    }
}

fn and_more(number: usize) -> Markup {
    html! {
        @if number > LINKS_LIMIT { p.soft { "And " (count(number - LINKS_LIMIT, "path")) " more." } }
    }
}

fn list_of(files: Result<FileList, ListFilesError>, details: &PathDetails) -> Markup {
    let files = match files {
        Ok(files) => files,
        Err(why) => return html! { p.soft { "Not available: " (Foreign(&why.to_string())) "." } },
    };
    html! {
        @if files.list.is_empty() && !files.is_truncated { p.soft { "The path is an empty directory." } }
        div.scroll {
            table.files {
                @if !files.list.is_empty() {
                    thead { tr { th scope="col" { "Name" } th.number scope="col" { "Size" } } }
                }
                tbody {
                    @for file in &files.list { (row(file, details)) }
                }
            }
        }
        @if files.is_truncated { p.soft { "There are more files." } }
    }
}

fn row(file: &ListedFile, details: &PathDetails) -> Markup {
    let (folder, name) =
        file.name.rsplit_once('/').map_or(("", &*file.name), |(folder, name)| (folder, name));
    html! {
        tr {
            td.name.mono {
                bdi {
                    @if !folder.is_empty() { span.soft { (Foreign(folder)) "/" } }
                    @if name.is_empty() { "the path itself" } @else { (Foreign(name)) }
                }
                @match &file.kind {
                    FileKind::Symlink(target) => { span.soft { " → " } bdi { (target_of(target, details)) } }
                    FileKind::EmptyDirectory => { span.soft { "/" } }
                    FileKind::Regular { executable: true, .. } => { " " span.badge { "executable" } }
                    FileKind::Regular { .. } => {}
                }
            }
            td.number.soft {
                @if let FileKind::Regular { size: bytes, .. } = &file.kind { (size(*bytes)) }
            }
        }
    }
}

/// The target of a symlink, as a link if it is in another store path.
fn target_of(target: &str, details: &PathDetails) -> Markup {
    let hash = target.strip_prefix(details.info.store_dir.as_str()).and_then(|rest| {
        rest.strip_prefix('/')?.split('/').next()?.parse().ok().map(|path: StorePath| path.hash())
    });
    html! {
        @match hash {
            Some(hash) if hash != details.info.store_path.hash() => {
                a href=(url_of_path(hash)) { (Foreign(target)) }
            }
            _ => { span.soft { (Foreign(target)) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_name_that_needs_no_quotes_is_shown() {
        let file = |name: &str, executable| ListedFile {
            name: name.to_owned(),
            kind: FileKind::Regular { size: 1, executable },
        };
        for bad in [
            "bin/a b",
            "bin/;reboot",
            "bin/$(x)",
            "bin/-v",
            "bin/.wrapped",
            "bin/é",
            "bin/",
            "lib/x",
            "bin/a/b",
        ] {
            let files = [file(bad, true), file("bin/data", false), file("bin/g++-13.2", true)];
            assert_eq!(program(&files), Some("g++-13.2"), "{bad}");
        }
        assert_eq!(program(&[]), None);
    }
}
