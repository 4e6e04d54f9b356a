//! Reads the contents of a cache from its store.

use std::collections::HashMap;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::warn;

use super::contents::{
    Inventory, InventoryError, StoredObject, StoredPath, index_by_hash, to_index,
};
use crate::logging::with_causes;
use crate::nix::{CachePath, LenientNarInfo, NarInfo, StoreDir, StorePath, StorePathHash};
use crate::store::{Listed, ListedObject, Store, StoreError, background};

/// The name of a path whose narinfo has no valid store path.
const UNPARSED_NAME: &str = "unparsed-narinfo";

/// A parsed narinfo, before its references are resolved.
struct ParsedNarInfo {
    held: StoredPath,
    nar: Option<CachePath>,
    deriver: Option<StorePath>,
    references: Box<[StorePathHash]>,
}

/// A side file, with the path or NAR that it belongs to.
struct LinkedSideFile {
    object: StoredObject,
    owner: Option<CachePath>,
}

/// Builds an inventory from listed objects.
#[derive(Default)]
struct InventoryBuilder {
    paths: Vec<ParsedNarInfo>,
    nars: HashMap<CachePath, u32>,
    logs: HashMap<StorePath, StoredObject>,
    side_files: Vec<LinkedSideFile>,
    /// NARs that broken narinfos name besides the last one.
    extra_nars: Vec<CachePath>,
    /// The number of narinfos that parse.
    parsed: usize,
    /// The number of narinfos for another store directory.
    other_store_dir: usize,
    inventory: Inventory,
}

impl Inventory {
    /// Reads the contents of `store`, whose paths are in `store_dir`. `on_progress` receives the
    /// number of objects so far.
    pub async fn read(
        store: &Store,
        store_dir: &StoreDir,
        mut on_progress: impl FnMut(u64),
    ) -> Result<Self, InventoryError> {
        let (count, mut counted) = watch::channel(0);
        let objects = store.list(names_others);
        let (store_dir, runtime) = (store_dir.clone(), Handle::current());
        // Parsing many narinfos takes seconds, too long for a thread that serves requests.
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

/// Whether the content of an object names other objects, so that it must be read.
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
    let mut builder = InventoryBuilder::default();
    let mut count = 0;
    while let Some(object) = objects.next().await {
        match object? {
            Listed::Object(object) => builder.add(object, store_dir),
            Listed::Unreadable(path @ CachePath::NarInfo(_), error) => {
                builder.inventory.unreadable.push((path, error));
            }
            // An object that is missing from the inventory is never removed.
            Listed::Unreadable(path, error) => {
                warn!(%path, error = %with_causes(&error), "cannot read an object; it is kept");
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
    // Fails if the receiver was dropped, because the caller no longer waits.
    let _ = counted.send(count);
    if builder.parsed == 0 && builder.other_store_dir > 0 {
        return Err(InventoryError::OtherStoreDir(store_dir.clone()));
    }
    Ok(builder.finish())
}

impl InventoryBuilder {
    fn add(&mut self, listed: ListedObject, store_dir: &StoreDir) {
        let ListedObject { path, metadata, content } = listed;
        let object =
            StoredObject { path, side_files: Vec::new(), size: metadata.size, used: metadata.used };
        match &object.path {
            CachePath::NarInfo(hash) => {
                let (hash, text) = (*hash, content.unwrap_or_default());
                match NarInfo::parse(&text, store_dir) {
                    Ok(info) if info.store_path.hash() == hash => {
                        self.parsed += 1;
                        self.add_narinfo(info, &object, metadata.modified);
                    }
                    _ => {
                        let is_other = is_of_other_store_dir(&text, store_dir);
                        self.other_store_dir += usize::from(is_other);
                        self.add_unparsed_narinfo(hash, &text, object, metadata.modified);
                    }
                }
            }
            CachePath::Nar(_) => {
                self.nars.insert(object.path.clone(), to_index(self.inventory.shared.len()));
                self.inventory.shared.push(object);
            }
            CachePath::Log(derivation) => {
                self.logs.insert(derivation.clone(), object);
            }
            CachePath::Listing(hash) => {
                let owner = Some(CachePath::NarInfo(*hash));
                self.side_files.push(LinkedSideFile { object, owner });
            }
            _ => {
                let owner = content.and_then(|text| owner_of(&text));
                self.side_files.push(LinkedSideFile { object, owner });
            }
        }
    }

    fn add_narinfo(&mut self, info: NarInfo, object: &StoredObject, uploaded: SystemTime) {
        let references = info.references.iter().map(StorePath::hash);
        let references = references.filter(|hash| *hash != info.store_path.hash()).collect();
        let nar = info.named_nar().map(CachePath::Nar);
        let mirrored = info.upstream().is_some();
        self.paths.push(ParsedNarInfo {
            nar,
            deriver: info.deriver,
            references,
            held: StoredPath {
                store_path: info.store_path,
                nar: None,
                log: None,
                references: Box::default(),
                side_files: Vec::new(),
                size: object.size,
                nar_size: info.nar_size,
                mirrored,
                uploaded,
                used: object.used,
            },
        });
    }

    /// Adds a narinfo that does not parse. If it names a NAR or references it counts as a path,
    /// because it is served, and some version of Nix may accept it.
    fn add_unparsed_narinfo(
        &mut self,
        hash: StorePathHash,
        text: &[u8],
        object: StoredObject,
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
        self.extra_nars.extend(nars.into_iter().map(CachePath::Nar));
        let name = named.store_path.filter(|path| path.hash() == hash);
        let name = name.unwrap_or_else(|| {
            format!("{hash}-{UNPARSED_NAME}")
                .parse()
                .expect("a hash part and a name are a store path")
        });
        self.paths.push(ParsedNarInfo {
            nar,
            deriver: named.deriver,
            references: named.references.into_iter().filter(|other| *other != hash).collect(),
            held: StoredPath {
                store_path: name,
                nar: None,
                log: None,
                references: Box::default(),
                side_files: Vec::new(),
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
        inventory.index_by_hash =
            index_by_hash(self.paths.iter().map(|path| &path.held.store_path));
        let mut logs: HashMap<StorePath, u32> = HashMap::new();
        for ParsedNarInfo { mut held, nar, deriver, references } in self.paths {
            held.nar = nar.and_then(|nar| self.nars.get(&nar).copied());
            held.references = references
                .iter()
                .filter_map(|hash| inventory.index_by_hash.get(hash).copied())
                .collect();
            if let Some(deriver) = deriver {
                if let Some(log) = self.logs.remove(&deriver) {
                    logs.insert(deriver.clone(), to_index(inventory.shared.len()));
                    inventory.shared.push(log);
                }
                held.log = logs.get(&deriver).copied();
            }
            inventory.paths.push(held);
        }
        inventory.referenced_by_broken =
            self.extra_nars.iter().filter_map(|nar| self.nars.get(nar).copied()).collect();
        inventory.unowned.extend(self.logs.into_values());
        for LinkedSideFile { object, owner } in self.side_files {
            let index = match &owner {
                Some(CachePath::NarInfo(hash)) => inventory.index_by_hash.get(hash),
                Some(nar) => self.nars.get(nar),
                None => None,
            };
            match (index, owner) {
                (Some(&index), Some(CachePath::NarInfo(_))) => {
                    let path = &mut inventory.paths[index as usize];
                    path.size += object.size;
                    path.used = path.used.max(object.used);
                    path.side_files.push(object.path);
                }
                (Some(&index), _) => {
                    let nar = &mut inventory.shared[index as usize];
                    nar.size += object.size;
                    nar.used = nar.used.max(object.used);
                    nar.side_files.push(object.path);
                }
                (None, _) => inventory.unowned.push(object),
            }
        }
        self.inventory
    }
}

/// Whether a narinfo is for a path in another store directory.
fn is_of_other_store_dir(text: &[u8], store_dir: &StoreDir) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"StorePath: "));
    path.is_some_and(|path| !path.starts_with(store_dir.as_str().as_bytes()))
}

/// Returns the object that a realisation, a build trace or a link to debug symbols belongs to.
fn owner_of(text: &[u8]) -> Option<CachePath> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct SideFileLink {
        /// The base name of a store path (realisations, build traces).
        out_path: Option<String>,
        /// A NAR, relative to `debuginfo/`.
        archive: Option<String>,
    }
    let link: SideFileLink = serde_json::from_slice(text).ok()?;
    match link {
        SideFileLink { out_path: Some(path), .. } => {
            let path = path.rsplit('/').next()?.parse::<StorePath>().ok()?;
            Some(CachePath::NarInfo(path.hash()))
        }
        SideFileLink { archive: Some(nar), .. } => nar.strip_prefix("../")?.parse().ok(),
        SideFileLink { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_side_file_is_a_path_or_a_nar() {
        let path = "8ha1dhmx807czjczmwy078s4r9s254il-hello";
        let nar = format!("nar/{:0>52}.nar.xz", 1);
        let narinfo = Some("8ha1dhmx807czjczmwy078s4r9s254il.narinfo".parse().unwrap());
        for (text, owner) in [
            (format!("{{\"id\": \"x\", \"outPath\": \"{path}\"}}"), narinfo.clone()),
            (format!("{{\"outPath\": \"/nix/store/{path}\", \"signatures\": []}}"), narinfo),
            (format!("{{\"archive\": \"../{nar}\", \"member\": \"x\"}}"), nar.parse().ok()),
            (format!("{{\"archive\": \"{nar}\"}}"), None),
            ("{\"archive\": \"../../x\", \"member\": \"x\"}".to_owned(), None),
            ("{\"outPath\": \"hello\"}".to_owned(), None),
            ("{}".to_owned(), None),
            ("[1".to_owned(), None),
        ] {
            assert_eq!(owner_of(text.as_bytes()), owner, "{text}");
        }
    }
}
