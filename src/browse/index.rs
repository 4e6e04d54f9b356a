//! An index of the names, referrers and upload times of all paths, in about 150 bytes per path.

use std::cmp::Reverse;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use crate::inventory::{Inventory, Stats};
use crate::nix::StorePathHash;

/// The number of days in the history of uploads and uses.
pub const HISTORY_DAYS: usize = 90;

const SECONDS_PER_DAY: u64 = 86_400;

/// An index of the paths of a cache.
#[derive(Debug)]
pub struct Index {
    /// The paths, sorted by name; those with the same name from the newest to the oldest.
    entries: Vec<IndexEntry>,
    /// The names in the order of the entries, each followed by a line feed.
    names: String,
    /// The names in lower case, for searches.
    lower: String,
    /// The positions of the entries, sorted by hash part.
    by_hash: Vec<u32>,
    /// The positions of the entries, from the newest to the oldest upload.
    by_upload: Vec<u32>,
    /// The positions of the referrers of all entries, in the order of the entries.
    referrers: Vec<u32>,
    /// For each entry, the end of its referrers in `referrers`.
    referrers_end: Vec<u32>,
    stats: Stats,
    days: DailyCounts,
    built_at: SystemTime,
}

#[derive(Debug, Clone, Copy)]
struct IndexEntry {
    hash: StorePathHash,
    /// The start of the name in `names`.
    name: u32,
    size: u64,
    uploaded: Seconds,
    used: Seconds,
    mirrored: bool,
}

/// Seconds since 1970, in 4 bytes. They overflow in 2106.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seconds(u32);

/// A store path of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The hash part of the store path.
    pub hash: StorePathHash,
    /// The name of the store path.
    pub name: &'a str,
    /// Bytes in the narinfo, the NAR and all other objects of the path.
    pub size: u64,
    /// The time when the narinfo was written.
    pub uploaded: SystemTime,
    /// The last use of the path.
    pub used: SystemTime,
    /// Whether the path was mirrored from an upstream, and not uploaded since.
    pub mirrored: bool,
}

/// The numbers of paths by day, for the last [`HISTORY_DAYS`] days in UTC. The last day is today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DailyCounts {
    /// The start of the first day.
    pub first: SystemTime,
    /// The number of paths that were uploaded on each day.
    pub uploaded: [u32; HISTORY_DAYS],
    /// The number of paths whose last use was on each day.
    pub used: [u32; HISTORY_DAYS],
}

impl Index {
    /// Builds the index of an inventory that was read at `now`.
    pub fn new(inventory: &Inventory, now: SystemTime) -> Self {
        let paths = &inventory.paths;
        let mut order: Vec<u32> = (0..to_u32(paths.len())).collect();
        order.sort_unstable_by_key(|&at| {
            let path = &paths[at as usize];
            (path.store_path.name(), Reverse(path.uploaded), path.store_path.hash())
        });

        let length: usize = paths.iter().map(|path| path.store_path.name().len() + 1).sum();
        let mut names = String::with_capacity(length);
        let mut position_of = vec![0; paths.len()];
        let mut entries = Vec::with_capacity(paths.len());
        let mut days = DailyCounts::until(now);
        for (position, &at) in order.iter().enumerate() {
            let path = &paths[at as usize];
            let used = inventory.last_use(at as usize);
            days.count(path.uploaded, used);
            position_of[at as usize] = to_u32(position);
            entries.push(IndexEntry {
                hash: path.store_path.hash(),
                name: to_u32(names.len()),
                size: inventory.size_with_shared(at as usize),
                uploaded: path.uploaded.into(),
                used: used.into(),
                mirrored: path.mirrored,
            });
            names.push_str(path.store_path.name());
            names.push('\n');
        }

        let positions = || (0..to_u32(entries.len())).collect::<Vec<u32>>();
        let (mut by_hash, mut by_upload) = (positions(), positions());
        by_hash.sort_unstable_by_key(|&position| entries[position as usize].hash);
        // The sort is stable, so paths with the same upload time are sorted by name.
        by_upload.sort_by_key(|&position| Reverse(entries[position as usize].uploaded));

        // A counting sort by reference: the referrers of each path are counted, then placed.
        let references = || {
            let each = paths.iter().enumerate();
            each.flat_map(|(at, path)| path.references.iter().map(move |&to| (at, to as usize)))
        };
        let mut referrers_end = vec![0; paths.len()];
        references().for_each(|(_, to)| referrers_end[position_of[to] as usize] += 1);
        let mut sum = 0;
        for end in &mut referrers_end {
            sum += *end;
            *end = sum;
        }
        let mut next = referrers_end.clone();
        let mut referrers = vec![0; sum as usize];
        for (at, to) in references() {
            let next = &mut next[position_of[to] as usize];
            *next -= 1;
            referrers[*next as usize] = position_of[at];
        }

        let lower = names.to_ascii_lowercase();
        let mut index = Self {
            entries,
            names,
            lower,
            by_hash,
            by_upload,
            referrers,
            referrers_end,
            stats: Stats::of(inventory),
            days,
            built_at: now,
        };
        for position in 0..index.entries.len() {
            let range = index.referrers_range(position);
            index.referrers[range].sort_unstable();
        }
        index
    }

    /// Returns the time at which the index was built.
    pub fn built_at(&self) -> SystemTime {
        self.built_at
    }

    /// Returns the statistics of the cache.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Returns the numbers of uploads and last uses by day.
    pub fn days(&self) -> &DailyCounts {
        &self.days
    }

    /// Returns the positions of all paths, from the newest to the oldest.
    pub fn newest(&self) -> &[u32] {
        &self.by_upload
    }

    /// Returns the positions of the paths whose names contain every word of `query`, in any case.
    /// Names that begin with the first word come first; otherwise they are sorted by name. Without
    /// a word, all paths are returned, from the newest to the oldest.
    pub fn search(&self, query: &str) -> Vec<u32> {
        let query = query.to_ascii_lowercase();
        let words: Vec<&str> = query.split_whitespace().collect();
        let (Some(first), Some(longest)) =
            (words.first(), words.iter().max_by_key(|word| word.len()))
        else {
            return self.by_upload.clone();
        };
        let mut found = Vec::new();
        let mut end = 0;
        for (at, _) in self.lower.match_indices(longest) {
            // Further matches in the same name are skipped.
            if at < end {
                continue;
            }
            let position = self.entries.partition_point(|entry| entry.name as usize <= at) - 1;
            let name = self.name_range(position);
            end = name.end;
            if words.iter().all(|word| self.lower[name.clone()].contains(word)) {
                found.push(to_u32(position));
            }
        }
        // The sort is stable, so the other order is kept.
        found.sort_by_key(|&position| {
            !self.lower[self.name_range(position as usize)].starts_with(first)
        });
        found
    }

    /// Returns the position of the path with this hash part.
    pub fn find(&self, hash: StorePathHash) -> Option<u32> {
        let hash_at = |&position: &u32| self.entries[position as usize].hash;
        let at = self.by_hash.binary_search_by_key(&hash, hash_at).ok()?;
        Some(self.by_hash[at])
    }

    /// Returns the path at a position.
    pub fn row(&self, position: u32) -> Row<'_> {
        let entry = self.entries[position as usize];
        Row {
            hash: entry.hash,
            name: &self.names[self.name_range(position as usize)],
            size: entry.size,
            uploaded: entry.uploaded.into(),
            used: entry.used.into(),
            mirrored: entry.mirrored,
        }
    }

    /// Returns the positions of the referrers of a path, without itself, sorted by name.
    pub fn referrers(&self, position: u32) -> &[u32] {
        &self.referrers[self.referrers_range(position as usize)]
    }

    fn referrers_range(&self, position: usize) -> Range<usize> {
        let begin = position.checked_sub(1).map_or(0, |before| self.referrers_end[before]);
        begin as usize..self.referrers_end[position] as usize
    }

    /// Returns the range of the name of an entry in `names`, without its line feed.
    fn name_range(&self, position: usize) -> Range<usize> {
        let next =
            self.entries.get(position + 1).map_or(self.names.len(), |entry| entry.name as usize);
        self.entries[position].name as usize..next - 1
    }
}

impl DailyCounts {
    fn until(now: SystemTime) -> Self {
        let today = Seconds::from(now).day();
        let first = today.saturating_sub(HISTORY_DAYS as u64 - 1) * SECONDS_PER_DAY;
        Self {
            first: SystemTime::UNIX_EPOCH + Duration::from_secs(first),
            uploaded: [0; HISTORY_DAYS],
            used: [0; HISTORY_DAYS],
        }
    }

    fn count(&mut self, uploaded: SystemTime, used: SystemTime) {
        let first = Seconds::from(self.first).day();
        for (time, counts) in [(uploaded, &mut self.uploaded), (used, &mut self.used)] {
            let day = Seconds::from(time).day().checked_sub(first);
            if let Some(count) = day.and_then(|day| counts.get_mut(day as usize)) {
                *count += 1;
            }
        }
    }
}

impl Seconds {
    fn day(self) -> u64 {
        u64::from(self.0) / SECONDS_PER_DAY
    }
}

impl From<SystemTime> for Seconds {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
    }
}

impl From<Seconds> for SystemTime {
    fn from(seconds: Seconds) -> Self {
        Self::UNIX_EPOCH + Duration::from_secs(u64::from(seconds.0))
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2^32 paths and bytes in names")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{StoredObject, StoredPath};
    use crate::nix::StorePath;

    fn held(number: u32, name: &str, references: &[u32], uploaded: u64) -> StoredPath {
        let mut bytes = [0; 20];
        // Multiplied, so that hash parts are in another order than the numbers.
        bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_le_bytes());
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        let store_path: StorePath =
            format!("{}-{name}", StorePathHash::new(bytes)).parse().unwrap();
        let uploaded = SystemTime::UNIX_EPOCH + Duration::from_secs(uploaded);
        StoredPath {
            store_path,
            nar: None,
            log: None,
            references: references.into(),
            side_files: Vec::new(),
            size: u64::from(number),
            nar_size: 1,
            mirrored: number % 2 == 1,
            uploaded,
            used: uploaded,
        }
    }

    fn index(paths: Vec<StoredPath>, now: u64) -> Index {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        Index::new(&Inventory::new(paths, Vec::new(), Vec::new()), now)
    }

    fn names(index: &Index, positions: &[u32]) -> Vec<String> {
        positions.iter().map(|&position| index.row(position).name.to_owned()).collect()
    }

    #[test]
    fn a_search_finds_names_with_all_words_and_ranks_prefix_matches_first() {
        let list = ["zlib-1.3", "python3.12-Zlib", "zlib-1.2", "hello", "hello-hello-doc"];
        let paths = list.iter().zip(0..).map(|(name, number)| held(number, name, &[], 9)).collect();
        let index = index(paths, 9);
        let found = |query: &str| names(&index, &index.search(query));
        assert_eq!(found("zlib"), ["zlib-1.2", "zlib-1.3", "python3.12-Zlib"]);
        assert_eq!(found("ZLIB 1.3"), ["zlib-1.3"]);
        assert_eq!(found("3.12 zlib"), ["python3.12-Zlib"]);
        assert_eq!(found("hello"), ["hello", "hello-hello-doc"]);
        assert_eq!(found("1.3 nothing"), [""; 0]);
        // A match does not extend over the end of a name.
        assert_eq!(found("hellohello"), [""; 0]);
        assert_eq!(found(" ").len(), 5);
    }

    #[test]
    fn the_newest_paths_come_first_among_all_and_among_those_of_one_name() {
        let paths = vec![
            held(0, "a", &[], 10),
            held(1, "b", &[], 30),
            held(2, "a", &[], 20),
            held(3, "c", &[], 5),
        ];
        let index = index(paths, 40);
        let sizes: Vec<u64> = index.search("a").iter().map(|&at| index.row(at).size).collect();
        assert_eq!(sizes, [2, 0]);
        assert_eq!(names(&index, index.newest()), ["b", "a", "a", "c"]);
        assert!(index.row(index.newest()[0]).mirrored);
    }

    #[test]
    fn the_index_has_the_referrers_of_each_path() {
        let paths = vec![
            held(0, "glibc", &[], 1),
            held(1, "app", &[0, 2], 1),
            held(2, "bash", &[0], 1),
            held(3, "zsh", &[0], 1),
        ];
        let hashes: Vec<StorePathHash> = paths.iter().map(|path| path.store_path.hash()).collect();
        let index = index(paths, 1);
        let referrers = |number: usize| {
            let position = index.find(hashes[number]).unwrap();
            names(&index, index.referrers(position))
        };
        assert_eq!(referrers(0), ["app", "bash", "zsh"]);
        assert_eq!(referrers(1), [""; 0]);
        assert_eq!(referrers(2), ["app"]);
        assert_eq!(referrers(3), [""; 0]);
        assert_eq!(index.find(StorePathHash::new([7; 20])), None);
    }

    #[test]
    fn uploads_and_uses_are_counted_by_day_up_to_today() {
        let day = SECONDS_PER_DAY;
        let today = 20_000 * day;
        let times = [today, today + 5, today - 1, today - (HISTORY_DAYS as u64 - 1) * day];
        let outside = [today - (HISTORY_DAYS as u64 - 1) * day - 1, today + day];
        let paths = times.iter().chain(&outside).zip(0..).map(|(&at, n)| held(n, "x", &[], at));
        let days = index(paths.collect(), today + 60).days().clone();
        assert_eq!(days.uploaded[HISTORY_DAYS - 2..], [1, 2]);
        assert_eq!(days.uploaded[0], 1);
        assert_eq!(days.uploaded.iter().sum::<u32>(), 4);
        assert_eq!(days.used, days.uploaded);
    }

    #[test]
    fn sizes_and_last_uses_include_the_nar() {
        let nar = format!("nar/{:0>52}.nar.xz", 1).parse().unwrap();
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(50);
        let nar = StoredObject { path: nar, side_files: Vec::new(), size: 1000, used };
        let mut path = held(4, "x", &[], 10);
        path.nar = Some(0);
        let inventory = Inventory::new(vec![path], vec![nar], Vec::new());
        let index = Index::new(&inventory, used);
        let row = index.row(0);
        assert_eq!((row.size, row.used), (1004, used));
    }

    /// Measures a quarter of 200,000 paths, with realistic names and numbers of references.
    #[test]
    fn the_index_of_200_000_paths_takes_less_than_60_mb() {
        let count = 50_000_u32;
        let paths = (0..count).map(|number| {
            let references: Vec<u32> =
                (1..=12).map(|n| number.wrapping_mul(n * 7919) % count).collect();
            held(number, &format!("python3.12-some-package-{number}-1.2.3"), &references, 1)
        });
        let index = index(paths.collect(), 1);
        let bytes = index.entries.capacity() * size_of::<IndexEntry>()
            + index.names.capacity()
            + index.lower.capacity()
            + (index.by_hash.capacity() + index.by_upload.capacity()) * size_of::<u32>()
            + (index.referrers.capacity() + index.referrers_end.capacity()) * size_of::<u32>();
        assert!(bytes < 60_000_000 / 4, "{bytes}");
        assert_eq!(index.search("package-12345-").len(), 1);
    }
}
