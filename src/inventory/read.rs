//! Reads the contents of a cache from its store.

use std::collections::HashMap;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::warn;

use super::contents::{HeldObject, HeldPath, Inventory, InventoryError, places, to_place};
use crate::nix::{CachePath, LenientNarInfo, NarInfo, StoreDir, StorePath, StorePathHash};
use crate::store::{Listed, ListedObject, Store, StoreError, background};

/// The name of a path whose narinfo does not give a right one.
const UNPARSED: &str = "unparsed-narinfo";

/// A parsed narinfo, before its references are resolved.
struct Read {
    held: HeldPath,
    nar: Option<CachePath>,
    deriver: Option<StorePath>,
    references: Box<[StorePathHash]>,
}

/// Side files that name the path or NAR that they belong to.
struct Linked {
    object: HeldObject,
    to: Option<CachePath>,
}

/// Reads the listed objects one by one.
#[derive(Default)]
struct Reading {
    paths: Vec<Read>,
    nars: HashMap<CachePath, u32>,
    logs: HashMap<StorePath, HeldObject>,
    linked: Vec<Linked>,
    /// NARs that narinfos name besides their own.
    claims: Vec<CachePath>,
    /// The number of narinfos that parse, and of those that are for another store dir.
    parsed: usize,
    other_store_dir: usize,
    inventory: Inventory,
}

impl Inventory {
    /// Reads the contents of `store`, whose paths are in `store_dir`. `on_progress` gets the number of
    /// objects so far.
    pub async fn read(
        store: &Store,
        store_dir: &StoreDir,
        mut on_progress: impl FnMut(u64),
    ) -> Result<Self, InventoryError> {
        let (count, mut counted) = watch::channel(0);
        let objects = store.list(names_others);
        let (store_dir, runtime) = (store_dir.clone(), Handle::current());
        // Parsing takes seconds if there are many paths: too long for a thread that serves requests.
        let read = move || runtime.block_on(read(objects, &store_dir, &count));
        let read = background::run("inventory", read);
        tokio::pin!(read);
        loop {
            tokio::select! {
                biased;
                Ok(()) = counted.changed() => on_progress(*counted.borrow_and_update()),
                inventory = &mut read => {
                    let inventory = inventory??;
                    inventory.log_unparsed();
                    return Ok(inventory);
                }
            }
        }
    }
}

/// Whether an object names the objects that it belongs to.
fn names_others(path: &CachePath) -> bool {
    matches!(
        path,
        CachePath::NarInfo(_)
            | CachePath::Realisation { .. }
            | CachePath::BuildTrace { .. }
            | CachePath::DebugInfo(_)
    )
}

/// The number of objects between two progress reports.
const PROGRESS_INTERVAL: u64 = 1000;

/// Reads all objects. Ends early if the receiver is dropped.
async fn read(
    mut objects: BoxStream<'static, Result<Listed, StoreError>>,
    store_dir: &StoreDir,
    counted: &watch::Sender<u64>,
) -> Result<Inventory, InventoryError> {
    let mut reading = Reading::default();
    let mut count = 0;
    while let Some(object) = objects.next().await {
        match object? {
            Listed::Object(object) => reading.take(object, store_dir),
            Listed::Unreadable(path @ CachePath::NarInfo(_), error) => {
                reading.inventory.unreadable.push((path, error));
            }
            // Only objects in the inventory are removed.
            Listed::Unreadable(path, error) => {
                let error = &error as &dyn std::error::Error;
                warn!(%path, error, "cannot read an object; it is kept");
            }
            Listed::Foreign(_) => continue,
            Listed::NoFile(path, _) => {
                warn!(%path, "not a file; run nix-stored verify");
                continue;
            }
        }
        count += 1;
        if count % PROGRESS_INTERVAL == 0 && counted.send(count).is_err() {
            break;
        }
    }
    // The receiver may have been dropped.
    let _ = counted.send(count);
    if reading.parsed == 0 && reading.other_store_dir > 0 {
        return Err(InventoryError::OtherStoreDir(store_dir.clone()));
    }
    Ok(reading.finish())
}

impl Reading {
    fn take(&mut self, listed: ListedObject, store_dir: &StoreDir) {
        let ListedObject { path, metadata, content } = listed;
        let object =
            HeldObject { path, sides: Vec::new(), size: metadata.size, used: metadata.used };
        match &object.path {
            CachePath::NarInfo(hash) => {
                let (hash, text) = (*hash, content.unwrap_or_default());
                match NarInfo::parse(&text, store_dir) {
                    Ok(info) if info.store_path.hash() == hash => {
                        self.parsed += 1;
                        self.narinfo(info, &object, metadata.modified);
                    }
                    _ => {
                        let is_other = is_of_other_store_dir(&text, store_dir);
                        self.other_store_dir += usize::from(is_other);
                        self.unparsed_narinfo(hash, &text, object, metadata.modified);
                    }
                }
            }
            CachePath::Nar(_) => {
                self.nars.insert(object.path.clone(), to_place(self.inventory.shared.len()));
                self.inventory.shared.push(object);
            }
            CachePath::Log(derivation) => {
                self.logs.insert(derivation.clone(), object);
            }
            CachePath::Listing(hash) => {
                let to = Some(CachePath::NarInfo(*hash));
                self.linked.push(Linked { object, to });
            }
            _ => {
                let to = content.and_then(|text| link(&text));
                self.linked.push(Linked { object, to });
            }
        }
    }

    fn narinfo(&mut self, info: NarInfo, object: &HeldObject, uploaded: SystemTime) {
        let references = info.references.iter().map(StorePath::hash);
        let references = references.filter(|hash| *hash != info.store_path.hash()).collect();
        let nar = info.named_nar().map(CachePath::Nar);
        let mirrored = info.upstream().is_some();
        self.paths.push(Read {
            nar,
            deriver: info.deriver,
            references,
            held: HeldPath {
                store_path: info.store_path,
                nar: None,
                log: None,
                references: Box::default(),
                sides: Vec::new(),
                size: object.size,
                nar_size: info.nar_size,
                mirrored,
                uploaded,
                used: object.used,
            },
        });
    }

    /// A narinfo that does not parse is a path as far as it names anything: it is served, and some
    /// version of Nix may accept it.
    fn unparsed_narinfo(
        &mut self,
        hash: StorePathHash,
        text: &[u8],
        object: HeldObject,
        uploaded: SystemTime,
    ) {
        let named = LenientNarInfo::read(text);
        if named.is_empty() {
            self.inventory.unparsed.garbage += 1;
            self.inventory.unowned.push(object);
            return;
        }
        self.inventory.unparsed.lenient += 1;
        let mut nars = named.nars;
        let nar = nars.pop().map(CachePath::Nar);
        self.claims.extend(nars.into_iter().map(CachePath::Nar));
        let name = named.store_path.filter(|path| path.hash() == hash);
        let name = name.unwrap_or_else(|| {
            format!("{hash}-{UNPARSED}").parse().expect("a hash part and a name are a store path")
        });
        self.paths.push(Read {
            nar,
            deriver: named.deriver,
            references: named.references.into_iter().filter(|other| *other != hash).collect(),
            held: HeldPath {
                store_path: name,
                nar: None,
                log: None,
                references: Box::default(),
                sides: Vec::new(),
                size: object.size,
                nar_size: 0,
                mirrored: false,
                uploaded,
                used: object.used,
            },
        });
    }

    fn finish(mut self) -> Inventory {
        let inventory = &mut self.inventory;
        inventory.places = places(self.paths.iter().map(|path| &path.held.store_path));
        let mut logs: HashMap<StorePath, u32> = HashMap::new();
        for Read { mut held, nar, deriver, references } in self.paths {
            held.nar = nar.and_then(|nar| self.nars.get(&nar).copied());
            held.references =
                references.iter().filter_map(|hash| inventory.places.get(hash).copied()).collect();
            if let Some(deriver) = deriver {
                if let Some(log) = self.logs.remove(&deriver) {
                    logs.insert(deriver.clone(), to_place(inventory.shared.len()));
                    inventory.shared.push(log);
                }
                held.log = logs.get(&deriver).copied();
            }
            inventory.paths.push(held);
        }
        inventory.referenced_by_broken =
            self.claims.iter().filter_map(|nar| self.nars.get(nar).copied()).collect();
        inventory.unowned.extend(self.logs.into_values());
        for Linked { object, to } in self.linked {
            let place = match &to {
                Some(CachePath::NarInfo(hash)) => inventory.places.get(hash),
                Some(nar) => self.nars.get(nar),
                None => None,
            };
            match (place, to) {
                (Some(&at), Some(CachePath::NarInfo(_))) => {
                    let path = &mut inventory.paths[at as usize];
                    path.size += object.size;
                    path.used = path.used.max(object.used);
                    path.sides.push(object.path);
                }
                (Some(&at), _) => {
                    let nar = &mut inventory.shared[at as usize];
                    nar.size += object.size;
                    nar.used = nar.used.max(object.used);
                    nar.sides.push(object.path);
                }
                (None, _) => inventory.unowned.push(object),
            }
        }
        self.inventory
    }
}

/// Whether a narinfo is of a path in another store dir.
fn is_of_other_store_dir(text: &[u8], store_dir: &StoreDir) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"StorePath: "));
    path.is_some_and(|path| !path.starts_with(store_dir.as_str().as_bytes()))
}

/// The objects that a realisation, a build trace or a link to debug symbols belongs to.
fn link(text: &[u8]) -> Option<CachePath> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Link {
        /// The base name of a store path (realisations, build traces).
        out_path: Option<String>,
        /// A NAR, relative to `debuginfo/`.
        archive: Option<String>,
    }
    let link: Link = serde_json::from_slice(text).ok()?;
    match link {
        Link { out_path: Some(path), .. } => {
            let path = path.rsplit('/').next()?.parse::<StorePath>().ok()?;
            Some(CachePath::NarInfo(path.hash()))
        }
        Link { archive: Some(nar), .. } => nar.strip_prefix("../")?.parse().ok(),
        Link { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_a_path_or_a_nar() {
        let path = "8ha1dhmx807czjczmwy078s4r9s254il-hello";
        let nar = format!("nar/{:0>52}.nar.xz", 1);
        let narinfo = Some("8ha1dhmx807czjczmwy078s4r9s254il.narinfo".parse().unwrap());
        for (text, to) in [
            (format!("{{\"id\": \"x\", \"outPath\": \"{path}\"}}"), narinfo.clone()),
            (format!("{{\"outPath\": \"/nix/store/{path}\", \"signatures\": []}}"), narinfo),
            (format!("{{\"archive\": \"../{nar}\", \"member\": \"x\"}}"), nar.parse().ok()),
            (format!("{{\"archive\": \"{nar}\"}}"), None),
            ("{\"archive\": \"../../x\", \"member\": \"x\"}".to_owned(), None),
            ("{\"outPath\": \"hello\"}".to_owned(), None),
            ("{}".to_owned(), None),
            ("[1".to_owned(), None),
        ] {
            assert_eq!(link(text.as_bytes()), to, "{text}");
        }
    }
}
